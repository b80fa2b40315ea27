/* machine.c: the shared connection of a backend that every node gives the same requests; see machine.h. */
#include "engine/engine_state.h"
#include "protocols/herd/protocol.h"
#include "protocols/liquibook/protocol.h"
#include "protocols/memcached/memcached.h"
#include "protocols/own/protocol.h"

#include <errno.h>
#include <sys/socket.h>

#define ANSWER_PART_BYTES (256u << 10) /* a frame holds no more */

static const struct record_origin NO_ORIGIN = {0, 0, 0};

static const struct protocol *const PROTOCOLS[] = {[PROTOCOL_REDIS] = NULL /* it reveals its effects */, [PROTOCOL_MEMCACHED] = &memcached_protocol,
                                                   [PROTOCOL_LIQUIBOOK] = &liquibook_protocol, [PROTOCOL_OWN] = &own_protocol,
                                                   [PROTOCOL_HERD] = &herd_protocol};

static const struct protocol *protocol_find(uint32_t number) {
    return number < sizeof PROTOCOLS / sizeof *PROTOCOLS ? PROTOCOLS[number] : NULL;
}

bool machine_init(struct engine *e) {
    struct machine *m = &e->machine;
    m->protocol = protocol_find(e->config.protocol);
    m->limits = (struct protocol_limits){.item_bytes_max = e->config.item_bytes_max, .exact = e->config.exact, .names = e->config.names};
    if (m->protocol != NULL) {
        queue_init(&m->places, sizeof(struct place), 256);
        machine_due_init(m);
    }
    return m->protocol != NULL || e->config.protocol == 0;
}

void machine_free(struct engine *e) {
    struct machine *m = &e->machine;
    machine_locks_free(e);
    struct buffer *buffers[] = {&m->answer, &m->replies, &m->command, &m->reply, &m->given_answer, &m->collected};
    for (size_t i = 0; i < sizeof buffers / sizeof *buffers; i++) buffer_free(buffers[i]);
    if (m->places.data != NULL) queue_free(&m->places);
    if (m->delays.data != NULL) queue_free(&m->delays);
}

void machine_closed(struct engine *e) {
    struct machine *m = &e->machine;
    m->state = (struct protocol_reply){{0}};
    buffer_clear(&m->answer);
    buffer_clear(&m->replies);
    queue_clear(&m->places);
    queue_clear(&m->delays);
    machine_locks_clear(e);
    m->collects = m->want_pending = m->reads = false;
    buffer_free(&m->collected);
}

/* ---- how far the backend is ------------------------------------------------------------------------------------------ */

static void note_done(struct engine *e, uint64_t end) {
    struct machine *m = &e->machine;
    uint64_t done = atomic_load_explicit(&m->done, memory_order_relaxed);
    for (struct place *p = queue_front(&m->places); p != NULL && p->end <= end; p = queue_front(&m->places)) {
        done = p->index;
        queue_pop(&m->places);
    }
    bool all = queue_length(&m->places) == 0 && e->backend >= BACKEND_FED;
    if (all && m->applied > done) done = m->applied; /* what followed were no COMMANDs */
    atomic_store(&m->done, done);
}

void machine_sealed(struct engine *e, uint64_t index) {
    struct machine *m = &e->machine;
    m->placed = index;
    *(struct place *)queue_push(&m->places) = (struct place){e->shared.appended, index};
}

void machine_given(struct engine *e, uint64_t index) {
    struct machine *m = &e->machine;
    if (index > atomic_load_explicit(&m->given, memory_order_relaxed)) atomic_store(&m->given, index);
}

/* From FED on the backend holds the log's data, until it is anything less. */
void machine_backend(struct engine *e) {
    struct machine *m = &e->machine;
    bool holds = e->backend >= BACKEND_FED;
    if (holds == (atomic_load(&m->life) != 0)) return;
    atomic_store(&m->life, holds ? ++m->lives : 0);
    note_done(e, 0);
}

uint64_t engine_points(struct engine *e, uint64_t *done, uint64_t *given, uint64_t *due_s) {
    *done = atomic_load(&e->machine.done); /* read first: what is done was given */
    *given = atomic_load(&e->machine.given);
    *due_s = atomic_load(&e->machine.due_s);
    if (*given < *done) *given = *done;
    return atomic_load(&e->machine.life);
}

uint64_t machine_done(const struct engine *e) { return atomic_load_explicit(&e->machine.done, memory_order_relaxed); }

bool machine_caught_up(const struct engine *e) {
    return queue_length(&e->shared.expects) == 0 && queue_length(&e->shared.staged) == 0;
}

/* ---- records ----------------------------------------------------------------------------------------------------------- */

