/*
 * turn.c: what arrived in one turn of the loop becomes one COMMAND record (more when it is long) and one write to the
 * shared connection, followed by a ROLE whose answer cuts the effect stream (R2, R4). Bytes are staged at once and sent
 * when the record in front of them is committed.
 */
#include "engine/engine_state.h"

#define BIG_BYTES_A_TURN (1u << 20) /* so that the loop goes on ticking */

static const struct record_origin NO_ORIGIN = {0, 0, 0};

void turn_mark(struct engine *e, uint64_t index) {
    struct shared *s = &e->shared;
    struct staged *last = queue_back(&s->staged);
    if (last != NULL && last->index == index) last->end = s->appended;
    else *(struct staged *)queue_push(&s->staged) = (struct staged){s->appended, index, clock_ns()};
}

/* Closes the COMMAND record being filled. It stands at the end of the log already: whoever proposes anything else calls
 * this first, or both would be written to one place. */
void turn_seal(struct engine *e) {
    if (e->batch == NULL) return;
    e->batch = NULL;
    if (e->batch_used == 0) return;
    int64_t index = replica_propose_reserved(e->replica, RECORD_COMMAND, 0, NO_ORIGIN, e->batch_used);
    e->batch_used = 0;
    if (index <= 0) return; /* the term ended: the loop is about to find out, nothing staged will be sent */
    e->command_index = (uint64_t)index;
    e->counters.records++;
    turn_mark(e, (uint64_t)index);
    if (e->machine.protocol != NULL) machine_sealed(e, (uint64_t)index);
}

static bool batch_append(struct engine *e, const struct command_entry *entry, const uint8_t *bytes) {
    uint32_t need = (uint32_t)sizeof *entry + entry->length, most = e->config.replica.piece_bytes_max;
    if (e->batch != NULL && e->batch_used + need > most) turn_seal(e);
    if (e->batch == NULL) {
        e->batch = replica_reserve(e->replica, RECORD_COMMAND, most);
        e->batch_used = e->batch_entries = 0;
        if (e->batch == NULL) {
            e->stalled = true;
            return false;
        }
    }
    memcpy(e->batch + e->batch_used, entry, sizeof *entry);
    memcpy(e->batch + e->batch_used + sizeof *entry, bytes, entry->length);
    if (entry->flags & COMMAND_FORWARDED) e->batch[offsetof(struct command_entry, flags)] |= COMMAND_ANY_FORWARDED;
    e->batch_used += need;
    e->batch_entries++;
    return true;
}

/* Bodies that EVALSHA may name later travel in ADMIN records in front of the command (R1). */
bool script_log(struct engine *e, const struct session_decision *d) {
    uint32_t most = e->config.replica.piece_bytes_max;
    uint32_t kind = d->flushes_scripts ? ADMIN_RECORD_SCRIPT_FLUSH : ADMIN_RECORD_SCRIPT;
    if (!d->flushes_scripts && (d->script == NULL || d->script_length + 8 > most || script_known(&e->log, d->script, d->script_length)))
        return true;
    uint32_t length = 8 + (d->flushes_scripts ? 0 : (uint32_t)d->script_length);
    turn_seal(e);
    uint8_t *payload = replica_reserve(e->replica, RECORD_ADMIN, length);
    if (payload == NULL) {
        e->stalled = true;
        return false;
    }
    memset(payload, 0, 8);
    memcpy(payload, &kind, sizeof kind);
    if (!d->flushes_scripts) memcpy(payload + 8, d->script, d->script_length);
    int64_t index = replica_propose_reserved(e->replica, RECORD_ADMIN, 0, NO_ORIGIN, length);
    if (index > 0) e->admin_index = (uint64_t)index;
    return index > 0;
}

static void expect_swallow(struct engine *e) {
    *(struct expect *)queue_push(&e->shared.expects) = (struct expect){.kind = EXPECT_SWALLOW, .replies = 1, .database_after = -1, .since_ns = e->now_ns};
}

static void shared_append(struct engine *e, const void *bytes, size_t length) {
    buffer_append(&e->shared.socket.out, bytes, length);
    e->shared.appended += length;
}

/* SELECT and HELLO in front of the first request that needs another database or protocol. */
static void shared_switch(struct engine *e, uint32_t database, uint8_t protocol) {
    struct shared *s = &e->shared;
    if (s->protocol != protocol) {
        const char *hello = protocol == 3 ? ASK_HELLO_3 : ASK_HELLO_2;
        shared_append(e, hello, strlen(hello));
        expect_swallow(e);
        s->protocol = protocol;
        e->our_calls[OUR_CALLS_HELLO]++;
    }
    if (s->database != (int32_t)database) {
        char number[16], text[64];
        int digits = snprintf(number, sizeof number, "%u", database);
        int n = snprintf(text, sizeof text, ASK_SELECT "$%d\r\n%s\r\n", digits, number);
        shared_append(e, text, (size_t)n);
        expect_swallow(e);
        s->database = (int32_t)database;
        e->our_calls[OUR_CALLS_SELECT]++;
    }
}

