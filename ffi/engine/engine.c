/* engine.c: the object and its loop. */
#include "engine/engine.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "engine/engine_state.h"
#include "prompt.h"

#define EVENTS_A_TURN 256
#define EVENTS_KEPT 4096
#define BUSY_FOR_US 50000ull
#define STREAM_SPIN_NS 20000ull
#define SPIN_US 300ull /* after a death: permission is asked for and given within that */
#define SNAPSHOT_AGAIN_US 1000000ull

uint64_t clock_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000ull + (uint64_t)now.tv_nsec;
}

/* ---- telling the control plane ---------------------------------------------------------------------------------------- */

static void event_push(struct engine *e, const struct engine_event *event) {
    pthread_mutex_lock(&e->mutex);
    if (queue_length(&e->events) < EVENTS_KEPT) *(struct engine_event *)queue_push(&e->events) = *event;
    pthread_mutex_unlock(&e->mutex);
    uint64_t one = 1;
    (void)!write(e->event_fd, &one, sizeof one);
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

int engine_install_rdb(struct engine *e, int fd, uint64_t bytes, uint64_t offset, uint64_t number) {
    return control_push(e, (struct control){.kind = CONTROL_RDB, .fd = fd, .bytes = bytes, .offset = offset, .number = number});
}

int engine_rdb_failed(struct engine *e, uint64_t number) {
    return control_push(e, (struct control){.kind = CONTROL_RDB_FAILED, .fd = -1, .number = number});
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

static void controls_handle(struct engine *e) {
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
            case CONTROL_RDB: feed_rdb(e, &control); break;
            case CONTROL_RDB_FAILED: feed_rdb_failed(e, control.number); break;
        }
    }
}

/* ---- the loop --------------------------------------------------------------------------------------------------------------- */

static void peers_dead(struct engine *e, uint32_t mask) {
    for (uint32_t i = 0; i < e->nodes; i++) {
        if (!(mask & (1u << i)) || i == e->self) continue;
        engine_log(e, 30, "node %u is dead", i + 1);
        if (link_leader(e) == i) e->spin_until_us = e->now_us + SPIN_US;
        replica_peer_down(e->replica, i, e->now_us);
        link_close(e, i);
    }
}

static void source_event(struct engine *e, struct source *s, uint32_t events) {
    if (s->fd < 0) return;
    switch (s->kind) {
        case SOURCE_CLIENT: client_event(e, (struct client *)(void *)s, events); break;
        case SOURCE_LISTEN: client_accept(e, s); break;
        case SOURCE_FEED_LISTEN: feed_accept(e); break;
        case SOURCE_FEED: feed_event(e, events); break;
        case SOURCE_SHARED: shared_event(e, events); break;
        case SOURCE_STREAM: stream_event(e, events); break;
        case SOURCE_ADMIN: admin_event(e, events); break;
        case SOURCE_VERIFY: {
            struct client *c = client_of_verify(e, s);
            if (c != NULL) client_verify_event(e, c);
            break;
        }
        case SOURCE_LINK: link_event(e, (uint32_t)((struct link *)(void *)s - e->links), events); break;
        case SOURCE_FABRIC: peers_dead(e, shm_drain(e->shm)); break;
        case SOURCE_CONTROL: controls_handle(e); break;
    }
}

/* Runs the core until it rests, and what follows from it. */
static void core_step(struct engine *e) {
    for (int i = 0; i < 64 && replica_poll(e->replica, e->now_us); i++) {}
    apply_committed(e);
    takeover_follow_role(e);
}

/* A ROLE answer ahead of the stream: its bytes are on their way, a sleep would cost more than the wait. */
static void stream_spin(struct engine *e) {
    struct shared *s = &e->shared;
    struct gate *last = queue_back(&s->gates);
    if (last == NULL || e->stream.stage != STREAM_LIVE) return;
    uint64_t until = clock_ns() + STREAM_SPIN_NS; /* also when bytes keep coming: a large effect takes many turns */
    while (e->stream.stage == STREAM_LIVE && last->offset > e->stream.cut_offset + buffer_length(&e->stream.effects)) {
        stream_read(e);
        last = queue_back(&s->gates); /* the backend may have been lost */
        if (last == NULL || clock_ns() > until) return;
    }
}

static void flush_all(struct engine *e) {
    for (uint64_t n = queue_length(&e->flush); n > 0; n--) {
        struct client *c = &e->clients[*(uint32_t *)queue_front(&e->flush)];
        queue_pop(&e->flush);
        c->queued_flush = false;
        client_flush(e, c);
    }
    for (uint32_t i = 0; i < e->nodes; i++)
        if (e->links[i].queued_flush) link_flush(e, i);
    if (e->feed.flush_us != 0 && e->now_us >= e->feed.flush_us) feed_flush(e);
    for (; queue_length(&e->dead) > 0; queue_pop(&e->dead)) e->free_slots[e->free_count++] = *(uint32_t *)queue_front(&e->dead);
}

