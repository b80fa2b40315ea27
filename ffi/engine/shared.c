/*
 * shared.c: the one ordered, pipelined connection that carries the stateless commands of all clients to the leader's
 * backend (R4). Answers are handed to their clients' buffers as they come and held there; each ROLE answer closes a
 * gate over those before it, and the gate opens when the effects up to its offset are committed and a permission probe
 * has succeeded (R9).
 */
#include <errno.h>
#include <sys/socket.h>

#include "engine/engine_state.h"

static struct buffer *held_by(struct engine *e, const struct destination *to, struct client **client) {
    *client = NULL;
    if (to->node != e->self) return e->links[to->node].socket.source.fd >= 0 ? &e->links[to->node].socket.out : NULL;
    *client = client_find(e, to->slot, to->generation);
    return *client == NULL ? NULL : &(*client)->socket.out;
}

static void segment_add(struct engine *e, const struct destination *to, size_t bytes) {
    struct shared *s = &e->shared;
    bool local = to->node == e->self;
    struct segment *last = s->open_segments > 0 ? queue_back(&s->segments) : NULL;
    if (last != NULL && last->node == to->node && (!local || (last->slot == to->slot && last->generation == to->generation))) {
        last->bytes += bytes;
        return;
    }
    *(struct segment *)queue_push(&s->segments) = (struct segment){to->node, to->slot, to->generation, bytes};
    s->open_segments++;
}

/* Part of an answer; `last`: with this it is complete. */
static void deliver(struct engine *e, const struct expect *x, const void *bytes, size_t length, bool last, uint8_t type) {
    struct client *client;
    struct buffer *out = held_by(e, &x->to, &client);
    if (out == NULL) return;
    size_t before = buffer_length(out);
    if (client != NULL) {
        buffer_append(out, bytes, length);
        client->answer_bytes += length;
        if (last) client_answered(e, client, x->database_after, type);
    } else {
        link_reply(e, &x->to, bytes, length, last, type);
    }
    segment_add(e, &x->to, buffer_length(out) - before);
}

static void deliver_locals(struct engine *e) {
    struct shared *s = &e->shared;
    for (struct expect *x = queue_front(&s->expects); x != NULL && x->kind == EXPECT_LOCAL; x = queue_front(&s->expects)) {
        deliver(e, x, buffer_bytes(&s->local), x->local_bytes, true, 0);
        buffer_consume(&s->local, x->local_bytes);
        queue_pop(&s->expects);
    }
}

/* "*3 $6 master :offset ...": the first integer. */
static bool role_offset(const struct buffer *role, uint64_t *offset) {
    static const char head[] = "*3\r\n$6\r\nmaster\r\n:";
    size_t n = sizeof head - 1;
    if (buffer_length(role) <= n || memcmp(buffer_bytes(role), head, n) != 0) return false;
    *offset = 0;
    for (const uint8_t *p = buffer_bytes(role) + n; p < role->data + role->end && *p >= '0' && *p <= '9'; p++)
        *offset = *offset * 10 + (uint64_t)(*p - '0');
    return true;
}

static bool gate_add(struct engine *e, const struct expect *x) {
    struct shared *s = &e->shared;
    uint64_t offset;
    if (!role_offset(&s->role, &offset)) return false;
    buffer_clear(&s->role);
    s->roles_in_flight--;
    *(struct gate *)queue_push(&s->gates) =
        (struct gate){.offset = offset, .covered = x->covered, .segments = s->open_segments, .since_ns = x->since_ns,
                        .known_ns = e->now_ns};
    s->open_segments = 0;
    histogram_add(&e->stages[STAGE_BACKEND], e->now_ns - x->since_ns);
    e->counters.batches++;
    return true;
}

/* The reply that was coming in is complete. */
static bool reply_done(struct engine *e, struct expect *x) {
    struct shared *s = &e->shared;
    uint8_t type = s->reply.type;
    if (e->context.busy) busy_set(e, false); /* what answers here is not held up by a script */
    if (x->kind == EXPECT_SWALLOW && type == '-') return false;
    if (x->kind == EXPECT_ROLE && !gate_add(e, x)) return false;
    if (!s->reply.is_push) {
        if (x->swallow > 0) x->swallow--;
        x->replies--;
    }
    resp_reply_reset(&s->reply);
    if (x->replies == 0) queue_pop(&s->expects);
    return true;
}

