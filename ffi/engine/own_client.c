/*
 * own_client.c: connections of their own (own.h), at the node that their client is connected to, and what passes between it
 * and the leader for them.
 */
#include "engine/engine_state.h"
#include "engine/own_replica.h"

/* False: no leader takes it now. */
bool own_request(struct engine *e, struct client *c, const struct session_decision *d) {
    struct destination to = {e->self, c->slot, c->generation, c->sequence + 1, 0};
    c->has_own = true;
    if (engine_leads(e)) {
        if (!own_submit(e, &to, d)) return client_want_ready(e, c), false;
        c->sequence++;
        return true;
    }
    uint32_t leader = link_leader(e);
    if (leader == REPLICA_NOBODY || e->leader_silent_us != 0) return false;
    uint8_t flags = (uint8_t)((d->as_default ? FRAME_LAST : 0) | (d->syncs ? FRAME_SYNCS : 0) | (d->lists ? FRAME_LISTS : 0) | (d->resets ? FRAME_RESETS : 0) |
                              (d->flushes_scripts ? FRAME_FLUSHES_SCRIPTS : 0) | (d->verifies ? FRAME_VERIFIES : 0));
    struct frame frame = {.length = (uint32_t)d->length, .type = FRAME_OWN_REQUEST, .flags = flags, .slot = c->slot,
                          .generation = c->generation, .sequence = ++c->sequence, .replies = d->replies, .swallow = d->swallow, .view = (uint16_t)d->view,
                          .view_count = d->view_count, .sets = d->sets,
                          .script_offset = d->script ? (uint32_t)(d->script - d->bytes) : d->added,
                          .script_length = (uint32_t)d->script_length, .term = e->links[leader].serving_term, .pause = d->pause};
    bool described = c->described_term == frame.term;
    c->sent_term = c->described_term = frame.term;
    if (d->replies > d->swallow)
        *(struct pending *)queue_push(&c->pending) = (struct pending){.sequence = c->sequence, .database_after = d->database_after};
    link_send(e, leader, &frame, d->bytes);
    e->counters.forwarded++;
    if (described) return true;
    struct own_peer peer = {0};
    client_describe(c, &peer);
    link_send(e, leader, &(struct frame){.type = FRAME_OWN_PEER, .length = sizeof peer, .slot = c->slot, .generation = c->generation,
                                         .term = frame.term}, &peer);
    return true;
}

/* By the leader's backend, as everything else: what a password is was set there, and MONITOR shows who logs in. */
bool own_verify(struct engine *e, struct client *c, const struct session_decision *d) {
    struct session_decision asks = {.verdict = SESSION_OWN, .bytes = d->bytes, .length = d->length, .replies = 1, .database_after = -1, .verifies = true};
    if (engine_leads(e) || e->handover.waits || !own_request(e, c, &asks)) return false;
    c->verifying = c->barrier = true;
    c->outstanding++;
    return true;
}

void own_took(struct engine *e, struct client *c, uint64_t bytes) {
    struct destination to = {e->self, c->slot, c->generation, 0, 0};
    if (engine_leads(e)) return own_taken(e, &to, bytes);
    uint32_t leader = link_leader(e);
    c->took += bytes;
    if (leader == REPLICA_NOBODY || (c->took < OWN_REPLICA_TELL_BYTES && buffer_length(&c->socket.out) > 0)) return;
    link_send(e, leader, &(struct frame){.type = FRAME_OWN_TAKEN, .slot = c->slot, .generation = c->generation, .sequence = c->took,
                                         .term = e->links[leader].serving_term}, NULL);
    c->took = 0;
}

/* The client has sent its last byte, or is gone. */
void own_tell(struct engine *e, const struct client *c, bool gone) {
    struct destination to = {e->self, c->slot, c->generation, 0, 0};
    if (engine_leads(e)) {
        if (gone) own_close(e, &to);
        else own_eof(e, &to);
        return;
    }
    uint32_t leader = link_leader(e);
    if (leader == REPLICA_NOBODY) return;
    link_send(e, leader, &(struct frame){.type = gone ? FRAME_OWN_GONE : FRAME_OWN_EOF, .slot = c->slot, .generation = c->generation,
                                         .term = e->links[leader].serving_term}, NULL);
}

