/*
 * link.c: the streams to the other nodes' engines: who serves, requests and answers (forward.c), and the state that a node
 * left behind is given.
 */
#include <errno.h>
#include <sys/socket.h>

#include "engine/engine_state.h"

#define LINK_READ_BYTES (256u << 10)

void link_close(struct engine *e, uint32_t peer) {
    struct link *link = &e->links[peer];
    bool led = link_leader(e) == peer;
    source_close(e, &link->socket.source);
    buffer_free(&link->socket.out);
    buffer_free(&link->in);
    link->releasable = 0;
    link->serving_term = 0;
    link->queued_flush = false;
    link->clients = 0;
    if (led) e->censuses.told_term = 0; /* it is told again */
    handover_link_closed(e, peer);
    owns_end(e, peer);
    if (led && !engine_leads(e)) clients_unsettle(e);
}

/* It ended by itself: the control plane makes another. */
void link_lost(struct engine *e, uint32_t peer) {
    if (e->links[peer].socket.source.fd < 0) return;
    link_close(e, peer);
    engine_tell(e, ENGINE_LINK_LOST, peer, 0);
}

void link_add(struct engine *e, uint32_t peer, int fd) {
    struct link *link = &e->links[peer];
    link_close(e, peer);
    link->session++;
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
        link_lost(e, peer);
        return;
    }
    link->releasable -= written;
    buffer_trim(&link->socket.out, 4u << 20);
}

/* What it says is true once the next gate opens. */
void link_hold(struct engine *e, uint32_t peer, const struct frame *frame, const void *payload) {
    struct link *link = &e->links[peer];
    struct shared *s = &e->shared;
    if (link->socket.source.fd < 0) return;
    buffer_append(&link->socket.out, frame, sizeof *frame);
    buffer_append(&link->socket.out, payload, frame->length);
    *(struct segment *)queue_push(&s->segments) = (struct segment){peer, 0, link->session, sizeof *frame + frame->length};
    s->open_segments++;
    s->unproven = true;
}

/* Frames that hold nobody's answer leave at once: nothing is held on this link when they are sent, or they go behind. */
void link_send(struct engine *e, uint32_t peer, const struct frame *frame, const void *payload) {
    struct link *link = &e->links[peer];
    if (link->socket.source.fd < 0) return;
    if (link->releasable < buffer_length(&link->socket.out)) return link_hold(e, peer, frame, payload);
    buffer_append(&link->socket.out, frame, sizeof *frame);
    buffer_append(&link->socket.out, payload, frame->length);
    link->releasable += sizeof *frame + frame->length;
    link->queued_flush = true;
}

/* In front of what is held, which is of others. */
static void link_overtake(struct link *link, const struct frame *frame, const void *payload) {
    size_t held = buffer_length(&link->socket.out) - link->releasable, bytes = sizeof *frame + frame->length;
    uint8_t *room = buffer_room(&link->socket.out, bytes), *at = room - held;
    link->socket.out.end += bytes;
    memmove(at + bytes, at, held);
    memcpy(at, frame, sizeof *frame);
    memcpy(at + sizeof *frame, payload, frame->length);
    link->releasable += bytes;
    link->queued_flush = true;
}

/* Does this link hold something for this client? */
bool link_holds(const struct engine *e, const struct destination *to) {
    const struct buffer *out = &e->links[to->node].socket.out;
    struct frame frame;
    for (size_t at = e->links[to->node].releasable; at + sizeof frame <= buffer_length(out); at += sizeof frame + frame.length) {
        memcpy(&frame, buffer_bytes(out) + at, sizeof frame);
        if (frame.slot == to->slot && frame.generation == to->generation) return true;
    }
    return false;
}

/* A part of an answer to another node's client, held until its gate opens. */
void link_reply(struct engine *e, const struct destination *to, const void *bytes, size_t length, bool last, uint8_t type) {
    struct buffer *out = &e->links[to->node].socket.out;
    struct frame frame = {.length = (uint32_t)length, .type = FRAME_REPLY, .flags = last ? FRAME_LAST : 0, .database = type,
                          .slot = to->slot, .generation = to->generation, .sequence = to->sequence};
    buffer_append(out, &frame, sizeof frame);
    buffer_append(out, bytes, length);
}