static uint64_t thread_cpu_us(void) {
    struct timespec used;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &used);
    return (uint64_t)used.tv_sec * 1000000ull + (uint64_t)used.tv_nsec / 1000;
}

/* A loop that stood still looks like a dead node to the others: worth a line. */
static void turn_timed(struct engine *e, uint64_t since_ns) {
    uint64_t took_us = (clock_ns() - since_ns) / 1000;
    if (took_us > e->counters.turn_us_max) e->counters.turn_us_max = took_us;
    if (took_us <= e->config.replica.fail_us / 2) return;
    engine_log(e, 30, "one turn of the loop took %llu ms, %llu ms of them on a processor", (unsigned long long)took_us / 1000,
               (unsigned long long)(thread_cpu_us() - e->tick_cpu_us) / 1000);
}

/* Everything that one turn's events led to, in the order of the request path. */
static void turn(struct engine *e) {
    e->stalled = e->more = false;
    clients_ready(e);
    links_process(e);
    turn_end(e);
    core_step(e);
    shared_send(e);
    if (e->takeover != TAKE_IDLE) {
        takeover_step(e);
        stream_spin(e);
        effects_cut(e);
        if (e->shared.unproven) turn_end(e);
        core_step(e);
        shared_send(e);
        gates_release(e);
        enum takeover_stage before = e->takeover;
        takeover_step(e);
        if (e->takeover != before) e->more = true; /* what the next stage staged leaves at once */
    }
    flush_all(e);
}

static void status_publish(struct engine *e) {
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
    uint64_t position, hash;
    replica_applied_point(e->replica, &s->applied, &position, &hash);
    s->backend_offset = e->takeover == TAKE_IDLE ? e->feed.acked_offset : e->log.effect_offset;
    s->free_bytes = replica_free_bytes(e->replica);
    s->uncovered_commands = queue_length(&e->log.uncovered);
    s->uncovered_bytes = buffer_length(&e->log.uncovered_bytes);
    s->takeover = replica_takeover_times(e->replica);
    if (s->serving != e->serving_told) {
        e->serving_told = s->serving;
        engine_tell(e, ENGINE_SERVING, s->serving, 0);
    }
    pthread_mutex_lock(&e->mutex);
    e->status = *s;
    pthread_mutex_unlock(&e->mutex);
}

/* Is a suspect's process stopped or gone? Then it need not be waited for (design.md section 6). */
static bool process_stands_still(int32_t pid) {
    char path[64], text[512];
    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    FILE *f = fopen(path, "re");
    if (f == NULL) return true;
    size_t n = fread(text, 1, sizeof text - 1, f);
    fclose(f);
    text[n] = 0;
    const char *end = strrchr(text, ')');
    return end != NULL && strchr("TtZX", end[1] == ' ' ? end[2] : end[1]) != NULL;
}

static void suspects_check(struct engine *e) {
    uint32_t suspects = replica_suspects(e->replica) & replica_alive(e->replica);
    for (uint32_t i = 0; i < e->nodes; i++) {
        if (!(suspects & (1u << i)) || i == e->self || e->config.pids[i] <= 0) continue;
        if (!process_stands_still(e->config.pids[i])) continue;
        engine_log(e, 30, "node %u stands still", i + 1);
        replica_peer_down(e->replica, i, e->now_us);
    }
}

static void damage_check(struct engine *e) {
    if (replica_damage(e->replica) == REPLICA_SOUND || e->takeover != TAKE_IDLE) return;
    if (e->snapshot_us != 0 && e->now_us - e->snapshot_us < SNAPSHOT_AGAIN_US) return;
    uint32_t from = replica_source(e->replica); /* not only the leader: without this node there may be none */
    if (from == REPLICA_NOBODY) return;
    if (e->snapshot_us == 0)
        engine_log(e, 30, replica_damage(e->replica) == REPLICA_LAPPED ? "the log has gone on without this node: it takes over another node's state"
                                                                       : "the log differs from the cluster's: it takes over another node's state");
    e->snapshot_us = e->now_us;
    link_send(e, from, &(struct frame){.type = FRAME_SNAPSHOT_ASK}, NULL);
}