void turn_forward(struct engine *e, uint32_t database, uint8_t protocol, const void *bytes, size_t length,
                  const struct expect *expect) {
    shared_switch(e, database, protocol);
    shared_append(e, bytes, length);
    struct expect *x = queue_push(&e->shared.expects);
    *x = *expect;
    x->end = e->shared.appended;
    e->shared.unproven = true;
}

static struct expect expect_of(struct engine *e, const struct request *r) {
    return (struct expect){.kind = EXPECT_CLIENT,
                           .reads = !r->decision->writes && r->decision->replies == 1,
                           .replies = r->decision->replies,
                           .swallow = r->decision->swallow,
                           .stands_in = r->decision->stands_in,
                           .view = (uint8_t)r->decision->view,
                           .view_count = r->decision->view_count,
                           .block = r->decision->replies > 1,
                           .database_after = r->decision->database_after,
                           .pause = r->decision->pause,
                           .to = r->from,
                           .life = r->decision->writes ? r->life : 0,
                           .since_ns = e->now_ns};
}

static struct command_entry entry_of(const struct request *r) {
    const struct session_decision *d = r->decision;
    return (struct command_entry){.length = (uint32_t)d->length,
                                  .database = r->database,
                                  .protocol = r->protocol,
                                  .flags = r->life ? COMMAND_FORWARDED : 0,
                                  .replies = d->replies,
                                  .swallow = d->swallow,
                                  .origin = {.node = r->from.node,
                                             .slot = r->from.slot,
                                             .life = r->life,
                                             .sequence = r->from.sequence,
                                             .generation = r->from.generation,
                                             .unanswered = r->unanswered}};
}

/* Takes the request's bytes over, with the buffer they lie in if there is one. */
static void big_take(struct big *big, const uint8_t *bytes, size_t length, struct buffer *holder) {
    bool inside = holder != NULL && bytes >= holder->data && bytes + length <= holder->data + holder->end;
    big->length = length;
    if (!inside) {
        buffer_append(&big->bytes, bytes, length);
        return;
    }
    struct buffer rest = {0};
    const uint8_t *behind = bytes + length;
    buffer_append(&rest, behind, (size_t)(holder->data + holder->end - behind));
    if (rest.data == NULL) buffer_room(&rest, 1); /* never the same place as before: whoever holds it can tell */
    big->bytes = *holder;
    big->bytes.start = (size_t)(bytes - holder->data);
    *holder = rest;
}

static void big_start(struct engine *e, const struct command_entry *entry, const uint8_t *bytes, const struct expect *expect,
                      size_t forwarded, struct buffer *holder) {
    turn_seal(e);
    e->big.active = true;
    e->big.entry = *entry;
    e->big.expect = *expect;
    e->big.proposed = 0;
    e->big.forwarded = forwarded;
    if (entry->flags & COMMAND_FORWARDED) e->big.entry.flags |= COMMAND_ANY_FORWARDED;
    big_take(&e->big, bytes, entry->length, holder);
    shared_switch(e, entry->database, entry->protocol);
    buffer_room(&e->shared.socket.out, entry->length);
}

static void big_end(struct engine *e) {
    e->big.active = false;
    buffer_free(&e->big.bytes);
}

/* Goes on with a request that takes several records. */
void turn_big(struct engine *e) {
    struct big *big = &e->big;
    uint32_t most = e->config.replica.piece_bytes_max;
    uint64_t total = sizeof big->entry + big->length;
    for (uint64_t turn = 0; big->active; turn += most) {
        if (turn >= BIG_BYTES_A_TURN) {
            e->more = true;
            return;
        }
        uint32_t length = (uint32_t)(total - big->proposed < most ? total - big->proposed : most);
        uint8_t *payload = replica_reserve(e->replica, RECORD_COMMAND, length);
        if (payload == NULL) {
            e->stalled = true;
            return;
        }
        uint32_t head = big->proposed == 0 ? sizeof big->entry : 0;
        if (head > 0) machine_stamp(e, 1);
        const uint8_t *piece = buffer_bytes(&big->bytes) + (head > 0 ? 0 : big->proposed - sizeof big->entry);
        memcpy(payload, &big->entry, head);
        memcpy(payload + head, piece, length - head);
        bool last = big->proposed + length == total;
        int64_t index = replica_propose_reserved(e->replica, RECORD_COMMAND, last ? 0 : RECORD_MORE, NO_ORIGIN, length);
        if (index <= 0) return;
        e->command_index = (uint64_t)index;
        uint64_t some = length - head < big->forwarded ? length - head : big->forwarded;
        shared_append(e, piece, (size_t)some);
        big->forwarded -= some;
        big->proposed += length;
        if (!last) continue;
        big->expect.end = e->shared.appended;
        *(struct expect *)queue_push(&e->shared.expects) = big->expect;
        e->shared.unproven = true;
        turn_mark(e, (uint64_t)index);
        if (e->machine.protocol != NULL) machine_sealed(e, (uint64_t)index);
        big_end(e);
    }
}

