/*
 * machine.h: backends that do not reveal their effects (protocols/protocol.h). Every node's backend is given every committed
 * COMMAND, in log order, on the shared connection; the leader puts its clients' requests there itself, in the order in
 * which it logs them, and reads in between.
 *
 * A record's requests leave for the backend once the record is committed, so a node that stops leading drops what had not
 * left, and follows on with the same connection and the same data: there is nothing to undo. What an earlier leader logged
 * comes by the log, what this one logs is placed by itself; `placed` says how far, so that nothing is placed twice.
 *
 * A request is entered in the log with what decide() made of its answer behind it. Each node keeps the answers that its own
 * backend gave to requests of other nodes' clients, so that whoever leads next can give them (origin.h).
 */
#ifndef MUSIDECAR_ENGINE_MACHINE_H
#define MUSIDECAR_ENGINE_MACHINE_H

#include <stdatomic.h>
#include <time.h>

#include "buffer.h"
#include "protocols/protocol.h"

struct lock;
struct engine;
struct client;
struct request;
struct expect;
struct control;

struct place { /* the answers to what stands before `end` have come: so has all of the record */
    uint64_t end, index;
};

struct collected { uint64_t first, index, length; };

struct local { /* a client's connection to its own node's backend; see machine_local.c */
    struct socket *socket;
    struct protocol_reply state;
    struct buffer answer;
    uint32_t style;
    bool streams;
};

#define LOCK_BUCKETS 4096u

struct machine {
    const struct protocol *protocol; /* NULL: the backend reveals its effects, and nothing of this is used */
    struct protocol_limits limits;
    struct protocol_reply state;     /* of the answer coming in ... */
    struct buffer answer;            /* ... its bytes */
    struct buffer replies;           /* what decide() made for the expects of the shared connection, in order */
    struct buffer command, reply, given_answer; /* scratch */
    struct queue places;             /* struct place */
    uint64_t placed, applied;        /* last COMMAND placed; last record that went through apply */
    _Atomic uint64_t done, given, life, due_s; /* see engine_points() */
    struct queue delays;             /* machine_due.c */
    uint64_t lives;
    uint64_t flush_us;               /* what was placed at a follower leaves then, or when it is much; 0: nothing waits */
    bool reads;                      /* something of this turn needs a probe */
    struct lock *locks[LOCK_BUCKETS], *free_locks; /* machine_decide.c */
    uint32_t locked, known;          /* locks; ... that go on without asking */
    bool draining;                   /* who changes all keys waits until none is locked */
    /* The backend is being filled (machine_copy.c). */
    bool collects, want_pending;
    uint64_t collected_from, want_number, want_again_us;
    struct buffer collected;         /* struct collected, payload */
    uint64_t copied, complete;       /* the copy holds all up to that record, or request if it knows their numbers; with the records up to `complete` it is whole */
};

static inline uint64_t machine_now_us(void) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (uint64_t)now.tv_sec * 1000000u + (uint64_t)now.tv_nsec / 1000u;
}
static inline uint64_t machine_now_s(void) { return machine_now_us() / 1000000u; }

/* A logged request's place in the log: the record it begins in, and which request of that it is. */
#define STAMP_BITS 24u
static inline uint64_t machine_number(uint64_t index, uint64_t ordinal) { return index << STAMP_BITS | ordinal; }

/* machine.c */
bool machine_init(struct engine *e);
void machine_free(struct engine *e);
void machine_event(struct engine *e, uint32_t events);       /* the shared connection has something to say */
void machine_backend(struct engine *e);                      /* its state has changed */
void machine_admin_event(struct engine *e);
void machine_closed(struct engine *e);                       /* the shared connection is gone, and all that it held */
void machine_sealed(struct engine *e, uint64_t index);       /* what was appended belongs to this record */
void machine_given(struct engine *e, uint64_t index);        /* may leave for the backend: the record is committed */
void machine_stamp(struct engine *e, uint64_t ordinal);      /* in front of what is placed next, of the record to be proposed */
/* A record; it began with the one at `first`, where it takes several. */
void machine_apply(struct engine *e, uint64_t first, uint64_t index, const uint8_t *bytes, size_t length);
void machine_applied(struct engine *e, uint64_t index);
void machine_turn_end(struct engine *e);
bool machine_waits(struct engine *e);                        /* what was placed may stay a while: nobody waits for it */
void machine_step(struct engine *e);
void machine_recede(struct engine *e);                       /* this node does not lead any more */
void machine_takeover_begin(struct engine *e);
uint64_t machine_done(const struct engine *e);               /* last record that the backend has done, with all before it */
bool machine_caught_up(const struct engine *e);              /* the backend has answered everything */
void machine_place(struct engine *e, uint64_t first, uint64_t index, const uint8_t *bytes, size_t length);
/* Logs the request in machine.command and what its client is answered in machine.reply. False: no room now. */
bool machine_log(struct engine *e, const struct request *r, uint32_t style);

/* machine_decide.c */
bool machine_submit(struct engine *e, const struct request *r, struct buffer *holder); /* false: no room now */
void machine_answered(struct engine *e, uint64_t key_hash, const uint8_t *bytes, size_t length); /* a question */
void machine_locks_step(struct engine *e);
void machine_locks_clear(struct engine *e);
void machine_locks_free(struct engine *e);

/* machine_due.c */
void machine_due_init(struct machine *m);
void machine_due_logged(struct engine *e, const uint8_t *bytes, size_t length); /* it was placed, at the end of the shared connection */
void machine_due_done(struct machine *m, uint64_t end);      /* the backend has answered all in front of that */
void machine_due_recede(struct engine *e);
void machine_due_step(struct engine *e);

/* machine_client.c */
size_t machine_process(struct engine *e, struct client *c, const uint8_t *bytes, size_t length);

/* machine_local.c */
bool machine_ask_local(struct engine *e, struct client *c, const struct protocol_request *q, const uint8_t *bytes);
void machine_local_event(struct engine *e, struct client *c);
void machine_local_close(struct engine *e, struct client *c);

/* machine_copy.c */
void machine_want_copy(struct engine *e);
void machine_filled(struct engine *e, const struct control *c);
void machine_copy_failed(struct engine *e, uint64_t number);
void machine_copy_step(struct engine *e);
void machine_collect(struct engine *e, uint64_t first, uint64_t index, const uint8_t *bytes, size_t length);
void machine_dirty(struct engine *e);

#endif
