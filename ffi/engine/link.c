/*
 * link.c: the streams to the other nodes' engines. A follower's clients' requests go to the leader one by one, each with
 * its client's slot and sequence, and its answers come back the same way; nothing of one client's stream is ever mixed
 * with another's. The leader keeps no state for them. When the leader changes, a client with unanswered requests is
 * closed (their outcome is unknown), the others stay.
 */
#include <errno.h>
#include <sys/socket.h>

#include "engine/engine_state.h"

#define FORWARD_BYTES_MAX (64u << 20) /* waiting on one link */
#define LINK_READ_BYTES (256u << 10)

void link_close(struct engine *e, uint32_t peer) {
    struct link *link = &e->links[peer];
    bool led = link_leader(e) == peer;
    source_close(e, &link->socket.source);
    buffer_free(&link->socket.out);
    buffer_free(&link->in);
    link->releasable = 0;
    link->serving_term = 0;
    if (led && !engine_leads(e)) clients_drop_unknown(e);
}

void link_add(struct engine *e, uint32_t peer, int fd) {
    struct link *link = &e->links[peer];
    link_close(e, peer);
    link->socket.source = (struct source){.kind = SOURCE_LINK, .fd = fd};
    source_watch(e, &link->socket.source, EPOLLIN);
    struct frame hello = {.type = engine_leads(e) ? FRAME_SERVING : FRAME_NOT_SERVING, .sequence = e->term,
                          .flags = engine_leads(e) && e->context.busy ? FRAME_BUSY : 0};
    link_send(e, peer, &hello, NULL);
}

uint32_t link_leader(const struct engine *e) {
    uint32_t leader = REPLICA_NOBODY;
    uint64_t term = 0;
    for (uint32_t i = 0; i < e->nodes; i++)
        if (e->links[i].serving_term > term) {
            leader = i;
            term = e->links[i].serving_term;
        }
    return leader;
}

void link_flush(struct engine *e, uint32_t peer) {
    struct link *link = &e->links[peer];
    link->queued_flush = false;
    if (link->socket.source.fd < 0) return;
    size_t written;
    if (!socket_flush(e, &link->socket, link->releasable, &written)) {
        link_close(e, peer);
        return;
    }
    link->releasable -= written;
    buffer_trim(&link->socket.out, 4u << 20);
}

/* Frames that hold nobody's answer leave at once: nothing is held on this link when they are sent, or they go behind. */
void link_send(struct engine *e, uint32_t peer, const struct frame *frame, const void *payload) {
    struct link *link = &e->links[peer];
    if (link->socket.source.fd < 0) return;
    bool held = link->releasable < buffer_length(&link->socket.out);
    buffer_append(&link->socket.out, frame, sizeof *frame);
    buffer_append(&link->socket.out, payload, frame->length);
    size_t bytes = sizeof *frame + frame->length;
    if (!held) {
        link->releasable += bytes;
        link->queued_flush = true;
    } else {
        struct shared *s = &e->shared;
        *(struct segment *)queue_push(&s->segments) = (struct segment){peer, 0, 0, bytes};
        s->open_segments++;
        s->unproven = true;
    }
}

/* A part of an answer to another node's client, held until its gate opens. */
void link_reply(struct engine *e, const struct destination *to, const void *bytes, size_t length, bool last, uint8_t type) {
    struct buffer *out = &e->links[to->node].socket.out;
    struct frame frame = {.length = (uint32_t)length, .type = FRAME_REPLY, .flags = last ? FRAME_LAST : 0, .database = type,
                          .slot = to->slot, .generation = to->generation, .sequence = to->sequence};
    buffer_append(out, &frame, sizeof frame);
    buffer_append(out, bytes, length);
}

/* A whole answer that no gate holds. */
void link_answer(struct engine *e, const struct destination *to, const void *bytes, size_t length) {
    struct frame frame = {.length = (uint32_t)length, .type = FRAME_REPLY, .flags = FRAME_LAST, .slot = to->slot,
                          .generation = to->generation, .sequence = to->sequence};
    link_send(e, to->node, &frame, bytes);
}

void links_drop_held(struct engine *e) {
    for (uint32_t i = 0; i < e->nodes; i++) {
        struct link *link = &e->links[i];
        if (link->socket.source.fd < 0) continue;
        link->socket.out.end = link->socket.out.start + link->releasable;
    }
}

/* This node leads: nobody else does, and what was forwarded to a former leader has an unknown outcome. */
void links_depose(struct engine *e) {
    for (uint32_t i = 0; i < e->nodes; i++) e->links[i].serving_term = 0;
    clients_drop_unknown(e);
}

