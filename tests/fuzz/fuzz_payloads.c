/*
 * fuzz_payloads.c: what a leader writes into its records (turn.c, effect.c) is what every node reads from them (apply.c),
 * whatever is cut into pieces, whenever the ring is full and the leader changes: each request stands there once until an
 * EFFECT covers it, the feed gets the stream's bytes and no others, and what came through another node is known, with its
 * answer once an EFFECT has it. The state that is made so is saved and loaded, also
 * with bytes in it changed: then it is refused, or saved again the same.
 *
 * The log is an array here; around the engine's files stand functions that say what they were asked.
 */
#include "fuzz.h"

#include "engine/engine_state.h"

#define PIECE_BYTES_MAX 160u
#define NODE 1u /* that some requests came through */
#define RECORDS_MAX 512u
#define REQUESTS_MAX 128u
#define RECORD_BYTES_MAX (sizeof(struct record_header) + PIECE_BYTES_MAX)

static struct engine engine;
static _Alignas(64) uint8_t records[RECORDS_MAX][RECORD_BYTES_MAX];
static _Alignas(64) uint8_t reserved[PIECE_BYTES_MAX], *reserved_at;
static uint64_t proposed, applied, handed_out;
static struct dice dice;
static bool may_be_full;
static struct { uint64_t index; uint32_t length; bool forwarded, answered; } requests[REQUESTS_MAX]; /* index 0: not in the log yet */
static uint64_t submitted, logged;
static uint64_t streamed; /* offset of the end of the backend's stream */
static uint64_t fed;      /* ... of what the feed was told to be whole */
static struct buffer saved, again;

static uint8_t noise[1u << 18];
/* The stream's bytes from an offset on, by a backend that became the leader's in this epoch; those of a request. */
static const uint8_t *stream_bytes(uint64_t epoch, uint64_t offset) {
    CHECK(epoch * 97 + offset + 1024 < sizeof noise);
    return noise + epoch * 97 + offset;
}
static const uint8_t *request_bytes(uint64_t number) { return noise + number * 13; }

/* ---- the core: a log of records --------------------------------------------------------------------------------------- */

uint8_t *replica_reserve(struct replica *r, enum record_kind kind, uint32_t length_max) {
    (void)r, (void)kind;
    CHECK(length_max <= PIECE_BYTES_MAX);
    if (proposed + 8 >= RECORDS_MAX || (may_be_full && dice_below(&dice, 4) == 0)) return NULL;
    reserved_at = reserved + PIECE_BYTES_MAX - length_max; /* nothing fits behind it */
    return reserved_at;
}

static int64_t append(enum record_kind kind, uint32_t flags, const uint8_t *payload, uint32_t length) {
    CHECK(proposed < RECORDS_MAX && length > 0 && length <= PIECE_BYTES_MAX);
    struct record_header *header = (struct record_header *)records[proposed];
    *header = (struct record_header){.index = ++proposed, .kind = (uint8_t)kind, .flags = (uint8_t)flags, .length = length};
    memcpy(header + 1, payload, length);
    return (int64_t)proposed;
}

int64_t replica_propose_reserved(struct replica *r, enum record_kind kind, uint32_t flags, struct record_origin origin,
                                 uint32_t length) {
    (void)r, (void)origin;
    if (kind == RECORD_COMMAND) {
        bool whole = !(flags & RECORD_MORE);
        for (; whole && logged < submitted; logged++) requests[logged].index = proposed + 1;
    }
    return append(kind, flags, reserved_at, length);
}
uint64_t replica_probe(struct replica *r) { return r == NULL; }
uint64_t replica_commit(const struct replica *r) { return r == NULL ? applied : 0; }
const struct record_header *replica_next(struct replica *r) {
    (void)r;
    return handed_out < applied ? (const struct record_header *)records[handed_out++] : NULL;
}
void replica_applied(struct replica *r, uint64_t index) {
    (void)r;
    CHECK(index == handed_out);
}

/* ---- the rest of the engine -------------------------------------------------------------------------------------------- */

