/* own_state.h: one connection of a client's own at the leader (own.h), for the files that deal with it. */
#ifndef MUSIDECAR_OWN_STATE_H
#define MUSIDECAR_OWN_STATE_H

#include "engine/engine_state.h"

struct own_expect { uint64_t sequence; uint32_t replies, swallow; int32_t database_after; uint32_t pause; uint32_t added; bool stands_in, lists, resets, asks_id, verifies; uint8_t enters /* answers up to SELECT's */, view, sets; int32_t view_count;
                    uint32_t named; uint8_t head[SLOW_HEAD_BYTES]; uint32_t behind; uint64_t since_ns; /* see slowlog.h */ };

struct arrival { struct destination to; size_t bytes; enum arrival_kind kind; uint8_t type; bool refused /* by busy.h */; int32_t database_after; };

struct own {
    struct socket socket;
    struct destination to;
    struct own *next, *previous;
    struct queue expects; /* answers that are to come; none: what comes is not counted */
    struct resp_reply reply;
    uint64_t appended, sendable, sent; /* absolute byte counts of socket.out */
    bool fresh;  /* nothing was sent on it yet: the backend has to accept it first */
    bool ends;   /* the client says no more: nor do we, once all is sent */
    bool paused;
    bool whole; /* what came last ended a line or an answer */
    bool lent;  /* its client did not ask for it: it is paused */
    struct own_peer peer;
    size_t unseen; /* bytes of answers in front of this one that its client is not given */
    struct buffer edited; /* an answer that is not passed on as it comes, so far */
    uint64_t number;      /* of all there were */
    struct own_settings settings;
    struct arrival held;  /* an answer that waits for the log, in `edited` */
    struct buffer rest;   /* what came behind an answer that waits for the log */
    bool adrift;          /* SELECT was refused, for a script's sake: it is in another database than its client */
    bool orphan;          /* its client has gone; what was sent for it may still change settings */
    uint64_t sync_at; /* as `sent`: here it asks to be a replica; 0: it does not */
    struct own_replica *replica; /* it has asked */
};

/* own.c */
void own_leave(struct engine *e, struct own *own); /* its client has no use for it any more */

/* own_answer.c */
void own_arrive(struct engine *e, const struct own *own, const struct arrival *a, const void *bytes); /* for its client */
bool own_bytes(struct engine *e, struct own *own, const uint8_t *bytes, size_t length); /* of the backend's; false: it cannot go on */
void own_end(struct engine *e, struct own *own);    /* its client is told that it is over */
void own_broken(struct engine *e, struct own *own); /* the backend has closed it */

/* own_ids.c */
/* A request that names clients by their nodes' numbers, by the backend's. False: as it is. */
bool own_ids_translate(const struct engine *e, struct own *own, const uint8_t *bytes, size_t length, struct buffer *out);
void own_ids_edit(const struct own_peer *peer, enum session_view view, struct buffer *answer); /* the other way */

#endif