void link_announce(struct engine *e, bool serving) {
    struct frame frame = {.type = serving ? FRAME_SERVING : FRAME_NOT_SERVING, .flags = e->context.busy ? FRAME_BUSY : 0,
                          .sequence = e->term};
    for (uint32_t i = 0; i < e->nodes; i++)
        if (i != e->self) link_send(e, i, &frame, NULL);
}

bool link_forward(struct engine *e, struct client *c, const struct session_decision *d) {
    uint32_t leader = link_leader(e);
    if (leader == REPLICA_NOBODY) return false;
    struct link *link = &e->links[leader];
    if (buffer_length(&link->socket.out) > FORWARD_BYTES_MAX) return client_want_ready(e, c), false;
    uint8_t flags = (uint8_t)((d->writes ? FRAME_WRITES : 0) | (c->session.protocol == 3 ? FRAME_RESP3 : 0) |
                              (d->loses_database ? FRAME_LOSES_DATABASE : 0) | (d->verdict == SESSION_ADMIN ? FRAME_ADMIN : 0) | (d->flushes_scripts ? FRAME_FLUSHES_SCRIPTS : 0));
    struct frame frame = {.length = (uint32_t)d->length, .type = FRAME_REQUEST, .flags = flags,
                          .database = (uint16_t)c->session.database, .slot = c->slot, .generation = c->generation,
                          .sequence = ++c->sequence, .replies = d->replies, .swallow = d->swallow,
                          .script_offset = d->script ? (uint32_t)(d->script - d->bytes) : 0,
                          .script_length = (uint32_t)d->script_length};
    link_send(e, leader, &frame, d->bytes);
    *(struct pending *)queue_push(&c->pending) = (struct pending){.sequence = c->sequence, .database_after = d->database_after};
    e->counters.forwarded++;
    return true;
}

/* ---- frames --------------------------------------------------------------------------------------------------------- */

/* At the leader. False: no room now, the frame stays. */
static bool frame_request(struct engine *e, uint32_t peer, const struct frame *f, const uint8_t *payload, struct buffer *holder) {
    if (!engine_leads(e)) return true; /* its node learns that this one does not serve */
    if (f->flags & FRAME_ADMIN) {
        admin_send_for(e, (struct destination){peer, f->slot, f->generation, f->sequence}, payload, f->length);
        return true;
    }
    bool script = f->script_length > 0 && f->script_offset <= f->length && f->script_length <= f->length - f->script_offset;
    struct session_decision d = {.verdict = SESSION_SUBMIT, .bytes = payload, .length = f->length,
                                 .writes = f->flags & FRAME_WRITES, .replies = f->replies, .swallow = f->swallow,
                                 .database_after = -1, .loses_database = f->flags & FRAME_LOSES_DATABASE,
                                 .script = script ? payload + f->script_offset : NULL,
                                 .script_length = script ? f->script_length : 0,
                                 .flushes_scripts = f->flags & FRAME_FLUSHES_SCRIPTS};
    struct request r = {.from = {peer, f->slot, f->generation, f->sequence}, .database = f->database,
                        .protocol = f->flags & FRAME_RESP3 ? 3 : 2, .decision = &d};
    if (!turn_submit(e, &r, holder)) return false;
    e->counters.requests++;
    if (d.writes) e->counters.writes++;
    else e->counters.reads++;
    return true;
}

/* At the client's node. */
static void frame_reply(struct engine *e, const struct frame *f, const uint8_t *payload) {
    struct client *c = client_find(e, f->slot, f->generation);
    if (c == NULL) return;
    struct pending *p = queue_front(&c->pending);
    if (p == NULL || p->local || p->sequence != f->sequence) {
        client_close(e, c); /* an answer to something else: never pass it on */
        return;
    }
    buffer_append(&c->socket.out, payload, f->length);
    c->releasable += f->length;
    c->answer_bytes += f->length;
    client_want_flush(e, c);
    if (!(f->flags & FRAME_LAST)) return;
    int32_t database_after = p->database_after;
    queue_pop(&c->pending);
    client_answered(e, c, database_after, (uint8_t)f->database);
}

static void frame_serving(struct engine *e, uint32_t peer, const struct frame *f) {
    uint32_t before = link_leader(e);
    uint64_t term = before == REPLICA_NOBODY ? 0 : e->links[before].serving_term;
    e->links[peer].serving_term = f->type == FRAME_SERVING ? f->sequence : 0;
    uint32_t after = link_leader(e);
    if (!engine_leads(e)) e->context.busy = after == peer && (f->flags & FRAME_BUSY);
    bool same = after == before && (after == REPLICA_NOBODY || e->links[after].serving_term == term);
    if (same) return;
    if (!engine_leads(e) && before != REPLICA_NOBODY) clients_drop_unknown(e);
    if (after != REPLICA_NOBODY) {
        engine_log(e, 20, "node %u serves in term %llu", after + 1, (unsigned long long)e->links[after].serving_term);
        clients_wake_all(e);
    }
}

