/*
 * handover.h: leadership handed over by plan (handover.c): its stages at the leader, and what every other node knows of it.
 */
#ifndef MUSIDECAR_HANDOVER_H
#define MUSIDECAR_HANDOVER_H

#include <stdbool.h>
#include <stdint.h>

#include "protocols/redis/psync.h"

struct control;
struct engine;
struct frame;

enum handover_stage {
    HANDOVER_NONE,
    HANDOVER_PREPARE, /* leader: the successor catches up, requests go on */
    HANDOVER_HOLD,    /* ... requests wait, what is in flight is being done */
    HANDOVER_YIELD,   /* ... nothing is in flight, the successor may take over */
    HANDOVER_GONE     /* it has; it does not serve yet */
};
struct handover {
    enum handover_stage stage; /* at the leader, or who was it */
    uint32_t target, attempt;  /* attempt: tells its frames from those of an earlier one */
    uint32_t held;             /* bit i: node i keeps its clients' requests back, and all of them are answered */
    uint64_t number, deadline_us, hold_limit_us, since_us;
    uint64_t offset;           /* end of the last EFFECT when nothing was in flight any more ... */
    char replid[REPLID_BYTES + 1]; /* ... and the history it is of */
    bool waits;                /* clients' requests wait: here, at the leader and at every other node */
    bool answered;             /* elsewhere: HELD was sent */
    bool asked, commanded;     /* at the successor: it is to catch up, and to take over then */
    uint32_t by, by_attempt;   /* elsewhere: whose hand-over it is */
    uint64_t until_us;         /* elsewhere: forget it then */
    uint64_t wanted_offset;    /* at the successor */
};

void handover_begin(struct engine *e, const struct control *c);
void handover_frame(struct engine *e, uint32_t peer, const struct frame *f);
void handover_step(struct engine *e);                     /* once a turn */
void handover_role(struct engine *e, uint64_t offset);    /* the own backend, a replica, has applied up to there */
void handover_link_closed(struct engine *e, uint32_t peer);
void handover_serves(struct engine *e, uint32_t peer);    /* a node, this one included, serves in its term */
void handover_cancel(struct engine *e, const char *why);  /* while this node leads, or because it stops to */
bool handover_completed(struct engine *e);                /* this node led: has it handed over with nothing in flight? */

#endif
