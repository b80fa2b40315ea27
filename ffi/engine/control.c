/*
 * control.c: between the loop's thread and the control plane in Python: events that it is told, orders that it gives, and
 * the status that it looks at. Behind a mutex that neither side holds for longer than a copy.
 */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "engine/engine_state.h"

#define EVENTS_KEPT 4096

/* ---- telling the control plane ---------------------------------------------------------------------------------------- */

/* The control plane reads and logs them. During a take-over it would take the processor from those who wait for it. */
void events_announce(struct engine *e) {
    uint64_t one = 1;
    e->untold = false;
    (void)!write(e->event_fd, &one, sizeof one);
}

void event_push(struct engine *e, const struct engine_event *event) {
    pthread_mutex_lock(&e->mutex);
    if (queue_length(&e->events) < EVENTS_KEPT) *(struct engine_event *)queue_push(&e->events) = *event;
    pthread_mutex_unlock(&e->mutex);
    e->untold = true;
    if (event->kind == ENGINE_FATAL) events_announce(e);
}

void engine_log(struct engine *e, uint32_t level, const char *format, ...) {
    struct engine_event event = {.kind = ENGINE_LOG, .level = level};
    va_list words;
    va_start(words, format);
    vsnprintf(event.text, sizeof event.text, format, words);
    va_end(words);
    event_push(e, &event);
}

void engine_tell(struct engine *e, enum engine_event_kind kind, uint64_t a, uint64_t b) {
    event_push(e, &(struct engine_event){.kind = kind, .a = a, .b = b});
}

void engine_fatal(struct engine *e, const char *text) {
    struct engine_event event = {.kind = ENGINE_FATAL, .level = 40};
    snprintf(event.text, sizeof event.text, "%s", text);
    event_push(e, &event);
    atomic_store(&e->stopping, true);
}

bool engine_next_event(struct engine *e, struct engine_event *out) {
    pthread_mutex_lock(&e->mutex);
    struct engine_event *event = queue_front(&e->events);
    bool there = event != NULL;
    if (there) {
        *out = *event;
        queue_pop(&e->events);
    }
    pthread_mutex_unlock(&e->mutex);
    return there;
}

int engine_event_fd(const struct engine *e) { return e->event_fd; }

/* ---- being told ---------------------------------------------------------------------------------------------------------- */

static int control_push(struct engine *e, struct control control) {
    pthread_mutex_lock(&e->mutex);
    *(struct control *)queue_push(&e->controls) = control;
    pthread_mutex_unlock(&e->mutex);
    uint64_t one = 1;
    return write(e->control_source.fd, &one, sizeof one) == sizeof one ? 0 : -1;
}

int engine_listen(struct engine *e, int fd) { return control_push(e, (struct control){.kind = CONTROL_LISTEN, .fd = fd}); }

int engine_listen_feed(struct engine *e, int fd) {
    return control_push(e, (struct control){.kind = CONTROL_LISTEN_FEED, .fd = fd});
}

int engine_add_link(struct engine *e, uint32_t peer, int fd) {
    if (peer >= e->nodes || peer == e->self) return -1;
    return control_push(e, (struct control){.kind = CONTROL_LINK, .fd = fd, .peer = peer});
}

int engine_peer(struct engine *e, uint32_t peer, int32_t pid, uint64_t region) {
    if (peer >= e->nodes || peer == e->self) return -1;
    return control_push(e, (struct control){.kind = CONTROL_PEER, .fd = pid, .peer = peer, .number = region});
}

int engine_install_rdb(struct engine *e, int fd, uint64_t bytes, uint64_t offset, uint64_t number) {
    return control_push(e, (struct control){.kind = CONTROL_RDB, .fd = fd, .bytes = bytes, .offset = offset, .number = number});
}

