/* config.c: CONFIG records in the log of a replica: which membership is in force, who votes, how it is changed.
 *
 *   members   at the commit index: decided
 *   latest    at `last`; majorities are counted in it. On a follower, whose `last` is no more than a hint, the same as members
 *   applied_members   at the applied index: what a snapshot of the applied state carries
 *
 * A session with a peer counts if the incarnation that granted it is the member in its slot (membership.h). Others may
 * follow, too: that is how a new incarnation is caught up before it is added. */
#include <stddef.h>
#include <string.h>

#include "core/replica_state.h"
#include "plant.h"

#define CONFIG_RECORD_BYTES (sizeof(struct record_header) + sizeof(struct membership_change) + RECORD_TAIL_BYTES)

/* ---- what is in force ---------------------------------------------------------------------------------------- */

/* Is this life of the node in slot i the member there? */
static bool counts(const struct replica_membership *m, uint32_t slot, uint64_t incarnation) {
    return membership_has(m, slot, incarnation) || (planted(PLANT_AMNESIAC_VOTES) && incarnation && m->incarnation[slot]);
}

void config_count(struct replica *r) {
    uint32_t members = membership_mask(&r->latest), voting = 0;
    for (uint32_t i = 0; i < r->nodes; i++) {
        uint64_t who = i == r->self ? r->incarnation : r->peers[i].grantor;
        if (counts(&r->latest, i, who)) voting |= bit(i);
    }
    r->voting = voting;
    r->majority = quorum_majority((uint32_t)__builtin_popcount(members));
    r->alone = members == bit(r->self) && voting == members;
}

bool config_form(struct replica *r) {
    const struct replica_config *c = &r->config;
    bool given = false;
    for (uint32_t i = 0; i < FABRIC_NODES_MAX; i++) {
        r->members.incarnation[i] = c->members[i];
        if (c->members[i] && i >= c->nodes) return false;
        given |= c->members[i] != 0;
    }
    for (uint32_t i = 0; i < c->nodes && !given; i++) r->members.incarnation[i] = INCARNATION_FIRST;
    r->incarnation = c->incarnation ? c->incarnation : INCARNATION_FIRST;
    config_install(r, &r->members);
    return true;
}

void config_install(struct replica *r, const struct replica_membership *members) {
    if (&r->members != members) r->members = *members;
    r->latest = r->applied_members = r->members;
    r->config_ahead = 0;
    config_count(r);
}

/* False: it is no step from there. */
static bool take(struct replica_membership *m, const struct record_header *header) {
    struct membership_change change;
    if (header->length != sizeof change) return false;
    memcpy(&change, record_payload(header), sizeof change);
    return membership_take(m, &change, header->index);
}

/* A leader proposes only what is a step from the end of its log (replica_propose_member), and logs that agree up to a record
 * agree in the membership there. So in a chained log every CONFIG record fits: one that does not means that the membership
 * and the log have come apart in this replica, which then counts its majorities wrongly. Better that it ends. */
static void take_decisive(struct replica_membership *m, const struct record_header *header) {
    bool fits = take(m, header);
    CHECK(fits);
}

void config_extended(struct replica *r, const struct record_header *header) {
    take_decisive(&r->latest, header);
    config_count(r);
}

void config_reset(struct replica *r) {
    r->latest = r->members;
    config_count(r);
}

void config_decided(struct replica *r, const struct record_header *header) {
    take_decisive(&r->members, header);
    if (r->latest.index < r->members.index) config_reset(r);
}

void config_applied(struct replica *r, const struct record_header *header) {
    take_decisive(&r->applied_members, header);
}

/* ---- what a follower's log holds beyond the commit index --------------------------------------------------------- */

/* Header by header, as long as they chain; the leader may be overwriting them. False: this is the end. */
static bool look_on(const struct replica *r, struct cursor *at, struct replica_membership *m) {
    const uint8_t *slot = (const uint8_t *)ring_slot(&r->ring, at->position);
    uint8_t image[CONFIG_RECORD_BYTES] __attribute__((aligned(8)));
    struct record_header *copy = (struct record_header *)(void *)image;
    if (!record_headed(slot, ring_room(&r->ring, at->position), at->index + 1, at->hash, r->salt)) return false;
    memcpy(copy, slot, sizeof *copy);
    if (copy->index != at->index + 1 || copy->prev_hash != at->hash) return false;
    if (copy->kind == RECORD_CONFIG) {
        memcpy(image, slot, sizeof image);
        if (!record_valid(image, sizeof image, at->index + 1, at->hash, r->salt)) return false;
        (void)take(m, copy); /* a guess: it may have been overwritten between two looks */
    }
    cursor_step(at, copy);
    return true;
}

