/*
 * fuzz_records.c: a log as it is found in memory: right records, records of another lap or prefix, torn ones, junk, near
 * the ring's end and over it. Read as a follower reads its own ring (follow.c) and as a candidate reads another's
 * (walk.c, in reads of any length): nobody goes beyond what is right, or stops before it, or reads outside the region.
 */
#include "fuzz.h"

#include "core/replica_state.h"

#define RING_BYTES 4096u
#define PIECE_BYTES_MAX 512u
#define AREA_BYTES (RING_BYTES + 640u) /* and what a record may take that begins in its last line */
#define SALT 0x5a17u
#define PEER 1u
#define RECORDS_MAX 128u

/* Each region ends where its last byte may be: one more is the sanitizer's. */
static _Alignas(64) uint8_t own_log[REPLICA_RING_OFFSET + AREA_BYTES], peer_log[REPLICA_RING_OFFSET + AREA_BYTES];
static _Alignas(64) struct replica_background background;
static struct fabric fabric;
static struct replica *replica, pristine;
static struct { bool pending; uint64_t offset; uint8_t *into; uint32_t length; } asked;

/* ---- a fabric that only reads --------------------------------------------------------------------------------------- */

static void post_read(struct fabric *f, uint32_t peer, enum fabric_region region, uint64_t offset, void *into,
                      uint32_t length, uint64_t id) {
    (void)f, (void)id;
    CHECK(peer == PEER && region == FABRIC_LOG && !asked.pending);
    CHECK(offset >= REPLICA_RING_OFFSET && offset + length <= sizeof peer_log);
    asked.pending = true;
    asked.offset = offset;
    asked.into = into;
    asked.length = length;
}

static const struct fabric_ops OPS = {.post_read = post_read};

static void make_replica(void) {
    fabric = (struct fabric){.ops = &OPS, .self = 0, .nodes = 2};
    const struct replica_config config = {.self = 0, .nodes = 2, .ring_bytes = RING_BYTES, .piece_bytes_max = PIECE_BYTES_MAX,
                                          .salt = SALT, .suspect_us = 1000, .fail_us = 2000, .late_us = 1000, .request_us = 100};
    CHECK(record_span(PIECE_BYTES_MAX) == AREA_BYTES - RING_BYTES);
    replica = replica_new(&config, &fabric, own_log, &background);
    CHECK(replica != NULL);
    pristine = *replica;
}

static void forget(struct cursor from) {
    *replica = pristine;
    replica->last = replica->commit = from;
    replica->delivered = replica->applied = (struct point){from.index, from.position};
    replica->base = from.position;
    replica->limit = from.position + RING_BYTES;
    memset(own_log, 0, sizeof own_log);
}

/* ---- the log that is found ------------------------------------------------------------------------------------------ */

struct found {
    struct cursor from, end; /* where the right records begin, and where the last one of them ends */
    struct cursor ends[RECORDS_MAX + 1];
    uint64_t commits[RECORDS_MAX + 1]; /* highest commit index told by the records so far */
    uint32_t records;
    bool exact; /* nothing was done whose outcome is not known */
};

static struct record_header *slot_of(uint64_t position) {
    return (struct record_header *)(peer_log + REPLICA_RING_OFFSET + position % RING_BYTES);
}

/* A change of members that is one: no leader proposes another, and who reads one that is right believes it. */
static bool put_change(struct input *in, uint64_t index, uint8_t *payload, uint32_t length, struct replica_membership *members) {
    struct membership_change change;
    if (length != sizeof change) return false;
    change = (struct membership_change){input_byte(in), input_below(in, 4), input_below(in, 4)};
    memcpy(payload, &change, sizeof change);
    return membership_take(members, &change, index);
}

