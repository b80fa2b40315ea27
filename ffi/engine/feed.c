/*
 * feed.c: a follower plays master to its own backend: the backend connects as a replica (it shows the feed's token), is
 * given a snapshot when it needs one (R15), and then the bytes of committed EFFECTs, whole, and nothing else (any byte on
 * this link counts as an offset).
 */
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <unistd.h>

#include "engine/engine_state.h"
#include "plant.h"
#include "protocols/redis/replconf.h"

#define FLUSH_BYTES (64u << 10)
#define UNACKED_BYTES (256u << 10)      /* the backend is asked then how far it is: by itself it says so once a second */
#define FOLLOW_AGAIN_US 100000ull
#define WANT_AGAIN_US 500000ull
#define FINISH_NS 1000000000ull
#define FINISH_POLL_MS 10
#define HANDSHAKE_BYTES_MAX (64u << 10)

void feed_collect_from(struct engine *e, uint64_t offset) {
    struct feed *f = &e->feed;
    buffer_clear(&f->backlog);
    buffer_trim(&f->backlog, 4u << 20);
    f->base_offset = f->sent_offset = f->end_offset = f->acked_offset = offset;
    f->active = true;
}

void feed_disconnect(struct engine *e) {
    struct feed *f = &e->feed;
    source_close(e, &f->socket.source);
    buffer_clear(&f->socket.out);
    buffer_clear(&f->in);
    resp_request_reset(&f->request);
    f->authenticated = f->streaming = f->rdb_head_sent = false;
    f->held_psync = 0;
    f->rdb_sent = 0;
    engine_update_eligible(e);
}

static void feed_drop_rdb(struct engine *e) {
    if (e->feed.rdb_fd >= 0) close(e->feed.rdb_fd);
    e->feed.rdb_fd = -1;
    e->feed.rdb_asked = false;
}

void feed_stop(struct engine *e) {
    feed_disconnect(e);
    feed_drop_rdb(e);
    e->feed.active = e->feed.goes_on = e->feed.stays = false;
    e->feed.want_pending = false;
    buffer_clear(&e->feed.backlog);
    buffer_trim(&e->feed.backlog, 4u << 20);
}

/* ---- snapshots ------------------------------------------------------------------------------------------------------- */

/* Asks the control plane for an RDB, and collects effects from here on so that they join up with it. */
void feed_want_rdb(struct engine *e) {
    struct feed *f = &e->feed;
    if (e->log.epoch == 0 || e->log.effect.open || f->want_pending || f->rdb_fd >= 0 || e->now_us < f->want_again_us) return;
    feed_disconnect(e);
    feed_collect_from(e, e->log.effect_offset);
    f->want_pending = true;
    engine_tell(e, ENGINE_WANT_RDB, e->log.effect_offset, ++f->want_number);
}

void feed_rdb_failed(struct engine *e, uint64_t number) {
    if (number != e->feed.want_number) return;
    e->feed.want_pending = false;
    e->feed.want_again_us = e->now_us + WANT_AGAIN_US;
}

static void feed_follow(struct engine *e) {
    e->feed.stays = false;
    e->led_replid[0] = 0;
    char port[16];
    snprintf(port, sizeof port, "%u", e->config.feed_port);
    struct buffer follow = {0};
    append_command(&follow, 2, OUR_CLIENT, "UNPAUSE"); /* paused, it would not apply what it is fed */
    admin_send(e, ADMIN_SWALLOW, buffer_bytes(&follow), buffer_length(&follow));
    buffer_clear(&follow);
    append_command(&follow, 3, "REPLICAOF", "127.0.0.1", port);
    admin_send(e, ADMIN_FOLLOW, buffer_bytes(&follow), buffer_length(&follow));
    buffer_free(&follow);
}

/* It runs a script, from when it led, which nobody could end any more: what it does is thrown away. */
void feed_refused(struct engine *e, const uint8_t *text, size_t length) {
    static const char kill[] = "*2\r\n$6\r\nSCRIPT\r\n$4\r\nKILL\r\n", kill_function[] = "*2\r\n$8\r\nFUNCTION\r\n$4\r\nKILL\r\n";
    bool busy = busy_begins(text, length), again = e->feed.follow_again_us != 0;
    if (!busy || !again) engine_log(e, busy ? 30 : 40, "the backend refuses REPLICAOF: %.*s", (int)(length < 100 ? length : 100), text);
    e->feed.follow_again_us = busy ? e->now_us + FOLLOW_AGAIN_US : 0;
    if (!busy) return;
    admin_send(e, ADMIN_SWALLOW, kill, sizeof kill - 1);
    admin_send(e, ADMIN_SWALLOW, kill_function, sizeof kill_function - 1);
}

