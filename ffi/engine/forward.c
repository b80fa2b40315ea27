/*
 * forward.c: requests of a follower's clients. They go to the leader one by one, each with its client's slot and sequence,
 * and the answers come back the same way; nothing of one client's stream is ever mixed with another's.
 *
 * They outlive the leader (R14). What has no answer yet stays here, and is put to the next leader in order, before anything
 * else of that client. The log tells it (origin.h) whether a request is new, and runs now, or what it was answered. A
 * client is closed, its outcome unknown, when its request was too large to stay here, its answer too large to stay in the
 * log or half passed on, or when the same leader goes on behind a link that broke: what of it is on its way into the log
 * nobody can tell then.
 */
#include "engine/engine_state.h"

#define FORWARD_BYTES_MAX (64u << 20)  /* waiting on one link */
#define REQUEST_BYTES_MAX (1u << 20)   /* of a request that stays here until it is answered ... */
#define REQUESTS_BYTES_MAX (4u << 20)  /* ... and of all of one client */
#define KEEP_BYTES (64u << 10)         /* an idle client's buffer that is larger goes back */

/* ---- at the client's node ----------------------------------------------------------------------------------------------- */

static struct frame frame_of(const struct engine *e, const struct client *c, const struct session_decision *d) {
    uint8_t flags = (uint8_t)((d->writes || d->travels ? FRAME_WRITES : 0) | (c->session.protocol == 3 ? FRAME_RESP3 : 0) |
                              (d->loses_database ? FRAME_LOSES_DATABASE : 0) | (d->verdict == SESSION_ADMIN ? FRAME_ADMIN : 0) |
                              (d->flushes_scripts ? FRAME_FLUSHES_SCRIPTS : 0) | (d->stands_in || d->waits ? FRAME_STANDS_IN : 0));
    const struct pending *oldest = queue_front(&c->pending);
    return (struct frame){.length = (uint32_t)d->length, .type = FRAME_REQUEST, .flags = flags,
                          .database = (uint16_t)c->session.database, .slot = c->slot, .generation = c->generation,
                          .sequence = c->sequence, .replies = d->replies, .swallow = d->swallow,
                          .script_offset = d->script ? (uint32_t)(d->script - d->bytes) : 0,
                          .script_length = (uint32_t)d->script_length, .loads = (uint16_t)d->loads, .view = (uint16_t)d->view, .view_count = d->view_count, .life = replica_own_incarnation(e->replica),
                          .unanswered = oldest ? (uint32_t)(c->sequence - oldest->sequence) : 0, .pause = d->pause};
}

bool forward_may_keep(const struct client *c, const struct session_decision *d) {
    bool again = d->verdict != SESSION_ADMIN && d->loads == LOADS_NOTHING; /* a load that ends a server ends no second one */
    return again && d->length <= REQUEST_BYTES_MAX && buffer_length(&c->unanswered) <= REQUESTS_BYTES_MAX;
}

struct frame forward_keep(struct engine *e, struct client *c, const struct session_decision *d) {
    c->sequence++;
    struct frame frame = frame_of(e, c, d);
    struct pending pending = {.sequence = c->sequence, .database_after = d->database_after};
    if (forward_may_keep(c, d)) {
        buffer_append(&c->unanswered, &frame, sizeof frame);
        buffer_append(&c->unanswered, d->bytes, d->length);
        pending.kept = (uint32_t)(sizeof frame + d->length);
    }
    *(struct pending *)queue_push(&c->pending) = pending;
    return frame;
}

bool forward(struct engine *e, struct client *c, const struct session_decision *d) {
    uint32_t leader = link_leader(e);
    if (leader == REPLICA_NOBODY || e->leader_silent_us != 0) return false;
    struct link *link = &e->links[leader];
    if (buffer_length(&link->socket.out) > FORWARD_BYTES_MAX) return client_want_ready(e, c), false;
    struct frame frame = forward_keep(e, c, d);
    frame.term = c->sent_term = link->serving_term;
    link_send(e, leader, &frame, d->bytes);
    e->counters.forwarded++;
    return true;
}

/* The oldest forwarded request is answered. */
void forward_answered(struct engine *e, struct client *c, uint8_t type) {
    struct pending p = *(struct pending *)queue_front(&c->pending);
    buffer_consume(&c->unanswered, p.kept);
    buffer_trim(&c->unanswered, KEEP_BYTES);
    queue_pop(&c->pending);
    client_answered(e, c, p.database_after, type);
}