/* A record as its leader would write it, but for `wrong`. `members`: at the end of the log so far. */
static void put_record(struct input *in, struct cursor at, uint32_t length, uint8_t wrong, struct replica_membership *members,
                       struct record_header *copy) {
    struct record_header *header = slot_of(at.position);
    memset(header, 0, sizeof *header);
    header->index = at.index + 1 + (wrong == 1);
    header->ballot = (uint64_t)input_byte(in) << 8;
    header->commit = at.index - input_below(in, 4) + input_below(in, 4);
    header->prev_hash = at.hash ^ (wrong == 2);
    header->length = length;
    header->kind = (uint8_t)(RECORD_COMMAND + input_below(in, 5));
    header->flags = input_byte(in) & 1;
    header->origin_sequence = input_byte(in);
    uint8_t *payload = (uint8_t *)(header + 1);
    memset(payload, input_byte(in), length);
    struct replica_membership next = *members;
    if (header->kind == RECORD_CONFIG && !put_change(in, header->index, payload, length, &next)) header->kind = RECORD_NOOP;
    if (wrong == 0) *members = next;
    record_seal(header, SALT + (wrong == 3));
    if (wrong == 4) ((uint8_t *)header)[input_byte(in) % 64] ^= 1u << input_below(in, 8);
    if (wrong == 5) ((uint8_t *)header)[record_bytes(length) - 1 - input_below(in, RECORD_TAIL_BYTES)] ^= 0x40;
    if (wrong == 6 && length > 0) payload[input_byte(in) % length] ^= 1u << input_below(in, 8);
    *copy = *header;
}

static void make_log(struct input *in, struct found *found) {
    memset(peer_log, 0, sizeof peer_log);
    uint64_t line = input_below(in, RING_BYTES / RECORD_ALIGN), lap = input_below(in, 3);
    found->from = (struct cursor){.index = 10 + lap, .position = lap * RING_BYTES + line * RECORD_ALIGN, .hash = input_word(in)};
    found->records = 0;
    found->exact = true;
    found->ends[0] = found->from;
    found->commits[0] = 0;
    struct cursor at = found->from;
    struct replica_membership members = pristine.members;
    bool whole = true;
    while (in->left > 0 && found->records < RECORDS_MAX) {
        uint8_t op = input_byte(in);
        uint32_t length = (op & 0x40 ? input_byte(in) * 4u : op & 0x3fu) % (PIECE_BYTES_MAX + 1);
        uint8_t wrong = op & 0x80 ? input_below(in, 8) : 0;
        if (wrong == 7) { /* junk, wherever */
            size_t n = input_byte(in), offset = (input_byte(in) * 256u + input_byte(in)) % AREA_BYTES;
            const uint8_t *junk = input_take(in, &n);
            if (n > AREA_BYTES - offset) n = AREA_BYTES - offset;
            memcpy(peer_log + REPLICA_RING_OFFSET + offset, junk, n);
            found->exact = false;
            continue;
        }
        if (at.position + record_span(length) > found->from.position + RING_BYTES) break; /* it would be written over */
        struct record_header header;
        put_record(in, at, length, wrong, &members, &header);
        if (wrong != 0 && !(wrong == 6 && length == 0)) whole = false;
        if (wrong == 4) break; /* its header tells nothing any more of where the next one is */
        cursor_step(&at, &header);
        if (!whole) continue;
        found->ends[++found->records] = at;
        found->commits[found->records] = later(found->commits[found->records - 1], header.commit);
        if (header.commit >= header.index) found->exact = false; /* no leader says that */
    }
    found->end = found->ends[found->records];
}

/* ---- reading it ------------------------------------------------------------------------------------------------------ */

