/* confirm.c: the confirmed followers: those whose log only this leader may write and whose log is a prefix of its own.
 * How one joins, is fed what it lacks, and is dropped; and how far the ring may be written. */
#include <stddef.h>

#include "core/replica_state.h"
#include "plant.h"

/* ---- joining ------------------------------------------------------------------------------------------------- */

/* After a grant, and only then: before it somebody else may still have changed what is read here. */
void confirm_inspect(struct replica *r, uint32_t peer) {
    struct peer *p = &r->peers[peer];
    if (p->stage == PEER_PERMITTED) {
        p->stage = PEER_INSPECTED;
        log_read(r, peer, offsetof(struct replica_log_head, min_proposal), &p->head, sizeof p->head, POST_HEAD);
    }
    if (p->stage == PEER_INSPECTED && !p->inspected && !p->inspecting && p->linked) {
        p->inspecting = true;
        p->inspect_generation = p->generation;
        r->ops->post_read(r->fabric, peer, FABRIC_BACKGROUND, offsetof(struct replica_background, status), &p->inspect,
                          sizeof p->inspect, post_id(POST_INSPECT, p->link, 0));
    }
}

/* `held`: how far the peer's log is the same as the own. From here on it counts. */
void confirm_peer(struct replica *r, uint32_t peer, struct cursor held) {
    struct peer *p = &r->peers[peer];
    CHECK(held.index <= r->last.index);
    if (held.index == r->last.index && held.hash != r->last.hash) { /* it contradicts what is decided */
        confirm_lose(r, peer);
        return;
    }
    p->stage = PEER_CONFIRMED;
    p->sent = held;
    p->acked = held.index;
    p->landed = (struct point){.index = held.index, .position = held.position};
    p->told = 0;
    p->probed = 0;
    p->probing = r->probe;
    p->pins = false;
    p->refusals = 0;
    p->moved_us = r->now_us;
    p->walk.mode = WALK_NONE;
    r->evicted &= ~bit(peer);
    r->confirmed |= bit(peer);
    r->feeding |= bit(peer);
}

/* The own ring no longer holds what this peer lacks: it will see that in the oldest position published here. */
static void left_behind(struct replica *r, uint32_t peer, uint64_t position) {
    r->base = later(r->base, position + RECORD_ALIGN);
    r->dirty = true;
    confirm_lose(r, peer);
}

/* A post ending with record `index` is complete, to a peer that does not keep up. The ring waits for those that do; under
 * the others it may have gone on before what was posted was read from it, and then nobody knows what landed. False: such
 * a peer is lost. */
bool confirm_landed(struct replica *r, uint32_t peer, uint64_t index) {
    struct peer *p = &r->peers[peer];
    if (p->landed.position < replica_oldest(r)) {
        left_behind(r, peer, p->landed.position);
        return false;
    }
    for (; p->landed.index < index; p->landed.index++) {
        const struct record_header *header = ring_slot(&r->ring, p->landed.position);
        CHECK(header->index == p->landed.index + 1);
        p->landed.position += record_span(header->length);
    }
    return true;
}

static bool joinable(const struct replica *r, const struct peer *p) {
    return p->linked && p->alive && r->now_us >= p->retry_us && p->progress.position >= replica_oldest(r) &&
           !config_is_gone(r, (uint32_t)(p - r->peers));
}

/* A joiner's log has been opened: announce the ballot there, and compare. False: somebody was there with a larger one. */
static bool join_match(struct replica *r, uint32_t peer) {
    struct peer *p = &r->peers[peer];
    const struct replica_progress *its = &p->progress;
    if (p->head > r->ballot) return false;
    if (its->index > r->last.index || its->position < replica_oldest(r)) {
        confirm_lose(r, peer);
        return true;
    }
    p->stage = PEER_MATCHED;
    log_write(r, peer, offsetof(struct replica_log_head, min_proposal), &r->ballot, sizeof r->ballot, POST_ANNOUNCE, 0);
    struct cursor from = {.index = its->index, .position = its->position, .hash = its->hash};
    walk_begin(r, peer, WALK_MATCH, from, 0);
    return true;
}

static bool join_advance(struct replica *r, uint32_t i) {
    struct peer *p = &r->peers[i];
    switch (p->stage) {
    case PEER_APART:
        return joinable(r, p) && permission_ask(r, i);
    case PEER_ASKED:
        if (r->now_us - p->asked_us > 4ull * r->config.request_us) confirm_lose(r, i);
        return false;
    case PEER_PERMITTED:
        confirm_inspect(r, i);
        return true;
    case PEER_INSPECTED:
        confirm_inspect(r, i);
        if (!p->headed || !p->inspected) return false;
        if (!join_match(r, i)) leader_step_down(r); /* a ballot beyond ours: prepare anew */
        return true;
    case PEER_MATCHED:
        if (!p->announced || !p->walk.ended) return false;
        confirm_peer(r, i, p->walk.at);
        return true;
    case PEER_CONFIRMED:
        break;
    }
    return false;
}

bool confirm_advance(struct replica *r) {
    bool any = false;
    if (r->confirmed == bit(r->nodes) - 1) return false;
    for (uint32_t i = 0; i < r->nodes && r->role == REPLICA_LEADER; i++)
        if (i != r->self && r->peers[i].stage != PEER_CONFIRMED) any |= join_advance(r, i);
    return any;
}

/* ---- losing -------------------------------------------------------------------------------------------------- */

