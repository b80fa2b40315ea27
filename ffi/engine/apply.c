/*
 * apply.c: what the committed log says. Every replica goes through the same records in the same order and keeps the same
 * state: COMMANDs that no EFFECT covers yet (a take-over may have to run them), the epoch, the scripts. Applied means
 * copied out (R3): nothing here points into the ring afterwards.
 */
#include "engine/engine_state.h"

#define UNCOVERED_BYTES_MAX (2ull << 30)

void log_state_init(struct log_state *log) {
    *log = (struct log_state){.script_capacity = 1024};
    queue_init(&log->uncovered, sizeof(struct uncovered), 1024);
    log->script_hashes = calloc(log->script_capacity, sizeof(uint64_t));
    CHECK(log->script_hashes != NULL);
}

void log_state_free(struct log_state *log) {
    queue_free(&log->uncovered);
    buffer_free(&log->uncovered_bytes);
    buffer_free(&log->command.bytes);
    buffer_free(&log->effect.bytes);
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
    admin_send(e, ADMIN_SWALLOW, buffer_bytes(&command), buffer_length(&command), 0, 0);
    buffer_free(&command);
}

/* ---- records ------------------------------------------------------------------------------------------------------- */

/* Joins the pieces of a payload: true when it is whole, and then where it is. */
static bool assemble(struct assembly *a, const struct record_header *record, const uint8_t **bytes, size_t *length) {
    bool more = record->flags & RECORD_MORE;
    if (!a->open && !more) {
        *bytes = record_payload(record);
        *length = record->length;
        return true;
    }
    if (!a->open) buffer_clear(&a->bytes);
    buffer_append(&a->bytes, record_payload(record), record->length);
    a->open = more;
    *bytes = buffer_bytes(&a->bytes);
    *length = buffer_length(&a->bytes);
    return !more;
}

static void assembly_trim(struct assembly *a) {
    if (a->open) return;
    buffer_clear(&a->bytes);
    buffer_trim(&a->bytes, 16u << 20);
}

static void apply_command(struct engine *e, const struct record_header *record) {
    struct log_state *log = &e->log;
    const uint8_t *bytes;
    size_t length;
    if (!assemble(&log->command, record, &bytes, &length)) return;
    CHECK(buffer_length(&log->uncovered_bytes) + length < UNCOVERED_BYTES_MAX);
    buffer_append(&log->uncovered_bytes, bytes, length);
    *(struct uncovered *)queue_push(&log->uncovered) = (struct uncovered){record->index, (uint32_t)length, false, false};
    assembly_trim(&log->command);
}

static void cover(struct log_state *log, uint64_t covered) {
    for (struct uncovered *u = queue_front(&log->uncovered); u != NULL && u->index <= covered; u = queue_front(&log->uncovered)) {
        buffer_consume(&log->uncovered_bytes, u->length);
        queue_pop(&log->uncovered);
    }
    if (queue_length(&log->uncovered) == 0) buffer_trim(&log->uncovered_bytes, 16u << 20);
}

static void apply_effect(struct engine *e, const struct record_header *record) {
    struct log_state *log = &e->log;
    const uint8_t *bytes;
    size_t length;
    if (!assemble(&log->effect, record, &bytes, &length)) return;
    struct effect_head head;
    CHECK(length >= sizeof head);
    memcpy(&head, bytes, sizeof head);
    CHECK(head.epoch == log->epoch && head.start == log->effect_offset && head.end - head.start == length - sizeof head);
    log->effect_offset = head.end;
    log->effect_index = record->index;
    cover(log, head.covered);
    feed_effect(e, head.start, bytes + sizeof head, length - sizeof head);
    assembly_trim(&log->effect);
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
                admin_send(e, ADMIN_SWALLOW, flush, sizeof flush - 1, 0, 0);
            }
            break;
        case ADMIN_RECORD_RERUN: apply_rerun(e, bytes, record->length); break;
    }
}