void feed_tick(struct engine *e) {
    bool due = e->feed.follow_again_us != 0 && e->now_us >= e->feed.follow_again_us;
    if (due && e->takeover == TAKE_IDLE && e->backend == BACKEND_SYNCING) feed_follow(e);
    if (due) e->feed.follow_again_us = UINT64_MAX; /* until it is answered */
}

/* The own backend led until `offset` of its history `replid`, all of which is in the log, and this node handed over: it
 * goes on as a replica from there. What it has done beyond (a key may have expired meanwhile) shows in the offset it asks
 * for, and then it is resynced. */
void feed_go_on(struct engine *e, uint64_t offset, const char *replid) {
    struct feed *f = &e->feed;
    if (e->admin.socket.source.fd < 0 || e->log.effect.open) return;
    feed_collect_from(e, offset);
    memcpy(f->told_replid, replid, sizeof f->told_replid);
    f->goes_on = true;
    backend_set(e, BACKEND_SYNCING);
    feed_follow(e);
}

bool feed_go_on_with(struct engine *e, uint64_t offset, const char *replid, uint8_t *tail, size_t length) {
    struct feed *f = &e->feed;
    size_t collected = buffer_length(&f->backlog);
    CHECK(f->active && offset + length == f->base_offset);
    struct buffer joined = {.data = tail, .end = length, .capacity = length};
    if (length + collected > e->config.feed_bytes_max) {
        free(tail);
        return false;
    }
    buffer_append(&joined, buffer_bytes(&f->backlog), collected);
    buffer_free(&f->backlog);
    f->backlog = joined;
    f->base_offset = f->sent_offset = f->acked_offset = offset;
    memcpy(f->told_replid, replid, sizeof f->told_replid);
    f->goes_on = true;
    backend_set(e, BACKEND_SYNCING);
    feed_follow(e);
    return true;
}

/* A snapshot at an offset that the log has not committed through is inert (R17): it waits, or is thrown away. */
static void feed_install(struct engine *e) {
    struct feed *f = &e->feed;
    if (f->rdb_fd < 0 || f->rdb_asked || e->log.effect_offset < f->rdb_offset) return;
    CHECK(f->rdb_offset >= f->base_offset && f->rdb_offset <= f->end_offset);
    feed_follow(e);
    f->rdb_asked = true;
    backend_set(e, BACKEND_SYNCING);
}

void feed_rdb(struct engine *e, const struct control *c) {
    struct feed *f = &e->feed;
    if (c->number != f->want_number || !f->want_pending || !f->active || c->offset < f->base_offset) {
        close(c->fd);
        feed_rdb_failed(e, c->number);
        return;
    }
    f->want_pending = false;
    f->rdb_fd = c->fd;
    f->rdb_bytes = c->bytes;
    f->rdb_offset = c->offset;
    f->rdb_sent = 0;
    f->rdb_asked = f->rdb_head_sent = false;
    feed_install(e);
}

/* From `next` on, by the name that the log has for it now. */
static void feed_continue(struct engine *e, uint64_t next) {
    struct feed *f = &e->feed;
    char line[80];
    snprintf(line, sizeof line, "+CONTINUE %s\r\n", e->log.replid);
    memcpy(f->told_replid, e->log.replid, sizeof f->told_replid);
    buffer_text(&f->socket.out, line);
    f->goes_on = false;
    f->held_psync = 0;
    f->sent_offset = next - 1;
    f->streaming = true;
    engine_update_eligible(e);
}

void feed_epoch(struct engine *e, uint64_t start) {
    struct feed *f = &e->feed;
    if (e->takeover != TAKE_IDLE) return;
    if (planted(PLANT_PROMOTED_EARLY) && f->active && f->end_offset > start) return backend_set(e, BACKEND_DIRTY);
    if (f->rdb_fd >= 0 && f->rdb_offset > start && !f->rdb_asked) { /* of a history that did not become the log's */
        feed_drop_rdb(e);
        f->want_again_us = e->now_us;
    }
    if (f->held_psync > 0) {
        feed_continue(e, f->held_psync);
        f->flush_us = e->now_us;
    }
    feed_install(e);
}

/* ---- committed effects ---------------------------------------------------------------------------------------------- */

static uint64_t feed_collected(const struct feed *f) { return f->base_offset + buffer_length(&f->backlog); }

void feed_bytes(struct engine *e, uint64_t start, const uint8_t *bytes, size_t length) {
    struct feed *f = &e->feed;
    if (!f->active) return;
    CHECK(start == feed_collected(f));
    buffer_append(&f->backlog, bytes, length);
}

void feed_void(struct engine *e) {
    if (e->feed.active) e->feed.backlog.end -= feed_collected(&e->feed) - e->feed.end_offset;
}