/* A whole answer that no gate holds; `bytes` are not none. */
void link_answer(struct engine *e, const struct destination *to, const void *bytes, size_t length) {
    if (to->session != e->links[to->node].session) return;
    struct frame frame = {.length = (uint32_t)length, .type = FRAME_REPLY, .flags = FRAME_LAST, .database = *(const uint8_t *)bytes,
                          .slot = to->slot, .generation = to->generation, .sequence = to->sequence};
    struct link *link = &e->links[to->node];
    bool overtakes = link->socket.source.fd >= 0 && link->releasable < buffer_length(&link->socket.out) && !link_holds(e, to);
    if (overtakes) link_overtake(link, &frame, bytes);
    else link_send(e, to->node, &frame, bytes);
}

/* Whoever waits there for a script to end is told of it now. */
void link_tell_busy(struct engine *e) {
    const struct frame frame = {.type = FRAME_SERVING, .flags = e->context.busy ? FRAME_BUSY : 0, .sequence = e->term};
    for (uint32_t i = 0; i < e->nodes; i++)
        if (i != e->self && e->links[i].socket.source.fd >= 0) link_overtake(&e->links[i], &frame, "");
}

void links_drop_held(struct engine *e) {
    for (uint32_t i = 0; i < e->nodes; i++) {
        struct link *link = &e->links[i];
        if (link->socket.source.fd < 0) continue;
        link->socket.out.end = link->socket.out.start + link->releasable;
    }
}

/* This node leads: nobody else does, and what was forwarded to a former leader is settled here. */
void links_depose(struct engine *e) {
    for (uint32_t i = 0; i < e->nodes; i++) e->links[i].serving_term = 0;
    clients_unsettle(e);
}

void link_announce(struct engine *e, bool serving) {
    struct frame frame = {.type = serving ? FRAME_SERVING : FRAME_NOT_SERVING, .flags = e->context.busy ? FRAME_BUSY : 0,
                          .sequence = e->term};
    for (uint32_t i = 0; i < e->nodes; i++)
        if (i != e->self) link_send(e, i, &frame, NULL);
}

/* ---- frames --------------------------------------------------------------------------------------------------------- */

static void frame_serving(struct engine *e, uint32_t peer, const struct frame *f) {
    uint32_t before = link_leader(e);
    uint64_t term = before == REPLICA_NOBODY ? 0 : e->links[before].serving_term;
    e->links[peer].serving_term = f->type == FRAME_SERVING ? f->sequence : 0;
    uint32_t after = link_leader(e);
    if (!engine_leads(e)) e->context.busy = after == peer && (f->flags & FRAME_BUSY);
    if (after == peer) handover_serves(e, peer);
    bool same = after == before && (after == REPLICA_NOBODY || e->links[after].serving_term == term);
    if (same) return;
    if (!engine_leads(e) && before != REPLICA_NOBODY) clients_unsettle(e);
    if (after != REPLICA_NOBODY) {
        engine_log(e, 20, "node %u serves in term %llu", after + 1, (unsigned long long)e->links[after].serving_term);
        clients_wake_all(e);
    }
}

struct snapshot_head { uint64_t index, position, hash; struct replica_membership members; };

static void frame_snapshot_ask(struct engine *e, uint32_t peer) {
    if (!log_state_whole(&e->log)) return; /* it will ask again */
    struct buffer out = {0};
    struct snapshot_head head;
    replica_applied_point(e->replica, &head.index, &head.position, &head.hash);
    head.members = replica_applied_members(e->replica);
    buffer_append(&out, &head, sizeof head);
    log_state_save(&e->log, &out);
    struct frame frame = {.type = FRAME_SNAPSHOT, .length = (uint32_t)buffer_length(&out)};
    link_send(e, peer, &frame, buffer_bytes(&out));
    buffer_free(&out);
}

