/*
 * apply.c: what the committed log says. Every replica goes through the same records in the same order and keeps the same
 * state: COMMANDs that no EFFECT covers yet (a take-over may have to run them), the epoch, the scripts. Applied means
 * copied out (R3): nothing here points into the ring afterwards.
 */
#include "engine/engine_state.h"

#define UNCOVERED_BYTES_MAX (2ull << 30)

static void uncovered_drop(struct log_state *log, const struct uncovered *u);

void log_state_init(struct log_state *log) {
    *log = (struct log_state){.script_capacity = 1024};
    queue_init(&log->uncovered, sizeof(struct uncovered), 1024);
    log->script_hashes = calloc(log->script_capacity, sizeof(uint64_t));
    CHECK(log->script_hashes != NULL);
}

void log_state_free(struct log_state *log) {
    while (queue_length(&log->uncovered) > 0) uncovered_drop(log, queue_front(&log->uncovered));
    queue_free(&log->uncovered);
    buffer_free(&log->uncovered_bytes);
    buffer_free(&log->command.bytes);
    buffer_free(&log->scripts);
    free(log->script_hashes);
    *log = (struct log_state){0};
}

/* ---- scripts ----------------------------------------------------------------------------------------------------- */

static uint64_t script_hash(const uint8_t *body, size_t length) { /* FNV-1a, 64 bits; never 0 */
    uint64_t hash = 0xcbf29ce484222325ull;
    for (size_t i = 0; i < length; i++) hash = (hash ^ body[i]) * 0x100000001b3ull;
    hash ^= hash >> 29;
    return hash == 0 ? 1 : hash;
}

static uint64_t *script_place(const struct log_state *log, uint64_t hash) {
    uint32_t i = (uint32_t)hash & (log->script_capacity - 1);
    while (log->script_hashes[i] != 0 && log->script_hashes[i] != hash) i = (i + 1) & (log->script_capacity - 1);
    return &log->script_hashes[i];
}

bool script_known(const struct log_state *log, const uint8_t *body, size_t length) {
    return *script_place(log, script_hash(body, length)) != 0;
}

static void script_add(struct log_state *log, const uint8_t *body, uint32_t length) {
    uint64_t hash = script_hash(body, length), *place = script_place(log, hash);
    if (*place != 0) return;
    *place = hash;
    buffer_append(&log->scripts, &length, sizeof length);
    buffer_append(&log->scripts, body, length);
    if (++log->script_count * 2 < log->script_capacity) return;
    uint64_t *old = log->script_hashes;
    uint32_t count = log->script_capacity;
    log->script_capacity *= 2;
    log->script_hashes = calloc(log->script_capacity, sizeof(uint64_t));
    CHECK(log->script_hashes != NULL);
    for (uint32_t i = 0; i < count; i++)
        if (old[i] != 0) *script_place(log, old[i]) = old[i];
    free(old);
}

static void scripts_forget(struct log_state *log) {
    buffer_clear(&log->scripts);
    memset(log->script_hashes, 0, log->script_capacity * sizeof(uint64_t));
    log->script_count = 0;
}

/* A follower's backend gets the body on the admin connection; the leader's has it from the command itself. */
static void script_load(struct engine *e, const uint8_t *body, uint32_t length) {
    if (e->takeover != TAKE_IDLE || e->admin.socket.source.fd < 0) return;
    struct buffer command = {0};
    char head[32];
    buffer_text(&command, "*3\r\n$6\r\nSCRIPT\r\n$4\r\nLOAD\r\n");
    buffer_append(&command, head, (size_t)snprintf(head, sizeof head, "$%u\r\n", length));
    buffer_append(&command, body, length);
    buffer_text(&command, "\r\n");
    admin_send(e, ADMIN_SWALLOW, buffer_bytes(&command), buffer_length(&command));
    buffer_free(&command);
}

/* ---- records ------------------------------------------------------------------------------------------------------- */

#define OWN_BYTES_MIN (1u << 20)      /* larger COMMANDs are kept where they were assembled */
#define APPLY_BYTES_A_TURN (1u << 20) /* so that the loop goes on ticking */

static void uncovered_add(struct log_state *log, uint64_t index, const uint8_t *bytes, size_t length, uint8_t *own) {
    CHECK(buffer_length(&log->uncovered_bytes) + length < UNCOVERED_BYTES_MAX);
    if (own == NULL) buffer_append(&log->uncovered_bytes, bytes, length);
    *(struct uncovered *)queue_push(&log->uncovered) = (struct uncovered){.index = index, .length = (uint32_t)length, .own = own};
}

