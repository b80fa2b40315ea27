/*
 * handover.c: leadership handed over by plan (R20), so that nobody's request fails and the successor has nothing to run
 * again. The leader has the successor catch up while requests go on; then every node keeps its clients' requests back and
 * says so once those under way are answered; what is left is done, and its EFFECT committed. Only then may the successor
 * campaign, and the leader leads until it is asked for its permission: where anything is late or refused it takes
 * requests again, and nothing has happened.
 */
#include <stdio.h>

#include "engine/engine_state.h"
#include "failpoint.h"

#define OTHERS_FACTOR 2ull /* the others forget a hand-over this much later than its leader gives it up */

/* ---- beginning and ending ------------------------------------------------------------------------------------------ */

static void tell(struct engine *e, uint64_t pause_us, const char *why) {
    struct handover *h = &e->handover;
    struct engine_event event = {.kind = ENGINE_HANDOVER, .level = h->target, .a = pause_us, .b = h->number};
    snprintf(event.text, sizeof event.text, "%s", why);
    event_push(e, &event);
}

/* This node's clients' requests go on. */
static void release(struct engine *e) {
    struct handover *h = &e->handover;
    if (!h->waits) return;
    h->waits = false;
    clients_wake_all(e);
}

void handover_cancel(struct engine *e, const char *why) {
    struct handover *h = &e->handover;
    if (h->stage == HANDOVER_NONE || h->stage == HANDOVER_GONE) return;
    bool held = h->stage > HANDOVER_PREPARE;
    h->stage = HANDOVER_NONE;
    engine_log(e, 30, "leadership is not handed over to node %u: %s", h->target + 1, why);
    tell(e, 0, why);
    release(e);
    if (held && engine_leads(e)) link_announce(e, true);
}

/* Why nothing can be handed over to that node; NULL when it can. */
static const char *objection(const struct engine *e, uint32_t target) {
    uint32_t bit = 1u << target;
    if (target == e->self) return "it leads already";
    if (!(replica_alive(e->replica) & bit) || e->links[target].socket.source.fd < 0) return "it is not there";
    if (!(replica_confirmed(e->replica) & bit)) return "its log is not up to date";
    if (!(replica_heirs(e->replica) & bit)) return "it is not eligible: its backend does not follow the log, or is down";
    return NULL;
}

static uint32_t choose(const struct engine *e) {
    for (uint32_t i = 0; i < e->nodes; i++)
        if (i != e->self && objection(e, i) == NULL) return i;
    return REPLICA_NOBODY;
}

static void ask_to_catch_up(struct engine *e, bool command) {
    struct handover *h = &e->handover;
    bool machine = e->machine.protocol != NULL;
    replica_flush_commit(e->replica);
    link_send(e, h->target, &(struct frame){.type = FRAME_CATCH_UP, .flags = command ? FRAME_LAST : 0, .generation = h->attempt,
                                            .sequence = machine ? replica_commit(e->replica) : e->log.effect_offset}, NULL);
}

void handover_begin(struct engine *e, const struct control *c) {
    struct handover *h = &e->handover;
    if (h->stage != HANDOVER_NONE) {
        struct engine_event event = {.kind = ENGINE_HANDOVER, .level = c->peer, .b = c->number};
        snprintf(event.text, sizeof event.text, "a hand-over is under way already");
        event_push(e, &event);
        return;
    }
    h->number = c->number;
    h->target = c->peer;
    if (!engine_leads(e)) return tell(e, 0, "this node does not lead");
    if (h->target == REPLICA_NOBODY) h->target = choose(e);
    if (h->target >= e->nodes) return tell(e, 0, "no other node may lead now");
    const char *why = objection(e, h->target);
    if (why != NULL) return tell(e, 0, why);
    h->stage = HANDOVER_PREPARE;
    h->attempt++;
    h->deadline_us = e->now_us + c->bytes;
    h->hold_limit_us = c->offset;
    engine_log(e, 20, "hands leadership over to node %u", h->target + 1);
    ask_to_catch_up(e, false);
}

/* ---- at the leader --------------------------------------------------------------------------------------------------- */

