/* takeover.c: from "nobody leads" to the first committed NOOP of the own term.
 *
 *   permission   a majority, this replica included, revokes everybody else and grants this one
 *   inspect      their minimal proposals and progress, read after the grant
 *   catch up     whatever one of them knows to be decided
 *   survey       announce a ballot above all seen, then read what lies beyond the decided part
 *   adopt        the log whose last record has the largest ballot, the longest of those (as Raft chooses: records keep
 *                the ballot of the leader that proposed them, and each term opens with a NOOP that only it could write)
 *   match        how far each member already holds that log: held records are never written again, so none can tear
 *   open         feed them the rest and a NOOP; once that is committed, so is everything before it
 *
 * Every step waits for completions only; a member that fails leaves, and without a majority the attempt ends. Reads
 * need no permission: a candidate that was deposed meanwhile may read what its successor writes. It can do no harm (its
 * writes fail), and gives up when what it reads does not fit. */
#include <stddef.h>

#include "core/replica_state.h"
#include "plant.h"

static bool all(const struct replica *r, bool (*done)(const struct peer *)) {
    for (uint32_t rest = r->takeover.members & ~bit(r->self); rest; rest &= rest - 1)
        if (!done(&r->peers[__builtin_ctz(rest)])) return false;
    return true;
}

static bool is_inspected(const struct peer *p) { return p->headed && p->inspected; }
static bool is_surveyed(const struct peer *p) { return p->announced && p->walk.ended; }
static bool is_confirmed(const struct peer *p) { return p->stage == PEER_CONFIRMED; }

/* ---- beginning and ending ------------------------------------------------------------------------------------ */

static void set_deadline(struct replica *r) {
    uint32_t patience = r->takeover.attempts < 4 ? r->takeover.attempts : 4;
    r->takeover.deadline_us = r->now_us + ((8ull * r->config.request_us) << patience);
}

void takeover_begin(struct replica *r) {
    CHECK(r->role == REPLICA_FOLLOWER && r->confirmed == 0);
    struct takeover *t = &r->takeover;
    permission_take_own(r);
    if (r->damage != REPLICA_SOUND) return;
    r->role = REPLICA_CANDIDATE;
    r->evicted = 0;
    r->opened = UINT64_MAX; /* until the NOOP is proposed nothing is committed, whoever holds what is fed before it */
    if (r->config_ahead > r->commit.index) follow_extend(r); /* majorities count in what the own log ends with */
    *t = (struct takeover){.stage = TAKEOVER_PERMISSION, .members = bit(r->self), .source = REPLICA_NOBODY,
                           .attempts = t->attempts};
    t->ballot_seen = later(r->ballot, r->head->min_proposal);
    r->times = (struct replica_takeover){.suspected_us = r->leaderless_us, .requested_us = r->now_us};
    set_deadline(r);
    replica_publish_status(r);
    for (uint32_t i = 0; i < r->nodes; i++) {
        struct peer *p = &r->peers[i];
        if (i == r->self) continue;
        p->refusals = 0;
        p->retry_us = 0;
        if (p->linked && !config_is_gone(r, i)) permission_ask(r, i);
    }
}

static void end(struct replica *r) {
    r->role = REPLICA_FOLLOWER;
    r->takeover.stage = TAKEOVER_NONE;
    for (uint32_t i = 0; i < r->nodes; i++)
        if (i != r->self && r->peers[i].stage != PEER_APART) confirm_lose(r, i);
    r->confirmed = r->feeding = r->awaiting = 0;
    follow_reset(r);
}

void takeover_fail(struct replica *r) {
    CHECK(r->role == REPLICA_CANDIDATE);
    end(r);
    r->backoff_us = r->now_us + election_backoff(r, r->takeover.attempts);
    r->takeover.attempts++;
    r->wake_us = r->backoff_us;
    replica_publish_progress(r);
    replica_publish_status(r);
}

void takeover_permitted(struct replica *r, uint32_t peer) {
    struct takeover *t = &r->takeover;
    if (t->stage <= TAKEOVER_INSPECT) t->members |= bit(peer); /* later ones join the leader's way */
}