static void apply_command(struct engine *e, const struct record_header *record) {
    struct log_state *log = &e->log;
    struct assembly *a = &log->command;
    bool more = record->flags & RECORD_MORE;
    if (!a->open && !more) {
        uncovered_add(log, record->index, record_payload(record), record->length, NULL);
        return;
    }
    buffer_append(&a->bytes, record_payload(record), record->length);
    a->open = more;
    if (more) return;
    if (buffer_length(&a->bytes) < OWN_BYTES_MIN) {
        uncovered_add(log, record->index, buffer_bytes(&a->bytes), buffer_length(&a->bytes), NULL);
        buffer_clear(&a->bytes);
    } else {
        uncovered_add(log, record->index, NULL, buffer_length(&a->bytes), a->bytes.data);
        a->bytes = (struct buffer){0};
    }
}

static void uncovered_drop(struct log_state *log, const struct uncovered *u) {
    if (u->own != NULL) free(u->own);
    else buffer_consume(&log->uncovered_bytes, u->length);
    queue_pop(&log->uncovered);
}

static void cover(struct log_state *log, uint64_t covered) {
    for (struct uncovered *u = queue_front(&log->uncovered); u != NULL && u->index <= covered; u = queue_front(&log->uncovered))
        uncovered_drop(log, u);
    buffer_trim(&log->uncovered_bytes, 16u << 20);
}

/* Pieces go straight to the feed, which sends nothing of an EFFECT before its last piece is committed (R3). */
static void apply_effect(struct engine *e, const struct record_header *record) {
    struct log_state *log = &e->log;
    struct effect_assembly *a = &log->effect;
    const uint8_t *bytes = record_payload(record);
    size_t length = record->length;
    if (!a->open) {
        CHECK(length >= sizeof a->head);
        memcpy(&a->head, bytes, sizeof a->head);
        CHECK(a->head.epoch == log->epoch && a->head.start == log->effect_offset && a->head.end > a->head.start);
        bytes += sizeof a->head;
        length -= sizeof a->head;
        a->received = 0;
    }
    CHECK(length <= a->head.end - a->head.start - a->received);
    feed_bytes(e, a->head.start + a->received, bytes, length);
    a->received += length;
    a->open = record->flags & RECORD_MORE;
    if (a->open) return;
    CHECK(a->received == a->head.end - a->head.start);
    log->effect_offset = a->head.end;
    log->effect_index = record->index;
    cover(log, a->head.covered);
    feed_effect(e, a->head.end);
}

static void apply_noop(struct engine *e) { /* voids unfinished pieces of earlier terms */
    buffer_clear(&e->log.command.bytes);
    buffer_trim(&e->log.command.bytes, 1u << 20);
    e->log.command.open = e->log.effect.open = false;
    feed_void(e);
}

static void apply_epoch(struct engine *e, const uint8_t *bytes, size_t length) {
    struct epoch_record epoch;
    CHECK(length == sizeof epoch);
    memcpy(&epoch, bytes, sizeof epoch);
    struct log_state *log = &e->log;
    CHECK(epoch.epoch == log->epoch + 1 && (log->epoch == 0 || epoch.start == log->effect_offset));
    log->epoch = epoch.epoch;
    log->epoch_start = log->effect_offset = epoch.start;
    memcpy(log->replid, epoch.replid, REPLID_BYTES);
    log->replid[REPLID_BYTES] = 0;
    feed_epoch(e, epoch.start);
}

/* The logged set of commands that a take-over is about to run: none of them is ever tried again (R13). */
static void apply_rerun(struct engine *e, const uint8_t *bytes, size_t length) {
    struct log_state *log = &e->log;
    for (size_t at = 8; at + 8 <= length; at += 8) {
        uint64_t index;
        memcpy(&index, bytes + at, sizeof index);
        for (uint64_t i = log->uncovered.head; i < log->uncovered.tail; i++) {
            struct uncovered *u = queue_at(&log->uncovered, i);
            if (u->index == index) u->tried = true;
        }
    }
}

static void apply_admin(struct engine *e, const struct record_header *record) {
    const uint8_t *bytes = record_payload(record);
    uint32_t kind;
    CHECK(record->length >= 8);
    memcpy(&kind, bytes, sizeof kind);
    switch ((enum admin_record)kind) {
        case ADMIN_RECORD_EPOCH: apply_epoch(e, bytes, record->length); break;
        case ADMIN_RECORD_SCRIPT:
            script_add(&e->log, bytes + 8, record->length - 8);
            script_load(e, bytes + 8, record->length - 8);
            break;
        case ADMIN_RECORD_SCRIPT_FLUSH:
            scripts_forget(&e->log);
            if (e->takeover == TAKE_IDLE && e->admin.socket.source.fd >= 0) {
                static const char flush[] = "*2\r\n$6\r\nSCRIPT\r\n$5\r\nFLUSH\r\n";
                admin_send(e, ADMIN_SWALLOW, flush, sizeof flush - 1);
            }
            break;
        case ADMIN_RECORD_RERUN: apply_rerun(e, bytes, record->length); break;
    }
}

