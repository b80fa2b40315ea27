/* gate_loop.c: see gate_loop.h. */
#include "gate/gate_loop.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "gate/queues.h"

#define EVENTS 64
#define REPLIES 32
#define CHUNK_BYTES (64u << 10)
#define LOOK_MS 20 /* while a reply is waited for */
#define REGISTRY_CONNECTIONS 256u /* a thread of HERD has one each */
#define TOGETHER "HERD and the sidecar must be started together"

enum source { SOURCE_LISTENER, SOURCE_REGISTRY, SOURCE_STOP, SOURCE_QUEUES, SOURCE_PROCESS, SOURCE_CONNECTION, SOURCE_MEMBER };

struct member { /* of HERD, at the registry */
    int fd; /* -1: none */
    struct buffer in, out;
};

struct gate_loop {
    struct gate_loop_config config;
    struct gate *gate;
    struct queues *queues;
    struct herd_registry registry;
    int epoll;
    int fds[GATE_CONNECTIONS_MAX]; /* -1: none */
    uint32_t interest[GATE_CONNECTIONS_MAX];
    struct member members[REGISTRY_CONNECTIONS];
    uint32_t workers_qpn[GATE_WORKERS_MAX]; /* where its replies come from; 0: not known yet */
    uint64_t began_ns;
    bool told_connected, serves, stopped, failed, ended;
    char *why;
    uint32_t why_bytes;
    uint8_t chunk[CHUNK_BYTES];
};

static uint64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

__attribute__((format(printf, 2, 3))) static void fail(struct gate_loop *l, const char *format, ...) {
    va_list words;
    if (l->failed) return;
    l->failed = true;
    va_start(words, format);
    vsnprintf(l->why, l->why_bytes, format, words);
    va_end(words);
}

static int watch(struct gate_loop *l, int fd, enum source source, uint32_t number, uint32_t events, int operation) {
    struct epoll_event event = {.events = events, .data.u64 = (uint64_t)source << 32 | number};
    return epoll_ctl(l->epoll, operation, fd, &event);
}

struct gate_loop *gate_loop_new(const struct gate_loop_config *config, char *why, uint32_t why_bytes) {
    struct gate_loop *l = calloc(1, sizeof *l);
    CHECK(l != NULL);
    l->config = *config;
    for (uint32_t i = 0; i < GATE_CONNECTIONS_MAX; i++) l->fds[i] = -1;
    for (uint32_t i = 0; i < REGISTRY_CONNECTIONS; i++) l->members[i].fd = -1;
    l->epoll = epoll_create1(EPOLL_CLOEXEC);
    CHECK(l->epoll >= 0);
    l->gate = gate_new(&config->gate);
    if (l->gate == NULL) snprintf(why, why_bytes, "no memory for a table of %u keys (keys_max)", config->gate.keys_max);
    else l->queues = queues_new(config->port_index, config->gate.workers, why, why_bytes);
    if (l->queues == NULL) {
        gate_loop_free(l);
        return NULL;
    }
    herd_registry_start(&l->registry, queues_lid(l->queues), queues_conn_qpn(l->queues), queues_dgram_qpn(l->queues), config->gate.workers);
    gate_waits_for(l->gate, "HERD's master");
    watch(l, config->listener, SOURCE_LISTENER, 0, EPOLLIN, EPOLL_CTL_ADD);
    watch(l, config->registry, SOURCE_REGISTRY, 0, EPOLLIN, EPOLL_CTL_ADD);
    watch(l, config->stop, SOURCE_STOP, 0, EPOLLIN, EPOLL_CTL_ADD);
    watch(l, queues_fd(l->queues), SOURCE_QUEUES, 0, EPOLLIN, EPOLL_CTL_ADD);
    l->began_ns = now_ns();
    return l;
}