static void append(struct engine *e, const void *bytes, size_t length, struct expect expect) {
    struct shared *s = &e->shared;
    buffer_append(&s->socket.out, bytes, length);
    s->appended += length;
    expect.end = s->appended;
    *(struct expect *)queue_push(&s->expects) = expect;
}

static void stamp(struct engine *e, uint64_t number) {
    struct shared *s = &e->shared;
    size_t before = buffer_length(&s->socket.out);
    if (e->machine.protocol->stamp == NULL) return;
    e->machine.protocol->stamp(number, &s->socket.out);
    s->appended += buffer_length(&s->socket.out) - before;
}

void machine_stamp(struct engine *e, uint64_t ordinal) {
    if (e->machine.protocol != NULL) stamp(e, machine_number(replica_last(e->replica) + 1, ordinal));
}

void machine_place(struct engine *e, uint64_t first, uint64_t index, const uint8_t *bytes, size_t length) {
    struct machine *m = &e->machine;
    struct command_entry entry;
    bool stamps = m->protocol->stamp != NULL;
    uint64_t number = machine_number(first, 0);
    for (size_t at = 0; at < length; at += sizeof entry + entry.length) {
        CHECK(command_entry_read(bytes + at, length - at, &entry) && entry.swallow <= entry.length);
        number++;
        if (stamps ? number <= m->copied : index <= m->copied) continue; /* a long one ends at `index`: the copy was begun before */
        stamp(e, number);
        const struct origin *o = &entry.origin;
        size_t command = entry.length - entry.swallow;
        buffer_append(&m->replies, bytes + at + sizeof entry + command, entry.swallow);
        append(e, bytes + at + sizeof entry, command,
               (struct expect){.kind = EXPECT_RERUN, .replies = 1, .database_after = -1, .style = entry.replies, .reply_bytes = entry.swallow,
                               .to = {o->node, o->slot, o->generation, o->sequence, 0},
                               .life = entry.flags & COMMAND_FORWARDED ? o->life : 0, .since_ns = e->now_ns});
        machine_due_logged(e, bytes + at + sizeof entry, command);
    }
    machine_sealed(e, index);
    turn_mark(e, index);
}

void machine_apply(struct engine *e, uint64_t first, uint64_t index, const uint8_t *bytes, size_t length) {
    struct machine *m = &e->machine;
    if (index <= m->placed) return; /* by this node, when it logged it */
    if (m->collects) machine_collect(e, first, index, bytes, length);
    else if (e->backend >= BACKEND_SYNCING) machine_place(e, first, index, bytes, length);
}

void machine_applied(struct engine *e, uint64_t index) {
    e->machine.applied = index;
    note_done(e, 0);
}

bool machine_log(struct engine *e, const struct request *r, uint32_t style) {
    struct machine *m = &e->machine;
    size_t command = buffer_length(&m->command), reply = buffer_length(&m->reply);
    struct command_entry entry = {.length = (uint32_t)(command + reply), .protocol = 2, .flags = r->life ? COMMAND_FORWARDED : 0,
                                  .replies = style, .swallow = (uint32_t)reply,
                                  .origin = {.node = r->from.node, .slot = r->from.slot, .life = r->life, .sequence = r->from.sequence,
                                             .generation = r->from.generation, .unanswered = r->unanswered}};
    struct expect expect = {.kind = EXPECT_CLIENT, .replies = 1, .database_after = -1, .style = style, .reply_bytes = (uint32_t)reply,
                            .to = r->from, .life = r->life, .since_ns = e->now_ns};
    buffer_append(&m->command, buffer_bytes(&m->reply), reply);
    bool logged = turn_log(e, &entry, buffer_bytes(&m->command), &expect, command, NULL);
    m->command.end -= reply;
    if (!logged) return false;
    machine_due_logged(e, buffer_bytes(&m->command), command);
    buffer_append(&m->replies, buffer_bytes(&m->reply), reply);
    e->shared.unproven = true;
    return true;
}

void machine_turn_end(struct engine *e) {
    struct shared *s = &e->shared;
    struct machine *m = &e->machine;
    machine_due_step(e);
    bool logs = e->batch != NULL; /* posted after everything of this turn came: its commit is a probe, too */
    turn_seal(e);
    if (e->big.active) turn_big(e);
    if (!s->unproven || e->big.active) return;
    uint64_t probe = 0;
    if (m->reads && !logs) {
        probe = replica_probe(e->replica);
        if (probe == 0) return; /* this node does not lead any more: the loop is about to find out */
        e->counters.probes++;
    }
    *(struct expect *)queue_push(&s->expects) = (struct expect){.kind = EXPECT_GATE, .covered = probe, .end = s->appended, .since_ns = e->now_ns};
    s->unproven = m->reads = false;
    turn_mark(e, e->command_index);
}

