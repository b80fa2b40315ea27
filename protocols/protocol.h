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
    PROTOCOL_STATUS = 8,  /* about the sidecar: status() says how it is put */
    PROTOCOL_CLOSE = 9    /* the text was appended (or none); the connection ends behind it */
};

#define PROTOCOL_PARSED_WORDS 80u

struct protocol_request {
    enum protocol_class class;
    size_t length;       /* bytes of the request, line ends and value included */
    size_t wanted;       /* MORE: nothing changes before so many bytes are there; 0: not known */
    size_t scanned;      /* MORE, and when called again for the same request: bytes that need no second look */
    uint64_t swallow;    /* bytes behind it that are part of it and not worth keeping */
    uint64_t key_hash;   /* WRITE, DECIDE: of what it changes; equal keys have equal hashes, however they are spelled */
    bool all_keys;       /* ... may change any key, or several */
    uint32_t style;      /* what answer() must know of it */
    const char *why;     /* CLOSE: a line for the log, or NULL */
    uint64_t now_us;     /* DECIDE, when it is decided: the time */
    uint64_t parsed[PROTOCOL_PARSED_WORDS]; /* the protocol's own */
};

struct protocol_limits {
    uint64_t item_bytes_max;
    bool exact; /* whatever could differ between replicas by their clocks or memory is decided by the leader */
    const char *names; /* what requests may name, each with a line feed on both sides: "\nA\nB\n"; NULL: anything */
};

enum protocol_status { PROTOCOL_REPLY_MORE = 0, PROTOCOL_REPLY_WHOLE = 1, PROTOCOL_REPLY_BAD = -1 };
struct protocol_reply { uint64_t state[10]; }; /* all zero in front of an answer */

struct protocol {
    const char *name;
    const char *ping;     /* a request that only a living backend answers, once, on any connection */
    const char *full;     /* told to a client for which there is no place */
    bool takes_its_time;  /* ... with a request, longer than it takes to wake up: a follower's is then woken for each, so as not to be behind */
    size_t item_bytes;    /* size of what item() fills; zeroed before its first use, used again and again */
    /* What stands at the start of `bytes`; text for the client goes to `answer`. The same at every node. */
    void (*request)(const struct protocol_limits *limits, const uint8_t *bytes, size_t length, struct protocol_request *r,
                    struct buffer *answer);
    /* READ, WRITE, LOCAL: appends what the backend is given, which it answers exactly once. */
    void (*rewrite)(const struct protocol_request *r, const uint8_t *bytes, uint64_t now_us, struct buffer *out);
    /* NULL, or: appends what goes in front of a logged request where it is given to a backend. Numbers rise along the log and are the
     * same at every node. A backend that is told them says in a copy up to which one it holds (engine_install_copy()). */
    void (*stamp)(uint64_t number, struct buffer *out);
    /* NULL, or: whether the logged request changes when `due`, a request that changes all keys, is to be logged as well: *due_s,
     * Unix time, or 0: not any more. The leader sees to it. */
    bool (*delays)(const uint8_t *command, size_t length, uint64_t *due_s);
    const char *due;
    /* DECIDE: appends what the backend is asked; returns how often it answers that. */
    uint32_t (*question)(const struct protocol_request *r, const uint8_t *bytes, struct buffer *out);
    /* DECIDE: `item` becomes what the backend's answers to the question say. False: they are none. */
    bool (*item)(void *item, const uint8_t *answer, size_t length, uint64_t now_s);
    void (*item_free)(void *item);
    /* True: `command` is logged, and every backend is given it; answer(*style, reply, ...) puts what it says. False: nothing is logged,
     * and answer(*style, reply, nothing) is the answer. `item` becomes what the key holds afterwards. */
    bool (*decide)(const struct protocol_request *r, const uint8_t *bytes, void *item, uint64_t term, uint64_t now_s,
                   struct buffer *command, struct buffer *reply, uint32_t *style);
    /* Takes bytes of the backend, which answers `answers` times; returns how many belong to that. */
    size_t (*reply)(struct protocol_reply *state, uint32_t answers, const uint8_t *bytes, size_t length, enum protocol_status *status);
    /* Appends what the client is given: `ack` is the backend's whole answer, `reply` what decide() left. False: they do not belong
     * together. */
    bool (*answer)(uint32_t style, const uint8_t *reply, size_t reply_length, const uint8_t *ack, size_t ack_length, uint64_t term,
                   struct buffer *out);
    /* This backend did not do what was logged, for a reason of its own: others may have. */
    bool (*failed)(const uint8_t *ack, size_t ack_length);
    /* STATUS: appends a line; name NULL: the last one. */
    void (*status)(const char *name, uint64_t value, struct buffer *out);
};

#endif
