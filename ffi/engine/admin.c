/*
 * admin.c: the admin connection to the own backend: is it there, does it answer (a script that does not end is alive:
 * -BUSY), how far has it applied its feed (ROLE), promotion, and SCRIPT KILL, which would never be read behind the
 * script on the shared connection (R4).
 */
#include <errno.h>
#include <stdio.h>
#include <sys/socket.h>

#include "engine/engine_state.h"
#include "protocols/redis/role.h"

#define CONNECT_US 100000ull
#define PING_US 100000ull
#define PING_LEADER_US 8000u  /* every other tick of an idle node: the time-out runs from a question */
#define PING_WAITING_US 5000u /* a request waits for its answer: is the backend alive? */
#define ROLE_US 5000ull

void admin_queue(struct engine *e, struct admin_expect expect, const void *bytes, size_t length) {
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

void admin_send_for(struct engine *e, struct destination to, const void *bytes, size_t length, bool travels) {
    if (travels && config_check_begin(e, &to, bytes, length)) return;
    travels = travels && length + 8 <= e->config.replica.piece_bytes_max;
    struct buffer translated = {0};
    bool kept = travels && config_kept_translate(e, bytes, length, &translated);
    if (travels) buffer_append(&e->admin.settings, bytes, length);
    admin_queue(e, (struct admin_expect){ADMIN_CLIENT, to, travels ? (uint32_t)length : 0}, kept ? buffer_bytes(&translated) : bytes,
                kept ? buffer_length(&translated) : length);
    buffer_free(&translated);
}

void admin_answer_client(struct engine *e, const struct destination *to, const void *bytes, size_t length) {
    if (to->node != e->self) {
        link_answer(e, to, bytes, length);
        return;
    }
    struct client *c = client_find(e, to->slot, to->generation);
    if (c != NULL) client_answer(e, c, bytes, length);
}

/* What was done here is done on every node once it is logged; whoever asked for it is answered then. */
static void setting_done(struct engine *e, const struct admin_expect *x, const void *answer, size_t length) {
    struct admin *a = &e->admin;
    *(struct admin_answer *)queue_push(&a->done) =
        (struct admin_answer){.to = x->to, .request_bytes = x->setting_bytes, .answer_bytes = (uint32_t)length};
    buffer_append(&a->logging, buffer_bytes(&a->settings), x->setting_bytes);
    buffer_append(&a->logging, answer, length);
    admin_settings_log(e);
}

void admin_setting_add(struct engine *e, const void *request, size_t length) {
    struct admin *a = &e->admin;
    if (length + 8 > e->config.replica.piece_bytes_max) {
        engine_log(e, 40, "a setting of %zu bytes is too large for the log: only the leader's backend has it", length);
        return;
    }
    *(struct admin_answer *)queue_push(&a->done) = (struct admin_answer){.to = {.node = REPLICA_NOBODY}, .request_bytes = (uint32_t)length};
    buffer_append(&a->logging, request, length);
}

void admin_settled_add(struct engine *e, uint64_t number) {
    *(struct admin_answer *)queue_push(&e->admin.done) = (struct admin_answer){.to = {.node = REPLICA_NOBODY}, .settles = number};
    admin_settings_log(e);
}

/* It may be in the slow log; and what is slow may have been set. */
static void setting_noted(struct engine *e, const struct admin_expect *x) {
    uint8_t head[SLOW_HEAD_BYTES];
    uint32_t behind;
    slow_head(buffer_bytes(&e->admin.settings), x->setting_bytes, head, &behind);
    if (e->slowlog.late_ns != SLOW_NEVER) slowlog_note(e, SLOW_ADMIN, &x->to, head, behind, false, NULL);
    e->slowlog.due = true;
}

/* Each turn: what is done goes into the log, in order, and is answered once it is committed. */
void admin_settings_log(struct engine *e) {
    struct admin *a = &e->admin;
    const uint8_t *bytes = buffer_bytes(&a->logging);
    if (e->batch != NULL || e->big.active) return; /* the record being filled comes first */
    for (uint64_t i = a->done.head; i < a->done.tail && engine_leads(e); i++) {
        struct admin_answer *d = queue_at(&a->done, i);
        uint64_t kind = ADMIN_RECORD_SETTING;
        if (d->request_bytes == 0 && d->index == 0) d->index = e->admin_index; /* behind those in front of it */
        uint8_t *payload = d->index == 0 ? replica_reserve(e->replica, RECORD_ADMIN, d->request_bytes + 8) : NULL;
        if (d->index == 0 && payload == NULL) break;
        if (d->index == 0) {
            memcpy(payload, &kind, sizeof kind);
            memcpy(payload + sizeof kind, bytes, d->request_bytes);
            int64_t index = replica_propose_reserved(e->replica, RECORD_ADMIN, 0, (struct record_origin){0, 0, 0}, d->request_bytes + 8);
            if (index <= 0) break;
            d->index = e->admin_index = (uint64_t)index;
        }
        bytes += d->request_bytes + d->answer_bytes;
    }
    for (struct admin_answer *d = queue_front(&a->done); d != NULL; d = queue_front(&a->done)) {
        if ((d->index == 0 && d->request_bytes > 0) || d->index > replica_commit(e->replica)) return;
        const struct admin_answer done = *d;
        queue_pop(&a->done);
        if (done.answer_bytes > 0) admin_answer_client(e, &done.to, buffer_bytes(&a->logging) + done.request_bytes, done.answer_bytes);
        buffer_consume(&a->logging, done.request_bytes + done.answer_bytes);
        if (done.settles != 0) own_settled(e, done.settles);
    }
}

/* This node does not lead any more: what became of them nobody can tell. */
void admin_settings_drop(struct engine *e) {
    struct admin *a = &e->admin;
    for (struct admin_answer *d = queue_front(&a->done); d != NULL; d = queue_front(&a->done)) {
        struct client *c = d->to.node == e->self ? client_find(e, d->to.slot, d->to.generation) : NULL;
        queue_pop(&a->done);
        if (c != NULL) client_close(e, c);
    }
    buffer_clear(&a->logging);
}

void admin_ask_role(struct engine *e) {
    struct admin *a = &e->admin;
    if (a->role_pending || a->socket.source.fd < 0) return;
    a->role_pending = true;
    a->asked_us = e->now_us;
    static const char role[] = ASK_ROLE;
    e->our_calls[OUR_CALLS_ROLE]++;
    admin_send(e, ADMIN_ROLE, role, sizeof role - 1);
}

void admin_close(struct engine *e) {
    struct admin *a = &e->admin;
    source_close(e, &a->socket.source);
    buffer_clear(&a->socket.out);
    buffer_clear(&a->bytes);
    buffer_clear(&a->settings);
    buffer_clear(&a->checks);
    for (struct admin_expect *x = queue_front(&a->expects); x != NULL; x = queue_front(&a->expects)) {
        bool own = x->kind >= ADMIN_CLIENT && x->to.node == e->self;
        struct client *c = own ? client_find(e, x->to.slot, x->to.generation) : NULL;
        queue_pop(&a->expects);
        if (c != NULL) client_close(e, c);
    }
    resp_reply_reset(&a->reply);
    a->ping_pending = a->role_pending = false;
    a->connect_us = e->now_us + CONNECT_US;
}

static void admin_greet(struct engine *e) {
    struct admin *a = &e->admin;
    struct buffer hello = {0};
    uint32_t replies = append_auth(e, &hello);
    append_command(&hello, 3, OUR_CLIENT, "NO-EVICT", "ON");
    append_command(&hello, 2, OUR_CLIENT, "UNPAUSE"); /* of an earlier sidecar's time */
    append_command(&hello, 3, OUR_CLIENT, "SETNAME", "musidecar-admin");
    for (uint32_t i = 0; i < replies + 2; i++)
        *(struct admin_expect *)queue_push(&a->expects) = (struct admin_expect){.kind = ADMIN_SWALLOW};
    admin_send(e, ADMIN_SWALLOW, buffer_bytes(&hello), buffer_length(&hello));
    buffer_free(&hello);
}

static void admin_connect(struct engine *e) {
    struct admin *a = &e->admin;
    if (a->left_alone || e->now_us < a->connect_us) return;
    a->connect_us = e->now_us + CONNECT_US;
    int fd = backend_connect(e);
    if (fd < 0) return;
    a->socket.source.fd = fd;
    a->heard_us = e->now_us;
    source_watch(e, &a->socket.source, EPOLLIN);
    if (e->machine.protocol == NULL) admin_greet(e);
    else if (!shared_open(e)) admin_close(e);
    if (a->socket.source.fd < 0) return;
    engine_log(e, 20, a->was_up ? "the backend is back" : "the backend is there");
    a->was_up = true;
    a->up_us = e->now_us;
    backend_set(e, e->feed.stays ? BACKEND_SYNCING : BACKEND_DIRTY);
    if (e->machine.protocol == NULL) scripts_hand_on(e, false);
}

/* Has the oldest request on the shared connection waited for a while? */
static bool somebody_waits(const struct engine *e) {
    const struct expect *oldest = queue_front(&e->shared.expects);
    return oldest != NULL && e->now_ns - oldest->since_ns >= PING_WAITING_US * 1000ull;
}

static uint64_t ping_after_us(const struct engine *e) {
    return somebody_waits(e) ? PING_WAITING_US : engine_leads(e) ? PING_LEADER_US : PING_US;
}

uint64_t admin_deadline_us(const struct engine *e) {
    const struct admin *a = &e->admin;
    return a->ping_pending && a->socket.source.fd >= 0 ? a->heard_us + e->config.backend_timeout_us : UINT64_MAX;
}

void admin_watch(struct engine *e) {
    if (e->now_us >= admin_deadline_us(e)) backend_lost(e, "it has not answered for longer than backend_timeout_ms");
}

void admin_tick(struct engine *e) {
    struct admin *a = &e->admin;
    if (a->socket.source.fd < 0) {
        admin_connect(e);
        return;
    }
    if (!a->ping_pending && e->now_us - a->heard_us >= ping_after_us(e)) {
        const char *ping = e->machine.protocol != NULL ? e->machine.protocol->ping : ASK_ALIVE;
        a->ping_pending = true;
        a->heard_us = e->now_us; /* from here the time-out runs */
        e->our_calls[OUR_CALLS_PING]++;
        admin_send(e, ADMIN_PING, ping, strlen(ping));
    }
    if (e->machine.protocol != NULL) return;
    if (e->backend == BACKEND_SYNCING && e->now_us - a->asked_us >= ROLE_US) admin_ask_role(e);
    if (e->backend == BACKEND_SYNCING && e->feed.stays && e->now_us - a->up_us >= e->config.backend_timeout_us) backend_set(e, BACKEND_DIRTY);
}

static void role_answer(struct engine *e) {
    const struct buffer *bytes = &e->admin.bytes;
    struct redis_role role;
    e->admin.role_pending = false;
    if (!redis_role_read(buffer_bytes(bytes), buffer_length(bytes), &role)) return; /* -LOADING */
    takeover_role(e, role.is_master, role.offset, role.is_connected);
}

static void admin_answer(struct engine *e, struct admin_expect x) {
    struct admin *a = &e->admin;
    const struct buffer *bytes = &a->bytes;
    const char *text = (const char *)buffer_bytes(bytes);
    size_t length = buffer_length(bytes);
    /* One that came late was behind something slow, mostly; it is slow itself where everything is. */
    bool counts = e->slowlog.late_ns < SLOW_ALL_NS && (e->now_us - a->heard_us) * 1000 >= e->slowlog.late_ns;
    if (x.kind == ADMIN_PING && counts && text[0] != '-') slowlog_late(e);
    a->heard_us = e->now_us;
    switch (x.kind) {
        case ADMIN_SWALLOW: break;
        case ADMIN_PING:
            a->ping_pending = false;
            busy_set(e, length > 5 && memcmp(text, "-BUSY", 5) == 0);
            if (e->context.busy && engine_leads(e)) shared_busy(e); /* what was sent before everybody knew */
            break;
        case ADMIN_ROLE: role_answer(e); break;
        case ADMIN_PROMOTE:
            if (text[0] == '+') takeover_promoted(e);
            else backend_lost(e, "it refuses to be promoted");
            break;
        case ADMIN_FOLLOW:
            if (text[0] == '+') e->feed.follow_again_us = 0;
            else feed_refused(e, buffer_bytes(bytes), length);
            break;
        case ADMIN_CLIENT:
            if (text[0] == '+') busy_set(e, false); /* the script is killed */
            if (x.setting_bytes > 0 && text[0] != '-' && engine_leads(e)) setting_done(e, &x, text, length);
            else admin_answer_client(e, &x.to, text, length);
            if (x.setting_bytes > 0) setting_noted(e, &x);
            buffer_consume(&a->settings, x.setting_bytes);
            break;
        case ADMIN_CLIENTS: census_backend(e, x.to.sequence, buffer_bytes(bytes), length); break;
        case ADMIN_READ: own_setting_read(e, &x, buffer_bytes(bytes), length); break;
        case ADMIN_CHECK: config_check_end(e, &x, buffer_bytes(bytes), length); break;
        case ADMIN_WRONG: config_wrong_end(e, &x, buffer_bytes(bytes), length); break;
    }
}

void admin_event(struct engine *e, uint32_t events) {
    struct admin *a = &e->admin;
    size_t written;
    if (events & EPOLLOUT) socket_flush(e, &a->socket, buffer_length(&a->socket.out), &written);
    if (!(events & (EPOLLIN | EPOLLHUP | EPOLLERR))) return;
    if (e->machine.protocol != NULL) return machine_admin_event(e);
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
