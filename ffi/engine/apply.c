/*
 * apply.c: what the committed log says. Every replica goes through the same records in the same order and keeps the same
 * state: COMMANDs that no EFFECT covers yet (a take-over may have to run them), the epoch, the scripts. Applied means
 * copied out (R3): nothing here points into the ring afterwards.
 */
#include <stdio.h>
#include <strings.h>

#include "engine/engine_state.h"
#include "plant.h"

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
    buffer_free(&log->effect.replies);
    origin_free(&log->origins);
    buffer_free(&log->settings);
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
    if (engine_leads(e) || e->admin.socket.source.fd < 0) return; /* also what a take-over finds in the log */
    struct buffer command = {0};
    char head[32];
    buffer_text(&command, "*3\r\n$6\r\nSCRIPT\r\n$4\r\nLOAD\r\n");
    buffer_append(&command, head, (size_t)snprintf(head, sizeof head, "$%u\r\n", length));
    buffer_append(&command, body, length);
    buffer_text(&command, "\r\n");
    admin_send(e, ADMIN_SWALLOW, buffer_bytes(&command), buffer_length(&command));
    buffer_free(&command);
}

/* ---- settings ------------------------------------------------------------------------------------------------------- */

#define SETTING_WORDS 4 /* CONFIG SET name value: of several at once each is kept for itself */

struct span { const uint8_t *bytes; size_t length; };

/* The words of a request in array form, as far as there is room. Returns how many there are. */
static uint64_t words_of(const uint8_t *bytes, size_t length, struct resp_request *request) {
    const struct resp_limits limits = {UINT32_MAX, UINT32_MAX, 1 << 16, true};
    resp_request_reset(request);
    if (resp_request_feed(request, bytes, length, &limits) != RESP_DONE || request->is_inline || request->length != length) return 0;
    return request->argc;
}

static struct span word_of(const struct resp_request *request, const uint8_t *bytes, uint64_t i) {
    struct resp_argument a = resp_request_argument(request, bytes, i);
    return (struct span){bytes + a.offset, a.length};
}

static void span_append(struct buffer *out, struct span s) {
    char head[32];
    buffer_append(out, head, (size_t)snprintf(head, sizeof head, "$%zu\r\n", s.length));
    buffer_append(out, s.bytes, s.length);
    buffer_text(out, "\r\n");
}

static bool span_is(struct span s, const char *word) { return s.length == strlen(word) && strncasecmp((const char *)s.bytes, word, s.length) == 0; }

/* Sets the same parameter again: the earlier value need not be kept. */
static bool replaces(const uint8_t *kept, uint32_t length, struct span name) {
    struct resp_request request;
    if (words_of(kept, length, &request) != SETTING_WORDS || !span_is(word_of(&request, kept, 0), "config")) return false;
    struct span other = word_of(&request, kept, 2);
    return other.length == name.length && strncasecmp((const char *)other.bytes, (const char *)name.bytes, name.length) == 0;
}

static void setting_forget(struct log_state *log, struct span name) {
    struct buffer left = {0};
    const uint8_t *at = buffer_bytes(&log->settings), *end = at + buffer_length(&log->settings);
    while (at < end) {
        uint32_t length;
        memcpy(&length, at, sizeof length);
        if (!replaces(at + sizeof length, length, name)) buffer_append(&left, at, sizeof length + length);
        at += sizeof length + length;
    }
    buffer_free(&log->settings);
    log->settings = left;
}

static void setting_add(struct log_state *log, const uint8_t *bytes, uint32_t length) {
    struct resp_request request;
    uint64_t words = words_of(bytes, length, &request);
    bool config = words >= SETTING_WORDS && span_is(word_of(&request, bytes, 0), "config");
    for (uint64_t i = 2; config && i + 1 < words; i += 2) {
        struct span name = word_of(&request, bytes, i);
        struct buffer one = {0};
        buffer_text(&one, "*4\r\n$6\r\nCONFIG\r\n$3\r\nSET\r\n");
        span_append(&one, name);
        span_append(&one, word_of(&request, bytes, i + 1));
        setting_forget(log, name);
        uint32_t one_length = (uint32_t)buffer_length(&one);
        buffer_append(&log->settings, &one_length, sizeof one_length);
        buffer_append(&log->settings, buffer_bytes(&one), one_length);
        buffer_free(&one);
    }
    if (config || words == 0) return;
    buffer_append(&log->settings, &length, sizeof length);
    buffer_append(&log->settings, bytes, length);
}

