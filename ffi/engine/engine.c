/* engine.c: the object and its loop. */
#include "engine/engine.h"

#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "engine/engine_state.h"
#include "plant.h"
#include "prompt.h"

#define EVENTS_A_TURN 256
#define BUSY_FOR_US 50000ull
#define PATIENCE_IN_A_ROW 16u      /* waits for one answer at a time until it is taken for the rule */
#define PATIENCE_MAX 16u           /* credit of a wait that was always short ... */
#define PATIENCE_LOST 4u           /* ... what it loses when it was not ... */
#define PATIENCE_TRIES_EVERY 64u   /* ... and without any it is tried this often */
#define STREAM_SPIN_NS 20000ull
#define QUIET_US 20000ull /* after a death: a take-over is over by then */
#define SNAPSHOT_AGAIN_US 1000000ull

uint64_t clock_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000ull + (uint64_t)now.tv_nsec;
}

/* ---- the loop --------------------------------------------------------------------------------------------------------------- */

/* Who takes over waits for its backend, which is put in front, too, if this process started it. Not before: the others'
 * permission is waited for first, and they may share its processor. */
static void backend_hurry(struct engine *e) {
    if (e->hurried_child != 0) (void)prompt_write(e->hurried_child, &e->unhurried);
    e->hurried_child = e->backend_hurried ? socket_child(&e->admin.socket) : 0;
    if (e->hurried_child == 0) return;
    bool may = prompt_read(e->hurried_child, &e->unhurried) && e->unhurried.policy == SCHED_OTHER && prompt_hurry(e->hurried_child);
    if (!may) e->hurried_child = 0;
    e->unhurried.flags |= PROMPT_OURS; /* only the privileged may take it back */
}

static void hurry(struct engine *e, bool now) {
    prompt_thread(0, now ? PROMPT_NOW : PROMPT_SOON);
    e->hurried = now;
}

/* Everybody waits for a take-over. In steady service to be in front costs a fifth of the throughput: the backend is
 * interrupted for every request instead of every few. */
static void promptness(struct engine *e) {
    bool now = e->now_us < e->quiet_until_us;
    if (now != e->hurried) hurry(e, now);
    bool elected = now && e->takeover != TAKE_IDLE;
    if (elected == e->backend_hurried) return;
    e->backend_hurried = elected;
    backend_hurry(e);
}

static void peers_dead(struct engine *e, uint32_t mask) {
    for (uint32_t i = 0; i < e->nodes; i++) {
        if (!(mask & (1u << i)) || i == e->self) continue;
        engine_log(e, 30, "node %u is dead", i + 1);
        if (link_leader(e) == i) e->quiet_until_us = e->now_us + QUIET_US;
        hurry(e, e->now_us < e->quiet_until_us); /* as the fabric may have had it do, to hear of this */
        promptness(e);
        replica_peer_down(e->replica, i, e->now_us);
        link_lost(e, i);
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
        case SOURCE_LOCAL: {
            struct client *c = client_of_local(e, s);
            if (c != NULL) machine_local_event(e, c);
            break;
        }
        case SOURCE_VERIFY: {
            struct client *c = client_of_verify(e, s);
            if (c != NULL) client_verify_event(e, c);
            break;
        }
        case SOURCE_LINK: link_event(e, (uint32_t)((struct link *)(void *)s - e->links), events); break;
        case SOURCE_FABRIC: peers_dead(e, e->fabric->host->drain(e->fabric)); break;
        case SOURCE_CONTROL: controls_handle(e); break;
        case SOURCE_OWN: own_event(e, s, events); break;
        case SOURCE_STALE: stale_event(e, events); break;
        case SOURCE_GONE: break;
    }
}

/* Runs the core until it rests, and what follows from it. */
static void core_step(struct engine *e) {
    for (int i = 0; i < 64 && replica_poll(e->replica, e->now_us); i++) {}
    if (e->machine.protocol != NULL) takeover_step_down(e); /* what this node logged and the next leader did not is not skipped */
    apply_committed(e);
    takeover_follow_role(e);
}