void feed_effect(struct engine *e, uint64_t end) {
    struct feed *f = &e->feed;
    if (!f->active) return;
    CHECK(feed_collected(f) == end);
    f->end_offset = end;
    if (f->flush_us == 0) f->flush_us = e->now_us + e->config.feed_delay_us;
    if (f->end_offset - f->sent_offset >= FLUSH_BYTES) f->flush_us = e->now_us;
    if (buffer_length(&f->backlog) > e->config.feed_bytes_max) {
        engine_log(e, 30, "the backend takes its feed too slowly: it will be resynced");
        feed_stop(e);
        if (e->backend != BACKEND_DOWN) backend_set(e, BACKEND_DIRTY);
        return;
    }
    feed_install(e);
}

static void feed_broken(struct engine *e, const char *why) {
    engine_log(e, 20, "the backend's feed ended: %s", why);
    feed_disconnect(e);
}

static bool feed_send_rdb(struct engine *e) {
    struct feed *f = &e->feed;
    if (!f->rdb_head_sent) {
        char head[160];
        int n = snprintf(head, sizeof head, "+FULLRESYNC %s %llu\r\n$%llu\r\n", e->log.replid,
                         (unsigned long long)f->rdb_offset, (unsigned long long)f->rdb_bytes);
        buffer_append(&f->socket.out, head, (size_t)n);
        memcpy(f->told_replid, e->log.replid, sizeof f->told_replid);
        f->rdb_head_sent = true;
        e->counters.refilled++;
    }
    size_t written;
    if (!socket_flush(e, &f->socket, buffer_length(&f->socket.out), &written)) return feed_broken(e, "it closed"), false;
    if (buffer_length(&f->socket.out) > 0) return false;
    while (f->rdb_sent < f->rdb_bytes) {
        off_t at = (off_t)f->rdb_sent;
        ssize_t n = sendfile(f->socket.source.fd, f->rdb_fd, &at, (size_t)(f->rdb_bytes - f->rdb_sent));
        if (n < 0 && (errno == EAGAIN || errno == EINTR)) {
            source_watch(e, &f->socket.source, EPOLLIN | EPOLLOUT);
            return false;
        }
        if (n <= 0) return feed_broken(e, "its snapshot could not be sent"), false;
        f->rdb_sent += (uint64_t)n;
    }
    feed_drop_rdb(e);
    f->sent_offset = f->rdb_offset;
    f->streaming = true;
    return true;
}

/* Sends what is collected; the bytes stay until the backend acknowledges them. */
void feed_flush(struct engine *e) {
    struct feed *f = &e->feed;
    f->flush_us = 0;
    if (f->socket.source.fd < 0) return;
    size_t written;
    if (f->rdb_asked && f->authenticated && f->rdb_head_sent && !feed_send_rdb(e)) return;
    if (!socket_flush(e, &f->socket, buffer_length(&f->socket.out), &written)) return feed_broken(e, "it closed");
    if (!f->streaming || buffer_length(&f->socket.out) > 0) return;
    while (f->sent_offset < f->end_offset) {
        const uint8_t *from = buffer_bytes(&f->backlog) + (f->sent_offset - f->base_offset);
        ssize_t n = send(f->socket.source.fd, from, f->end_offset - f->sent_offset, MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0 && errno == EAGAIN) break;
        if (n < 0) return feed_broken(e, "it closed");
        if (planted(PLANT_EFFECT_TWICE)) (void)!send(f->socket.source.fd, from, (size_t)n, MSG_NOSIGNAL);
        f->sent_offset += (uint64_t)n;
    }
    source_watch(e, &f->socket.source, f->sent_offset < f->end_offset ? EPOLLIN | EPOLLOUT : EPOLLIN);
    if (f->sent_offset - f->base_offset >= UNACKED_BYTES) admin_ask_role(e);
}

/* This node ends: its backend gets what it lacks of what is committed, and will read it to the end. */
void feed_finish(struct engine *e) {
    struct feed *f = &e->feed;
    uint64_t deadline = clock_ns() + FINISH_NS;
    while (f->streaming && f->sent_offset < f->end_offset && clock_ns() < deadline) {
        feed_flush(e);
        struct pollfd room = {.fd = f->socket.source.fd, .events = POLLOUT};
        if (f->streaming && f->sent_offset < f->end_offset) poll(&room, 1, FINISH_POLL_MS);
    }
}

/* ---- the backend's side of the link ------------------------------------------------------------------------------------ */

/* Takes the same time whatever differs. */
static bool token_right(const struct engine *e, const uint8_t *password, size_t length) {
    const char *token = e->config.feed_token;
    uint8_t difference = strlen(token) != length;
    for (size_t i = 0; i < length && token[i] != 0; i++) difference |= (uint8_t)(password[i] ^ (uint8_t)token[i]);
    return difference == 0;
}

/* A history that its own backend made goes on under the next leader's name only: under its own, what the backend did by
 * itself and what it was given would look the same (claim.c). */
