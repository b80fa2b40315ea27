/* leader.c: the request path. A record is built in the own ring, under the own permission, and posted from there to
 * every confirmed follower; it is committed when a majority, the leader included, holds everything up to it. */
#include <stddef.h>
#include <string.h>

#include "core/replica_state.h"
#include "plant.h"

/* ---- room ---------------------------------------------------------------------------------------------------- */

uint64_t replica_free_bytes(const struct replica *r) {
    return r->limit > r->last.position ? r->limit - r->last.position : 0;
}

/* What nobody but a NOOP may take: terms must open even behind a leader that left the ring full and uncommitted, several
 * in a row if the first attempts come to nothing. */
static uint64_t noop_reserve(const struct replica *r) {
    return sooner(later(r->ring.bytes / 16, 2048), r->ring.bytes / 4);
}

static bool fits(const struct replica *r, enum record_kind kind, uint64_t span) {
    uint64_t keep = kind == RECORD_COMMAND ? r->ring.bytes / 4 : noop_reserve(r);
    return replica_free_bytes(r) >= span + keep;
}

static bool room(struct replica *r, enum record_kind kind, uint64_t span) {
    if (fits(r, kind, span)) return true;
    confirm_limit(r);
    if (fits(r, kind, span)) return true;
    confirm_recycle(r);
    return false;
}

/* The own log, too, is written only by whoever holds its permission. */
static bool may_write(const struct replica *r) {
    return r->role == REPLICA_LEADER && (r->ops->holds_own(r->fabric) || planted(PLANT_OWN_UNFENCED));
}

/* ---- proposing ----------------------------------------------------------------------------------------------- */

static void post_record(struct replica *r, uint32_t peer, const struct record_header *header, struct cursor before) {
    struct peer *p = &r->peers[peer];
    if (p->sent.index != before.index || !p->pins || p->log_posts >= replica_limits.record_posts) {
        r->feeding |= bit(peer);
        return;
    }
    p->sent = r->last;
    p->told = header->commit;
    log_write(r, peer, ring_log_offset(&r->ring, before.position), header, (uint32_t)record_bytes(header->length),
              POST_RECORD, header->index);
}

int64_t leader_append(struct replica *r, enum record_kind kind, uint32_t flags, struct record_origin origin,
                      uint32_t length) {
    struct cursor before = r->last;
    struct record_header *header = ring_slot(&r->ring, before.position);
    header->index = before.index + 1;
    header->ballot = r->ballot;
    header->commit = planted(PLANT_UNCONFIRMED_COMMIT) ? before.index : r->commit.index;
    header->prev_hash = before.hash;
    header->length = length;
    header->kind = (uint8_t)kind;
    header->flags = (uint8_t)flags;
    header->origin_node = (uint16_t)origin.node;
    header->origin_stream = origin.stream;
    header->origin_sequence = origin.sequence;
    if (r->commit.index == before.index) r->committed_us = r->now_us;
    r->last = (struct cursor){.index = header->index, .position = before.position + record_span(length),
                              .hash = record_seal(header, r->salt)};
    if (r->last.position > r->reserved_end) r->reserved_end = r->last.position;
    if (kind == RECORD_CONFIG) config_extended(r, header);
    for (uint32_t rest = r->confirmed & ~bit(r->self); rest; rest &= rest - 1)
        post_record(r, (uint32_t)__builtin_ctz(rest), header, before);
    int64_t index = (int64_t)header->index;
    if (r->alone) leader_commit(r);
    return index;
}

uint8_t *replica_reserve(struct replica *r, enum record_kind kind, uint32_t length_max) {
    if (!may_write(r) || length_max > r->config.piece_bytes_max || kind == RECORD_CONFIG) return NULL;
    uint64_t span = record_span(length_max);
    if (!room(r, kind, span)) return NULL;
    if (r->last.position + span > r->reserved_end) r->reserved_end = r->last.position + span;
    r->reserved = r->last.index + 1;
    return (uint8_t *)(ring_slot(&r->ring, r->last.position) + 1);
}

int64_t replica_propose_reserved(struct replica *r, enum record_kind kind, uint32_t flags, struct record_origin origin,
                                 uint32_t length) {
    if (!may_write(r)) return REPLICA_NOT_LEADER;
    if (length > r->config.piece_bytes_max) return REPLICA_TOO_LARGE;
    if (kind == RECORD_CONFIG) return REPLICA_NO_CHANGE;
    if (!room(r, kind, record_span(length))) return REPLICA_FULL;
    CHECK(r->reserved == r->last.index + 1); /* else another record has taken its place, and both are spoiled */
    return leader_append(r, kind, flags, origin, length);
}

int64_t replica_propose(struct replica *r, enum record_kind kind, uint32_t flags, struct record_origin origin,
                        const void *payload, uint32_t length) {
    if (!may_write(r)) return REPLICA_NOT_LEADER;
    if (kind == RECORD_CONFIG) return REPLICA_NO_CHANGE;
    return leader_propose(r, kind, flags, origin, payload, length);
}

int64_t leader_propose(struct replica *r, enum record_kind kind, uint32_t flags, struct record_origin origin,
                       const void *payload, uint32_t length) {
    if (length > r->config.piece_bytes_max) return REPLICA_TOO_LARGE;
    if (!room(r, kind, record_span(length))) return REPLICA_FULL;
    if (length) memcpy(ring_slot(&r->ring, r->last.position) + 1, payload, length);
    return leader_append(r, kind, flags, origin, length);
}