uint64_t clock_ns(void) { return 1; }
void engine_log(struct engine *e, uint32_t level, const char *format, ...) { (void)e, (void)level, (void)format; }
void member_applied(struct engine *e, const struct record_header *record) { (void)e, (void)record; }
void takeover_attached(struct engine *e, bool continued) { (void)e, (void)continued; }
void backend_lost(struct engine *e, const char *what) { (void)e, (void)what; }
void admin_send(struct engine *e, enum admin_kind kind, const void *bytes, size_t length) {
    (void)e, (void)kind, (void)bytes, (void)length;
    CHECK(false); /* its connection is closed */
}
static uint64_t feeding; /* end of what it was given of the present EFFECT */
void feed_bytes(struct engine *e, uint64_t start, const uint8_t *bytes, size_t length) {
    CHECK(start == feeding);
    CHECK(memcmp(bytes, stream_bytes(e->log.epoch, start), length) == 0);
    feeding += length;
}
void feed_effect(struct engine *e, uint64_t end) {
    (void)e;
    CHECK(end == feeding && end >= fed); /* >: or its COMMANDs had no effect */
    fed = end;
}
void feed_void(struct engine *e) { (void)e, feeding = fed; }
void feed_epoch(struct engine *e, uint64_t start) { (void)e, feeding = fed = start; }

/* ---- what a leader does -------------------------------------------------------------------------------------------------- */

static void submit(struct input *in) {
    static uint8_t bytes[1024];
    if (submitted == REQUESTS_MAX) return;
    uint8_t how = input_byte(in);
    uint32_t length = 1 + (how & 1 ? input_byte(in) * 3u : input_below(in, 40));
    memcpy(bytes, request_bytes(submitted), length);
    struct session_decision d = {.verdict = SESSION_SUBMIT, .bytes = bytes, .length = length, .writes = how & 6, .replies = 1,
                                 .database_after = -1, .flushes_scripts = (how & 0x30) == 0x10};
    if ((how & 0x30) == 0x20) {
        d.script = bytes + length / 2;
        d.script_length = length - length / 2;
    }
    bool forwarded = (how & 0x40) && submitted > 0;
    struct request r = {.from = {NODE, 1, 2, submitted, 0}, .database = 3, .protocol = 2, .decision = &d, .life = forwarded ? 9 : 0,
                        .unanswered = (uint32_t)submitted};
    if (!turn_submit(&engine, &r, NULL) || !d.writes) return;
    requests[submitted].index = 0;
    requests[submitted].forwarded = forwarded;
    requests[submitted].answered = false;
    requests[submitted++].length = length;
}

static void stream_comes(struct input *in) {
    size_t length = input_byte(in) * 2u;
    buffer_append(&engine.stream.effects, stream_bytes(engine.log.epoch, streamed), length);
    streamed += length;
}

static struct origin origin_of(uint64_t number) {
    return (struct origin){.node = NODE, .slot = 1, .life = 9, .sequence = number, .generation = 2};
}
static enum origin_fate fate_of(uint64_t number, const uint8_t **bytes, size_t *length) {
    struct origin origin = origin_of(number);
    return origin_find(&engine.log.origins, &origin, bytes, length);
}

static uint32_t answer_length(uint64_t number) { return 1 + (uint32_t)(number * 37 % 300); }

/* The backend's answers to what is proposed. */
static void answers_come(void) {
    struct shared *s = &engine.shared;
    for (uint64_t n = 0; n < logged; n++) {
        if (!requests[n].forwarded || requests[n].answered || requests[n].index == 0) continue;
        requests[n].answered = true;
        struct origin_reply head = {.origin = origin_of(n), .length = answer_length(n)};
        buffer_append(&s->kept, &head, sizeof head);
        buffer_append(&s->kept, request_bytes(n), head.length);
        s->kept_whole += sizeof head + head.length;
    }
}