static void hold(struct engine *e) {
    struct handover *h = &e->handover;
    h->stage = HANDOVER_HOLD;
    h->since_us = e->now_us;
    h->deadline_us = e->now_us + h->hold_limit_us;
    h->held = 0;
    h->waits = true;
    struct frame frame = {.type = FRAME_HOLD, .slot = h->target, .generation = h->attempt, .sequence = h->hold_limit_us};
    for (uint32_t i = 0; i < e->nodes; i++)
        if (i != e->self) link_send(e, i, &frame, NULL);
}

/* Has every node whose requests come here kept them back? */
static bool all_hold(const struct engine *e) {
    for (uint32_t i = 0; i < e->nodes; i++)
        if (i != e->self && e->links[i].socket.source.fd >= 0 && !(e->handover.held & (1u << i))) return false;
    return true;
}

/* Everything that was taken is done, answered and in the log with its effect. */
static bool nothing_in_flight(const struct engine *e) {
    const struct shared *s = &e->shared;
    if (queue_length(&s->expects) > 0 || queue_length(&s->gates) > 0 || queue_length(&s->staged) > 0) return false;
    if (e->machine.locked > 0) return false;
    if (s->unproven || e->big.active || e->batch != NULL || e->cut.active) return false;
    if (buffer_length(&e->stream.effects) > 0 || e->log.effect_offset != e->stream.cut_offset) return false;
    if (queue_length(&e->log.uncovered) > 0 || replica_commit(e->replica) != replica_last(e->replica)) return false;
    for (uint32_t i = 0; i < e->clients_used; i++)
        if (e->clients[i].in_use && e->clients[i].outstanding > 0 && e->clients[i].session.own == OWN_NONE) return false;
    return true;
}

static void yield(struct engine *e) {
    struct handover *h = &e->handover;
    h->stage = HANDOVER_YIELD;
    h->offset = e->log.effect_offset;
    memcpy(h->replid, e->log.replid, sizeof h->replid);
    ask_to_catch_up(e, true);
    link_flush(e, h->target);
    failpoint(FAIL_YIELDED);
}

static void leader_step(struct engine *e) {
    struct handover *h = &e->handover;
    if (h->stage == HANDOVER_HOLD && all_hold(e)) owns_end(e, REPLICA_NOBODY); /* who is blocked there is not waited for (R14) */
    if (h->stage == HANDOVER_HOLD && all_hold(e) && nothing_in_flight(e)) yield(e);
    if (h->stage == HANDOVER_GONE && e->links[h->target].serving_term >= e->term) return handover_serves(e, h->target);
    if (e->now_us < h->deadline_us) return;
    switch (h->stage) {
        case HANDOVER_NONE: break;
        case HANDOVER_PREPARE: handover_cancel(e, "it did not catch up in time"); break;
        case HANDOVER_HOLD:
            handover_cancel(e, all_hold(e) ? "what was under way was not done in time" : "a node did not keep its clients back in time");
            break;
        case HANDOVER_YIELD: handover_cancel(e, "it did not take over in time"); break;
        case HANDOVER_GONE:
            h->stage = HANDOVER_NONE;
            tell(e, 0, "it took over, and does not serve yet");
            break;
    }
}

/* That its successor serves may have been heard before this: leader_step() looks. */
bool handover_completed(struct engine *e) {
    struct handover *h = &e->handover;
    if (h->stage != HANDOVER_YIELD) return false;
    h->stage = HANDOVER_GONE;
    h->deadline_us = e->now_us + e->config.takeover_timeout_us;
    h->waits = false; /* until somebody serves they wait all the same */
    h->by = h->target;
    h->until_us = e->now_us + OTHERS_FACTOR * h->hold_limit_us; /* its backend follows soon: it might take over itself */
    replica_defer(e->replica, h->until_us);
    return e->log.effect_offset == h->offset; /* else its successor's effects have come, and were passed over */
}

/* ---- at every other node ------------------------------------------------------------------------------------------------ */

static bool everything_answered(const struct engine *e) {
    for (uint32_t i = 0; i < e->clients_used; i++)
        if (e->clients[i].in_use && queue_length(&e->clients[i].pending) > 0 && e->clients[i].session.own == OWN_NONE) return false;
    return true;
}

static void unask(struct engine *e) { e->handover.asked = e->handover.commanded = false; }

static void forget(struct engine *e) {
    struct handover *h = &e->handover;
    if (h->until_us == 0) return;
    h->until_us = 0;
    unask(e);
    replica_defer(e->replica, 0);
    release(e);
}