void takeover_lost(struct replica *r, uint32_t peer) {
    struct takeover *t = &r->takeover;
    t->members &= ~bit(peer);
    if (t->source == peer) t->source = REPLICA_NOBODY;
    if (t->stage > TAKEOVER_PERMISSION && !config_quorum(r, t->members)) takeover_fail(r);
}

/* ---- the steps: each returns true when it moved on ------------------------------------------------------------- */

static void ask_again(struct replica *r) {
    for (uint32_t i = 0; i < r->nodes; i++) {
        struct peer *p = &r->peers[i];
        if (i == r->self || !p->linked || config_is_gone(r, i)) continue;
        if (p->stage == PEER_APART && r->now_us >= p->retry_us) permission_ask(r, i);
        if (p->stage == PEER_ASKED && r->now_us - p->rung_us >= r->config.request_us) permission_ring(r, i);
    }
}

static bool permission(struct replica *r) {
    if (!config_quorum(r, r->takeover.members)) {
        ask_again(r);
        return false;
    }
    r->times.permitted_us = r->now_us;
    r->takeover.stage = TAKEOVER_INSPECT;
    return true;
}

static bool inspect(struct replica *r) {
    for (uint32_t rest = r->takeover.members & ~bit(r->self); rest; rest &= rest - 1)
        confirm_inspect(r, (uint32_t)__builtin_ctz(rest));
    if (r->role != REPLICA_CANDIDATE || !all(r, is_inspected)) return false;
    for (uint32_t rest = r->takeover.members & ~bit(r->self); rest; rest &= rest - 1)
        r->takeover.ballot_seen = later(r->takeover.ballot_seen, r->peers[__builtin_ctz(rest)].head);
    r->takeover.stage = TAKEOVER_CATCH_UP;
    return true;
}

/* The usable member that knows most to be decided; REPLICA_NOBODY when none knows more than this replica. */
static uint32_t most_advanced(const struct replica *r, bool *beyond) {
    uint32_t who = REPLICA_NOBODY;
    uint64_t most = r->commit.index;
    *beyond = false;
    for (uint32_t rest = r->takeover.members & ~bit(r->self); rest; rest &= rest - 1) {
        uint32_t i = (uint32_t)__builtin_ctz(rest);
        uint64_t index = r->peers[i].progress.index;
        if (index <= r->commit.index) continue;
        *beyond = true;
        if ((r->takeover.unusable & bit(i)) || index <= most) continue;
        /* What its ring holds before that was never decided for sure: it installed a snapshot over it. */
        if (r->peers[i].progress.oldest_position > r->commit.position) continue;
        most = index;
        who = i;
    }
    return who;
}

static void announce(struct replica *r);

static bool catch_up(struct replica *r) {
    struct takeover *t = &r->takeover;
    if (t->source != REPLICA_NOBODY) { /* being copied: each record is decided as it comes */
        struct walk *w = &r->peers[t->source].walk;
        walk_resume(r, t->source);
        follow_commit(r, r->last.index);
        if (!w->ended) return false;
        if (w->at.index < w->until) t->unusable |= bit(t->source);
        t->source = REPLICA_NOBODY;
        if (w->at.index == w->claim.index && w->at.hash != w->claim.hash) {
            r->damage = REPLICA_DIVERGED;
            takeover_fail(r);
        }
        return true;
    }
    bool beyond;
    uint32_t who = most_advanced(r, &beyond);
    if (!beyond) {
        follow_extend(r); /* what of the own log lies behind */
        announce(r);
        return true;
    }
    if (who == REPLICA_NOBODY) {
        r->damage = REPLICA_LAPPED;
        takeover_fail(r);
        return true;
    }
    const struct replica_progress *its = &r->peers[who].progress;
    uint64_t hash;
    follow_extend(r);
    if (follow_hash_at(r, its->index, &hash) && hash == its->hash) { /* held, only not known to be decided */
        follow_commit(r, its->index);
        return true;
    }
    follow_reset(r);
    t->source = who;
    walk_begin(r, who, WALK_COPY, r->commit, its->index);
    r->peers[who].walk.claim = (struct cursor){.index = its->index, .position = its->position, .hash = its->hash};
    return true;
}