/* What came through another node is known; the answers are those that were given. */
static void compare_origins(void) {
    for (uint64_t n = 0; n < logged; n++) {
        if (!requests[n].forwarded || requests[n].index == 0 || requests[n].index > applied) continue;
        const uint8_t *bytes;
        size_t length;
        enum origin_fate fate = fate_of(n, &bytes, &length);
        bool covered = requests[n].answered && engine.shared.kept_cut == engine.shared.kept_whole && applied == proposed && !engine.cut.active;
        CHECK(fate == ORIGIN_ANSWERED || (fate == ORIGIN_UNKNOWN && !(covered && log_state_whole(&engine.log))));
        if (fate == ORIGIN_ANSWERED) CHECK(length == answer_length(n) && memcmp(bytes, request_bytes(n), length) == 0);
    }
}

/* A ROLE came back: the batch before it ends here. */
static void role_comes(struct input *in) {
    answers_come();
    struct gate *last = queue_back(&engine.shared.gates);
    uint64_t after = last == NULL || last->offset < engine.stream.cut_offset ? engine.stream.cut_offset : last->offset;
    uint64_t offset = after + (streamed > after ? input_byte(in) % (streamed - after + 1) : 0);
    *(struct gate *)queue_push(&engine.shared.gates) = (struct gate){.offset = offset, .covered = engine.command_index, .kept = engine.shared.kept_whole};
}

/* Another leader (this one again, here): what was begun is void; its backend is at the end of the last EFFECT. */
static void another_leads(void) {
    applied = proposed;
    apply_committed(&engine);
    turn_reset(&engine);
    while (logged < submitted) requests[logged++].index = 0; /* never came into the log */
    const uint8_t *bytes;
    size_t length;
    for (uint64_t n = 0; n < logged; n++) /* answers that no EFFECT has */
        if (requests[n].answered && fate_of(n, &bytes, &length) != ORIGIN_ANSWERED) requests[n].forwarded = false;
    engine.cut.active = false;
    queue_clear(&engine.shared.gates);
    buffer_clear(&engine.shared.kept);
    engine.shared.kept_whole = engine.shared.kept_cut = 0;
    uint8_t none = 0;
    append(RECORD_NOOP, 0, &none, 1);
    struct epoch_record epoch = {.kind = ADMIN_RECORD_EPOCH, .epoch = engine.log.epoch + 1, .start = engine.log.effect_offset};
    memset(epoch.replid, 'e', sizeof epoch.replid);
    append(RECORD_ADMIN, 0, (const uint8_t *)&epoch, sizeof epoch);
    applied = proposed;
    apply_committed(&engine);
    buffer_clear(&engine.stream.effects);
    streamed = engine.stream.cut_offset = engine.log.effect_offset;
}

/* ---- what every node has then -------------------------------------------------------------------------------------------- */

/* Commands in the log that no EFFECT covers: each once, in order, as submitted. */
static void compare_uncovered(void) {
    const struct log_state *log = &engine.log;
    const uint8_t *shared = buffer_bytes(&log->uncovered_bytes);
    uint64_t number = 0, covered = log->uncovered.head < log->uncovered.tail ? 0 : UINT64_MAX;
    for (uint64_t i = log->uncovered.head; i < log->uncovered.tail; i++) {
        const struct uncovered *u = queue_at(&log->uncovered, i);
        const uint8_t *bytes = u->own ? u->own : shared;
        struct command_entry entry;
        CHECK(command_entries_whole(bytes, u->length));
        for (size_t at = 0; at < u->length; at += sizeof entry + entry.length) {
            CHECK(command_entry_read(bytes + at, u->length - at, &entry));
            number = covered == 0 ? entry.origin.sequence : number + 1;
            covered = UINT64_MAX;
            while (number < submitted && requests[number].index == 0) number++; /* lost with its leader */
            CHECK(number < submitted && entry.origin.sequence == number && requests[number].index == u->index);
            CHECK(entry.length == requests[number].length && entry.database == 3);
            CHECK(memcmp(bytes + at + sizeof entry, request_bytes(number), entry.length) == 0);
        }
        if (u->own == NULL) shared += u->length;
    }
    bool any = log->uncovered.head < log->uncovered.tail;
    for (uint64_t n = number + 1; any && n < logged; n++) CHECK(requests[n].index == 0 || requests[n].index > applied);
    CHECK(fed == log->effect_offset);
}