/* The leader that logged it has done it already. A backend that is being filled gets all of them once it is: told to write
 * an AOF in the middle of it, Redis 7.0 ends itself when it comes to its end. */
static void setting_do(struct engine *e, const uint8_t *bytes, uint32_t length) {
    if (engine_leads(e) || e->admin.socket.source.fd < 0 || e->backend == BACKEND_SYNCING) return;
    struct buffer translated = {0};
    if (config_kept_translate(e, bytes, length, &translated)) admin_send(e, ADMIN_SWALLOW, buffer_bytes(&translated), buffer_length(&translated));
    else admin_send(e, ADMIN_SWALLOW, bytes, length);
    buffer_free(&translated);
}

/* ---- to a backend that did not go through the log -------------------------------------------------------------------- */

typedef void hand_on_one(struct engine *e, const uint8_t *bytes, uint32_t length);

/* Entries are kept with their length in front. */
static void hand_on(struct engine *e, const struct buffer *entries, hand_on_one *one) {
    const uint8_t *at = buffer_bytes(entries);
    for (size_t left = buffer_length(entries); left > 0;) {
        uint32_t length;
        memcpy(&length, at, sizeof length);
        one(e, at + sizeof length, length);
        at += sizeof length + length;
        left -= sizeof length + length;
    }
}

void settings_hand_on(struct engine *e) { hand_on(e, &e->log.settings, setting_do); }

/* Scripts and settings, after a snapshot, or when it is there again. The scripts that a snapshot does not know were flushed
 * meanwhile. */
void scripts_hand_on(struct engine *e, bool afresh) {
    static const char flush[] = "*2\r\n$6\r\nSCRIPT\r\n$5\r\nFLUSH\r\n";
    if (afresh && e->takeover == TAKE_IDLE) admin_send(e, ADMIN_SWALLOW, flush, sizeof flush - 1);
    hand_on(e, &e->log.scripts, script_load);
    settings_hand_on(e);
}

/* ---- records ------------------------------------------------------------------------------------------------------- */

#define OWN_BYTES_MIN (1u << 20)      /* larger COMMANDs are kept where they were assembled */
#define APPLY_BYTES_A_TURN (1u << 20) /* so that the loop goes on ticking */

static void uncovered_add(struct log_state *log, uint64_t index, const uint8_t *bytes, size_t length, uint8_t *own) {
    CHECK(buffer_length(&log->uncovered_bytes) + length < UNCOVERED_BYTES_MAX);
    if (own == NULL) buffer_append(&log->uncovered_bytes, bytes, length);
    *(struct uncovered *)queue_push(&log->uncovered) = (struct uncovered){.index = index, .length = (uint32_t)length, .own = own};
}

/* What came through other nodes is known from now on: should it come again, it is not new. */
static void note_origins(struct log_state *log, const uint8_t *bytes, size_t length) {
    struct command_entry entry;
    if (!command_entry_read(bytes, length, &entry) || !(entry.flags & COMMAND_ANY_FORWARDED)) return;
    for (size_t at = 0; command_entry_read(bytes + at, length - at, &entry); at += sizeof entry + entry.length)
        if (entry.flags & COMMAND_FORWARDED) origin_logged(&log->origins, &entry.origin);
}

static void apply_command(struct engine *e, const struct record_header *record) {
    struct log_state *log = &e->log;
    struct assembly *a = &log->command;
    bool more = record->flags & RECORD_MORE;
    if (!a->open && !more) {
        note_origins(log, record_payload(record), record->length);
        if (e->machine.protocol != NULL) machine_apply(e, record->index, record->index, record_payload(record), record->length);
        else uncovered_add(log, record->index, record_payload(record), record->length, NULL);
        return;
    }
    if (!a->open) a->first = record->index;
    buffer_append(&a->bytes, record_payload(record), record->length);
    a->open = more;
    if (more) return;
    note_origins(log, buffer_bytes(&a->bytes), buffer_length(&a->bytes));
    if (e->machine.protocol != NULL) {
        machine_apply(e, a->first, record->index, buffer_bytes(&a->bytes), buffer_length(&a->bytes));
        buffer_clear(&a->bytes);
        buffer_trim(&a->bytes, OWN_BYTES_MIN);
        return;
    }
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
    if (planted(PLANT_COVERED_RERUN)) covered--;
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
        CHECK(effect_head_read(bytes, length, &a->head));
        CHECK(a->head.epoch == log->epoch && a->head.start == log->effect_offset);
        bytes += sizeof a->head;
        length -= sizeof a->head;
        a->received = 0;
        buffer_clear(&a->replies);
    }
    uint64_t stream = a->head.end - a->head.start, whole = stream + a->head.replies;
    CHECK(length <= whole - a->received);
    uint64_t left = a->received < stream ? stream - a->received : 0;
    size_t streamed = length < left ? length : (size_t)left;
    if (streamed > 0) feed_bytes(e, a->head.start + a->received, bytes, streamed);
    buffer_append(&a->replies, bytes + streamed, length - streamed);
    a->received += length;
    a->open = record->flags & RECORD_MORE;
    if (a->open) return;
    CHECK(a->received == whole && origin_take(&log->origins, buffer_bytes(&a->replies), buffer_length(&a->replies)));
    buffer_clear(&a->replies);
    buffer_trim(&a->replies, 1u << 20);
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