static void refuse(struct engine *e) {
    struct handover *h = &e->handover;
    unask(e);
    link_send(e, h->by, &(struct frame){.type = FRAME_CAUGHT_UP, .flags = FRAME_REFUSED, .generation = h->by_attempt}, NULL);
}

static void follower_step(struct engine *e) {
    struct handover *h = &e->handover;
    if (e->now_us >= h->until_us) return forget(e);
    if (h->waits && !h->answered && everything_answered(e)) {
        h->answered = true;
        link_send(e, h->by, &(struct frame){.type = FRAME_HELD, .generation = h->by_attempt}, NULL);
    }
    if (!h->asked) return;
    if (e->takeover != TAKE_IDLE) return unask(e); /* it took over before it could be told to: the leader stood still */
    if (!backend_follows(e)) return refuse(e);
    if (e->machine.protocol != NULL) return handover_role(e, machine_done(e));
    if (e->log.effect_offset < h->wanted_offset) return;
    if (e->feed.sent_offset < e->feed.end_offset) feed_flush(e);
    admin_ask_role(e);
}

void handover_role(struct engine *e, uint64_t offset) {
    struct handover *h = &e->handover;
    if (!h->asked || offset < h->wanted_offset || e->takeover != TAKE_IDLE || e->backend != BACKEND_FED) return;
    if (h->commanded) {
        unask(e);
        if (!replica_campaign(e->replica, e->now_us)) refuse(e);
        return;
    }
    h->asked = false;
    link_send(e, h->by, &(struct frame){.type = FRAME_CAUGHT_UP, .generation = h->by_attempt}, NULL);
}

/* ---- what comes ---------------------------------------------------------------------------------------------------------- */

static void heard_from_leader(struct engine *e, uint32_t peer, const struct frame *f) {
    struct handover *h = &e->handover;
    if (link_leader(e) != peer || engine_leads(e)) return;
    h->by = peer;
    h->by_attempt = f->generation;
    if (f->type == FRAME_CATCH_UP) {
        if (h->until_us == 0) h->until_us = e->now_us + OTHERS_FACTOR * e->config.takeover_timeout_us;
        h->asked = true;
        h->commanded = f->flags & FRAME_LAST;
        h->wanted_offset = f->sequence;
        return;
    }
    uint64_t limit_us = f->sequence < e->config.wait_timeout_us ? f->sequence : e->config.wait_timeout_us;
    h->until_us = e->now_us + OTHERS_FACTOR * limit_us;
    h->waits = true;
    h->answered = false;
    if (f->slot != e->self) replica_defer(e->replica, h->until_us);
}

void handover_frame(struct engine *e, uint32_t peer, const struct frame *f) {
    struct handover *h = &e->handover;
    if (f->type == FRAME_HOLD || f->type == FRAME_CATCH_UP) return heard_from_leader(e, peer, f);
    if (f->generation != h->attempt) return;
    if (f->type == FRAME_HELD && h->stage == HANDOVER_HOLD) h->held |= 1u << peer;
    if (f->type != FRAME_CAUGHT_UP || peer != h->target) return;
    if (f->flags & FRAME_REFUSED) handover_cancel(e, "it refuses: its backend does not follow the log, or is down");
    else if (h->stage == HANDOVER_PREPARE) hold(e);
}

void handover_link_closed(struct engine *e, uint32_t peer) {
    struct handover *h = &e->handover;
    if (h->until_us > 0 && h->by == peer) forget(e);
    if (h->target == peer) handover_cancel(e, "the link to it closed");
}

void handover_serves(struct engine *e, uint32_t peer) {
    struct handover *h = &e->handover;
    forget(e);
    if (h->stage != HANDOVER_GONE) return;
    h->stage = HANDOVER_NONE;
    if (peer != h->target) return tell(e, 0, "another node took over");
    e->counters.handovers++;
    e->counters.handover_pause_us = e->now_us - h->since_us;
    engine_log(e, 20, "handed over to node %u: %llu us without acknowledgements", peer + 1,
               (unsigned long long)e->counters.handover_pause_us);
    tell(e, e->counters.handover_pause_us, "");
}

void handover_step(struct engine *e) {
    if (e->handover.stage != HANDOVER_NONE) leader_step(e);
    if (e->handover.until_us > 0) follower_step(e);
}