/* ---- what completed ------------------------------------------------------------------------------------------ */

static uint32_t enough(const struct replica *r) {
    return planted(PLANT_FIRST_ACK_COMMITS) && r->majority > 2 ? 2 : r->majority;
}

/* Does a majority hold all that there is? Mostly so. */
static bool all_held(const struct replica *r) {
    uint32_t counting = r->confirmed & r->voting, holders = counting >> r->self & 1;
    for (uint32_t rest = counting & ~bit(r->self); rest; rest &= rest - 1)
        holders += r->peers[__builtin_ctz(rest)].acked == r->last.index;
    return holders >= enough(r);
}

/* The largest index that a majority holds. */
static uint64_t held_by_majority(const struct replica *r) {
    if (all_held(r)) return r->last.index;
    uint64_t held[FABRIC_NODES_MAX];
    uint32_t count = 0;
    for (uint32_t rest = r->confirmed & r->voting; rest; rest &= rest - 1) {
        uint32_t i = (uint32_t)__builtin_ctz(rest);
        held[count++] = i == r->self ? r->last.index : r->peers[i].acked;
    }
    return quorum_value(held, count, enough(r));
}

void leader_commit(struct replica *r) {
    uint64_t index = held_by_majority(r);
    if (index <= r->commit.index) return;
    if (index < r->opened && !planted(PLANT_EARLIER_TERM_COMMITTED)) return; /* earlier terms: only under the own NOOP */
    uint64_t config = r->members.index;
    follow_commit(r, index);
    r->committed_us = r->now_us;
    if (r->role == REPLICA_CANDIDATE) takeover_opened(r);
    if (r->members.index != config) config_settled(r);
}

void leader_probed(struct replica *r) {
    uint64_t reached[FABRIC_NODES_MAX];
    uint32_t count = 0;
    for (uint32_t rest = r->confirmed & r->voting; rest; rest &= rest - 1) {
        uint32_t i = (uint32_t)__builtin_ctz(rest);
        reached[count++] = i == r->self ? r->probe : r->peers[i].probed;
    }
    r->probed = later(r->probed, quorum_value(reached, count, r->majority));
}

void leader_probe_peer(struct replica *r, uint32_t peer) {
    struct peer *p = &r->peers[peer];
    if (p->log_posts >= replica_limits.record_posts) return;
    p->probing = r->probe;
    log_write(r, peer, offsetof(struct replica_log_head, probe), &r->probe, sizeof r->probe, POST_PROBE, r->probe);
}

uint64_t replica_probe(struct replica *r) {
    if (!may_write(r)) return 0;
    r->probe++;
    if (planted(PLANT_READ_UNPROBED)) r->probed = r->probe;
    for (uint32_t rest = r->confirmed & ~bit(r->self); rest; rest &= rest - 1)
        leader_probe_peer(r, (uint32_t)__builtin_ctz(rest));
    if (r->alone) r->probed = r->probe;
    return r->probe;
}

uint64_t replica_probed(const struct replica *r) { return r->probed; }

void replica_flush_commit(struct replica *r) {
    if (r->role != REPLICA_LEADER) return;
    for (uint32_t rest = r->confirmed & ~bit(r->self); rest; rest &= rest - 1) {
        uint32_t i = (uint32_t)__builtin_ctz(rest);
        struct peer *p = &r->peers[i];
        uint64_t commit = sooner(r->commit.index, p->sent.index); /* never ahead of the records themselves */
        if (planted(PLANT_COMMIT_AHEAD)) commit = r->last.index;
        if (commit <= p->told || p->log_posts >= replica_limits.record_posts) continue;
        p->told = commit;
        log_write(r, i, offsetof(struct replica_log_head, commit), &commit, sizeof commit, POST_COMMIT, commit);
    }
}

/* ---- the rest of leading ------------------------------------------------------------------------------------- */

void leader_step_down(struct replica *r) {
    CHECK(r->role == REPLICA_LEADER);
    r->role = REPLICA_FOLLOWER;
    for (uint32_t i = 0; i < r->nodes; i++)
        if (i != r->self && r->peers[i].stage != PEER_APART) confirm_lose(r, i);
    r->confirmed = r->feeding = r->awaiting = 0;
    r->leader = REPLICA_NOBODY;
    r->leaderless_us = r->now_us;
    follow_reset(r);
    r->backoff_us = r->now_us + election_backoff(r, 0);
    replica_publish_progress(r);
    replica_publish_status(r);
}

bool leader_poll(struct replica *r) {
    bool any = confirm_advance(r);
    for (uint32_t rest = r->role == REPLICA_LEADER ? r->feeding : 0; rest; rest &= rest - 1)
        confirm_feed(r, (uint32_t)__builtin_ctz(rest));
    return any;
}

/* Records that wait for ever while heartbeats go on: somebody else shall try. */
static bool stuck(const struct replica *r) {
    return r->commit.index < r->last.index && r->now_us - r->committed_us > 4ull * r->config.fail_us;
}

void leader_tick(struct replica *r) {
    if (stuck(r)) {
        leader_step_down(r);
        return;
    }
    confirm_limit(r);
    confirm_recycle(r);
    replica_flush_commit(r);
    config_dismiss(r);
    if (r->role == REPLICA_LEADER && r->now_us - r->posted_us >= REPLICA_IDLE_PROBE_US) replica_probe(r);
}
