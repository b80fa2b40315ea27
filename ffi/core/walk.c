/* walk.c: reading a peer's ring record by record, chunk by chunk, each validated against the chain. Only under this
 * replica's permission on that log, so nobody writes there meanwhile: what does not validate is the end. */
#include <string.h>

#include "core/replica_state.h"

static void walk_read(struct replica *r, uint32_t peer) {
    struct walk *w = &r->peers[peer].walk;
    uint64_t room = ring_room(&r->ring, w->at.position);
    if (w->want > room) w->want = (uint32_t)room;
    w->reading = true;
    log_read(r, peer, ring_log_offset(&r->ring, w->at.position), w->landing, w->want, POST_WALK);
}

void walk_begin(struct replica *r, uint32_t peer, enum walk_mode mode, struct cursor from, uint64_t until) {
    struct walk *w = &r->peers[peer].walk;
    CHECK(!w->reading);
    w->mode = mode;
    w->ended = w->blocked = false;
    w->at = from;
    w->until = until;
    w->ballot = 0;
    w->want = replica_limits.walk_first;
    walk_read(r, peer);
}

static uint32_t landing_bytes(const struct replica *r) {
    uint64_t record = record_span(r->config.piece_bytes_max);
    return (uint32_t)(record > replica_limits.walk_bytes ? record : replica_limits.walk_bytes);
}

/* Does the slot begin like the record wanted, but go on behind what was read? */
static bool cut_off(const struct replica *r, const struct walk *w, const struct record_header *header, uint64_t room) {
    return header->index == w->at.index + 1 && header->prev_hash == w->at.hash &&
           header->length <= r->config.piece_bytes_max && record_bytes(header->length) > room;
}

/* The own record after the cursor is the same one: equal running hashes mean equal contents and equal prefixes. */
static bool own_agrees(const struct replica *r, const struct walk *w, const struct record_header *header) {
    if (w->at.index >= r->last.index || w->at.position < replica_oldest(r)) return false;
    return ring_holds(&r->ring, &w->at, r->salt) &&
           record_hash(ring_slot(&r->ring, w->at.position)) == record_hash(header);
}

/* False: no room in the own ring yet. */
static bool copy_record(struct replica *r, const struct walk *w, const struct record_header *header) {
    uint64_t end = w->at.position + record_span(header->length);
    CHECK(w->at.index == r->last.index && w->at.position == r->last.position);
    if (end > r->applied.position + r->ring.bytes) return false;
    memcpy(ring_slot(&r->ring, w->at.position), header, record_bytes(header->length));
    header = ring_slot(&r->ring, w->at.position);
    ring_step(&r->ring, &r->last);
    if (header->kind == RECORD_CONFIG) config_extended(r, header);
    if (end > r->reserved_end) r->reserved_end = end;
    return true;
}

enum step { STEP_ON, STEP_END, STEP_READ, STEP_BLOCKED };

static enum step walk_step(struct replica *r, struct walk *w, uint32_t offset) {
    const struct record_header *header = (const struct record_header *)(w->landing + offset);
    uint64_t room = w->want - offset;
    if (w->mode == WALK_COPY && w->at.index >= w->until) return STEP_END;
    if (room < record_bytes(0)) {
        w->want = landing_bytes(r);
        return STEP_READ;
    }
    if (!record_valid(header, room, w->at.index + 1, w->at.hash, r->salt)) {
        if (!cut_off(r, w, header, room) || (offset == 0 && w->want == landing_bytes(r))) return STEP_END;
        w->want = landing_bytes(r);
        return STEP_READ;
    }
    if (w->mode == WALK_MATCH && !own_agrees(r, w, header)) return STEP_END;
    if (w->mode == WALK_COPY && !copy_record(r, w, header)) return STEP_BLOCKED;
    w->ballot = header->ballot;
    cursor_step(&w->at, header);
    return STEP_ON;
}

void walk_landed(struct replica *r, uint32_t peer) {
    struct walk *w = &r->peers[peer].walk;
    uint32_t offset = 0;
    w->reading = false;
    if (w->mode == WALK_NONE) return;
    for (;;) {
        uint64_t before = ring_offset(&r->ring, w->at.position);
        uint64_t position = w->at.position;
        enum step step = walk_step(r, w, offset);
        if (step == STEP_END) w->ended = true;
        if (step == STEP_BLOCKED) w->blocked = true;
        if (step == STEP_READ) walk_read(r, peer);
        if (step != STEP_ON) return;
        uint64_t span = w->at.position - position;
        if (before + span != ring_offset(&r->ring, w->at.position) || offset + span >= w->want) { /* ring's end, or ours */
            w->want = landing_bytes(r);
            if (w->mode == WALK_COPY && w->at.index >= w->until) w->ended = true;
            else walk_read(r, peer);
            return;
        }
        offset += (uint32_t)span;
    }
}

void walk_resume(struct replica *r, uint32_t peer) {
    struct walk *w = &r->peers[peer].walk;
    if (!w->blocked) return;
    w->blocked = false;
    walk_read(r, peer);
}