static void follow(const struct found *found, uint64_t told) {
    forget(found->from);
    memcpy(own_log, peer_log, sizeof own_log);
    replica->head->commit = told;
    follow_scan(replica, replica_limits.scan_records);
    uint64_t first = found->from.index, commit = replica->commit.index;
    CHECK(commit >= first && replica->last.index >= commit);
    if (found->exact) {
        uint64_t heard = later(told, found->commits[found->records]);
        CHECK(commit <= found->end.index && commit >= sooner(later(told, first), found->end.index));
        CHECK(heard > found->end.index || commit >= sooner(later(heard, first), found->end.index));
        CHECK(memcmp(&replica->commit, &found->ends[commit - first], sizeof replica->commit) == 0);
    }
    for (uint64_t i = first; i < commit; i++) {
        const struct record_header *record = replica_next(replica);
        CHECK(record != NULL && record->index == i + 1);
    }
    CHECK(replica_next(replica) == NULL);
    config_is_member(replica); /* looks at CONFIG records beyond the commit index */
    CHECK(replica_members(replica) != 0);
    replica_applied(replica, commit);
}

static void walk(enum walk_mode mode, const struct found *found, uint64_t until) {
    struct walk *w = &replica->peers[PEER].walk;
    asked.pending = false;
    walk_begin(replica, PEER, mode, found->from, until);
    for (int reads = 0; asked.pending; reads++) {
        CHECK(reads < 4 * (int)RECORDS_MAX && w->landing + asked.length <= replica->landings + 2 * replica_limits.walk_bytes);
        asked.pending = false;
        memcpy(asked.into, peer_log + asked.offset, asked.length);
        walk_landed(replica, PEER);
    }
    CHECK(w->ended || w->blocked);
}

static void walks(const struct found *found, uint64_t until) {
    const struct walk *w = &replica->peers[PEER].walk;
    forget(found->from);
    walk(WALK_SURVEY, found, 0);
    if (found->exact) CHECK(memcmp(&w->at, &found->end, sizeof w->at) == 0);
    struct cursor surveyed = w->at;

    forget(found->from); /* copied as far as wanted, its own log holds the same */
    walk(WALK_COPY, found, until);
    CHECK(w->at.index == sooner(later(until, found->from.index), surveyed.index) || w->blocked);
    CHECK(memcmp(&w->at, &replica->last, sizeof w->at) == 0);
    follow_reset(replica);
    follow_extend(replica);
    CHECK(memcmp(&w->at, &replica->last, sizeof w->at) == 0);
    struct cursor copied = w->at;
    walk(WALK_MATCH, found, 0);
    CHECK(memcmp(&w->at, &copied, sizeof w->at) == 0);
}

/* A slot alone, at an address with nothing behind it. */
static void slot_alone(struct input in) {
    static struct edge edge;
    size_t room = in.left & ~(size_t)7;
    if (room > 1024) room = 1024;
    uint8_t *slot = edge_put(&edge, in.bytes, room);
    uint64_t index = 1;
    if (room >= 8) memcpy(&index, slot, sizeof index);
    record_valid(slot, room, index, 0, SALT);
    record_headed(slot, room, index, 0, SALT);
    record_whole(slot, room, index, SALT);
    if (room < record_bytes(0)) return;
    struct record_header *header = (struct record_header *)slot; /* sealed as it is, it is right or of no kind */
    header->length %= room - record_bytes(0) - 7 > room ? 1 : room - record_bytes(0) + 1;
    if (record_bytes(header->length) > room) return;
    record_seal(header, SALT);
    bool right = index != 0 && header->kind >= RECORD_COMMAND && header->kind <= RECORD_ADMIN;
    CHECK(record_valid(slot, room, index, header->prev_hash, SALT) == right);
    CHECK(!record_valid(slot, record_bytes(header->length) - 8, index, header->prev_hash, SALT));
    CHECK(!record_valid(slot, room, index, header->prev_hash + 1, SALT) && !record_whole(slot, room, index, SALT + 1));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size < 12 || size > FUZZ_BYTES_MAX) return 0;
    if (replica == NULL) make_replica();
    struct input in = {data + 2, size - 2};
    struct found found;
    slot_alone(in);
    make_log(&in, &found);
    uint64_t told = found.from.index - 5 + data[0] % 64, until = found.from.index - 5 + data[1] % 64;
    follow(&found, told);
    walks(&found, until);
    return 0;
}