/* ---- answers ------------------------------------------------------------------------------------------------------------- */

static void gate_add(struct engine *e, const struct expect *x) {
    struct shared *s = &e->shared;
    *(struct gate *)queue_push(&s->gates) = (struct gate){.segments = s->open_segments, .cut = true, .probe = x->covered, .since_ns = x->since_ns,
                                                          .known_ns = e->now_ns};
    s->open_segments = 0;
    histogram_add(&e->stages[STAGE_BACKEND], e->now_ns - x->since_ns);
    e->counters.batches++;
}

/* What waits for no bytes of the backend, once it is its turn. */
static void fronts(struct engine *e) {
    struct shared *s = &e->shared;
    for (struct expect *x = queue_front(&s->expects); x != NULL; x = queue_front(&s->expects)) {
        if (x->kind == EXPECT_LOCAL) {
            if (x->to.node != REPLICA_NOBODY) shared_deliver(e, x, buffer_bytes(&s->local), x->local_bytes, true, 0);
            buffer_consume(&s->local, x->local_bytes);
        } else if (x->kind == EXPECT_GATE) {
            gate_add(e, x);
        } else {
            return;
        }
        queue_pop(&s->expects);
    }
}

static void keep(struct engine *e, const struct expect *x, const struct buffer *answer) {
    struct origin_reply head = {.origin = {.node = x->to.node, .slot = x->to.slot, .life = x->life, .sequence = x->to.sequence,
                                           .generation = x->to.generation},
                                .length = (uint32_t)buffer_length(answer)};
    struct buffer *scratch = &e->machine.command;
    if (head.length > ORIGIN_REPLY_BYTES_MAX) return;
    buffer_clear(scratch);
    buffer_append(scratch, &head, sizeof head);
    buffer_append(scratch, buffer_bytes(answer), head.length);
    CHECK(origin_take(&e->log.origins, buffer_bytes(scratch), buffer_length(scratch)));
}

static void pass(struct engine *e, const struct expect *x, const struct buffer *answer) {
    const uint8_t *bytes = buffer_bytes(answer);
    size_t left = buffer_length(answer);
    do {
        size_t part = left < ANSWER_PART_BYTES ? left : ANSWER_PART_BYTES;
        left -= part;
        shared_deliver(e, x, bytes, part, left == 0, 0);
        bytes += part;
    } while (left > 0);
}

/* The answer that was coming in is whole. */
static bool answer_done(struct engine *e) {
    struct shared *s = &e->shared;
    struct machine *m = &e->machine;
    const struct expect x = *(struct expect *)queue_front(&s->expects);
    queue_pop(&s->expects);
    m->state = (struct protocol_reply){{0}};
    if (x.kind == EXPECT_QUESTION) {
        machine_answered(e, x.covered, buffer_bytes(&m->answer), buffer_length(&m->answer));
    } else if (x.kind != EXPECT_SWALLOW) {
        buffer_clear(&m->given_answer);
        if (!m->protocol->answer(x.style, buffer_bytes(&m->replies), x.reply_bytes, buffer_bytes(&m->answer), buffer_length(&m->answer),
                                 e->term, &m->given_answer)) return false;
        if (m->protocol->failed(buffer_bytes(&m->answer), buffer_length(&m->answer))) e->counters.failed++;
        if (x.life != 0) keep(e, &x, &m->given_answer);
        if (x.kind == EXPECT_CLIENT) pass(e, &x, &m->given_answer);
        buffer_consume(&m->replies, x.reply_bytes);
    }
    buffer_clear(&m->answer);
    buffer_trim(&m->answer, ANSWER_LARGE_BYTES);
    buffer_trim(&m->given_answer, ANSWER_LARGE_BYTES);
    machine_due_done(m, x.end);
    note_done(e, x.end);
    return true;
}

static bool machine_bytes(struct engine *e, const uint8_t *bytes, size_t length) {
    struct machine *m = &e->machine;
    while (length > 0) {
        fronts(e);
        const struct expect *x = queue_front(&e->shared.expects);
        if (x == NULL) return false;
        enum protocol_status status;
        size_t used = m->protocol->reply(&m->state, x->replies, bytes, length, &status);
        if (status == PROTOCOL_REPLY_BAD) return false;
        buffer_append(&m->answer, bytes, used);
        bytes += used;
        length -= used;
        if (status == PROTOCOL_REPLY_WHOLE ? !answer_done(e) : used == 0) return false;
    }
    fronts(e);
    return true;
}