/* A ROLE answer ahead of the stream: its bytes are on their way, a sleep would cost more than the wait. */
static void stream_spin(struct engine *e) {
    struct shared *s = &e->shared;
    struct gate *last = queue_back(&s->gates);
    if (last == NULL || e->stream.psync.stage != PSYNC_LIVE) return;
    uint64_t until = clock_ns() + STREAM_SPIN_NS; /* also when bytes keep coming: a large effect takes many turns */
    while (e->stream.psync.stage == PSYNC_LIVE && last->offset > e->stream.cut_offset + buffer_length(&e->stream.effects)) {
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
    owns_step(e);
    if (e->machine.protocol != NULL) machine_step(e);
    shared_send(e);
    if (e->takeover != TAKE_IDLE) {
        promptness(e);
        takeover_step(e);
        if (!planted(PLANT_CUT_WITHOUT_ROLE)) stream_spin(e);
        effects_cut(e);
        while (planted(PLANT_CUT_WITHOUT_ROLE) && stream_read(e)) continue;
        if (e->shared.unproven) turn_end(e);
        core_step(e);
        owns_step(e);
        shared_send(e);
        gates_release(e);
        stale_tell(e);
        enum takeover_stage before = e->takeover;
        takeover_step(e);
        if (e->takeover != before) e->more = true; /* what the next stage staged leaves at once */
        stream_watch(e);
    }
    if (queue_length(&e->admin.done) > 0) admin_settings_log(e);
    handover_step(e);
    stale_step(e);
    if (e->machine.protocol == NULL) census_tell(e);
    flush_all(e);
    owns_bury(e);
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
    if (from == REPLICA_NOBODY || e->links[from].socket.source.fd < 0) return;
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
    member_tick(e);
    takeover_tick(e);
    pause_tick(e);
    member_watch(e);
    admin_tick(e);
    stream_tick(e);
    if (e->backend == BACKEND_DIRTY && e->takeover == TAKE_IDLE && replica_damage(e->replica) == REPLICA_SOUND &&
        link_leader(e) != REPLICA_NOBODY) {
        if (e->machine.protocol != NULL) machine_want_copy(e);
        else if (!claim_step(e)) feed_want_rdb(e);
    }
    feed_tick(e);
    e->context.followers = member_count(e) / 2;
    waits_step(e);
    censuses_step(e);
    forward_watch(e);
    shared_watch(e);
    client_pause_tick(e);
    owns_tick(e);
    stale_tick(e);
    if (!engine_leads(e)) clients_expire(e);
    promptness(e);
    status_publish(e);
}

static uint64_t interval_us(const struct engine *e) {
    return e->now_us < e->busy_until_us || e->takeover > TAKE_IDLE ? e->config.tick_busy_us : e->config.tick_idle_us;
}

/* Where one request at a time comes and goes the next event is microseconds away, and to sleep and be woken would cost
 * more. So the loop looks for a while before it sleeps, as long as that pays, and lets others have the processor in
 * between. The two waits, for the backend and for the client, have credit of their own. Returns how many events came. */
static int look_before_sleep(struct engine *e, struct epoll_event *events) {
    static const struct timespec at_once;
    const struct shared *s = &e->shared;
    bool machine = e->machine.protocol != NULL;
    bool answer_due = machine ? queue_length(&s->expects) > 0 : s->roles_in_flight > 0;
    if (answer_due) e->patience.in_a_row = queue_length(&s->expects) <= 2 ? e->patience.in_a_row + 1 : 0; /* with its ROLE */
    if (e->config.spin_us == 0 || e->patience.in_a_row < PATIENCE_IN_A_ROW || !engine_leads(e) || e->hurried) return 0;
    uint32_t *credit = &e->patience.credit[answer_due];
    if (*credit == 0 && ++e->patience.unspun % PATIENCE_TRIES_EVERY != 0) return 0;
    uint64_t until_ns = clock_ns() + e->config.spin_us * 1000ull;
    int n;
    do {
        sched_yield();
        n = epoll_pwait2(e->epoll, events, EVENTS_A_TURN, &at_once, NULL);
    } while (n == 0 && clock_ns() < until_ns);
    if (n > 0 && *credit < PATIENCE_MAX) ++*credit;
    if (n <= 0) *credit = *credit > PATIENCE_LOST ? *credit - PATIENCE_LOST : 0;
    return n;
}

static void wait_for_events(struct engine *e, struct epoll_event *events, uint64_t tick_at_us) {
    uint64_t now_us = clock_ns() / 1000, until = tick_at_us, deadline = replica_deadline_us(e->replica);
    if (deadline < until) until = deadline;
    if (e->feed.flush_us != 0 && e->feed.flush_us < until) until = e->feed.flush_us;
    if (e->machine.flush_us != 0 && e->machine.flush_us < until) until = e->machine.flush_us;
    uint64_t lost_us = admin_deadline_us(e);
    if (lost_us < until) until = lost_us;
    if (e->more || (queue_length(&e->ready) > 0 && !e->stalled)) until = now_us;
    int n = until > now_us ? look_before_sleep(e, events) : 0;
    if (n > 0 || (until > now_us && !e->fabric->host->arm(e->fabric))) until = now_us;
    uint64_t left = until > now_us ? until - now_us : 0;
    struct timespec timeout = {(time_t)(left / 1000000), (long)(left % 1000000) * 1000};
    if (n <= 0) n = epoll_pwait2(e->epoll, events, EVENTS_A_TURN, &timeout, NULL);
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
    prompt_thread(0, PROMPT_SOON);
    if (e->fabric->host->enter(e->fabric) != 0) {
        engine_fatal(e, "the fabric cannot be entered");
        return -1;
    }
    e->now_ns = clock_ns();
    e->now_us = e->tick_us = e->now_ns / 1000;
    for (uint32_t i = 0; i < e->nodes; i++)
        if (i != e->self) replica_peer_up(e->replica, i, e->now_us);
    e->fabric_source = (struct source){.kind = SOURCE_FABRIC, .fd = e->fabric->host->wait_fd(e->fabric)};
    source_watch(e, &e->fabric_source, EPOLLIN);
    source_watch(e, &e->control_source, EPOLLIN);
    while (!atomic_load(&e->stopping)) {
        uint64_t interval = interval_us(e);
        wait_for_events(e, events, e->tick_us + interval);
        admin_watch(e);
        if (e->now_us >= e->tick_us + interval || e->now_us < e->tick_us) {
            e->tick_us = e->now_us;
            e->tick_cpu_us = thread_cpu_us();
            tick(e, interval_us(e));
        }
        turn(e);
        turn_timed(e, e->now_ns);
        if (e->untold && e->now_us >= e->quiet_until_us) events_announce(e);
    }
    if (e->takeover != TAKE_IDLE) link_announce(e, false);
    if (engine_leads(e)) replica_flush_commit(e->replica);
    for (uint32_t i = 0; i < e->nodes; i++) link_flush(e, i);
    do { /* what is known as committed is what this node will say that it had */
        e->more = false;
        apply_committed(e);
    } while (e->more);
    feed_finish(e);
    status_publish(e);
    if (e->untold) events_announce(e);
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
    queue_init(&e->admin.done, sizeof(struct admin_answer), 16);
    queue_init(&e->admin.expects, sizeof(struct admin_expect), 64);
    queue_init(&e->ready, sizeof(uint32_t), 256);
    queue_init(&e->flush, sizeof(uint32_t), 256);
    queue_init(&e->dead, sizeof(uint32_t), 256);
    queue_init(&e->events, sizeof(struct engine_event), 64);
    queue_init(&e->controls, sizeof(struct control), 16);
    owns_init(e);
    stale_init(e);
    slowlog_init(e);
    waits_init(e);
    resp_reply_reset(&e->shared.reply);
    resp_reply_reset(&e->admin.reply);
    resp_request_reset(&e->feed.request);
}

struct engine *engine_new(const struct engine_config *config, struct fabric *fabric, const struct command_table *commands,
                          char *why, uint32_t why_bytes) {
    if (!config_possible(config, why, why_bytes)) return NULL;
    struct engine *e = calloc(1, sizeof *e);
    CHECK(e != NULL);
    e->config = *config;
    e->fabric = fabric;
    e->self = config->replica.self;
    e->nodes = config->replica.nodes;
    e->replica = replica_new(&config->replica, fabric, fabric->host->memory(fabric, FABRIC_LOG),
                             fabric->host->memory(fabric, FABRIC_BACKGROUND));
    if (e->replica == NULL) {
        snprintf(why, why_bytes, "ring_bytes must be a power of two of at least 8 times piece_bytes_max");
        free(e);
        return NULL;
    }
    if (!machine_init(e)) {
        snprintf(why, why_bytes, "there is no backend protocol %u", config->protocol);
        replica_free(e->replica);
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
    claim_init(e);
    e->context = (struct session_context){.commands = commands,
                                          .user = e->config.backend_user,
                                          .version = e->config.backend_version,
                                          .databases = config->databases,
                                          .password_needed = config->password_needed,
                                          .stale_reads = config->stale_us > 0,
                                          .block_bytes_max = config->client_input_bytes_max};
    e->status.leader = e->counters.leader = e->status.heir = REPLICA_NOBODY;
    return e;
}

static void queues_free(struct engine *e) {
    struct queue *queues[] = {&e->shared.staged, &e->shared.expects, &e->shared.segments, &e->shared.gates, &e->admin.expects, &e->admin.done,
                              &e->ready,         &e->flush,          &e->dead,            &e->events,       &e->controls, &e->waiters};
    for (size_t i = 0; i < sizeof queues / sizeof queues[0]; i++) queue_free(queues[i]);
    struct buffer *buffers[] = {&e->normal, &e->answer, &e->shared.socket.out, &e->shared.role, &e->shared.local, &e->shared.refusal, &e->shared.edited,
                                &e->shared.info, &e->shared.populate,
                                &e->stream.socket.out, &e->stream.effects, &e->feed.socket.out, &e->feed.in,
                                &e->feed.backlog, &e->admin.socket.out, &e->admin.bytes, &e->admin.settings, &e->admin.checks, &e->admin.logging, &e->big.bytes};
    for (size_t i = 0; i < sizeof buffers / sizeof buffers[0]; i++) buffer_free(buffers[i]);
}

void engine_free(struct engine *e) {
    if (e == NULL) return;
    for (uint32_t i = 0; i < e->clients_used; i++) {
        client_close(e, &e->clients[i]);
        queue_free(&e->clients[i].pending);
    }
    owns_free(e);
    stale_free(e);
    slowlog_free(e);
    shared_close(e);
    machine_free(e);
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