void apply_committed(struct engine *e) {
    uint64_t last = 0, bytes = 0;
    for (const struct record_header *record = replica_next(e->replica); record != NULL; record = replica_next(e->replica)) {
        switch ((enum record_kind)record->kind) {
            case RECORD_COMMAND: apply_command(e, record); break;
            case RECORD_EFFECT: apply_effect(e, record); break;
            case RECORD_NOOP: apply_noop(e); break;
            case RECORD_ADMIN: apply_admin(e, record); break;
            case RECORD_CONFIG: break;
        }
        last = record->index;
        bytes += record->length;
        if (bytes > APPLY_BYTES_A_TURN) {
            e->more = true;
            break;
        }
    }
    if (last == 0) return;
    replica_applied(e->replica, last);
    e->busy_until_us = e->now_us + 50000;
}

/* ---- snapshots of it ----------------------------------------------------------------------------------------------- */

struct saved { /* what log_state_save() writes in front */
    uint64_t epoch, epoch_start, effect_offset, effect_index;
    char replid[REPLID_BYTES];
    uint64_t uncovered_items, script_bytes;
};
struct saved_command { uint64_t index; uint32_t length, tried; };

/* A moment at which no payload is half there: only then can the state be handed on. */
bool log_state_whole(const struct log_state *log) { return !log->command.open && !log->effect.open; }

void log_state_save(const struct log_state *log, struct buffer *out) {
    CHECK(log_state_whole(log));
    struct saved s = {.epoch = log->epoch, .epoch_start = log->epoch_start, .effect_offset = log->effect_offset,
                      .effect_index = log->effect_index, .uncovered_items = queue_length(&log->uncovered),
                      .script_bytes = buffer_length(&log->scripts)};
    memcpy(s.replid, log->replid, REPLID_BYTES);
    buffer_append(out, &s, sizeof s);
    const uint8_t *shared = buffer_bytes(&log->uncovered_bytes);
    for (uint64_t i = log->uncovered.head; i < log->uncovered.tail; i++) {
        const struct uncovered *u = queue_at(&log->uncovered, i);
        buffer_append(out, &(struct saved_command){u->index, u->length, u->tried}, sizeof(struct saved_command));
        buffer_append(out, u->own ? u->own : shared, u->length);
        if (u->own == NULL) shared += u->length;
    }
    buffer_append(out, buffer_bytes(&log->scripts), s.script_bytes);
}

struct reader { const uint8_t *bytes; size_t left; bool failed; };

static const uint8_t *take(struct reader *r, size_t length) {
    if (r->failed || r->left < length) return r->failed = true, NULL;
    const uint8_t *at = r->bytes;
    r->bytes += length;
    r->left -= length;
    return at;
}

static void load_commands(struct log_state *log, struct reader *r, uint64_t items) {
    for (uint64_t i = 0; i < items && !r->failed; i++) {
        struct saved_command c = {0};
        const uint8_t *head = take(r, sizeof c);
        if (head != NULL) memcpy(&c, head, sizeof c);
        const uint8_t *bytes = take(r, c.length);
        if (bytes == NULL) return;
        uncovered_add(log, c.index, bytes, c.length, NULL);
        ((struct uncovered *)queue_back(&log->uncovered))->tried = c.tried;
    }
}

static void load_scripts(struct log_state *log, struct reader *r, uint64_t bytes) {
    while (bytes > 0 && !r->failed) {
        uint32_t length = 0;
        const uint8_t *head = take(r, sizeof length);
        if (head != NULL) memcpy(&length, head, sizeof length);
        const uint8_t *body = take(r, length);
        if (body == NULL || bytes < sizeof length + length) {
            r->failed = true;
            return;
        }
        script_add(log, body, length);
        bytes -= sizeof length + length;
    }
}

/* False: the bytes are not what log_state_save() wrote; the state is then empty or partial. */
bool log_state_load(struct log_state *log, const uint8_t *bytes, size_t length) {
    struct reader r = {bytes, length, false};
    struct saved s;
    const uint8_t *head = take(&r, sizeof s);
    if (head == NULL) return false;
    memcpy(&s, head, sizeof s);
    log_state_free(log);
    log_state_init(log);
    log->epoch = s.epoch;
    log->epoch_start = s.epoch_start;
    log->effect_offset = s.effect_offset;
    log->effect_index = s.effect_index;
    memcpy(log->replid, s.replid, REPLID_BYTES);
    load_commands(log, &r, s.uncovered_items);
    load_scripts(log, &r, s.script_bytes);
    return !r.failed && r.left == 0;
}
