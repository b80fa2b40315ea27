/*
 * admin.c: the admin connection to the own backend: is it there, does it answer (a script that does not end is alive:
 * -BUSY), how far has it applied its feed (ROLE), promotion, and SCRIPT KILL, which would never be read behind the
 * script on the shared connection (R4).
 */
#include <errno.h>
#include <stdio.h>
#include <sys/socket.h>

#include "engine/engine_state.h"

#define CONNECT_US 100000ull
#define PING_US 100000ull
#define ROLE_US 5000ull

static void admin_queue(struct engine *e, struct admin_expect expect, const void *bytes, size_t length) {
    struct admin *a = &e->admin;
    if (a->socket.source.fd < 0) return;
    buffer_append(&a->socket.out, bytes, length);
    *(struct admin_expect *)queue_push(&a->expects) = expect;
    size_t written;
    if (!socket_flush(e, &a->socket, buffer_length(&a->socket.out), &written)) backend_lost(e, "its admin connection broke");
}

void admin_send(struct engine *e, enum admin_kind kind, const void *bytes, size_t length) {
    admin_queue(e, (struct admin_expect){.kind = kind}, bytes, length);
}

void admin_send_for(struct engine *e, struct destination to, const void *bytes, size_t length) {
    admin_queue(e, (struct admin_expect){ADMIN_CLIENT, to}, bytes, length);
}

/* Whether new requests are answered with -BUSY, here and at the nodes whose clients this one serves. */
void busy_set(struct engine *e, bool busy) {
    if (e->takeover == TAKE_IDLE || e->context.busy == busy) return;
    e->context.busy = busy;
    if (engine_leads(e)) link_announce(e, true);
}

void admin_ask_role(struct engine *e) {
    struct admin *a = &e->admin;
    if (a->role_pending || a->socket.source.fd < 0) return;
    a->role_pending = true;
    a->asked_us = e->now_us;
    static const char role[] = "*1\r\n$4\r\nROLE\r\n";
    admin_send(e, ADMIN_ROLE, role, sizeof role - 1);
}

void admin_close(struct engine *e) {
    struct admin *a = &e->admin;
    source_close(e, &a->socket.source);
    buffer_clear(&a->socket.out);
    buffer_clear(&a->bytes);
    for (struct admin_expect *x = queue_front(&a->expects); x != NULL; x = queue_front(&a->expects)) {
        bool own = x->kind == ADMIN_CLIENT && x->to.node == e->self;
        struct client *c = own ? client_find(e, x->to.slot, x->to.generation) : NULL;
        queue_pop(&a->expects);
        if (c != NULL) client_close(e, c);
    }
    resp_reply_reset(&a->reply);
    a->ping_pending = a->role_pending = false;
    a->connect_us = e->now_us + CONNECT_US;
}

static void admin_connect(struct engine *e) {
    struct admin *a = &e->admin;
    if (e->now_us < a->connect_us) return;
    a->connect_us = e->now_us + CONNECT_US;
    int fd = backend_connect(e);
    if (fd < 0) return;
    a->socket.source.fd = fd;
    a->heard_us = e->now_us;
    source_watch(e, &a->socket.source, EPOLLIN);
    struct buffer hello = {0};
    uint32_t replies = append_auth(e, &hello);
    append_command(&hello, 3, "CLIENT", "NO-EVICT", "ON");
    append_command(&hello, 3, "CLIENT", "SETNAME", "musidecar-admin");
    for (uint32_t i = 0; i < replies + 1; i++)
        *(struct admin_expect *)queue_push(&a->expects) = (struct admin_expect){.kind = ADMIN_SWALLOW};
    admin_send(e, ADMIN_SWALLOW, buffer_bytes(&hello), buffer_length(&hello));
    buffer_free(&hello);
    if (a->socket.source.fd < 0) return;
    engine_log(e, 20, a->was_up ? "the backend is back" : "the backend is there");
    a->was_up = true;
    backend_set(e, BACKEND_DIRTY);
}

