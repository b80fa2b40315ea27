/*
 * machine_due.c: a logged request that is to be followed by another at some time (protocol.h, delays()). Servers' clocks tick
 * when they like, and a follower's server is behind: left to themselves they would do it before one write here and behind it
 * there. So the leader logs the other request when it is time, at one place of the log for all. What is due is known by
 * what the backend has done, at every node, and goes with its data to one that comes late.
 */
#include "engine/engine_state.h"

#define NO_SLOT UINT32_MAX /* no client waits for it */

struct delay { uint64_t end, due_s; }; /* stands from when the answers to all in front of `end` have come */

void machine_due_init(struct machine *m) { queue_init(&m->delays, sizeof(struct delay), 4); }

void machine_due_logged(struct engine *e, const uint8_t *bytes, size_t length) {
    struct machine *m = &e->machine;
    uint64_t due_s;
    if (m->protocol->delays == NULL || !m->protocol->delays(bytes, length, &due_s)) return;
    *(struct delay *)queue_push(&m->delays) = (struct delay){e->shared.appended, due_s};
}

void machine_due_done(struct machine *m, uint64_t end) {
    for (struct delay *d = queue_front(&m->delays); d != NULL && d->end <= end; d = queue_front(&m->delays)) {
        atomic_store(&m->due_s, d->due_s);
        queue_pop(&m->delays);
    }
}

void machine_due_recede(struct engine *e) {
    struct queue *delays = &e->machine.delays;
    for (struct delay *d = queue_back(delays); d != NULL && d->end > e->shared.sendable; d = queue_back(delays)) delays->tail--;
}

void machine_due_step(struct engine *e) {
    struct machine *m = &e->machine;
    uint64_t due_s = atomic_load_explicit(&m->due_s, memory_order_relaxed);
    bool may = engine_leads(e) && e->handover.until_us == 0 && queue_length(&m->delays) == 0;
    if (due_s == 0 || !may || machine_now_s() < due_s) return;
    const struct session_decision decision = {.bytes = (const uint8_t *)m->protocol->due, .length = strlen(m->protocol->due)};
    const struct request request = {.from = {.node = e->self, .slot = NO_SLOT}, .decision = &decision, .protocol = 2};
    machine_submit(e, &request, NULL); /* if there is no room, or keys are locked: at the next turn */
}