static bool shared_bytes(struct engine *e, const uint8_t *bytes, size_t length) {
    struct shared *s = &e->shared;
    while (length > 0) {
        deliver_locals(e);
        struct expect *x = queue_front(&s->expects);
        if (x == NULL) return false;
        enum resp_status status;
        size_t used = resp_reply_feed(&s->reply, bytes, length, &status);
        if (status == RESP_BAD) return false;
        if (x->kind == EXPECT_ROLE) buffer_append(&s->role, bytes, used);
        if (x->kind == EXPECT_CLIENT && x->swallow == 0)
            deliver(e, x, bytes, used, status == RESP_DONE && x->replies == 1, s->reply.type);
        if (status == RESP_DONE && !reply_done(e, x)) return false;
        bytes += used;
        length -= used;
        if (used == 0 && status == RESP_MORE) break;
    }
    return true;
}

void shared_event(struct engine *e, uint32_t events) {
    struct shared *s = &e->shared;
    if (s->socket.source.fd < 0) return;
    if (events & EPOLLOUT) shared_send(e);
    if (!(events & (EPOLLIN | EPOLLHUP | EPOLLERR)) || s->socket.source.fd < 0) return;
    ssize_t n = recv(s->socket.source.fd, e->scratch, SCRATCH_BYTES, 0);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (n <= 0) backend_lost(e, "its shared connection closed");
    else if (!shared_bytes(e, e->scratch, (size_t)n)) backend_lost(e, "it answered what was not asked");
}

/* Sends what is committed. */
void shared_send(struct engine *e) {
    struct shared *s = &e->shared;
    if (s->socket.source.fd < 0) return;
    uint64_t commit = replica_commit(e->replica), now_ns = queue_length(&s->staged) > 0 ? clock_ns() : 0;
    for (struct staged *m = queue_front(&s->staged); m != NULL && m->index <= commit; m = queue_front(&s->staged)) {
        s->sendable = m->end;
        if (m->index > 0) histogram_add(&e->stages[STAGE_COMMIT], now_ns - m->since_ns);
        queue_pop(&s->staged);
    }
    if (s->sent == s->sendable) return;
    size_t written;
    if (!socket_flush(e, &s->socket, s->sendable - s->sent, &written)) {
        backend_lost(e, "its shared connection broke");
        return;
    }
    s->sent += written;
    if (written > 0) buffer_trim(&s->socket.out, 4u << 20);
}

static void segment_release(struct engine *e, const struct segment *g) {
    if (g->node == e->self) {
        struct client *c = client_find(e, g->slot, g->generation);
        if (c == NULL) return;
        c->releasable += g->bytes;
        client_want_flush(e, c);
        return;
    }
    struct link *link = &e->links[g->node];
    if (link->socket.source.fd < 0) return;
    link->releasable += g->bytes;
    link->queued_flush = true;
}

void gates_release(struct engine *e) {
    struct shared *s = &e->shared;
    uint64_t commit = replica_commit(e->replica), probed = replica_probed(e->replica);
    uint64_t now_ns = queue_length(&s->gates) > 0 ? clock_ns() : 0;
    for (struct gate *g = queue_front(&s->gates); g != NULL; g = queue_front(&s->gates)) {
        if (!g->cut || g->effect_index > commit || g->probe > probed) return;
        for (uint64_t i = 0; i < g->segments; i++) {
            segment_release(e, queue_front(&s->segments));
            queue_pop(&s->segments);
        }
        histogram_add(&e->stages[STAGE_EFFECT], now_ns - g->known_ns);
        histogram_add(&e->stages[STAGE_REQUEST], now_ns - g->since_ns);
        queue_pop(&s->gates);
    }
}

bool shared_open(struct engine *e) {
    struct shared *s = &e->shared;
    if (s->socket.source.fd >= 0) return true;
    int fd = backend_connect(e);
    if (fd < 0) return false;
    s->socket.source.fd = fd;
    s->database = 0;
    s->protocol = 2;
    source_watch(e, &s->socket.source, EPOLLIN);
    uint32_t swallowed = append_auth(e, &s->socket.out);
    append_command(&s->socket.out, 3, "CLIENT", "NO-EVICT", "ON");
    append_command(&s->socket.out, 3, "CLIENT", "SETNAME", "musidecar-shared");
    s->appended = buffer_length(&s->socket.out);
    for (uint32_t i = 0; i < swallowed + 2; i++)
        *(struct expect *)queue_push(&s->expects) = (struct expect){.kind = EXPECT_SWALLOW, .replies = 1, .database_after = -1};
    turn_mark(e, 0);
    return true;
}

void shared_close(struct engine *e) {
    struct shared *s = &e->shared;
    source_close(e, &s->socket.source);
    buffer_clear(&s->socket.out);
    buffer_clear(&s->role);
    buffer_clear(&s->local);
    queue_clear(&s->staged);
    queue_clear(&s->expects);
    queue_clear(&s->segments);
    queue_clear(&s->gates);
    resp_reply_reset(&s->reply);
    s->appended = s->sendable = s->sent = s->open_segments = 0;
    s->roles_in_flight = 0;
    s->unproven = false;
}