static void announce(struct replica *r) {
    struct takeover *t = &r->takeover;
    uint64_t own = r->last.index > r->commit.index ? UINT64_MAX : 0; /* ballots in the own log count too */
    struct cursor at = r->commit;
    while (own && at.index < r->last.index) {
        t->ballot_seen = later(t->ballot_seen, ring_slot(&r->ring, at.position)->ballot);
        ring_step(&r->ring, &at);
    }
    r->ballot = ((t->ballot_seen >> 8) + (planted(PLANT_BALLOT_REUSED) && r->ballot ? 0 : 1)) << 8 | r->self;
    __atomic_store_n(&r->head->min_proposal, r->ballot, __ATOMIC_RELEASE);
    t->stage = TAKEOVER_SURVEY;
    for (uint32_t rest = t->members & ~bit(r->self); rest; rest &= rest - 1) {
        uint32_t i = (uint32_t)__builtin_ctz(rest);
        log_write(r, i, offsetof(struct replica_log_head, min_proposal), &r->ballot, sizeof r->ballot, POST_ANNOUNCE,
                  0);
        walk_begin(r, i, WALK_SURVEY, r->commit, 0);
    }
}

/* Ballot of the last record of the own log beyond the decided part; 0: none. */
static uint64_t own_ballot(const struct replica *r) {
    uint64_t ballot = 0;
    for (struct cursor at = r->commit; at.index < r->last.index; ring_step(&r->ring, &at))
        ballot = ring_slot(&r->ring, at.position)->ballot;
    return ballot;
}

static void match(struct replica *r);

static bool survey(struct replica *r) {
    struct takeover *t = &r->takeover;
    if (!all(r, is_surveyed)) return false;
    uint64_t ballot = own_ballot(r), index = r->last.index;
    uint32_t best = r->self;
    for (uint32_t rest = t->members & ~bit(r->self); rest; rest &= rest - 1) {
        uint32_t i = (uint32_t)__builtin_ctz(rest);
        const struct walk *w = &r->peers[i].walk;
        if (w->ballot >= r->ballot) { /* somebody has come after us */
            takeover_fail(r);
            return true;
        }
        if (w->ballot < ballot || (w->ballot == ballot && w->at.index <= index)) continue;
        best = i;
        ballot = w->ballot;
        index = w->at.index;
    }
    if (best == r->self || (planted(PLANT_PREPARE_SKIPPED) && r->committed_us)) {
        match(r);
        return true;
    }
    t->stage = TAKEOVER_ADOPT;
    t->source = best;
    struct cursor end_of_best = r->peers[best].walk.at;
    follow_reset(r);
    walk_begin(r, best, WALK_COPY, r->commit, index);
    r->peers[best].walk.claim = end_of_best;
    return true;
}

static bool adopt(struct replica *r) {
    struct takeover *t = &r->takeover;
    if (t->source == REPLICA_NOBODY) { /* it went away; what a majority holds is with the others, too */
        takeover_fail(r);
        return true;
    }
    struct peer *p = &r->peers[t->source];
    walk_resume(r, t->source);
    if (!p->walk.ended) return false;
    t->source = REPLICA_NOBODY;
    if (r->last.index != p->walk.claim.index || r->last.hash != p->walk.claim.hash) {
        takeover_fail(r);
        return true;
    }
    match(r);
    return true;
}

/* The log is chosen: the membership at its end is what counts from here on, whatever was in force before. Those that
 * granted it theirs before it read them must be a majority of that, and it must be a member itself. */
static void match(struct replica *r) {
    if (!(r->voting & bit(r->self)) || !config_quorum(r, r->takeover.members)) {
        takeover_fail(r); /* the next attempt begins with this log */
        return;
    }
    r->takeover.stage = TAKEOVER_MATCH;
    for (uint32_t rest = r->takeover.members & ~bit(r->self); rest; rest &= rest - 1) {
        uint32_t i = (uint32_t)__builtin_ctz(rest);
        struct peer *p = &r->peers[i];
        if (p->progress.index > r->last.index) {
            takeover_fail(r);
            return;
        }
        struct cursor end_of_its = p->walk.mode == WALK_SURVEY ? p->walk.at : p->walk.claim;
        uint64_t hash;
        p->stage = PEER_MATCHED;
        if (p->progress.index == r->commit.index && follow_hash_at(r, end_of_its.index, &hash) &&
            hash == end_of_its.hash) { /* mostly: what it holds is a prefix of what was chosen */
            confirm_peer(r, i, end_of_its);
            if (r->role != REPLICA_CANDIDATE) return;
            continue;
        }
        struct cursor from = {.index = p->progress.index, .position = p->progress.position, .hash = p->progress.hash};
        walk_begin(r, i, WALK_MATCH, from, 0);
    }
}