/* Could a log go on from there? */
static bool snapshot_head_right(const struct engine *e, const struct snapshot_head *head) {
    uint32_t members = membership_mask(&head->members);
    return head->position % RECORD_ALIGN == 0 && members != 0 && members >> e->nodes == 0;
}

static void frame_snapshot(struct engine *e, const struct frame *f, const uint8_t *payload) {
    struct snapshot_head head;
    e->snapshot_us = 0;
    if (replica_damage(e->replica) == REPLICA_SOUND || f->length < sizeof head || e->takeover != TAKE_IDLE) return;
    memcpy(&head, payload, sizeof head);
    if (head.index <= replica_commit(e->replica)) return;
    bool right = snapshot_head_right(e, &head);
    if (!right || !log_state_load(&e->log, payload + sizeof head, f->length - sizeof head)) {
        engine_fatal(e, "the state that another node sent does not parse");
        return;
    }
    feed_stop(e);
    replica_install(e->replica, head.index, head.position, head.hash, &head.members, e->now_us);
    if (e->backend != BACKEND_DOWN) backend_set(e, BACKEND_DIRTY);
    if (e->machine.protocol != NULL) machine_applied(e, head.index);
    else scripts_hand_on(e, true);
    engine_log(e, 20, "the log goes on from index %llu by another node's state", (unsigned long long)head.index);
}

static bool frame_handle(struct engine *e, uint32_t peer, const struct frame *f, const uint8_t *payload) {
    switch ((enum frame_type)f->type) {
        case FRAME_REQUEST: return forward_request(e, peer, f, payload, &e->links[peer].in);
        case FRAME_REPLY:
        case FRAME_UNKNOWN: forward_reply(e, peer, f, payload); break;
        case FRAME_OWN_REQUEST: return own_frame_request(e, peer, f, payload);
        case FRAME_OWN_PUSH:
        case FRAME_OWN_END:
        case FRAME_OWN_EOF:
        case FRAME_OWN_PEER:
        case FRAME_OWN_GONE:
        case FRAME_OWN_TAKEN: own_frame(e, peer, f, payload); break;
        case FRAME_FRESH_ASK: stale_asked(e, peer, f); break;
        case FRAME_FRESH: stale_answered(e, peer, f, payload); break;
        case FRAME_CLIENTS_ASK:
        case FRAME_CLIENTS:
        case FRAME_CLIENT_KILL:
        case FRAME_CLIENT_COUNT: census_frame(e, peer, f, payload); break;
        case FRAME_WHO:
        case FRAME_WHO_IS: slowlog_frame(e, peer, f, payload); break;
        case FRAME_SERVING:
        case FRAME_NOT_SERVING: frame_serving(e, peer, f); break;
        case FRAME_SNAPSHOT_ASK: frame_snapshot_ask(e, peer); break;
        case FRAME_SNAPSHOT: frame_snapshot(e, f, payload); break;
        case FRAME_JOIN: member_asked(e, peer, f->sequence); break;
        case FRAME_HOLD:
        case FRAME_HELD:
        case FRAME_CATCH_UP:
        case FRAME_CAUGHT_UP: handover_frame(e, peer, f); break;
    }
    return true;
}

static void link_process(struct engine *e, uint32_t peer) {
    struct link *link = &e->links[peer];
    const struct frame_limits limits = {e->config.client_input_bytes_max, e->config.databases};
    struct frame frame;
    bool stays = false;
    while (!stays && buffer_length(&link->in) > 0) {
        size_t whole;
        enum frame_status status = frame_read(buffer_bytes(&link->in), buffer_length(&link->in), &limits, &frame, &whole);
        if (status == FRAME_BAD) {
            engine_log(e, 40, "node %u sent what is no frame: its link is closed", peer + 1);
            link_lost(e, peer);
            return;
        }
        if (status == FRAME_MORE) {
            if (whole > 0 && frame.type != FRAME_SNAPSHOT) buffer_room(&link->in, whole - buffer_length(&link->in));
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
        link_lost(e, peer);
        return;
    }
    link->in.end += (size_t)n;
    link_process(e, peer);
}