void gate_loop_free(struct gate_loop *l) {
    for (uint32_t i = 0; i < GATE_CONNECTIONS_MAX; i++)
        if (l->fds[i] >= 0) close(l->fds[i]);
    for (uint32_t i = 0; i < REGISTRY_CONNECTIONS; i++) {
        if (l->members[i].fd >= 0) close(l->members[i].fd);
        buffer_free(&l->members[i].in);
        buffer_free(&l->members[i].out);
    }
    if (l->queues != NULL) queues_free(l->queues);
    if (l->gate != NULL) gate_free(l->gate);
    close(l->epoll);
    free(l);
}

const char *gate_loop_device(const struct gate_loop *l) { return queues_device(l->queues); }

int gate_loop_watch(struct gate_loop *l, int pidfd, uint32_t number) { return watch(l, pidfd, SOURCE_PROCESS, number, EPOLLIN, EPOLL_CTL_ADD); }

/* ---- those who ask ------------------------------------------------------------------------------------------------------------ */

static void accept_one(struct gate_loop *l) {
    int fd = accept4(l->config.listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd < 0) return;
    int number = gate_open(l->gate);
    if (number < 0) {
        close(fd);
        return;
    }
    l->fds[number] = fd;
    l->interest[number] = EPOLLIN;
    watch(l, fd, SOURCE_CONNECTION, (uint32_t)number, EPOLLIN, EPOLL_CTL_ADD);
}

static void drop(struct gate_loop *l, uint32_t number) {
    close(l->fds[number]);
    l->fds[number] = -1;
    gate_close(l->gate, (int)number);
}

static void read_some(struct gate_loop *l, uint32_t number) {
    ssize_t n = recv(l->fds[number], l->chunk, sizeof l->chunk, 0);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (n <= 0 || !gate_input(l->gate, (int)number, l->chunk, (size_t)n)) drop(l, number);
}

static void flush(struct gate_loop *l, uint32_t number) {
    size_t length;
    const uint8_t *bytes = gate_output(l->gate, (int)number, &length);
    while (length > 0) {
        ssize_t n = send(l->fds[number], bytes, length, MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0 && errno == EAGAIN) break;
        if (n < 0) return drop(l, number);
        gate_sent(l->gate, (int)number, (size_t)n);
        bytes = gate_output(l->gate, (int)number, &length);
    }
    uint32_t wanted = (gate_wants_input(l->gate, (int)number) ? EPOLLIN : 0u) | (length > 0 ? EPOLLOUT : 0u);
    if (wanted == l->interest[number]) return;
    l->interest[number] = wanted;
    watch(l, l->fds[number], SOURCE_CONNECTION, number, wanted, EPOLL_CTL_MOD);
}

static void flush_all(struct gate_loop *l) {
    for (uint32_t i = 0; i < GATE_CONNECTIONS_MAX; i++)
        if (l->fds[i] >= 0) flush(l, i);
}

/* ---- HERD's registry ------------------------------------------------------------------------------------------------------------ */

static void accept_member(struct gate_loop *l) {
    int fd = accept4(l->config.registry, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd < 0) return;
    for (uint32_t i = 0; i < REGISTRY_CONNECTIONS; i++) {
        if (l->members[i].fd >= 0) continue;
        l->members[i].fd = fd;
        watch(l, fd, SOURCE_MEMBER, i, EPOLLIN, EPOLL_CTL_ADD);
        return;
    }
    close(fd);
}

static void drop_member(struct member *m) {
    close(m->fd);
    m->fd = -1;
    buffer_clear(&m->in);
    buffer_clear(&m->out);
}

static void say_what_is_awaited(struct gate_loop *l) {
    const struct herd_registry *r = &l->registry;
    char text[120];
    if (r->clients == 0) snprintf(text, sizeof text, "HERD's master (it has published %u queue pairs)", r->published);
    else if (!herd_registry_connected(r)) snprintf(text, sizeof text, "HERD's master (connected: %u of %u clients)", r->connected, r->clients);
    else snprintf(text, sizeof text, "HERD's workers (%u of %u have come)", r->met, r->workers);
    gate_waits_for(l->gate, text);
}