/* Those that hold the chosen log and have room for the NOOP: without a majority of them it is not proposed, for every
 * attempt that comes to nothing would leave one more in the ring. */
static uint32_t ready(struct replica *r) {
    uint64_t end = r->last.position + record_span(sizeof r->ballot);
    uint32_t members = 0;
    for (uint32_t rest = r->confirmed; rest && r->role == REPLICA_CANDIDATE; rest &= rest - 1) {
        uint32_t i = (uint32_t)__builtin_ctz(rest);
        const struct peer *p = &r->peers[i];
        if (i != r->self) confirm_feed(r, i);
        uint64_t applied = i == r->self ? r->applied.position : p->progress.applied_position;
        if ((i == r->self || (p->stage == PEER_CONFIRMED && p->sent.index == r->last.index)) &&
            end <= applied + r->ring.bytes)
            members |= bit(i);
    }
    return members;
}

static bool match_done(struct replica *r) {
    for (uint32_t rest = r->takeover.members & ~bit(r->self); rest; rest &= rest - 1) {
        uint32_t i = (uint32_t)__builtin_ctz(rest);
        struct peer *p = &r->peers[i];
        if (p->stage == PEER_MATCHED && p->walk.mode == WALK_MATCH && p->walk.ended) confirm_peer(r, i, p->walk.at);
        if (r->role != REPLICA_CANDIDATE) return true;
    }
    if (!all(r, is_confirmed)) return false;
    r->confirmed |= bit(r->self);
    uint32_t members = ready(r);
    if (r->role != REPLICA_CANDIDATE) return true;
    if (!(members & bit(r->self)) || !config_quorum(r, members)) return false; /* until more is applied */
    r->times.prepared_us = r->now_us;
    r->takeover.stage = TAKEOVER_OPEN;
    r->opened = r->last.index + 1;
    uint64_t *payload = (uint64_t *)(ring_slot(&r->ring, r->last.position) + 1);
    *payload = r->ballot; /* unlike any other leader's: logs differ in their hashes from here on */
    leader_append(r, RECORD_NOOP, 0, (struct record_origin){.node = r->self}, sizeof r->ballot);
    return true;
}

static bool open_term(struct replica *r) {
    for (uint32_t rest = r->feeding; rest && r->role == REPLICA_CANDIDATE; rest &= rest - 1)
        confirm_feed(r, (uint32_t)__builtin_ctz(rest));
    return r->role == REPLICA_LEADER;
}

/* The NOOP is committed, and with it everything before. */
void takeover_opened(struct replica *r) {
    r->role = REPLICA_LEADER;
    r->leader = r->self;
    r->takeover.stage = TAKEOVER_NONE;
    r->takeover.attempts = 0;
    r->times.opened_us = r->now_us;
    replica_publish_progress(r);
    replica_publish_status(r);
}

static bool step(struct replica *r) {
    switch (r->takeover.stage) {
    case TAKEOVER_NONE: return false;
    case TAKEOVER_PERMISSION: return permission(r);
    case TAKEOVER_INSPECT: return inspect(r);
    case TAKEOVER_CATCH_UP: return catch_up(r);
    case TAKEOVER_SURVEY: return survey(r);
    case TAKEOVER_ADOPT: return adopt(r);
    case TAKEOVER_MATCH: return match_done(r);
    case TAKEOVER_OPEN: return open_term(r);
    }
    return false;
}

bool takeover_advance(struct replica *r) {
    bool any = false;
    while (r->role == REPLICA_CANDIDATE && step(r)) any = true;
    if (r->role == REPLICA_CANDIDATE && (r->now_us > r->takeover.deadline_us || !election_may_lead(r))) takeover_fail(r);
    return any;
}
