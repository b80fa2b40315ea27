/*
 * shared.c: the one ordered, pipelined connection that carries the stateless commands of all clients to the leader's
 * backend (R4). Answers are handed to their clients' buffers as they come and held there; each ROLE answer closes a
 * gate over those before it, and the gate opens when the effects up to its offset are committed and a permission probe
 * has succeeded (R9).
 */
#include <errno.h>
#include <sys/socket.h>

#include "engine/engine_state.h"
#include "protocols/redis/role.h"

#define REFUSALS_APART_US 1000000ull /* further apart, and it had not refused all the time */

struct buffer *shared_held_by(struct engine *e, const struct destination *to, struct client **client) {
    *client = NULL;
    struct link *link = &e->links[to->node];
    if (to->node != e->self) return link->socket.source.fd >= 0 && link->session == to->session ? &link->socket.out : NULL;
    *client = client_find(e, to->slot, to->generation);
    return *client == NULL ? NULL : &(*client)->socket.out;
}

static void segment_add(struct engine *e, const struct destination *to, size_t bytes) {
    struct shared *s = &e->shared;
    bool local = to->node == e->self;
    uint32_t generation = local ? to->generation : to->session;
    struct segment *last = s->open_segments > 0 ? queue_back(&s->segments) : NULL;
    if (last != NULL && last->node == to->node && last->generation == generation && (!local || last->slot == to->slot)) {
        last->bytes += bytes;
        return;
    }
    *(struct segment *)queue_push(&s->segments) = (struct segment){to->node, to->slot, generation, bytes};
    s->open_segments++;
}