static void after_registry(struct gate_loop *l) {
    struct herd_registry *r = &l->registry;
    say_what_is_awaited(l);
    if (r->trouble[0] != 0) fail(l, "%s: " TOGETHER, r->trouble);
    if (l->serves || !herd_registry_whole(r) || l->failed) return;
    char why[256];
    if (!queues_connect(l->queues, &r->masters[0], why, sizeof why)) return fail(l, "%s", why);
    if ((uint64_t)r->workers * r->clients * HERD_WINDOW * HERD_SLOT_BYTES > HERD_REGION_BYTES)
        return fail(l, "%u workers and %u clients do not fit in HERD's request region: is `workers` HERD's NUM_WORKERS?", r->workers, r->clients);
    l->serves = true;
    gate_serve(l->gate, r->clients);
}

static void member_event(struct gate_loop *l, uint32_t number) {
    struct member *m = &l->members[number];
    bool good;
    ssize_t n = recv(m->fd, l->chunk, sizeof l->chunk, 0);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (n <= 0) return drop_member(m);
    buffer_append(&m->in, l->chunk, (size_t)n);
    buffer_consume(&m->in, herd_registry_feed(&l->registry, buffer_bytes(&m->in), buffer_length(&m->in), &m->out, &good));
    /* An answer is shorter than a socket's buffer, and its asker waits for each. */
    if (buffer_length(&m->out) > 0 && send(m->fd, buffer_bytes(&m->out), buffer_length(&m->out), MSG_NOSIGNAL) != (ssize_t)buffer_length(&m->out))
        good = false;
    buffer_clear(&m->out);
    after_registry(l);
    if (!good) drop_member(m);
}

/* ---- the device ------------------------------------------------------------------------------------------------------------------ */

static void take_reply(struct gate_loop *l, const struct queues_reply *reply, uint64_t now) {
    uint32_t *qpn = reply->worker < l->config.gate.workers ? &l->workers_qpn[reply->worker] : NULL;
    if (qpn == NULL || (*qpn != 0 && *qpn != reply->from_qpn)) return gate_stray(l->gate); /* anybody may send a datagram */
    if (!gate_reply(l->gate, reply->worker, reply->bytes, reply->length, now))
        return fail(l, "HERD's worker %u has answered what it was not asked: " TOGETHER, reply->worker);
    *qpn = reply->from_qpn;
}

/* Whether anything was done. */
static bool exchange(struct gate_loop *l) {
    struct queues_reply replies[REPLIES];
    struct gate_step step;
    int count = queues_poll(l->queues, replies, REPLIES);
    uint64_t now = now_ns();
    bool did = count > 0;
    if (count < 0) return fail(l, "the queue pairs to HERD are broken: " TOGETHER), false;
    for (int i = 0; i < count; i++) take_reply(l, &replies[i], now);
    while (!l->failed && queues_room(l->queues) && gate_next(l->gate, now, &step)) {
        did = true;
        if (!queues_post(l->queues, &step)) fail(l, "nothing can be sent to HERD any more: " TOGETHER);
    }
    int silent = gate_silent(l->gate, now);
    if (silent >= 0)
        fail(l, "HERD's worker %d has not answered for %" PRIu64 " ms: it is dead, or a request or a reply was lost, which HERD has no remedy "
                "for: " TOGETHER, silent, l->config.gate.answer_us / 1000);
    return did;
}

/* Replies are looked for without sleeping for a while. */
static void spin(struct gate_loop *l) {
    uint64_t until = now_ns() + (uint64_t)l->config.spin_us * 1000;
    while (!l->failed && gate_under_way(l->gate) && now_ns() < until)
        if (exchange(l)) until = now_ns() + (uint64_t)l->config.spin_us * 1000;
}

/* ---- nothing but HERD ------------------------------------------------------------------------------------------------------------ */