static void tick(struct engine *e, uint64_t interval_us) {
    replica_tick(e->replica, e->now_us, (uint32_t)interval_us);
    if (engine_leads(e)) replica_flush_commit(e->replica);
    suspects_check(e);
    damage_check(e);
    admin_tick(e);
    stream_tick(e);
    if (e->backend == BACKEND_DIRTY && e->takeover == TAKE_IDLE && replica_damage(e->replica) == REPLICA_SOUND &&
        link_leader(e) != REPLICA_NOBODY)
        feed_want_rdb(e);
    uint32_t confirmed = (uint32_t)__builtin_popcount(replica_confirmed(e->replica));
    e->context.followers = engine_leads(e) ? (confirmed > 0 ? confirmed - 1 : 0) : e->nodes / 2;
    if (!engine_leads(e)) clients_expire(e);
    status_publish(e);
}

static uint64_t interval_us(const struct engine *e) {
    return e->now_us < e->busy_until_us || e->takeover > TAKE_IDLE ? e->config.tick_busy_us : e->config.tick_idle_us;
}

static void wait_for_events(struct engine *e, struct epoll_event *events, uint64_t tick_at_us) {
    uint64_t now_us = clock_ns() / 1000, until = tick_at_us, deadline = replica_deadline_us(e->replica);
    if (deadline < until) until = deadline;
    if (e->feed.flush_us != 0 && e->feed.flush_us < until) until = e->feed.flush_us;
    if (e->more || (queue_length(&e->ready) > 0 && !e->stalled)) until = now_us;
    if (now_us < e->spin_until_us && e->takeover == TAKE_IDLE) until = now_us;
    uint64_t left = until > now_us ? until - now_us : 0;
    struct timespec timeout = {(time_t)(left / 1000000), (long)(left % 1000000) * 1000};
    int n = epoll_pwait2(e->epoll, events, EVENTS_A_TURN, &timeout, NULL);
    e->now_ns = clock_ns();
    e->now_us = e->now_ns / 1000;
    for (int i = 0; i < n; i++) {
        enum source_kind kind = ((struct source *)events[i].data.ptr)->kind;
        if (kind == SOURCE_CLIENT || kind == SOURCE_LINK || kind == SOURCE_SHARED) e->busy_until_us = e->now_us + BUSY_FOR_US;
        source_event(e, events[i].data.ptr, events[i].events);
    }
}

int engine_run(struct engine *e) {
    struct epoll_event events[EVENTS_A_TURN];
    prompt_thread();
    if (shm_enter(e->shm) != 0) {
        engine_fatal(e, "the fabric cannot be entered");
        return -1;
    }
    e->now_ns = clock_ns();
    e->now_us = e->tick_us = e->now_ns / 1000;
    for (uint32_t i = 0; i < e->nodes; i++)
        if (i != e->self) replica_peer_up(e->replica, i, e->now_us);
    e->fabric_source = (struct source){.kind = SOURCE_FABRIC, .fd = shm_wait_fd(e->shm)};
    source_watch(e, &e->fabric_source, EPOLLIN);
    source_watch(e, &e->control_source, EPOLLIN);
    while (!atomic_load(&e->stopping)) {
        uint64_t interval = interval_us(e);
        wait_for_events(e, events, e->tick_us + interval);
        if (e->now_us >= e->tick_us + interval || e->now_us < e->tick_us) {
            e->tick_us = e->now_us;
            e->tick_cpu_us = thread_cpu_us();
            tick(e, interval_us(e));
        }
        turn(e);
        turn_timed(e, e->now_ns);
    }
    if (e->takeover != TAKE_IDLE) link_announce(e, false);
    for (uint32_t i = 0; i < e->nodes; i++) link_flush(e, i);
    return 0;
}

/* ---- the object -------------------------------------------------------------------------------------------------------------- */

static bool config_possible(const struct engine_config *config, char *why, uint32_t why_bytes) {
    const char *fault = NULL;
    if (config->clients_max == 0 || config->databases == 0) fault = "clients_max and databases must be positive";
    else if (config->tick_busy_us == 0 || config->tick_idle_us == 0) fault = "ticks must be positive";
    else if (config->replica.piece_bytes_max < 4096) fault = "piece_bytes_max must be at least 4096";
    else if (!config->backend_path[0] && !config->backend_host[0]) fault = "the backend has no address";
    if (fault != NULL) snprintf(why, why_bytes, "%s", fault);
    return fault == NULL;
}