/* The membership at the end of the own log. On a follower a guess, only good for deciding whether to try. */
static struct replica_membership ahead(struct replica *r) {
    if (r->role != REPLICA_FOLLOWER || r->config_ahead <= r->commit.index) return r->latest;
    struct replica_membership m = r->members;
    struct cursor at = r->commit;
    while (look_on(r, &at, &m)) continue;
    if (m.index == r->members.index) r->config_ahead = 0; /* it was overwritten */
    return m;
}

bool config_is_member(struct replica *r) {
    if (r->config_ahead <= r->commit.index) return membership_has(&r->latest, r->self, r->incarnation);
    struct replica_membership m = ahead(r);
    return membership_has(&m, r->self, r->incarnation);
}

static bool alive_majority(const struct replica *r, const struct replica_membership *m) {
    uint32_t alive = counts(m, r->self, r->incarnation);
    for (uint32_t i = 0; i < r->nodes; i++) {
        const struct peer *p = &r->peers[i];
        if (i != r->self && p->alive && counts(m, i, p->status.incarnation)) alive++;
    }
    return alive >= quorum_majority((uint32_t)__builtin_popcount(membership_mask(m)));
}

bool config_majority_alive(struct replica *r) {
    if (alive_majority(r, &r->members)) return true;
    struct replica_membership m = ahead(r);
    return alive_majority(r, &m);
}

bool config_is_gone(const struct replica *r, uint32_t peer) {
    uint64_t incarnation = r->peers[peer].status.incarnation;
    return incarnation != 0 && membership_gone(&r->members, peer, incarnation); /* 0: not heard of yet */
}

/* ---- changing it --------------------------------------------------------------------------------------------- */

/* Would a majority of the membership after the change be confirmed followers now? Else the change could stop everything. */
static bool would_hold(struct replica *r, const struct membership_change *change, struct replica_membership next) {
    uint32_t members = membership_mask(&next), votes = r->confirmed & r->voting & members;
    if (change->step == MEMBERSHIP_ADD) votes |= bit(change->slot);
    return quorum_met(votes, (uint32_t)__builtin_popcount(members));
}

/* A new incarnation is added once its log keeps up: what is decided with its help from then on, it holds. */
static bool caught_up(const struct replica *r, uint32_t slot, uint64_t incarnation) {
    const struct peer *p = &r->peers[slot];
    return slot != r->self && p->stage == PEER_CONFIRMED && p->pins && p->grantor == incarnation;
}

int64_t replica_propose_member(struct replica *r, uint32_t slot, uint64_t incarnation) {
    if (r->role != REPLICA_LEADER || !r->ops->holds_own(r->fabric)) return REPLICA_NOT_LEADER;
    if (slot >= r->nodes) return REPLICA_NO_CHANGE;
    struct membership_change change = {.slot = slot, .step = incarnation ? MEMBERSHIP_ADD : MEMBERSHIP_REMOVE,
                                       .incarnation = incarnation ? incarnation : r->latest.incarnation[slot]};
    struct replica_membership next = r->latest;
    if (r->latest.index > r->commit.index) return REPLICA_NOT_NOW;
    if (!membership_take(&next, &change, r->last.index + 1)) return REPLICA_NO_CHANGE;
    if (change.step == MEMBERSHIP_ADD && !caught_up(r, slot, incarnation)) return REPLICA_NOT_NOW;
    if (!would_hold(r, &change, next)) return REPLICA_NOT_NOW;
    return leader_propose(r, RECORD_CONFIG, 0, (struct record_origin){.node = r->self}, &change, sizeof change);
}

/* Whoever was removed and has been told so is left alone. */
void config_dismiss(struct replica *r) {
    for (uint32_t rest = r->confirmed & ~r->voting & ~bit(r->self); rest && r->role == REPLICA_LEADER; rest &= rest - 1) {
        uint32_t i = (uint32_t)__builtin_ctz(rest);
        const struct peer *p = &r->peers[i];
        if (membership_gone(&r->members, i, p->grantor) && p->told >= r->members.index) confirm_lose(r, i);
    }
}

/* On the leader, a CONFIG record has just been decided. */
void config_settled(struct replica *r) {
    replica_flush_commit(r);
    config_dismiss(r);
    if (r->role == REPLICA_LEADER && !membership_has(&r->members, r->self, r->incarnation)) leader_step_down(r);
}

/* ---- accessors ----------------------------------------------------------------------------------------------- */

uint32_t replica_members(const struct replica *r) { return membership_mask(&r->members); }

uint64_t replica_incarnation(const struct replica *r, uint32_t slot) {
    return slot < FABRIC_NODES_MAX ? r->members.incarnation[slot] : 0;
}

bool replica_is_member(const struct replica *r) { return membership_has(&r->members, r->self, r->incarnation); }

uint64_t replica_own_incarnation(const struct replica *r) { return r->incarnation; }

struct replica_membership replica_applied_members(const struct replica *r) { return r->applied_members; }