void admin_tick(struct engine *e) {
    struct admin *a = &e->admin;
    if (a->socket.source.fd < 0) {
        admin_connect(e);
        return;
    }
    if (!a->ping_pending && e->now_us - a->heard_us >= PING_US) {
        static const char ping[] = "*1\r\n$4\r\nPING\r\n";
        a->ping_pending = true;
        a->heard_us = e->now_us; /* from here the time-out runs */
        admin_send(e, ADMIN_PING, ping, sizeof ping - 1);
    } else if (a->ping_pending && e->now_us - a->heard_us >= e->config.backend_timeout_us) {
        backend_lost(e, "it has not answered for longer than backend_timeout_ms");
        return;
    }
    if (e->backend == BACKEND_SYNCING && e->now_us - a->asked_us >= ROLE_US) admin_ask_role(e);
}

static uint64_t number_behind(const struct buffer *bytes, const char *mark) {
    const uint8_t *p = memmem(buffer_bytes(bytes), buffer_length(bytes), mark, strlen(mark));
    uint64_t value = 0;
    if (p == NULL) return 0;
    for (p += strlen(mark); p < bytes->data + bytes->end && *p >= '0' && *p <= '9'; p++) value = value * 10 + (uint64_t)(*p - '0');
    return value;
}

static void role_answer(struct engine *e) {
    struct buffer *bytes = &e->admin.bytes;
    e->admin.role_pending = false;
    if (buffer_bytes(bytes)[0] != '*') return; /* -LOADING */
    bool master = memmem(buffer_bytes(bytes), buffer_length(bytes), "$6\r\nmaster\r\n", 12) != NULL;
    uint64_t offset = master ? number_behind(bytes, "master\r\n:") : number_behind(bytes, "connected\r\n:");
    bool connected = memmem(buffer_bytes(bytes), buffer_length(bytes), "$9\r\nconnected\r\n", 15) != NULL;
    takeover_role(e, master, offset, connected);
}

static void admin_answer(struct engine *e, struct admin_expect x) {
    struct admin *a = &e->admin;
    const char *text = (const char *)buffer_bytes(&a->bytes);
    size_t length = buffer_length(&a->bytes);
    struct client *c;
    a->heard_us = e->now_us;
    switch (x.kind) {
        case ADMIN_SWALLOW: break;
        case ADMIN_PING:
            a->ping_pending = false;
            busy_set(e, length > 5 && memcmp(text, "-BUSY", 5) == 0);
            break;
        case ADMIN_ROLE: role_answer(e); break;
        case ADMIN_PROMOTE:
            if (text[0] == '+') takeover_promoted(e);
            else backend_lost(e, "it refuses to be promoted");
            break;
        case ADMIN_FOLLOW:
            if (text[0] != '+') engine_log(e, 40, "the backend refuses REPLICAOF: %.*s", (int)(length < 100 ? length : 100), text);
            break;
        case ADMIN_CLIENT:
            if (text[0] == '+') busy_set(e, false); /* the script is killed */
            if (x.to.node != e->self) link_answer(e, &x.to, text, length);
            else if ((c = client_find(e, x.to.slot, x.to.generation)) != NULL) client_answer(e, c, text, length);
            break;
    }
}

void admin_event(struct engine *e, uint32_t events) {
    struct admin *a = &e->admin;
    size_t written;
    if (events & EPOLLOUT) socket_flush(e, &a->socket, buffer_length(&a->socket.out), &written);
    if (!(events & (EPOLLIN | EPOLLHUP | EPOLLERR))) return;
    uint8_t chunk[4096];
    ssize_t n = recv(a->socket.source.fd, chunk, sizeof chunk, 0);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (n <= 0) {
        backend_lost(e, "its admin connection closed");
        return;
    }
    const uint8_t *bytes = chunk;
    for (size_t left = (size_t)n; left > 0 && a->socket.source.fd >= 0;) {
        enum resp_status status;
        size_t used = resp_reply_feed(&a->reply, bytes, left, &status);
        if (status == RESP_BAD || queue_front(&a->expects) == NULL) {
            backend_lost(e, "it does not speak the Redis protocol");
            return;
        }
        buffer_append(&a->bytes, bytes, used);
        bytes += used;
        left -= used;
        if (status != RESP_DONE) continue;
        struct admin_expect x = *(struct admin_expect *)queue_front(&a->expects);
        queue_pop(&a->expects);
        resp_reply_reset(&a->reply);
        admin_answer(e, x);
        buffer_clear(&a->bytes);
    }
}
