/* follow.c: reading the own ring, into which the leader writes, and handing out what is committed.
 *
 * The commit index comes with every record and in the log's head. Whoever wrote it there had before written its log up
 * to it (posts are FIFO), and no later leader writes a held part of its own log again: so a record that chains and lies
 * at or below a commit index heard of is decided. Beyond, headers are only looked at for the commit index they carry:
 * what they announce may be overwritten at any moment, by the leader to whom this replica granted its log. */
#include "core/replica_state.h"
#include "plant.h"

void follow_reset(struct replica *r) {
    r->last = r->commit;
    if (r->latest.index != r->members.index) config_reset(r);
}

/* One record further; it is known to be there. */
static void commit_next(struct replica *r) {
    const struct record_header *header = ring_slot(&r->ring, r->commit.position);
    ring_step(&r->ring, &r->commit);
    r->dirty = true;
    if (header->kind == RECORD_CONFIG) config_decided(r, header);
}

void follow_commit(struct replica *r, uint64_t index) {
    CHECK(index <= r->last.index);
    if (index == r->last.index && r->commit.index < index) { /* the request path: its hash is known */
        r->commit = r->last;
        r->dirty = true;
        if (r->members.index != r->latest.index) r->members = r->latest;
    }
    while (r->commit.index < index) commit_next(r);
}

/* Only while nobody else may write the own log: `last` becomes the end of what it holds. */
void follow_extend(struct replica *r) {
    follow_reset(r);
    while (ring_holds(&r->ring, &r->last, r->salt)) {
        const struct record_header *header = ring_slot(&r->ring, r->last.position);
        ring_step(&r->ring, &r->last);
        if (header->kind == RECORD_CONFIG) config_extended(r, header);
    }
}

static bool hear(struct replica *r, uint64_t commit) {
    if (commit <= r->heard) return false;
    r->heard = commit;
    return true;
}

/* Validates and commits what was heard of. */
static uint32_t take(struct replica *r, uint32_t records_max) {
    uint32_t records = 0;
    for (; r->commit.index < r->heard && records < records_max; records++) {
        if (!ring_holds(&r->ring, &r->commit, r->salt)) {
            const void *slot = ring_slot(&r->ring, r->commit.position);
            if (record_whole(slot, ring_room(&r->ring, r->commit.position), r->commit.index + 1, r->salt))
                r->damage = REPLICA_DIVERGED; /* decided behind another prefix than ours */
            break;
        }
        commit_next(r);
    }
    if (r->last.index < r->commit.index) r->last = r->commit;
    return records;
}

/* Looks on over headers that chain; true when one of them told something. */
static bool peek(struct replica *r, uint32_t records_max) {
    bool told = false;
    for (uint32_t i = 0; i < records_max; i++) {
        const struct record_header *header = ring_slot(&r->ring, r->last.position);
        if (!record_headed(header, ring_room(&r->ring, r->last.position), r->last.index + 1, r->last.hash, r->salt))
            break;
        struct record_header copy = *header; /* may change under our eyes */
        if (copy.index != r->last.index + 1 || copy.prev_hash != r->last.hash) break;
        told |= hear(r, planted(PLANT_PRESENT_IS_COMMITTED) ? copy.index : copy.commit);
        if (copy.kind == RECORD_CONFIG) r->config_ahead = copy.index;
        cursor_step(&r->last, &copy);
    }
    return told;
}

bool follow_scan(struct replica *r, uint32_t records_max) {
    if (r->damage != REPLICA_SOUND) return false;
    uint64_t before = r->last.index, commit = r->commit.index;
    hear(r, __atomic_load_n(&r->head->commit, __ATOMIC_ACQUIRE));
    do {
        take(r, records_max);
    } while (r->damage == REPLICA_SOUND && r->commit.index - commit < records_max && peek(r, records_max));
    return r->last.index != before || r->commit.index != commit;
}

/* Running hash up to `index`, which must not lie before the commit index; false when this replica has no such record. */
bool follow_hash_at(const struct replica *r, uint64_t index, uint64_t *hash) {
    struct cursor at = r->commit;
    if (index < at.index || index > r->last.index) return false;
    while (at.index < index) ring_step(&r->ring, &at);
    *hash = at.hash;
    return true;
}

const struct record_header *replica_next(struct replica *r) {
    if (r->delivered.index >= r->commit.index) return NULL;
    const struct record_header *header = ring_slot(&r->ring, r->delivered.position);
    CHECK(header->index == r->delivered.index + 1);
    r->delivered.index += 1;
    r->delivered.position += record_span(header->length);
    return header;
}

void replica_applied(struct replica *r, uint64_t index) {
    CHECK(index <= r->delivered.index);
    while (r->applied.index < index) {
        const struct record_header *header = ring_slot(&r->ring, r->applied.position);
        CHECK(header->index == r->applied.index + 1);
        r->applied.index += 1;
        r->applied.position += record_span(header->length);
        if (header->kind == RECORD_CONFIG) config_applied(r, header);
        r->dirty = true;
    }
    /* The same records made both; a snapshot hands the one on, majorities are counted in the other. */
    CHECK(r->applied.index < r->commit.index || r->applied_members.index == r->members.index);
}

void replica_applied_point(const struct replica *r, uint64_t *index, uint64_t *position, uint64_t *hash) {
    *index = r->applied.index;
    *position = r->applied.position;
    *hash = r->applied.index == r->commit.index ? r->commit.hash
                                                : ring_slot(&r->ring, r->applied.position)->prev_hash;
}

void replica_install(struct replica *r, uint64_t index, uint64_t position, uint64_t hash,
                     const struct replica_membership *members, uint64_t now_us) {
    CHECK(r->role != REPLICA_LEADER && position % RECORD_ALIGN == 0);
    r->now_us = now_us;
    if (r->role == REPLICA_CANDIDATE) takeover_fail(r);
    r->last = r->commit = (struct cursor){.index = index, .position = position, .hash = hash};
    r->delivered = r->applied = (struct point){.index = index, .position = position};
    r->base = position;
    r->damage = REPLICA_SOUND;
    config_install(r, members);
    r->limit = position + r->ring.bytes;
    r->reserved_end = later(r->reserved_end, position);
    follow_scan(r, replica_limits.scan_records);
    replica_publish_progress(r);
    replica_publish_status(r);
}