int engine_install_copy(struct engine *e, uint64_t done, uint64_t given, uint64_t exact, uint64_t due_s, uint64_t number) {
    return control_push(e, (struct control){.kind = CONTROL_COPY, .fd = -1, .bytes = given, .offset = done, .exact = exact, .due_s = due_s, .number = number});
}

int engine_install_tail(struct engine *e, const void *bytes, uint64_t length, uint64_t number) {
    uint8_t *tail = malloc(length > 0 ? length : 1);
    CHECK(tail != NULL);
    memcpy(tail, bytes, length);
    return control_push(e, (struct control){.kind = CONTROL_TAIL, .fd = -1, .bytes = length, .number = number, .tail = tail});
}

int engine_rdb_failed(struct engine *e, uint64_t number) {
    return control_push(e, (struct control){.kind = CONTROL_RDB_FAILED, .fd = -1, .number = number});
}

int engine_hand_over(struct engine *e, uint32_t peer, uint64_t prepare_us, uint64_t hold_us, uint64_t number) {
    return control_push(e, (struct control){.kind = CONTROL_HAND_OVER, .fd = -1, .peer = peer, .bytes = prepare_us,
                                            .offset = hold_us, .number = number});
}

int engine_backend_ready(struct engine *e) {
    return control_push(e, (struct control){.kind = CONTROL_BACKEND_READY, .fd = -1});
}

int engine_pause(struct engine *e, bool paused) {
    return control_push(e, (struct control){.kind = CONTROL_PAUSE, .fd = -1, .number = paused});
}

int engine_remove_member(struct engine *e, uint32_t peer) {
    if (peer >= e->nodes || peer == e->self) return -1;
    return control_push(e, (struct control){.kind = CONTROL_REMOVE, .fd = -1, .peer = peer});
}

void engine_stop(struct engine *e) {
    atomic_store(&e->stopping, true);
    uint64_t one = 1;
    (void)!write(e->control_source.fd, &one, sizeof one);
}

static void control_listen(struct engine *e, int fd) {
    struct listener *listener = calloc(1, sizeof *listener);
    CHECK(listener != NULL);
    listener->source = (struct source){.kind = SOURCE_LISTEN, .fd = fd};
    listener->next = e->listeners;
    e->listeners = listener;
    source_watch(e, &listener->source, EPOLLIN);
}

/* By this thread, so that no post is under way. */
static void control_peer(struct engine *e, const struct control *c) {
    if (e->fabric->host->life(e->fabric, c->peer) != c->number) return; /* and yet another life of it has come since */
    if (e->fabric->host->open_link(e->fabric, c->peer) != 0) {
        if (errno != EBUSY) engine_log(e, 40, "the link to node %u's memory cannot be opened: %s", c->peer + 1, strerror(errno));
        return;
    }
    e->config.pids[c->peer] = c->fd;
    replica_peer_up(e->replica, c->peer, e->now_us);
    engine_log(e, 20, "node %u has come, with new memory", c->peer + 1);
}

static bool control_take(struct engine *e, struct control *out) {
    pthread_mutex_lock(&e->mutex);
    struct control *control = queue_front(&e->controls);
    bool there = control != NULL;
    if (there) {
        *out = *control;
        queue_pop(&e->controls);
    }
    pthread_mutex_unlock(&e->mutex);
    return there;
}

void controls_handle(struct engine *e) {
    uint64_t count;
    struct control control;
    (void)!read(e->control_source.fd, &count, sizeof count);
    while (control_take(e, &control)) {
        switch (control.kind) {
            case CONTROL_LISTEN: control_listen(e, control.fd); break;
            case CONTROL_LISTEN_FEED:
                e->feed.listener = (struct source){.kind = SOURCE_FEED_LISTEN, .fd = control.fd};
                source_watch(e, &e->feed.listener, EPOLLIN);
                break;
            case CONTROL_LINK: link_add(e, control.peer, control.fd); break;
            case CONTROL_PEER: control_peer(e, &control); break;
            case CONTROL_RDB: feed_rdb(e, &control); break;
            case CONTROL_COPY: machine_filled(e, &control); break;
            case CONTROL_TAIL: claim_tail(e, &control); break;
            case CONTROL_RDB_FAILED:
                if (e->machine.protocol != NULL) machine_copy_failed(e, control.number);
                else if (!claim_failed(e, control.number)) feed_rdb_failed(e, control.number);
                break;
            case CONTROL_BACKEND_READY: e->admin.left_alone = false; break;
            case CONTROL_REMOVE: member_remove(e, control.peer); break;
            case CONTROL_PAUSE: pause_want(e, control.number != 0); break;
            case CONTROL_HAND_OVER: handover_begin(e, &control); break;
        }
    }
}