void apply_committed(struct engine *e) {
    uint64_t last = 0;
    for (const struct record_header *record = replica_next(e->replica); record != NULL; record = replica_next(e->replica)) {
        switch ((enum record_kind)record->kind) {
            case RECORD_COMMAND: apply_command(e, record); break;
            case RECORD_EFFECT: apply_effect(e, record); break;
            case RECORD_NOOP: /* voids unfinished pieces of earlier terms */
                e->log.command.open = e->log.effect.open = false;
                assembly_trim(&e->log.command);
                assembly_trim(&e->log.effect);
                break;
            case RECORD_ADMIN: apply_admin(e, record); break;
            case RECORD_CONFIG: break;
        }
        last = record->index;
    }
    if (last == 0) return;
    replica_applied(e->replica, last);
    e->busy_until_us = e->now_us + 50000;
}

/* ---- snapshots of it ----------------------------------------------------------------------------------------------- */

struct saved { /* what log_state_save() writes in front */
    uint64_t epoch, epoch_start, effect_offset, effect_index;
    char replid[REPLID_BYTES];
    uint64_t uncovered_items, uncovered_bytes, command_open, command_bytes, effect_open, effect_bytes, script_bytes;
};

void log_state_save(const struct log_state *log, struct buffer *out) {
    struct saved s = {.epoch = log->epoch, .epoch_start = log->epoch_start, .effect_offset = log->effect_offset,
                      .effect_index = log->effect_index, .uncovered_items = queue_length(&log->uncovered),
                      .uncovered_bytes = buffer_length(&log->uncovered_bytes),
                      .command_open = log->command.open, .command_bytes = log->command.open ? buffer_length(&log->command.bytes) : 0,
                      .effect_open = log->effect.open, .effect_bytes = log->effect.open ? buffer_length(&log->effect.bytes) : 0,
                      .script_bytes = buffer_length(&log->scripts)};
    memcpy(s.replid, log->replid, REPLID_BYTES);
    buffer_append(out, &s, sizeof s);
    for (uint64_t i = log->uncovered.head; i < log->uncovered.tail; i++)
        buffer_append(out, queue_at(&log->uncovered, i), sizeof(struct uncovered));
    buffer_append(out, buffer_bytes(&log->uncovered_bytes), s.uncovered_bytes);
    buffer_append(out, buffer_bytes(&log->command.bytes), s.command_bytes);
    buffer_append(out, buffer_bytes(&log->effect.bytes), s.effect_bytes);
    buffer_append(out, buffer_bytes(&log->scripts), s.script_bytes);
}

static bool take(const uint8_t **bytes, size_t *length, struct buffer *into, uint64_t wanted) {
    if (*length < wanted) return false;
    buffer_clear(into);
    buffer_append(into, *bytes, wanted);
    *bytes += wanted;
    *length -= wanted;
    return true;
}

bool log_state_load(struct log_state *log, const uint8_t *bytes, size_t length) {
    struct saved s;
    struct buffer scripts = {0};
    if (length < sizeof s) return false;
    memcpy(&s, bytes, sizeof s);
    bytes += sizeof s;
    length -= sizeof s;
    if (s.uncovered_items > length / sizeof(struct uncovered)) return false;
    log_state_free(log);
    log_state_init(log);
    uint64_t sum = 0;
    for (uint64_t i = 0; i < s.uncovered_items; i++, bytes += sizeof(struct uncovered), length -= sizeof(struct uncovered)) {
        struct uncovered *u = queue_push(&log->uncovered);
        memcpy(u, bytes, sizeof *u);
        sum += u->length;
    }
    bool whole = sum == s.uncovered_bytes && take(&bytes, &length, &log->uncovered_bytes, s.uncovered_bytes) &&
                 take(&bytes, &length, &log->command.bytes, s.command_bytes) &&
                 take(&bytes, &length, &log->effect.bytes, s.effect_bytes) && take(&bytes, &length, &scripts, s.script_bytes);
    log->epoch = s.epoch;
    log->epoch_start = s.epoch_start;
    log->effect_offset = s.effect_offset;
    log->effect_index = s.effect_index;
    memcpy(log->replid, s.replid, REPLID_BYTES);
    log->command.open = s.command_open;
    log->effect.open = s.effect_open;
    for (size_t at = 0; whole && at + 4 <= buffer_length(&scripts);) {
        uint32_t body;
        memcpy(&body, buffer_bytes(&scripts) + at, sizeof body);
        if (body > buffer_length(&scripts) - at - 4) whole = false;
        else script_add(log, buffer_bytes(&scripts) + at + 4, body);
        at += 4 + (size_t)body;
    }
    buffer_free(&scripts);
    return whole;
}