void forward_reply(struct engine *e, uint32_t peer, const struct frame *f, const uint8_t *payload) {
    struct client *c = client_find(e, f->slot, f->generation);
    if (c == NULL || c->unsettled || peer != link_leader(e)) return; /* a former leader's: the next one is asked */
    struct pending *p = queue_front(&c->pending);
    if (f->type == FRAME_UNKNOWN) {
        e->counters.closed_unknown++;
        client_close(e, c);
        return;
    }
    if (p == NULL || p->local || p->sequence != f->sequence) {
        client_close(e, c); /* an answer to something else: never pass it on */
        return;
    }
    size_t length = f->length;
    if (c->verifying) { /* one line, in one piece */
        c->verifying = false;
        client_verified(e, c, payload, length);
        payload = buffer_bytes(&e->answer);
        length = buffer_length(&e->answer);
    }
    buffer_append(&c->socket.out, payload, length);
    c->releasable += length;
    c->answer_bytes += length;
    client_want_flush(e, c);
    if (f->flags & FRAME_LAST) forward_answered(e, c, (uint8_t)f->database);
}

/* Can all that this client waits for be put to another leader? */
static bool may_go_again(const struct client *c) {
    if (c->outstanding != queue_length(&c->pending) || c->answer_bytes > 0) return false;
    if (c->releasable != buffer_length(&c->socket.out)) return false;
    for (uint64_t i = c->pending.head; i < c->pending.tail; i++) {
        const struct pending *p = queue_at(&c->pending, i);
        if (!p->local && p->kept == 0) return false;
    }
    return true;
}

static bool close_unknown(struct engine *e, struct client *c) {
    e->counters.closed_unknown++;
    client_close(e, c);
    return false;
}

void forward_unsettle(struct engine *e, struct client *c) {
    if (!may_go_again(c)) {
        close_unknown(e, c);
        return;
    }
    c->unsettled = true;
    if (c->waiting_since_us == 0) c->waiting_since_us = e->now_us;
    client_want_ready(e, c);
}

void clients_unsettle(struct engine *e) {
    for (uint32_t i = 0; i < e->clients_used; i++) {
        struct client *c = &e->clients[i];
        if (c->in_use && c->session.own != OWN_NONE) { /* what the backend kept for it is gone (R14) */
            close_unknown(e, c);
            continue;
        }
        if (!c->in_use || (c->outstanding == 0 && c->releasable == buffer_length(&c->socket.out))) continue;
        if (c->at_backend == 0) forward_unsettle(e, c); /* else it waits for no other node */
    }
}

static bool send_again(struct engine *e, struct client *c) {
    uint32_t leader = link_leader(e);
    if (leader == REPLICA_NOBODY) return false;
    struct link *link = &e->links[leader];
    if (c->sent_term == link->serving_term) return close_unknown(e, c);
    if (buffer_length(&link->socket.out) > FORWARD_BYTES_MAX) return client_want_ready(e, c), false;
    c->sent_term = link->serving_term;
    uint8_t *at = buffer_bytes(&c->unanswered);
    for (size_t left = buffer_length(&c->unanswered); left > 0;) {
        struct frame frame;
        memcpy(&frame, at, sizeof frame);
        frame.flags |= FRAME_AGAIN;
        frame.term = c->sent_term;
        memcpy(at, &frame, sizeof frame);
        link_send(e, leader, &frame, at + sizeof frame);
        at += sizeof frame + frame.length;
        left -= sizeof frame + frame.length;
    }
    return true;
}

static struct session_decision decision_of(const struct frame *f, const uint8_t *payload) {
    bool script = f->script_length > 0;
    return (struct session_decision){.verdict = SESSION_SUBMIT, .bytes = payload, .length = f->length,
                                     .writes = f->flags & FRAME_WRITES, .replies = f->replies, .swallow = f->swallow,
                                     .stands_in = f->flags & FRAME_STANDS_IN, .database_after = -1, .loses_database = f->flags & FRAME_LOSES_DATABASE,
                                     .script = script ? payload + f->script_offset : NULL,
                                     .script_length = script ? f->script_length : 0,
                                     .flushes_scripts = f->flags & FRAME_FLUSHES_SCRIPTS, .pause = f->pause, .loads = f->loads, .view = f->view, .view_count = f->view_count};
}

static enum origin_fate fate_of(const struct engine *e, uint32_t node, const struct frame *f, const uint8_t **bytes, size_t *length) {
    struct origin origin = {.node = node, .slot = f->slot, .life = f->life, .sequence = f->sequence, .generation = f->generation};
    return origin_find(&e->log.origins, &origin, bytes, length);
}