static void save_and_load(struct input in) {
    struct log_state other;
    if (!log_state_whole(&engine.log)) return;
    buffer_clear(&saved);
    log_state_save(&engine.log, &saved);
    log_state_init(&other);
    CHECK(log_state_load(&other, buffer_bytes(&saved), buffer_length(&saved)));
    buffer_clear(&again);
    log_state_save(&other, &again);
    CHECK(buffer_length(&saved) == buffer_length(&again));
    CHECK(memcmp(buffer_bytes(&saved), buffer_bytes(&again), buffer_length(&saved)) == 0);
    size_t length = buffer_length(&saved);
    for (uint32_t changes = input_below(&in, 4); changes > 0; changes--)
        buffer_bytes(&saved)[(input_byte(&in) * 256u + input_byte(&in)) % length] = input_byte(&in);
    if (input_byte(&in) & 1) length -= input_byte(&in) % length;
    static struct edge edge;
    const uint8_t *bytes = length <= FUZZ_BYTES_MAX ? edge_put(&edge, buffer_bytes(&saved), length) : buffer_bytes(&saved);
    if (log_state_load(&other, bytes, length)) {
        buffer_clear(&saved);
        log_state_save(&other, &saved);
        CHECK(log_state_load(&other, buffer_bytes(&saved), buffer_length(&saved)));
    }
    log_state_free(&other);
}

static void begin(uint8_t choice) {
    static bool made;
    if (!made) {
        made = true;
        struct dice filling = {1};
        for (size_t i = 0; i < sizeof noise; i++) noise[i] = (uint8_t)dice_below(&filling, 256);
        queue_init(&engine.shared.staged, sizeof(struct staged), 256);
        queue_init(&engine.shared.expects, sizeof(struct expect), 256);
        queue_init(&engine.shared.gates, sizeof(struct gate), 256);
        engine.shared.socket.source.fd = engine.stream.socket.source.fd = engine.admin.socket.source.fd = -1;
        engine.config.replica.piece_bytes_max = PIECE_BYTES_MAX;
        engine.takeover = TAKE_SERVING;
        engine.stream.psync.stage = PSYNC_LIVE;
    } else {
        log_state_free(&engine.log);
    }
    log_state_init(&engine.log);
    turn_reset(&engine);
    queue_clear(&engine.shared.staged);
    queue_clear(&engine.shared.expects);
    queue_clear(&engine.shared.gates);
    buffer_clear(&engine.shared.socket.out);
    engine.shared.appended = 0;
    engine.cut.active = false;
    engine.command_index = engine.admin_index = engine.effect_index = engine.covered_index = 0;
    proposed = applied = handed_out = submitted = logged = 0;
    streamed = feeding = fed = 0;
    may_be_full = choice & 1;
    another_leads();
}

/* One thing that happens; the ring may be full again and again, so the last ones are tried to their end. */
static void happen(struct input *in) {
    switch (input_below(in, 8)) {
        case 0: case 1: submit(in); break;
        case 2: stream_comes(in); break;
        case 3: role_comes(in); break;
        case 4:
            engine.shared.socket.source.fd = 1000; /* turn_end() looks whether there is one; nothing is sent */
            turn_end(&engine);
            engine.shared.socket.source.fd = -1;
            break;
        case 5:
            if (engine.batch == NULL && !engine.big.active) effects_cut(&engine);
            break;
        case 6:
            applied += proposed > applied ? input_byte(in) % (proposed - applied + 1) : 0;
            apply_committed(&engine);
            compare_uncovered();
            compare_origins();
            break;
        default:
            if (proposed + 16 < RECORDS_MAX) another_leads();
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size < 8 || size > 512) return 0;
    struct input tail = {data + size - 6, 6}, in = {data + 2, size - 8};
    dice.state = data[1] * 2u + 1u;
    begin(data[0]);
    while (in.left > 0) happen(&in);
    applied = proposed;
    apply_committed(&engine);
    compare_uncovered();
    compare_origins();
    save_and_load(tail);
    return 0;
}