/* ---- what it looks at ------------------------------------------------------------------------------------------------- */

void status_publish(struct engine *e) {
    struct engine_status *s = &e->counters;
    s->role = e->role;
    s->leader = engine_leads(e) ? e->self : link_leader(e);
    s->serving = engine_leads(e) || (s->leader != REPLICA_NOBODY && e->backend == BACKEND_FED);
    s->eligible = e->backend >= BACKEND_FED;
    s->damage = replica_damage(e->replica);
    s->alive = replica_alive(e->replica);
    s->confirmed = engine_leads(e) ? replica_confirmed(e->replica) : 0;
    s->backend_state = e->backend;
    s->term = replica_term(e->replica);
    s->commit = s->hash_index = replica_commit(e->replica);
    s->last = replica_last(e->replica);
    s->log_hash = replica_hash(e->replica);
    uint64_t hash;
    replica_applied_point(e->replica, &s->applied, &s->log_position, &hash);
    s->backend_offset = e->machine.protocol != NULL ? machine_done(e) : e->takeover == TAKE_IDLE ? e->feed.acked_offset : e->log.effect_offset;
    s->paused = e->log.paused;
    s->heir = e->handover.stage != HANDOVER_NONE ? e->handover.target : REPLICA_NOBODY;
    s->free_bytes = replica_free_bytes(e->replica);
    s->uncovered_commands = queue_length(&e->log.uncovered);
    s->uncovered_bytes = buffer_length(&e->log.uncovered_bytes);
    s->takeover = replica_takeover_times(e->replica);
    s->epoch = e->log.epoch;
    s->effect_offset = e->log.effect_offset;
    memcpy(s->replid, e->log.replid, REPLID_BYTES);
    memcpy(s->told_replid, e->feed.told_replid, REPLID_BYTES);
    member_status(e, s);
    pthread_mutex_lock(&e->mutex);
    e->status = *s;
    pthread_mutex_unlock(&e->mutex);
    if (s->serving != e->serving_told) {
        e->serving_told = s->serving;
        engine_tell(e, ENGINE_SERVING, s->serving, 0);
    }
    uint64_t leader = s->leader == REPLICA_NOBODY ? 0 : s->leader + 1ull;
    if (leader == e->leader_told && (s->term == e->term_told || leader == 0)) return;
    e->leader_told = leader;
    e->term_told = s->term;
    engine_tell(e, ENGINE_LEADER, 0, 0);
}

void engine_status(struct engine *e, struct engine_status *out) {
    pthread_mutex_lock(&e->mutex);
    *out = e->status;
    pthread_mutex_unlock(&e->mutex);
}

void engine_stage(struct engine *e, enum engine_stage stage, struct engine_percentiles *out) {
    const struct histogram *h = &e->stages[stage]; /* counts that grow while they are read: near enough */
    *out = (struct engine_percentiles){.count = h->count,
                                       .p50_ns = histogram_quantile_ns(h, 0.50),
                                       .p90_ns = histogram_quantile_ns(h, 0.90),
                                       .p99_ns = histogram_quantile_ns(h, 0.99),
                                       .p999_ns = histogram_quantile_ns(h, 0.999),
                                       .max_ns = h->max_ns};
}