/* This node leads now: the oldest of what its client waits for. False: no room, or the client is closed. */
static bool settle_one(struct engine *e, struct client *c) {
    struct pending p = *(struct pending *)queue_front(&c->pending);
    bool behind = c->outstanding > queue_length(&c->pending); /* something of it is under way here */
    if (p.local) { /* else it had gone with the answer in front of it */
        turn_local(e, (struct destination){e->self, c->slot, c->generation, 0, 0}, buffer_bytes(&c->local), p.local_bytes);
        buffer_consume(&c->local, p.local_bytes);
        queue_pop(&c->pending);
        return true;
    }
    struct frame frame;
    const uint8_t *payload = buffer_bytes(&c->unanswered) + sizeof frame, *bytes;
    size_t length;
    memcpy(&frame, buffer_bytes(&c->unanswered), sizeof frame);
    switch (fate_of(e, e->self, &frame, &bytes, &length)) {
        case ORIGIN_ANSWERED:
            if (behind) return close_unknown(e, c);
            buffer_append(&c->socket.out, bytes, length);
            c->releasable += length;
            client_want_flush(e, c);
            forward_answered(e, c, *bytes);
            return true;
        case ORIGIN_UNKNOWN: return close_unknown(e, c);
        case ORIGIN_NEW: break;
    }
    struct session_decision d = decision_of(&frame, payload);
    d.database_after = p.database_after;
    struct request r = {.from = {e->self, c->slot, c->generation, p.sequence, 0}, .database = frame.database,
                        .protocol = frame.flags & FRAME_RESP3 ? 3 : 2, .decision = &d};
    if (!turn_take(e, &r, NULL)) return client_want_ready(e, c), false;
    buffer_consume(&c->unanswered, p.kept);
    queue_pop(&c->pending);
    return true;
}

bool forward_again(struct engine *e, struct client *c) {
    if (engine_leads(e)) {
        while (queue_length(&c->pending) > 0)
            if (!settle_one(e, c)) return false;
    } else if (!send_again(e, c)) {
        return false;
    }
    c->unsettled = false;
    c->waiting_since_us = 0;
    return true;
}

/* Whoever serves stands still, and nobody takes over: what was forwarded to it is not waited for for ever. */
void forward_watch(struct engine *e) {
    uint32_t leader = engine_leads(e) ? REPLICA_NOBODY : link_leader(e);
    bool silent = leader != REPLICA_NOBODY && !(replica_alive(e->replica) & (1u << leader));
    if (silent && e->leader_silent_us == 0) e->leader_silent_us = e->now_us;
    if (silent && e->now_us - e->leader_silent_us > e->config.wait_timeout_us)
        for (uint32_t i = 0; i < e->clients_used; i++)
            if (e->clients[i].in_use && e->clients[i].at_backend == 0 && queue_length(&e->clients[i].pending) > 0)
                close_unknown(e, &e->clients[i]);
    if (silent || e->leader_silent_us == 0) return;
    e->leader_silent_us = 0;
    clients_wake_all(e);
}

/* ---- at the leader ------------------------------------------------------------------------------------------------------ */

/* A request that was put to an earlier leader. True: nothing has to be done any more. */
static bool settled(struct engine *e, const struct destination *from, const struct frame *f) {
    const uint8_t *bytes;
    size_t length;
    struct frame unknown = {.type = FRAME_UNKNOWN, .slot = f->slot, .generation = f->generation, .sequence = f->sequence};
    switch (fate_of(e, from->node, f, &bytes, &length)) {
        case ORIGIN_NEW: return false;
        case ORIGIN_ANSWERED: link_answer(e, from, bytes, length); break;
        case ORIGIN_UNKNOWN: link_send(e, from->node, &unknown, NULL); break;
    }
    return true;
}

bool forward_request(struct engine *e, uint32_t peer, const struct frame *f, const uint8_t *payload, struct buffer *holder) {
    if (!engine_leads(e) || f->term != e->term) return true; /* its node learns who serves, and when, and sends it again */
    struct destination from = {peer, f->slot, f->generation, f->sequence, e->links[peer].session};
    if (f->flags & FRAME_ADMIN) {
        if (f->flags & FRAME_STANDS_IN) waits_begin(e, &from, payload, f->length);
        else if (f->view == VIEW_CLIENTS) census_begin(e, &from, payload, f->length, f->flags & FRAME_RESP3 ? 3 : 2);
        else if (f->view == VIEW_KILL_REPLICAS) owns_kill_replicas(e, &from);
        else admin_send_for(e, from, payload, f->length, f->flags & FRAME_WRITES);
        return true;
    }
    if ((f->flags & FRAME_AGAIN) && settled(e, &from, f)) return true;
    struct session_decision d = decision_of(f, payload);
    struct request r = {.from = from, .database = f->database, .protocol = f->flags & FRAME_RESP3 ? 3 : 2, .decision = &d,
                        .life = f->life, .unanswered = f->unanswered};
    if (!turn_take(e, &r, holder)) return false;
    e->counters.requests++;
    if (d.writes) e->counters.writes++;
    else e->counters.reads++;
    return true;
}