/* Part of an answer; `last`: with this it is complete. */
void shared_deliver(struct engine *e, const struct expect *x, const void *bytes, size_t length, bool last, uint8_t type) {
    struct client *client;
    struct buffer *out = shared_held_by(e, &x->to, &client);
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

/* Part of an answer that the next leader may be asked for. */
static void keep(struct shared *s, const struct expect *x, const void *bytes, size_t length, bool last) {
    struct origin_reply head = {.origin = {.node = x->to.node, .slot = x->to.slot, .life = x->life,
                                           .sequence = x->to.sequence, .generation = x->to.generation}};
    if (s->kept_open == 0 && !s->kept_large) {
        buffer_append(&s->kept, &head, sizeof head);
        s->kept_open = sizeof head;
    }
    if (!s->kept_large && s->kept_open + length > sizeof head + ORIGIN_REPLY_BYTES_MAX) {
        s->kept.end -= s->kept_open;
        s->kept_large = true;
    }
    if (!s->kept_large) {
        buffer_append(&s->kept, bytes, length);
        s->kept_open += length;
    }
    if (!last) return;
    if (!s->kept_large) {
        head.length = (uint32_t)(s->kept_open - sizeof head);
        memcpy(s->kept.data + s->kept.end - s->kept_open, &head, sizeof head);
        s->kept_whole += s->kept_open;
    }
    s->kept_open = 0;
    s->kept_large = false;
}

static void deliver_locals(struct engine *e) {
    struct shared *s = &e->shared;
    for (struct expect *x = queue_front(&s->expects); x != NULL && x->kind == EXPECT_LOCAL; x = queue_front(&s->expects)) {
        shared_deliver(e, x, buffer_bytes(&s->local), x->local_bytes, true, 0);
        buffer_consume(&s->local, x->local_bytes);
        queue_pop(&s->expects);
    }
}

void shared_pass_on(struct engine *e, const struct destination *to, enum arrival_kind kind, uint8_t type, int32_t database_after,
                    const void *bytes, size_t length) {
    struct client *client;
    struct buffer *out = shared_held_by(e, to, &client);
    if (out == NULL) return;
    if (kind <= ARRIVAL_LAST) {
        const struct expect x = {.database_after = database_after, .to = *to};
        shared_deliver(e, &x, bytes, length, kind == ARRIVAL_LAST, type);
        return;
    }
    size_t before = buffer_length(out);
    if (client == NULL) {
        struct frame frame = {.length = (uint32_t)length, .type = kind == ARRIVAL_END ? FRAME_OWN_END : FRAME_OWN_PUSH,
                              .slot = to->slot, .generation = to->generation};
        buffer_append(out, &frame, sizeof frame);
        buffer_append(out, bytes, length);
    } else if (kind == ARRIVAL_END) {
        own_ended(e, client);
        return;
    } else {
        own_pushed(e, client, bytes, length);
        if (!client->in_use) return;
    }
    segment_add(e, to, buffer_length(out) - before);
}

void shared_gate(struct engine *e, const struct expect *x, uint64_t offset) {
    struct shared *s = &e->shared;
    *(struct gate *)queue_push(&s->gates) =
        (struct gate){.offset = offset, .covered = x->covered, .segments = s->open_segments, .kept = s->kept_whole, .since_ns = x->since_ns,
                        .known_ns = e->now_ns};
    s->open_segments = 0;
}

static bool gate_add(struct engine *e, const struct expect *x) {
    struct shared *s = &e->shared;
    struct redis_role role;
    if (!redis_role_read(buffer_bytes(&s->role), buffer_length(&s->role), &role) || !role.is_master) return false;
    buffer_clear(&s->role);
    s->roles_in_flight--;
    owns_deliver(e, x->arrivals, false);
    s->busy.offset = role.offset;
    s->busy.ran = s->busy.role_refused = false;
    shared_gate(e, x, role.offset);
    histogram_add(&e->stages[STAGE_BACKEND], e->now_ns - x->since_ns);
    e->counters.batches++;
    return true;
}

static void answered_late(struct engine *e, const struct expect *x) {
    bool of_client = x->kind == EXPECT_CLIENT || x->kind == EXPECT_DROP || x->kind == EXPECT_LOAD;
    if (of_client) slowlog_note(e, SLOW_SHARED, &x->to, x->head, x->behind, x->block, NULL);
    else if (x->kind < EXPECT_SLOW_LIMITS) slowlog_late(e);
}

/* The reply that was coming in is complete. */
static bool reply_done(struct engine *e, struct expect *x) {
    struct shared *s = &e->shared;
    uint8_t type = s->reply.type;
    bool refused = type == '-' && busy_refused(&s->busy, x->block);
    if (e->context.busy && !refused) busy_set(e, false); /* what answers here is not held up by a script */
    if (x->kind == EXPECT_SWALLOW && type == '-' && !refused) return false;
    if (x->kind == EXPECT_SWALLOW && type != '*' && type != '%') busy_switched(e, refused);
    if (x->kind == EXPECT_ROLE && refused) busy_role(e, x);
    else if (x->kind == EXPECT_ROLE && !gate_add(e, x)) return false;
    if (!s->reply.is_push && !busy_may_follow(&s->busy, x, refused)) return false;
    s->busy.head_bytes = 0;
    if (!s->reply.is_push) {
        if (x->swallow > 0) x->swallow--;
        x->replies--;
    }
    resp_reply_reset(&s->reply);
    if (x->replies > 0) return true;
    uint64_t from_ns = s->heard_ns > x->since_ns ? s->heard_ns : x->since_ns;
    if (e->now_ns - from_ns >= e->slowlog.late_ns) answered_late(e, x);
    if (x->kind >= EXPECT_AOF) {
        const struct expect whole = *x;
        queue_pop(&s->expects);
        if (whole.kind < EXPECT_SLOW_LIMITS) load_replied(e, &whole);
        else slowlog_replied(e, &whole);
        buffer_clear(&s->info);
        return true;
    }
    uint32_t pause = x->pause;
    buffer_clear(&s->refusal);
    queue_pop(&s->expects);
    if (pause != PAUSE_NOTHING) client_pause_answered(e, pause, type);
    return true;
}

/* What no request is to blame for: the next one is refused as well. */
static void refusal_note(struct engine *e, const uint8_t *bytes, size_t length) {
    struct shared *s = &e->shared;
    if (length < 8 || (memcmp(bytes, "-OOM ", 5) != 0 && memcmp(bytes, "-MISCONF", 8) != 0)) return;
    if (e->now_us - s->refused_us > REFUSALS_APART_US) s->refused_since_us = e->now_us;
    s->refused_us = e->now_us;
}

void shared_watch(struct engine *e) {
    struct shared *s = &e->shared;
    bool refuses = engine_leads(e) && s->refused_us > 0 && e->now_us - s->refused_us <= REFUSALS_APART_US;
    if (!refuses || e->now_us - s->refused_since_us < e->config.backend_timeout_us) return;
    s->refused_since_us = e->now_us;
    engine_tell(e, ENGINE_REFUSES, 0, 0);
}

/* ---- answers -------------------------------------------------------------------------------------------------------- */

static void pass(struct engine *e, struct expect *x, const void *bytes, size_t length, bool last, uint8_t type) {
    struct shared *s = &e->shared;
    if (x->life != 0 && !s->reply.is_push) keep(s, x, bytes, length, last);
    if (x->kind == EXPECT_CLIENT || x->kind == EXPECT_LOAD) shared_deliver(e, x, bytes, length, last, type);
}

static bool starts(const struct buffer *b, const char *text) {
    size_t n = strlen(text);
    return buffer_length(b) >= n && memcmp(buffer_bytes(b), text, n) == 0;
}

void stand_in_edit(struct buffer *answer) {
    if (session_refuses_to_queue(buffer_bytes(answer), buffer_length(answer))) return;
    buffer_clear(answer);
    buffer_text(answer, "+QUEUED\r\n");
}

/* An EXEC whose client was told that all was queued: why it fails. */
static void abort_edit(struct shared *s) {
    static const char previous[] = "-EXECABORT Transaction discarded because of previous errors.", why[] = "-EXECABORT Transaction discarded because of: ";
    if (!starts(&s->edited, previous)) return;
    buffer_clear(&s->edited);
    buffer_text(&s->edited, why);
    buffer_append(&s->edited, buffer_bytes(&s->refusal) + 1, buffer_length(&s->refusal) - 1);
}

/* Bytes of an answer to a request of somebody's; `done`: it is whole. */
static void answer_part(struct engine *e, struct expect *x, const uint8_t *bytes, size_t length, bool done) {
    struct shared *s = &e->shared;
    bool last = done && x->replies == 1;
    if (x->swallow > 0) { /* of a transaction's commands: the first error is remembered */
        bool more = buffer_length(&s->refusal) == 0 || buffer_bytes(&s->refusal)[buffer_length(&s->refusal) - 1] != '\n';
        if (s->reply.type == '-' && more) buffer_append(&s->refusal, bytes, length);
        return;
    }
    if (last && s->reply.type == '-' && busy_refused(&s->busy, false) && busy_answer(e, x, bytes, length)) return;
    bool aborts = buffer_length(&s->refusal) > 0 && x->replies == 1 && s->reply.type == '-';
    bool views = x->view != VIEW_PLAIN && x->replies == 1;
    if (!x->stands_in && !aborts && !views) return pass(e, x, bytes, length, last, s->reply.type);
    buffer_append(&s->edited, bytes, length);
    if (!done) return;
    bool block = x->view == VIEW_SECRETS;
    if (block && views) view_block(e, &s->views, aborts ? NULL : &s->edited);
    if (x->stands_in) stand_in_edit(&s->edited);
    else if (aborts) abort_edit(s);
    else if (!block) view_edit(e, x->view, x->view_count, &s->edited);
    pass(e, x, buffer_bytes(&s->edited), buffer_length(&s->edited), last, *buffer_bytes(&s->edited));
    buffer_clear(&s->edited);
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
        if (s->reply.type == '-') busy_head(&s->busy, bytes, used);
        if (x->kind == EXPECT_ROLE) buffer_append(&s->role, bytes, used);
        if (*bytes == '-' && s->reply.type == '-') refusal_note(e, bytes, used);
        if (x->kind >= EXPECT_AOF) buffer_append(&s->info, bytes, used);
        if (x->kind != EXPECT_SWALLOW && x->kind != EXPECT_ROLE && used > 0) answer_part(e, x, bytes, used, status == RESP_DONE);
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
    if (e->machine.protocol != NULL) return machine_event(e, events);
    if (events & EPOLLOUT) shared_send(e);
    if (!(events & (EPOLLIN | EPOLLHUP | EPOLLERR)) || s->socket.source.fd < 0) return;
    ssize_t n = recv(s->socket.source.fd, e->scratch, SCRATCH_BYTES, 0);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (n <= 0) backend_lost(e, "its shared connection closed");
    else if (!shared_bytes(e, e->scratch, (size_t)n)) backend_lost(e, s->busy.adrift ? "its script ended behind a SELECT" : "it answered what was not asked");
    else s->heard_ns = e->now_ns;
    if (s->changed) backend_changed(e, "what it loaded from its disk is not what it had");
}

void shared_staged(struct engine *e, uint64_t commit) {
    struct shared *s = &e->shared;
    uint64_t now_ns = queue_length(&s->staged) > 0 ? clock_ns() : 0;
    for (struct staged *m = queue_front(&s->staged); m != NULL && m->index <= commit; m = queue_front(&s->staged)) {
        s->sendable = m->end;
        if (m->index > 0) histogram_add(&e->stages[STAGE_COMMIT], now_ns - m->since_ns);
        if (e->machine.protocol != NULL) machine_given(e, m->index);
        queue_pop(&s->staged);
    }
}

/* Sends what is committed. */
void shared_send(struct engine *e) {
    struct shared *s = &e->shared;
    if (s->socket.source.fd < 0) return;
    /* From when it is deposed on, what is committed at an index may be the next leader's, and not what is staged for it here. */
    if (!takeover_deposed(e)) shared_staged(e, replica_commit(e->replica));
    if (e->machine.protocol != NULL && machine_waits(e)) return;
    uint64_t limit = owns_shared_limit(e), until = s->sendable < limit ? s->sendable : limit;
    if (s->sent >= until) return;
    size_t written;
    if (!socket_flush(e, &s->socket, until - s->sent, &written)) {
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
    if (link->socket.source.fd < 0 || link->session != g->generation) return;
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
    if (e->machine.protocol != NULL) return true; /* it needs no greeting */
    uint32_t swallowed = append_auth(e, &s->socket.out);
    append_command(&s->socket.out, 3, OUR_CLIENT, "NO-EVICT", "ON");
    append_command(&s->socket.out, 3, OUR_CLIENT, "SETNAME", "musidecar-shared");
    s->appended = buffer_length(&s->socket.out);
    for (uint32_t i = 0; i < swallowed + 2; i++)
        *(struct expect *)queue_push(&s->expects) = (struct expect){.kind = EXPECT_SWALLOW, .replies = 1, .database_after = -1, .since_ns = e->now_ns};
    turn_mark(e, 0);
    return true;
}

void shared_close(struct engine *e) {
    struct shared *s = &e->shared;
    source_close(e, &s->socket.source);
    buffer_clear(&s->socket.out);
    buffer_clear(&s->role);
    buffer_clear(&s->info);
    s->changed = s->writes_out = false;
    buffer_clear(&s->populate);
    buffer_clear(&s->views);
    buffer_clear(&s->local);
    queue_clear(&s->staged);
    queue_clear(&s->expects);
    queue_clear(&s->segments);
    queue_clear(&s->gates);
    resp_reply_reset(&s->reply);
    buffer_clear(&s->kept);
    buffer_clear(&s->refusal);
    buffer_clear(&s->edited);
    s->kept_whole = s->kept_cut = s->kept_open = 0;
    s->kept_large = false;
    s->appended = s->sendable = s->sent = s->open_segments = 0;
    s->roles_in_flight = 0;
    s->heard_ns = 0;
    s->refused_us = s->refused_since_us = 0;
    s->unproven = false;
    s->busy = (struct busy){0};
    if (e->machine.protocol != NULL) machine_closed(e);
}
