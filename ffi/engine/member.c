/*
 * member.c: who belongs to the cluster, as far as the engine has a part in it. A node that has begun another life follows, but
 * counts for nothing (core/membership.h). Once its log goes on without a gap and its backend holds the cluster's data, it
 * asks the leader, again and again, to be taken in the place of its former life. The leader proposes the two CONFIG
 * records, one at a time, whenever the core lets it: nothing is remembered in between, so a new leader goes on.
 */
#include "engine/engine_state.h"

#define ASK_AGAIN_US 20000u

static uint64_t own(const struct engine *e) { return replica_own_incarnation(e->replica); }

/* Its word would be good for everything up to now: log, backend. */
static bool complete(const struct engine *e) {
    return replica_damage(e->replica) == REPLICA_SOUND && backend_follows(e) && e->log.epoch > 0;
}

void member_tick(struct engine *e) {
    if (replica_is_member(e->replica) || e->takeover != TAKE_IDLE || !complete(e) || e->now_us < e->ask_us) return;
    uint32_t leader = link_leader(e);
    if (leader == REPLICA_NOBODY) return;
    e->ask_us = e->now_us + ASK_AGAIN_US;
    link_send(e, leader, &(struct frame){.type = FRAME_JOIN, .sequence = own(e)}, NULL);
}

/* At the leader. */
void member_asked(struct engine *e, uint32_t peer, uint64_t incarnation) {
    uint64_t member = replica_incarnation(e->replica, peer);
    if (!engine_leads(e) || incarnation == 0 || member >= incarnation) return;
    turn_seal(e); /* requests may have come before this in the same turn */
    int64_t index = replica_propose_member(e->replica, peer, member != 0 ? 0 : incarnation);
    if (index <= 0) return; /* it will ask again */
    if (member != 0) engine_log(e, 20, "node %u has begun another life: the former one is removed", peer + 1);
    else engine_log(e, 20, "node %u is complete: it is added", peer + 1);
}

/* At the leader, by the operator's wish: this life of the node counts no more. Nothing happens where the core does not let it
 * now; who asked looks at the membership, and asks again. */
void member_remove(struct engine *e, uint32_t peer) {
    uint64_t member = replica_incarnation(e->replica, peer);
    if (!engine_leads(e) || member == 0) return;
    turn_seal(e); /* as above */
    if (replica_propose_member(e->replica, peer, 0) <= 0) return;
    engine_log(e, 20, "node %u is removed, as the operator wishes", peer + 1);
}

uint32_t member_count(const struct engine *e) {
    struct replica_membership members = replica_applied_members(e->replica);
    return (uint32_t)__builtin_popcount(membership_mask(&members));
}

void member_applied(struct engine *e, const struct record_header *record) {
    struct membership_change change;
    if (record->length != sizeof change) return;
    memcpy(&change, record_payload(record), sizeof change);
    const char *now = change.step == MEMBERSHIP_ADD ? "is a member" : "is no member any more";
    bool self = change.slot == e->self && change.incarnation == own(e);
    if (change.slot == e->self && change.step == MEMBERSHIP_REMOVE) e->ask_us = 0; /* one member less: not for long */
    engine_log(e, 20, "%s %u, incarnation %016llx, %s (record %llu)", self ? "this node," : "node", change.slot + 1,
               (unsigned long long)change.incarnation, now, (unsigned long long)record->index);
}

/* At the leader: followers that held up the log were dropped, or have caught up again. */
void member_watch(struct engine *e) {
    uint32_t evicted = engine_leads(e) ? replica_evicted(e->replica) : 0, changed = evicted ^ e->evicted;
    e->evicted = evicted;
    e->counters.evicted = evicted;
    for (uint32_t rest = engine_leads(e) ? changed : 0; rest; rest &= rest - 1) {
        uint32_t i = (uint32_t)__builtin_ctz(rest);
        if (evicted >> i & 1) engine_log(e, 30, "node %u holds up the log: it is dropped until it has caught up", i + 1);
        else engine_log(e, 20, "node %u has caught up with the log", i + 1);
    }
}

void member_status(const struct engine *e, struct engine_status *s) {
    struct replica_membership members = replica_applied_members(e->replica);
    s->is_member = replica_is_member(e->replica);
    memcpy(s->members, members.incarnation, sizeof s->members);
    memcpy(s->former, members.former, sizeof s->former);
}