void machine_event(struct engine *e, uint32_t events) {
    struct shared *s = &e->shared;
    if (events & EPOLLOUT) shared_send(e);
    if (!(events & (EPOLLIN | EPOLLHUP | EPOLLERR)) || s->socket.source.fd < 0) return;
    ssize_t n = recv(s->socket.source.fd, e->scratch, SCRATCH_BYTES, 0);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (n <= 0) backend_lost(e, "its shared connection closed");
    else if (!machine_bytes(e, e->scratch, (size_t)n)) backend_lost(e, "it answered what was not asked");
}

#define FLUSH_BYTES (64u << 10)

/* Has the backend nothing to do? */
static bool rests(struct shared *s) {
    const struct expect *next = queue_front(&s->expects);
    return next == NULL || next->end > s->sent;
}

bool machine_waits(struct engine *e) {
    struct machine *m = &e->machine;
    struct shared *s = &e->shared;
    bool somebody = e->takeover != TAKE_IDLE || e->handover.until_us > 0 || e->backend != BACKEND_FED || (m->protocol->takes_its_time && rests(s));
    bool waits = s->sendable > s->sent && s->sendable - s->sent < FLUSH_BYTES && !somebody && (m->flush_us == 0 || e->now_us < m->flush_us);
    if (!waits) m->flush_us = 0;
    else if (m->flush_us == 0) m->flush_us = e->now_us + e->config.feed_delay_us;
    return waits;
}

/* On the admin connection: whatever it says, it lives. */
void machine_admin_event(struct engine *e) {
    uint8_t chunk[4096];
    struct admin *a = &e->admin;
    ssize_t n = recv(a->socket.source.fd, chunk, sizeof chunk, 0);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (n <= 0) return backend_lost(e, "its admin connection closed");
    queue_clear(&a->expects);
    a->heard_us = e->now_us;
    a->ping_pending = false;
}

void machine_step(struct engine *e) {
    if (e->takeover == TAKE_IDLE && buffer_length(&e->shared.socket.out) > e->config.feed_bytes_max)
        return backend_lost(e, "it takes what is logged too slowly (limits.feed_bytes_max)");
    machine_locks_step(e);
    fronts(e);
    machine_copy_step(e);
}

/* ---- leading, and not any more ------------------------------------------------------------------------------------------ */

/* Its client asks the next leader, or is closed; the backend answers all the same. */
static void expect_orphan(struct expect *x) {
    switch ((enum expect_kind)x->kind) {
        case EXPECT_CLIENT: x->kind = EXPECT_RERUN; break;
        case EXPECT_QUESTION: x->kind = EXPECT_SWALLOW; break;
        case EXPECT_LOCAL:
        case EXPECT_GATE: *x = (struct expect){.kind = EXPECT_LOCAL, .to.node = REPLICA_NOBODY, .end = x->end}; break;
        default: break;
    }
}

/* What has not left is not committed, as far as this node knows: should it be, it comes by the log. */
void machine_recede(struct engine *e) {
    struct shared *s = &e->shared;
    struct machine *m = &e->machine;
    shared_staged(e, m->applied); /* as this node logged it: apply comes behind this */
    queue_clear(&s->staged);
    if (e->big.active) m->replies.end -= e->big.expect.reply_bytes;
    for (struct place *p = queue_back(&m->places); p != NULL && p->end > s->sendable; p = queue_back(&m->places)) m->places.tail--;
    machine_due_recede(e);
    for (struct expect *x = queue_back(&s->expects); x != NULL && x->end > s->sendable; x = queue_back(&s->expects)) {
        m->replies.end -= x->reply_bytes;
        s->expects.tail--;
    }
    for (uint64_t i = s->expects.head; i < s->expects.tail; i++) expect_orphan(queue_at(&s->expects, i));
    size_t unsent = (size_t)(s->appended - s->sendable);
    s->socket.out.end -= unsent;
    s->appended = s->sendable;
    buffer_clear(&s->local);
    queue_clear(&s->segments);
    queue_clear(&s->gates);
    s->open_segments = 0;
    s->unproven = m->reads = false;
    m->placed = atomic_load(&m->given);
    machine_locks_clear(e);
}

void machine_takeover_begin(struct engine *e) {
    bool first = e->config.seed && e->log.epoch == 0;
    if (e->shared.socket.source.fd < 0 || (e->backend != BACKEND_FED && !first)) {
        replica_resign(e->replica, e->now_us);
        return;
    }
    struct epoch_record epoch = {.kind = ADMIN_RECORD_EPOCH, .leader = e->self, .epoch = e->log.epoch + 1};
    int64_t index = replica_propose(e->replica, RECORD_ADMIN, 0, NO_ORIGIN, &epoch, sizeof epoch);
    if (index <= 0) {
        replica_resign(e->replica, e->now_us);
        return;
    }
    e->admin_index = (uint64_t)index;
    e->takeover = TAKE_EPOCH;
    backend_set(e, BACKEND_PROMOTING);
}