struct snapshot_head { uint64_t index, position, hash; };

static void frame_snapshot_ask(struct engine *e, uint32_t peer) {
    if (!log_state_whole(&e->log)) return; /* it will ask again */
    struct buffer out = {0};
    struct snapshot_head head;
    replica_applied_point(e->replica, &head.index, &head.position, &head.hash);
    buffer_append(&out, &head, sizeof head);
    log_state_save(&e->log, &out);
    struct frame frame = {.type = FRAME_SNAPSHOT, .length = (uint32_t)buffer_length(&out)};
    link_send(e, peer, &frame, buffer_bytes(&out));
    buffer_free(&out);
}

static void frame_snapshot(struct engine *e, const struct frame *f, const uint8_t *payload) {
    struct snapshot_head head;
    e->snapshot_us = 0;
    if (replica_damage(e->replica) == REPLICA_SOUND || f->length < sizeof head || e->takeover != TAKE_IDLE) return;
    memcpy(&head, payload, sizeof head);
    if (head.index <= replica_commit(e->replica)) return;
    if (!log_state_load(&e->log, payload + sizeof head, f->length - sizeof head)) {
        engine_fatal(e, "the state that another node sent does not parse");
        return;
    }
    feed_stop(e);
    replica_install(e->replica, head.index, head.position, head.hash, e->now_us);
    if (e->backend != BACKEND_DOWN) backend_set(e, BACKEND_DIRTY);
    engine_log(e, 20, "the log goes on from index %llu by another node's state", (unsigned long long)head.index);
}

static bool frame_handle(struct engine *e, uint32_t peer, const struct frame *f, const uint8_t *payload) {
    switch ((enum frame_type)f->type) {
        case FRAME_REQUEST: return frame_request(e, peer, f, payload, &e->links[peer].in);
        case FRAME_REPLY: frame_reply(e, f, payload); break;
        case FRAME_SERVING:
        case FRAME_NOT_SERVING: frame_serving(e, peer, f); break;
        case FRAME_SNAPSHOT_ASK: frame_snapshot_ask(e, peer); break;
        case FRAME_SNAPSHOT: frame_snapshot(e, f, payload); break;
    }
    return true;
}

static void link_process(struct engine *e, uint32_t peer) {
    struct link *link = &e->links[peer];
    struct frame frame;
    bool stays = false;
    while (!stays && buffer_length(&link->in) >= sizeof frame) {
        memcpy(&frame, buffer_bytes(&link->in), sizeof frame);
        if (frame.type == FRAME_REQUEST && frame.length > e->config.client_input_bytes_max) {
            engine_log(e, 40, "node %u sent a frame that is too long", peer + 1);
            link_close(e, peer);
            return;
        }
        size_t whole = sizeof frame + frame.length;
        if (buffer_length(&link->in) < whole) {
            buffer_room(&link->in, whole - buffer_length(&link->in));
            break;
        }
        const uint8_t *before = link->in.data;
        stays = !frame_handle(e, peer, &frame, buffer_bytes(&link->in) + sizeof frame);
        if (link->socket.source.fd < 0) return;
        if (!stays && link->in.data == before) buffer_consume(&link->in, whole); /* else a large request took the buffer */
    }
    buffer_trim(&link->in, 4u << 20);
    uint32_t base = link->socket.source.interest & (uint32_t)EPOLLOUT;
    source_watch(e, &link->socket.source, stays ? (base | (uint32_t)EPOLLRDHUP) : (base | (uint32_t)EPOLLIN));
}

void links_process(struct engine *e) {
    for (uint32_t i = 0; i < e->nodes; i++)
        if (e->links[i].socket.source.fd >= 0 && !(e->links[i].socket.source.interest & EPOLLIN)) link_process(e, i);
}

void link_event(struct engine *e, uint32_t peer, uint32_t events) {
    struct link *link = &e->links[peer];
    if (link->socket.source.fd < 0) return;
    if (events & EPOLLOUT) link_flush(e, peer);
    if (!(events & (EPOLLIN | EPOLLHUP | EPOLLERR)) || link->socket.source.fd < 0) return;
    uint8_t *room = buffer_room(&link->in, LINK_READ_BYTES);
    ssize_t n = recv(link->socket.source.fd, room, LINK_READ_BYTES, 0);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (n <= 0) {
        link_close(e, peer);
        return;
    }
    link->in.end += (size_t)n;
    link_process(e, peer);
}