void confirm_lose(struct replica *r, uint32_t peer) {
    struct peer *p = &r->peers[peer];
    p->stage = planted(PLANT_PERMISSION_KEPT) ? PEER_PERMITTED : PEER_APART;
    p->generation++;
    p->walk.mode = WALK_NONE;
    p->retry_us = r->now_us + election_backoff(r, p->refusals);
    if (p->refusals < 8) p->refusals++;
    r->confirmed &= ~bit(peer);
    r->feeding &= ~bit(peer);
    r->awaiting &= ~bit(peer);
    confirm_limit(r);
    if (r->role == REPLICA_LEADER && !config_quorum(r, r->confirmed)) leader_step_down(r);
    if (r->role == REPLICA_CANDIDATE) takeover_lost(r, peer);
}

/* ---- feeding ------------------------------------------------------------------------------------------------- */

/* The next stretch of records that lies in one piece and that the peer has room for. False: the own ring lacks it. */
static bool stretch(struct replica *r, const struct peer *p, struct cursor *to, uint64_t *bytes, uint64_t *commit) {
    uint64_t peer_limit = p->progress.applied_position + r->ring.bytes; /* what it has not applied must stand */
    uint64_t first = ring_offset(&r->ring, p->sent.position);
    *to = p->sent;
    *bytes = 0;
    while (to->index < r->last.index) {
        const struct record_header *header = ring_slot(&r->ring, to->position);
        if (to->position < replica_oldest(r) || !ring_holds(&r->ring, to, r->salt)) return false;
        uint64_t behind = to->position - p->sent.position;
        uint64_t span = record_span(header->length);
        if (to->position + span > peer_limit || (behind && behind + span > replica_limits.feed_bytes)) break;
        *bytes = behind + record_bytes(header->length); /* ends with a tail word */
        *commit = header->commit;
        cursor_step(to, header);
        if (ring_offset(&r->ring, to->position) != first + behind + span) break; /* wraps */
    }
    return true;
}

/* Does it keep up, so that the ring may wait for it? */
static void settle_pins(struct replica *r, struct peer *p) {
    if (p->pins || p->sent.index < r->last.index) return;
    uint64_t unapplied = r->last.position - p->progress.applied_position;
    if (unapplied > r->ring.bytes / 2) return;
    p->pins = true;
    p->moved_us = r->now_us;
    confirm_limit(r);
}

void confirm_feed(struct replica *r, uint32_t peer) {
    struct peer *p = &r->peers[peer];
    while (p->stage == PEER_CONFIRMED && p->sent.index < r->last.index && p->log_posts < replica_limits.feed_posts) {
        struct cursor to;
        uint64_t bytes, commit = 0;
        if (!stretch(r, p, &to, &bytes, &commit)) {
            left_behind(r, peer, p->sent.position);
            return;
        }
        if (bytes == 0) break;
        uint64_t from = p->sent.position;
        p->sent = to;
        p->told = later(p->told, commit);
        log_write(r, peer, ring_log_offset(&r->ring, from), ring_slot(&r->ring, from), (uint32_t)bytes, POST_RECORD,
                  to.index);
    }
    settle_pins(r, p);
    if (p->pins && p->sent.index == r->last.index) r->feeding &= ~bit(peer);
}

/* ---- recycling ----------------------------------------------------------------------------------------------- */

/* The ring may be written one lap beyond the lowest applied position of those that count. */
void confirm_limit(struct replica *r) {
    uint64_t lowest = r->applied.position;
    for (uint32_t rest = r->confirmed & ~bit(r->self); rest; rest &= rest - 1) {
        const struct peer *p = &r->peers[__builtin_ctz(rest)];
        if (p->pins && !planted(PLANT_RING_UNPINNED)) lowest = sooner(lowest, p->progress.applied_position);
    }
    r->limit = lowest + r->ring.bytes;
}

/* Who holds the ring, if it is not this replica itself. */
static uint32_t pinner(const struct replica *r) {
    uint32_t who = REPLICA_NOBODY;
    uint64_t lowest = r->applied.position;
    for (uint32_t rest = r->confirmed & ~bit(r->self); rest; rest &= rest - 1) {
        uint32_t i = (uint32_t)__builtin_ctz(rest);
        if (!r->peers[i].pins || r->peers[i].progress.applied_position >= lowest) continue;
        lowest = r->peers[i].progress.applied_position;
        who = i;
    }
    return who;
}

/* When room gets short: look again how far the others are; drop the one that stands in the way. */
void confirm_recycle(struct replica *r) {
    uint64_t free_bytes = replica_free_bytes(r), bound = r->config.pin_bytes;
    if (r->ring.bytes - free_bytes <= (bound ? bound : r->ring.bytes * 5 / 8)) return;
    election_sample(r);
    uint32_t who = pinner(r);
    if (who == REPLICA_NOBODY || !config_quorum(r, r->confirmed & ~bit(who))) return;
    struct peer *p = &r->peers[who];
    uint64_t patience_us = r->config.pin_us > 0 ? r->config.pin_us : r->config.suspect_us;
    if (free_bytes >= r->ring.bytes * 9 / 32) patience_us *= 4; /* nobody waits yet, COMMANDs neither */
    if (r->now_us - p->moved_us <= patience_us + r->interval_us) return;
    confirm_lose(r, who);
    r->evicted |= bit(who);
    p->retry_us = r->now_us + r->config.fail_us;
}
