/*
 * memcached.h: the memcached protocol, text and meta, as 1.6.18 speaks it, for the engine (protocols/protocol.h). Pure: no system
 * call, no clock (now_s is given), no thread, no memory but what a struct buffer grows by.
 *
 * What is logged (rewrite() of a WRITE, `command` of decide()) has four properties: times are absolute; the backend answers it exactly
 * once; run again, or on a copy that already holds a part of what comes later in the log, it leads to the same data once the log's
 * end is reached; and what it does depends on no CAS number. Several lines may be in it: those before the last end in `noreply`.
 *
 * Nothing that was not understood is forwarded: what the backend is given is written anew from the parsed parts. Where the server
 * itself would go on and run the rest as commands though a value was meant (a storage line that it refuses before it knows the
 * length; a value that does not end where it should), the connection is closed behind the server's own error. A value too large is
 * swallowed, as by the server; it may be 2 GiB.
 *
 * CAS: what a client sees is term << 48 | the backend's number. A number of another term matches nothing, but counts as an older one
 * where the older one may do something (ms with I).
 *
 * Exact are, with the `exact` limit: outcomes, values, client flags, error texts, the verdict on a CAS number, and expiry to the second
 * (an item that keeps its own keeps it without drift: the question then brings the backend's own clock). What is not so, and what
 * clients are told otherwise than by the server, is listed in docs/memcached.md. For the engine:
 *   - An item that is stale (md I) and given out to nobody yet gives its token (W) to whoever asks, so also to a question. Unless that
 *     was for an mg, it is taken back by logging `md <key> I`. Plain mg is a READ: who wins by it wins at this leader, the other nodes do not
 *     know that a token is out.
 *   - gat of several keys is logged as it stands, as is everything with a time where the limit is not `exact`.
 *   - A delayed flush_all is each server's own state: a node that is filled afterwards does not know of it.
 */
#ifndef MUSIDECAR_MEMCACHED_H
#define MUSIDECAR_MEMCACHED_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "buffer.h"
#include "protocols/protocol.h"

#define MEMCACHED_TERM_SHIFT 48

/* What the leader's backend holds under a key. */
struct memcached_item {
    struct buffer value;
    bool failed;        /* the backend could not tell, for want of memory: nothing can be decided */
    bool present;
    bool binary;        /* is printed in base64 */
    bool stale;         /* X */
    bool sent;          /* the token to store it anew is out: Z */
    bool stolen;        /* ... and it was given to the question */
    bool cas_known;     /* else no number matches it */
    bool hit;           /* h, and */
    uint32_t idle_s;    /* l: of an mg that asks for them */
    uint32_t client_flags;
    int64_t expires_s;  /* 0: never; -1: at once; else absolute */
    int64_t lag_s;      /* the backend's clock is behind by so much, where the question asked for it */
    uint64_t cas;       /* the backend's number */
};

/* Not kept between calls: a line that is not whole (its bytes before `scanned` are not looked at again), a value that is not: the line
 * is read again, once, when it is. */
void memcached_request(const struct protocol_limits *limits, const uint8_t *bytes, size_t length, struct protocol_request *r,
                       struct buffer *answer);
void memcached_rewrite(const struct protocol_request *r, const uint8_t *bytes, uint64_t now_s, struct buffer *out);
uint32_t memcached_question(const struct protocol_request *r, const uint8_t *bytes, struct buffer *out);
bool memcached_item(void *item, const uint8_t *answer, size_t length, uint64_t now_s);
void memcached_item_free(void *item);
bool memcached_decide(const struct protocol_request *r, const uint8_t *bytes, void *item, uint64_t term, uint64_t now_s,
                      struct buffer *command, struct buffer *reply, uint32_t *style);
size_t memcached_reply(struct protocol_reply *state, uint32_t answers, const uint8_t *bytes, size_t length, enum protocol_status *status);
bool memcached_answer(uint32_t style, const uint8_t *reply, size_t reply_length, const uint8_t *ack, size_t ack_length, uint64_t term,
                      struct buffer *out);
/* protocol.h: delays() and due. */
extern const char memcached_flush[];
bool memcached_delays(const uint8_t *command, size_t length, uint64_t *due_s);
bool memcached_failed(const uint8_t *ack, size_t ack_length);
void memcached_status(const char *name, uint64_t value, struct buffer *out);

extern const struct protocol memcached_protocol;

#endif