static bool name_is_own(const struct engine *e) {
    const struct log_state *log = &e->log;
    return log->epochs_kept > 0 && log->epochs[log->epochs_kept - 1].leader == e->self;
}

static bool feed_psync(struct engine *e, const struct replica_ask *asked, const uint8_t *bytes) {
    struct feed *f = &e->feed;
    if (e->takeover != TAKE_IDLE) return false;
    if (f->rdb_asked) {
        f->rdb_head_sent = false;
        f->rdb_sent = 0;
        feed_send_rdb(e);
        return true;
    }
    uint64_t next = asked->offset;
    bool told = asked->replid.length == strlen(f->told_replid) && memcmp(bytes + asked->replid.offset, f->told_replid, asked->replid.length) == 0;
    bool follows = e->backend == BACKEND_FED || f->stays;
    bool vouched = follows && f->active && next > f->base_offset && next <= f->end_offset + 1 && told;
    if (f->goes_on) vouched = f->active && told && next == f->base_offset + 1;
    if (f->goes_on && vouched && name_is_own(e)) {
        f->held_psync = next;
        return true;
    }
    f->goes_on = false;
    if (e->claim.taken) claim_settled(e, vouched);
    if (!vouched) { /* its history is not the log's: only a snapshot helps */
        if (e->backend >= BACKEND_SYNCING) backend_set(e, BACKEND_DIRTY);
        return false;
    }
    feed_continue(e, next);
    return true;
}

void feed_acknowledged(struct feed *f, uint64_t offset) {
    if (!f->streaming || offset <= f->base_offset || offset > f->sent_offset) return;
    buffer_consume(&f->backlog, offset - f->base_offset);
    buffer_trim(&f->backlog, 16u << 20);
    f->base_offset = f->acked_offset = offset;
}

/* One request of the backend's handshake or an acknowledgement; false: it is refused. */
static bool feed_request(struct engine *e, const struct resp_request *request, const uint8_t *bytes) {
    struct feed *f = &e->feed;
    struct replica_ask asked = replica_ask_read(request, bytes);
    if (asked.asks == ASKS_AUTH) {
        f->authenticated = token_right(e, bytes + asked.password.offset, asked.password.length);
        if (f->authenticated) buffer_text(&f->socket.out, "+OK\r\n");
        return f->authenticated;
    }
    if (asked.asks == ASKS_PING) { /* before AUTH, as Redis would */
        buffer_text(&f->socket.out, f->authenticated ? "+PONG\r\n" : "-NOAUTH Authentication required.\r\n");
        return true;
    }
    if (!f->authenticated) return false;
    switch (asked.asks) {
        case ASKS_ACK:
            feed_acknowledged(f, asked.offset);
            return true;
        case ASKS_REPLCONF: buffer_text(&f->socket.out, "+OK\r\n"); return true;
        case ASKS_PSYNC: return feed_psync(e, &asked, bytes);
        default: return false;
    }
}

static bool feed_requests(struct engine *e) {
    struct feed *f = &e->feed;
    struct resp_limits limits = {4096, HANDSHAKE_BYTES_MAX, 4096, true};
    while (buffer_length(&f->in) > 0) {
        enum resp_status status = resp_request_feed(&f->request, buffer_bytes(&f->in), buffer_length(&f->in), &limits);
        if (status == RESP_MORE) return buffer_length(&f->in) < HANDSHAKE_BYTES_MAX;
        if (status == RESP_BAD) return false;
        if (status == RESP_DONE && !feed_request(e, &f->request, buffer_bytes(&f->in))) return false;
        if (f->socket.source.fd < 0) return true;
        buffer_consume(&f->in, f->request.length);
        resp_request_reset(&f->request);
    }
    return true;
}

void feed_event(struct engine *e, uint32_t events) {
    struct feed *f = &e->feed;
    if (events & (EPOLLIN | EPOLLHUP | EPOLLERR)) {
        uint8_t *room = buffer_room(&f->in, 4096);
        ssize_t n = recv(f->socket.source.fd, room, 4096, 0);
        if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR)) return feed_broken(e, "the backend closed it");
        if (n > 0) f->in.end += (size_t)n;
        if (!feed_requests(e)) return feed_broken(e, "the backend asked for what the log does not vouch for");
        if (f->socket.source.fd < 0) return;
    }
    feed_flush(e);
}

void feed_accept(struct engine *e) {
    int fd = accept4(e->feed.listener.fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC), one = 1;
    if (fd < 0) return;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one); /* the last bytes of a take-over must not wait 40 ms */
    if (e->takeover != TAKE_IDLE || e->backend < BACKEND_SYNCING || e->feed.streaming) {
        close(fd);
        return;
    }
    feed_disconnect(e);
    e->feed.socket.source.fd = fd;
    source_watch(e, &e->feed.socket.source, EPOLLIN);
}