static bool bare_reply(struct gate_loop *l, uint32_t worker, uint64_t until) {
    struct queues_reply reply;
    uint64_t spin_until = now_ns() + (uint64_t)l->config.spin_us * 1000;
    for (;;) {
        int count = queues_poll(l->queues, &reply, 1);
        uint64_t now = now_ns();
        if (count != 0 || now > until) return count == 1 && reply.worker == worker;
        if (now < spin_until) continue;
        struct pollfd readable = {.fd = queues_fd(l->queues), .events = POLLIN};
        queues_arm(l->queues);
        if (queues_poll(l->queues, &reply, 1) == 1) return reply.worker == worker;
        poll(&readable, 1, LOOK_MS);
        queues_drain(l->queues);
    }
}

bool gate_loop_bare(struct gate_loop *l, uint32_t count, bool puts, uint64_t *ns) {
    static uint32_t turns[GATE_WORKERS_MAX];
    for (uint32_t i = 0; i < count; i++) {
        struct herd_key key;
        uint8_t value[HERD_VALUE_BYTES];
        uint64_t began = now_ns();
        herd_key_of(&i, sizeof i, &key);
        struct gate_step step = {.worker = herd_worker(key.bytes, l->config.gate.workers), .is_put = puts, .length = puts ? HERD_PUT_BYTES : HERD_GET_BYTES};
        step.at = herd_slot_at(step.worker, l->registry.clients, 0, turns[step.worker]++);
        herd_value_write(value, key.check, 0, &i, sizeof i);
        if (puts) herd_slot_put(step.slot, key.bytes, value);
        else herd_slot_get(step.slot, key.bytes);
        if (!queues_room(l->queues) || !queues_post(l->queues, &step)) return false;
        if (!bare_reply(l, step.worker, began + l->config.gate.answer_us * 1000)) return false;
        ns[i] = now_ns() - began;
    }
    return true;
}

/* ---- the loop -------------------------------------------------------------------------------------------------------------------- */

static void on_event(struct gate_loop *l, const struct epoll_event *event) {
    uint32_t number = (uint32_t)event->data.u64;
    switch ((enum source)(event->data.u64 >> 32)) {
        case SOURCE_LISTENER: return accept_one(l);
        case SOURCE_REGISTRY: return accept_member(l);
        case SOURCE_STOP: l->stopped = true; return;
        case SOURCE_QUEUES: return queues_drain(l->queues);
        case SOURCE_PROCESS:
            l->ended = true;
            snprintf(l->why, l->why_bytes, "%u", number);
            return;
        case SOURCE_CONNECTION:
            if (l->fds[number] >= 0 && (event->events & (EPOLLIN | EPOLLHUP | EPOLLERR))) read_some(l, number);
            return;
        case SOURCE_MEMBER:
            if (l->members[number].fd >= 0) member_event(l, number);
            return;
    }
}

static int timeout_ms(const struct gate_loop *l) {
    if (gate_under_way(l->gate)) return LOOK_MS;
    return l->serves ? -1 : 100;
}

static void check_start(struct gate_loop *l) {
    if (l->serves || now_ns() - l->began_ns < l->config.start_us * 1000) return;
    const char *waits_for = gate_awaited(l->gate);
    fail(l, "HERD is not there after %" PRIu64 " s; what is missing: %s. " TOGETHER, l->config.start_us / 1000000, waits_for);
}

enum gate_loop_end gate_loop_run(struct gate_loop *l, char *why, uint32_t why_bytes) {
    struct epoll_event events[EVENTS];
    l->why = why;
    l->why_bytes = why_bytes;
    while (!l->stopped && !l->failed && !l->ended) {
        if (herd_registry_connected(&l->registry) && !l->told_connected) {
            l->told_connected = true;
            return GATE_CONNECTED;
        }
        exchange(l);
        flush_all(l);
        spin(l);
        flush_all(l);
        bool more = !queues_arm(l->queues) || exchange(l); /* what came before it was armed makes no event */
        flush_all(l);
        if (l->failed) break;
        int count = epoll_wait(l->epoll, events, EVENTS, more ? 0 : timeout_ms(l));
        for (int i = 0; i < count && !l->failed && !l->ended; i++) on_event(l, &events[i]);
        check_start(l);
    }
    return l->failed ? GATE_FAILED : l->ended ? GATE_HERD_ENDED : GATE_STOPPED;
}