static void sources_init(struct engine *e) {
    e->shared.socket.source = (struct source){.kind = SOURCE_SHARED, .fd = -1};
    e->stream.socket.source = (struct source){.kind = SOURCE_STREAM, .fd = -1};
    e->admin.socket.source = (struct source){.kind = SOURCE_ADMIN, .fd = -1};
    e->feed.socket.source = (struct source){.kind = SOURCE_FEED, .fd = -1};
    e->feed.listener = (struct source){.kind = SOURCE_FEED_LISTEN, .fd = -1};
    e->feed.rdb_fd = -1;
    for (uint32_t i = 0; i < FABRIC_NODES_MAX; i++) e->links[i].socket.source = (struct source){.kind = SOURCE_LINK, .fd = -1};
    queue_init(&e->shared.staged, sizeof(struct staged), 64);
    queue_init(&e->shared.expects, sizeof(struct expect), 4096);
    queue_init(&e->shared.segments, sizeof(struct segment), 4096);
    queue_init(&e->shared.gates, sizeof(struct gate), 256);
    queue_init(&e->admin.expects, sizeof(struct admin_expect), 64);
    queue_init(&e->ready, sizeof(uint32_t), 256);
    queue_init(&e->flush, sizeof(uint32_t), 256);
    queue_init(&e->dead, sizeof(uint32_t), 256);
    queue_init(&e->events, sizeof(struct engine_event), 64);
    queue_init(&e->controls, sizeof(struct control), 16);
    resp_reply_reset(&e->shared.reply);
    resp_reply_reset(&e->admin.reply);
    resp_request_reset(&e->feed.request);
}

struct engine *engine_new(const struct engine_config *config, struct shm *shm, const struct command_table *commands,
                          char *why, uint32_t why_bytes) {
    if (!config_possible(config, why, why_bytes)) return NULL;
    struct engine *e = calloc(1, sizeof *e);
    CHECK(e != NULL);
    e->config = *config;
    e->shm = shm;
    e->fabric = shm_fabric(shm);
    e->self = config->replica.self;
    e->nodes = config->replica.nodes;
    e->replica = replica_new(&config->replica, e->fabric, shm_log(shm), shm_background(shm));
    if (e->replica == NULL) {
        snprintf(why, why_bytes, "ring_bytes must be a power of two of at least 8 times piece_bytes_max");
        free(e);
        return NULL;
    }
    sources_init(e);
    pthread_mutex_init(&e->mutex, NULL);
    e->epoll = epoll_create1(EPOLL_CLOEXEC);
    e->event_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    e->control_source = (struct source){.kind = SOURCE_CONTROL, .fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)};
    CHECK(e->epoll >= 0 && e->event_fd >= 0 && e->control_source.fd >= 0);
    e->clients = calloc(config->clients_max, sizeof *e->clients);
    e->free_slots = calloc(config->clients_max, sizeof *e->free_slots);
    e->scratch = malloc(SCRATCH_BYTES);
    CHECK(e->clients != NULL && e->free_slots != NULL && e->scratch != NULL);
    log_state_init(&e->log);
    e->context = (struct session_context){.commands = commands,
                                          .version = e->config.backend_version,
                                          .databases = config->databases,
                                          .password_needed = config->password_needed,
                                          .block_bytes_max = config->client_input_bytes_max};
    e->status.leader = e->counters.leader = REPLICA_NOBODY;
    return e;
}

static void queues_free(struct engine *e) {
    struct queue *queues[] = {&e->shared.staged, &e->shared.expects, &e->shared.segments, &e->shared.gates, &e->admin.expects,
                              &e->ready,         &e->flush,          &e->dead,            &e->events,       &e->controls};
    for (size_t i = 0; i < sizeof queues / sizeof queues[0]; i++) queue_free(queues[i]);
    struct buffer *buffers[] = {&e->normal, &e->answer, &e->shared.socket.out, &e->shared.role, &e->shared.local,
                                &e->stream.socket.out, &e->stream.line, &e->stream.effects, &e->feed.socket.out, &e->feed.in,
                                &e->feed.backlog, &e->admin.socket.out, &e->admin.bytes, &e->big.bytes};
    for (size_t i = 0; i < sizeof buffers / sizeof buffers[0]; i++) buffer_free(buffers[i]);
}

void engine_free(struct engine *e) {
    if (e == NULL) return;
    for (uint32_t i = 0; i < e->clients_used; i++) {
        client_close(e, &e->clients[i]);
        queue_free(&e->clients[i].pending);
    }
    shared_close(e);
    stream_close(e);
    admin_close(e);
    feed_stop(e);
    for (uint32_t i = 0; i < e->nodes; i++) link_close(e, i);
    for (struct listener *l = e->listeners, *next; l != NULL; l = next) {
        next = l->next;
        source_close(e, &l->source);
        free(l);
    }
    source_close(e, &e->feed.listener);
    close(e->control_source.fd);
    close(e->event_fd);
    close(e->epoll);
    queues_free(e);
    log_state_free(&e->log);
    replica_free(e->replica);
    pthread_mutex_destroy(&e->mutex);
    free(e->clients);
    free(e->free_slots);
    free(e->scratch);
    free(e);
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