bool turn_log(struct engine *e, const struct command_entry *entry, const uint8_t *bytes, const struct expect *expect, size_t forwarded,
              struct buffer *holder) {
    if (e->big.active) return e->stalled = true, false;
    if (sizeof *entry + entry->length > e->config.replica.piece_bytes_max) {
        big_start(e, entry, bytes, expect, forwarded, holder);
        return true;
    }
    if (!batch_append(e, entry, bytes)) return false;
    machine_stamp(e, e->batch_entries);
    turn_forward(e, entry->database, entry->protocol, bytes, forwarded, expect);
    return true;
}

bool turn_submit(struct engine *e, const struct request *r, struct buffer *holder) {
    const struct session_decision *d = r->decision;
    if (e->big.active) return e->stalled = true, false;
    if (e->machine.protocol != NULL) return machine_submit(e, r, holder);
    if (e->shared.writes_out) return e->stalled = true, false;
    if (d->loads != LOADS_NOTHING) return load_submit(e, r), true;
    struct expect expect = expect_of(e, r);
    slow_head(d->bytes, d->length, expect.head, &expect.behind);
    if (d->view == VIEW_RESETSTAT) memset(e->our_calls, 0, sizeof e->our_calls);
    if (d->view == VIEW_SLOWLOG_GET || d->view == VIEW_SLOWLOG_LEN || d->view == VIEW_SECRETS) slowlog_fetch(e);
    if (d->writes) {
        if ((d->script != NULL || d->flushes_scripts) && !script_log(e, d)) return false;
        struct command_entry entry = entry_of(r);
        if (!turn_log(e, &entry, d->bytes, &expect, d->length, holder)) return false;
    } else {
        turn_forward(e, r->database, r->protocol, d->bytes, d->length, &expect);
    }
    if (d->view == VIEW_SECRETS) view_block_note(e, d->bytes, d->length, &e->shared.views);
    if (d->loses_database) e->shared.database = -1;
    if (d->pause != PAUSE_NOTHING) client_pause_sent(e, d->pause);
    return true;
}

bool turn_take(struct engine *e, const struct request *r, struct buffer *holder) {
    bool may = r->decision->loads == LOADS_NOTHING; /* what a load has done is looked at on the shared connection alone */
    bool paused = may && (client_pause_on(e) || e->owns.lent > 0) && client_pause_takes(e, r);
    return paused ? own_borrow(e, r) : turn_submit(e, r, holder);
}

void turn_local(struct engine *e, struct destination to, const void *bytes, size_t length) {
    struct shared *s = &e->shared;
    buffer_append(&s->local, bytes, length);
    *(struct expect *)queue_push(&s->expects) =
        (struct expect){.kind = EXPECT_LOCAL, .local_bytes = (uint32_t)length, .database_after = -1, .to = to, .since_ns = e->now_ns};
    s->unproven = true;
}

void turn_end(struct engine *e) {
    struct shared *s = &e->shared;
    if (s->socket.source.fd < 0) return;
    if (e->machine.protocol != NULL) return machine_turn_end(e);
    turn_seal(e);
    if (e->slowlog.due) slowlog_fetch(e);
    if (e->big.active) turn_big(e);
    if (!s->unproven || e->big.active || busy_holds_role(e)) return;
    if (s->writes_out) return turn_mark(e, e->command_index > e->admin_index ? e->command_index : e->admin_index);
    static const char role[] = ASK_ROLE;
    shared_append(e, role, sizeof role - 1);
    e->our_calls[OUR_CALLS_ROLE]++;
    *(struct expect *)queue_push(&s->expects) = (struct expect){
        .kind = EXPECT_ROLE, .replies = 1, .database_after = -1, .covered = e->command_index, .arrivals = owns_seal(e), .since_ns = e->now_ns};
    s->roles_in_flight++;
    s->unproven = false;
    turn_mark(e, e->command_index > e->admin_index ? e->command_index : e->admin_index);
}

void turn_reset(struct engine *e) {
    e->batch = NULL;
    e->batch_used = 0;
    e->stalled = false;
    big_end(e);
}