/* What a backend may have kept is of one of these histories (claim.c). */
static void epoch_note(struct log_state *log, const struct epoch_record *epoch) {
    if (log->epochs_kept == EPOCHS_KEPT)
        memmove(log->epochs, log->epochs + 1, sizeof log->epochs[0] * --log->epochs_kept);
    struct epoch_mark *mark = &log->epochs[log->epochs_kept++];
    *mark = (struct epoch_mark){.start = epoch->start, .leader = epoch->leader};
    memcpy(mark->replid, epoch->replid, REPLID_BYTES);
}

static void apply_epoch(struct engine *e, const uint8_t *bytes, size_t length) {
    struct epoch_record epoch;
    CHECK(length == sizeof epoch);
    memcpy(&epoch, bytes, sizeof epoch);
    struct log_state *log = &e->log;
    bool follows = epoch.start == log->effect_offset || planted(PLANT_PROMOTED_EARLY);
    CHECK(epoch.epoch == log->epoch + 1 && (log->epoch == 0 || follows));
    log->epoch = epoch.epoch;
    log->epoch_start = log->effect_offset = epoch.start;
    memcpy(log->replid, epoch.replid, REPLID_BYTES);
    log->replid[REPLID_BYTES] = 0;
    epoch_note(log, &epoch);
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

static void apply_pause(struct engine *e, const uint8_t *bytes) {
    struct pause_record pause;
    memcpy(&pause, bytes, sizeof pause);
    e->log.paused = pause.paused;
    engine_log(e, 20, "automatic fail-over is %s", pause.paused ? "paused" : "resumed");
}

static void apply_origin(struct engine *e, const uint8_t *bytes, size_t length) {
    struct origin_record record;
    CHECK(length == sizeof record);
    memcpy(&record, bytes, sizeof record);
    origin_logged(&e->log.origins, &record.origin);
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
            if (!engine_leads(e) && e->admin.socket.source.fd >= 0) {
                static const char flush[] = "*2\r\n$6\r\nSCRIPT\r\n$5\r\nFLUSH\r\n";
                admin_send(e, ADMIN_SWALLOW, flush, sizeof flush - 1);
            }
            break;
        case ADMIN_RECORD_SETTING:
            setting_add(&e->log, bytes + 8, record->length - 8);
            setting_do(e, bytes + 8, record->length - 8);
            break;
        case ADMIN_RECORD_RERUN: apply_rerun(e, bytes, record->length); break;
        case ADMIN_RECORD_PAUSE: apply_pause(e, bytes); break;
        case ADMIN_RECORD_ORIGIN: apply_origin(e, bytes, record->length); break;
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
            case RECORD_CONFIG: member_applied(e, record); break;
        }
        last = record->index;
        bytes += record->length;
        if (bytes > APPLY_BYTES_A_TURN) {
            e->more = true;
            break;
        }
    }
    if (last == 0) return;
    if (e->machine.protocol != NULL) machine_applied(e, last);
    replica_applied(e->replica, last);
    e->busy_until_us = e->now_us + 50000;
}

/* ---- snapshots of it ----------------------------------------------------------------------------------------------- */

struct saved { /* what log_state_save() writes in front */
    uint64_t epoch, epoch_start, effect_offset, effect_index;
    char replid[REPLID_BYTES];
    uint64_t uncovered_items, script_bytes, paused, origin_bytes, setting_bytes, epochs_kept;
};
struct saved_command { uint64_t index; uint32_t length, tried; };