/* Nothing comes from its connection any more: what has come is all that it gets. */
void own_ended(struct engine *e, struct client *c) {
    if (c->outstanding > 0) e->counters.closed_unknown++;
    c->outstanding = 0;
    c->has_decision = false;
    c->waiting_since_us = 0;
    queue_clear(&c->pending);
    c->leaving = true;
    client_want_flush(e, c);
}

void own_pushed(struct engine *e, struct client *c, const void *bytes, size_t length) {
    if (buffer_length(&c->socket.out) + length > 2 * (size_t)e->config.client_output_bytes_max) {
        client_close(e, c); /* as the backend does with those who do not listen */
        return;
    }
    buffer_append(&c->socket.out, bytes, length);
}

void own_frame(struct engine *e, uint32_t peer, const struct frame *f, const uint8_t *payload) {
    if (f->type == FRAME_OWN_PUSH || f->type == FRAME_OWN_END) {
        struct client *c = client_find(e, f->slot, f->generation);
        if (c == NULL || c->unsettled || peer != link_leader(e)) return;
        if (f->type == FRAME_OWN_END) return own_ended(e, c);
        if (!c->has_own) return;
        own_pushed(e, c, payload, f->length);
        if (!c->in_use) return;
        c->releasable += f->length;
        client_want_flush(e, c);
        return;
    }
    if (!engine_leads(e) || f->term != e->term) return; /* its node learns who serves, and closes the client */
    struct destination from = {peer, f->slot, f->generation, f->sequence, e->links[peer].session};
    if (f->type == FRAME_OWN_GONE) return own_close(e, &from);
    if (f->type == FRAME_OWN_PEER) return own_describe(e, &from, payload);
    if (f->type == FRAME_OWN_EOF) return own_eof(e, &from);
    if (f->type == FRAME_OWN_TAKEN) return own_taken(e, &from, f->sequence);
}

/* False: no room, the frame stays. */
bool own_frame_request(struct engine *e, uint32_t peer, const struct frame *f, const uint8_t *payload) {
    if (!engine_leads(e) || f->term != e->term) return true;
    struct destination from = {peer, f->slot, f->generation, f->sequence, e->links[peer].session};
    struct session_decision d = {.verdict = SESSION_OWN, .bytes = payload, .length = f->length, .replies = f->replies,
                                 .swallow = f->swallow, .database_after = -1, .as_default = f->flags & FRAME_LAST, .syncs = f->flags & FRAME_SYNCS,
                                 .script = f->script_length > 0 ? payload + f->script_offset : NULL, .script_length = f->script_length,
                                 .flushes_scripts = f->flags & FRAME_FLUSHES_SCRIPTS, .verifies = f->flags & FRAME_VERIFIES, .lists = f->flags & FRAME_LISTS, .resets = f->flags & FRAME_RESETS,
                                 .added = f->script_length == 0 ? f->script_offset : 0, .pause = f->pause, .view = f->view, .view_count = f->view_count, .sets = f->sets};
    if (!own_submit(e, &from, &d)) return false;
    e->counters.requests++;
    return true;
}

/* ---- at the leader, for the log ----------------------------------------------------------------------------------------- */

/* It runs at most once, as everything here: should it be put to another leader, it is not new. */
bool own_origin_log(struct engine *e, const struct request *r) {
    struct origin_record record = {.kind = ADMIN_RECORD_ORIGIN,
                                   .origin = {.node = r->from.node, .slot = r->from.slot, .life = r->life, .sequence = r->from.sequence,
                                              .generation = r->from.generation, .unanswered = r->unanswered}};
    if (e->big.active) return e->stalled = true, false;
    turn_seal(e);
    int64_t index = replica_propose(e->replica, RECORD_ADMIN, 0, (struct record_origin){0, 0, 0}, &record, sizeof record);
    if (index <= 0) return e->stalled = true, false;
    e->admin_index = (uint64_t)index;
    return true;
}
