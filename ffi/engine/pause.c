/*
 * pause.c: automatic fail-over paused and resumed. That it is paused stands in the log and is part of every snapshot, so
 * every node knows, whoever leads, and whoever joins later: none takes over by itself then. A planned hand-over goes on.
 * Resumed while nobody leads it cannot be logged first: who is asked may take over, and logs it when it leads.
 */
#include "engine/engine_state.h"

void pause_want(struct engine *e, bool paused) { e->pause = (struct pause){.wish = paused ? PAUSE_ON : PAUSE_OFF}; }

static void propose(struct engine *e) {
    struct pause *p = &e->pause;
    if (p->term == e->term && p->index > replica_commit(e->replica)) return;
    struct pause_record record = {.kind = ADMIN_RECORD_PAUSE, .paused = p->wish == PAUSE_ON};
    turn_seal(e);
    int64_t index = replica_propose(e->replica, RECORD_ADMIN, 0, (struct record_origin){0, 0, 0}, &record, sizeof record);
    if (index <= 0) return; /* next time */
    p->term = e->term;
    p->index = (uint64_t)index;
}

void pause_tick(struct engine *e) {
    struct pause *p = &e->pause;
    bool done = e->log.paused == (p->wish == PAUSE_ON);
    if (p->wish == PAUSE_ON && !engine_leads(e)) done = true; /* only who leads can; whoever asked looks at the status */
    if (done) p->wish = PAUSE_NONE;
    replica_pause(e->replica, e->log.paused && p->wish != PAUSE_OFF);
    if (p->wish != PAUSE_NONE && engine_leads(e) && e->handover.stage == HANDOVER_NONE) propose(e);
}
