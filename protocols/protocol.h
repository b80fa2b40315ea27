/*
 * protocol.h: what the engine needs to know about a backend's protocol. There are two ways to keep replicas alike.
 *
 * Redis reveals its effects: its replication stream is what followers apply. The engine knows that protocol by name
 * (resp.h, commands.h, session.h, psync.h); what is said below holds for it in these terms:
 *   Frame a request. resp_request_feed() says of the bytes a client has sent so far whether a request is whole (DONE), not
 *     yet (MORE), nothing to do (EMPTY) or BAD, in which case the client gets the backend's own error and is closed. It
 *     copies and allocates nothing and looks at each byte once. It must agree with the backend on where a request ends,
 *     byte for byte, odd input included: requests of many clients share one connection, so a disagreement would hand one
 *     client's bytes, or another's answer, to somebody else. What only a person types (inline requests) is normalised first.
 *   Classify it. command_lookup() gives the command's way (READ, WRITE, SESSION, ADMIN, REFUSE), by what the running backend
 *     says of it and a reviewed list (commands.py). One that is not known there is never run unlogged unless the backend
 *     itself calls it readonly; what is no command gets the backend's own text (command_error()) and goes no further.
 *   Frame a reply. resp_reply_feed() says where one ends, and whether it is a push, which answers no request.
 *
 * Any other backend is a machine: what it holds follows from the requests that it was given, in order, once whatever is not
 * so (time, what a key holds at the moment) has been decided by the leader, and stands in the request that is logged. Every
 * node's backend is given every logged request on one ordered connection. Such a backend fills in struct protocol, and the
 * engine (machine*.c) asks nothing else of it. Functions are pure: no I/O, no clock, no state but what they are handed.
 *
 * The driver (Python, in the same folder) starts, watches and fills the backend.
 */
#ifndef MUSIDECAR_PROTOCOL_H
#define MUSIDECAR_PROTOCOL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "buffer.h"

enum protocol_class {
    PROTOCOL_MORE = 0,    /* not whole yet: `wanted` bytes are, if that is known */
    PROTOCOL_NOTHING = 1, /* `length` bytes that ask for nothing */
    PROTOCOL_READ = 2,    /* not logged; its answer waits for a permission probe */
    PROTOCOL_WRITE = 3,   /* logged as rewrite() puts it, whatever the backend holds */
    PROTOCOL_DECIDE = 4,  /* what is logged, if anything, depends on what the key holds: question(), then decide() */
    PROTOCOL_ANSWER = 5,  /* answered here: the text was appended; none if the client wants none */
    PROTOCOL_LOCAL = 6,   /* one question to this node's own backend */
    PROTOCOL_STREAM = 7,  /* a connection of its client's own to this node's backend, to the end */
    PROTOCOL_CLOSE = 8    /* the text was appended (or none); the connection ends behind it */
};

#define PROTOCOL_PARSED_WORDS 40u

struct protocol_request {
    enum protocol_class class;
    size_t length;       /* bytes of the request, line ends and value included */
    size_t wanted;       /* MORE: nothing changes before so many bytes are there; 0: not known */
    uint64_t key_hash;   /* WRITE, DECIDE: of what it changes; equal keys have equal hashes, however they are spelled */
    bool all_keys;       /* ... changes any key */
    uint32_t style;      /* what answer() must know of it */
    const char *why;     /* CLOSE: a line for the log, or NULL */
    uint64_t parsed[PROTOCOL_PARSED_WORDS]; /* the protocol's own */
};

struct protocol_limits { uint64_t item_bytes_max; };

enum protocol_status { PROTOCOL_REPLY_MORE = 0, PROTOCOL_REPLY_WHOLE = 1, PROTOCOL_REPLY_BAD = -1 };
struct protocol_reply { uint64_t state[4]; }; /* all zero in front of an answer */

struct protocol {
    const char *name;
    const char *ping;     /* a request that only a living backend answers, once, on any connection */
    const char *full;     /* told to a client for which there is no place */
    /* What stands at the start of `bytes`; text for the client goes to `answer`. The same at every node. */
    void (*request)(const struct protocol_limits *limits, const uint8_t *bytes, size_t length, struct protocol_request *out,
                    struct buffer *answer);
    /* READ, WRITE, LOCAL: appends what the backend is given, which it answers exactly once. */
    void (*rewrite)(const struct protocol_request *r, const uint8_t *bytes, uint64_t now_s, struct buffer *out);
    /* DECIDE: appends what the backend is asked. NULL: no request is of that class. */
    void (*question)(const struct protocol_request *r, const uint8_t *bytes, struct buffer *out);
    /* DECIDE: `item` (the protocol's own) is made of the backend's answer to the question. False: the answer is none. */
    bool (*item)(const uint8_t *answer, size_t length, uint64_t now_s, struct buffer *item);
    /* True: `command` is logged, and every backend is given it; `reply` is then merged with what the backend answers. False:
     * nothing is; `reply` is the answer. `item` becomes what the key holds afterwards. */
    bool (*decide)(const struct protocol_request *r, const uint8_t *bytes, struct buffer *item, uint64_t term, uint64_t now_s,
                   struct buffer *command, struct buffer *reply);
    /* Takes bytes of the backend; returns how many belong to the answer. */
    size_t (*reply)(struct protocol_reply *state, const uint8_t *bytes, size_t length, enum protocol_status *status);
    /* Appends what the client is given: `ack` is the backend's whole answer, `reply` what decide() made of it, if anything. */
    void (*answer)(uint32_t style, const uint8_t *reply, size_t reply_length, const uint8_t *ack, size_t ack_length, uint64_t term,
                   struct buffer *out);
};

#endif