/* A moment at which no payload is half there: only then can the state be handed on. */
bool log_state_whole(const struct log_state *log) { return !log->command.open && !log->effect.open; }

void log_state_save(const struct log_state *log, struct buffer *out) {
    CHECK(log_state_whole(log));
    struct saved s = {.epoch = log->epoch, .epoch_start = log->epoch_start, .effect_offset = log->effect_offset,
                      .effect_index = log->effect_index, .uncovered_items = queue_length(&log->uncovered),
                      .script_bytes = buffer_length(&log->scripts), .paused = log->paused,
                      .setting_bytes = buffer_length(&log->settings), .epochs_kept = log->epochs_kept};
    memcpy(s.replid, log->replid, REPLID_BYTES);
    size_t at = buffer_length(out);
    buffer_append(out, &s, sizeof s);
    buffer_append(out, log->epochs, sizeof log->epochs[0] * log->epochs_kept);
    const uint8_t *shared = buffer_bytes(&log->uncovered_bytes);
    for (uint64_t i = log->uncovered.head; i < log->uncovered.tail; i++) {
        const struct uncovered *u = queue_at(&log->uncovered, i);
        buffer_append(out, &(struct saved_command){u->index, u->length, u->tried}, sizeof(struct saved_command));
        buffer_append(out, u->own ? u->own : shared, u->length);
        if (u->own == NULL) shared += u->length;
    }
    buffer_append(out, buffer_bytes(&log->scripts), s.script_bytes);
    buffer_append(out, buffer_bytes(&log->settings), s.setting_bytes);
    size_t before = buffer_length(out);
    origin_save(&log->origins, out);
    s.origin_bytes = buffer_length(out) - before;
    memcpy(buffer_bytes(out) + at, &s, sizeof s);
}

struct reader { const uint8_t *bytes; size_t left; bool failed; };

static const uint8_t *take(struct reader *r, size_t length) {
    if (r->failed || r->left < length) return r->failed = true, NULL;
    const uint8_t *at = r->bytes;
    r->bytes += length;
    r->left -= length;
    return at;
}

static void load_epochs(struct log_state *log, struct reader *r, uint64_t count) {
    const uint8_t *bytes = count <= EPOCHS_KEPT ? take(r, (size_t)count * sizeof log->epochs[0]) : NULL;
    if (bytes == NULL) {
        r->failed = true;
        return;
    }
    memcpy(log->epochs, bytes, (size_t)count * sizeof log->epochs[0]);
    log->epochs_kept = (uint32_t)count;
}

static void load_commands(struct log_state *log, struct reader *r, uint64_t items) {
    uint64_t last = 0;
    for (uint64_t i = 0; i < items && !r->failed; i++) {
        struct saved_command c = {0};
        const uint8_t *head = take(r, sizeof c);
        if (head != NULL) memcpy(&c, head, sizeof c);
        const uint8_t *bytes = take(r, c.length);
        if (bytes == NULL) return;
        bool right = c.index > last && command_entries_whole(bytes, c.length);
        if (!right || buffer_length(&log->uncovered_bytes) + c.length >= UNCOVERED_BYTES_MAX) {
            r->failed = true;
            return;
        }
        last = c.index;
        uncovered_add(log, c.index, bytes, c.length, NULL);
        ((struct uncovered *)queue_back(&log->uncovered))->tried = c.tried;
    }
}

static void load_list(struct log_state *log, struct reader *r, uint64_t bytes, void (*add)(struct log_state *, const uint8_t *, uint32_t)) {
    while (bytes > 0 && !r->failed) {
        uint32_t length = 0;
        const uint8_t *head = take(r, sizeof length);
        if (head != NULL) memcpy(&length, head, sizeof length);
        const uint8_t *body = take(r, length);
        if (body == NULL || bytes < sizeof length + length) {
            r->failed = true;
            return;
        }
        add(log, body, length);
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
    log->paused = s.paused != 0;
    memcpy(log->replid, s.replid, REPLID_BYTES);
    load_epochs(log, &r, s.epochs_kept);
    load_commands(log, &r, s.uncovered_items);
    load_list(log, &r, s.script_bytes, script_add);
    load_list(log, &r, s.setting_bytes, setting_add);
    const uint8_t *origins = take(&r, s.origin_bytes);
    return origins != NULL && r.left == 0 && origin_load(&log->origins, origins, s.origin_bytes);
}
