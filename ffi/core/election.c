/* election.c: who is alive, who leads, and when it is up to this replica to campaign. Everybody reads everybody's
 * heartbeat (pull): a slow network slows the reader, it does not silence the read. Suspicion is counted in time since the
 * heartbeat last moved, beyond what its owner promised; whoever woke late himself gives no verdict. */
#include <stddef.h>
#include <string.h>

#include "core/mix.h"
#include "core/replica_state.h"
#include "plant.h"

_Static_assert(offsetof(struct replica_background, progress) ==
                   offsetof(struct replica_background, status) + offsetof(struct peer_view, progress),
               "status and progress are read together");

/* ---- what a replica says of itself --------------------------------------------------------------------------- */

static uint64_t status_check(const struct replica_status *s) {
    return mix_words((const uint64_t[]){s->heartbeat, s->term, (uint64_t)s->role << 32 | s->leader,
                                        (uint64_t)s->eligible << 32 | s->interval_us, s->incarnation},
                     5);
}

static uint64_t progress_check(const struct replica_progress *p) {
    return mix_words((const uint64_t[]){p->index, p->position, p->hash, p->applied_index, p->applied_position,
                                        p->oldest_position, p->incarnation},
                     7);
}

static void store(uint64_t *to, uint64_t value) { __atomic_store_n(to, value, __ATOMIC_RELEASE); }
static void store32(uint32_t *to, uint32_t value) { __atomic_store_n(to, value, __ATOMIC_RELEASE); }

void replica_publish_status(struct replica *r) {
    struct replica_status *own = &r->background->status;
    store(&own->term, replica_term(r));
    store32(&own->role, r->role);
    store32(&own->leader, r->leader);
    store32(&own->eligible, election_may_lead(r));
    store32(&own->interval_us, r->interval_us);
    store(&own->incarnation, r->incarnation);
    store(&own->check, status_check(own));
}

void replica_publish_progress(struct replica *r) {
    struct replica_progress *own = &r->background->progress;
    r->dirty = false;
    store(&own->index, r->commit.index);
    store(&own->position, r->commit.position);
    store(&own->hash, r->commit.hash);
    store(&own->applied_index, r->applied.index);
    store(&own->applied_position, r->applied.position);
    store(&own->oldest_position, replica_oldest(r));
    store(&own->incarnation, r->incarnation);
    store(&own->check, progress_check(own));
}

/* ---- what the others say ------------------------------------------------------------------------------------- */

bool peer_view_whole(const struct peer_view *view, bool *status, bool *progress) {
    static const struct peer_view blank; /* never published yet */
    *status = view->status.check == status_check(&view->status);
    *progress = view->progress.check == progress_check(&view->progress) ||
                memcmp(&view->progress, &blank.progress, sizeof blank.progress) == 0;
    return *status && *progress;
}

void election_adopt_view(struct replica *r, struct peer *p, const struct peer_view *view) {
    bool status, progress;
    peer_view_whole(view, &status, &progress);
    if (status && view->status.incarnation != p->status.incarnation) { /* another life: it has shown nothing yet */
        p->known = p->alive = false;
        p->progress = (struct replica_progress){0};
    }
    uint64_t whose = status ? view->status.incarnation : p->status.incarnation;
    if (progress && (view->progress.incarnation == whose || view->progress.incarnation == 0)) {
        if (view->progress.applied_position != p->progress.applied_position) p->moved_us = r->now_us;
        p->progress = view->progress;
    }
    if (!status) return;
    p->status = view->status;
    if (!p->known || p->rebase) { /* moving is what counts, not having moved */
        p->known = true;
        p->rebase = false;
        p->heartbeat = view->status.heartbeat;
        p->seen_us = r->now_us;
        return;
    }
    if (view->status.heartbeat == p->heartbeat) return;
    p->heartbeat = view->status.heartbeat;
    p->seen_us = r->now_us;
    p->alive = true;
    p->suspected = false;
}

void election_sample(struct replica *r) {
    for (uint32_t i = 0; i < r->nodes; i++) {
        struct peer *p = &r->peers[i];
        if (i == r->self || !p->linked || p->sampling) continue;
        p->sampling = true;
        r->ops->post_read(r->fabric, i, FABRIC_BACKGROUND, offsetof(struct replica_background, status), &p->sample,
                          sizeof p->sample, post_id(POST_SAMPLE, p->link, 0));
    }
}

/* Whoever was ahead is gone: the own log, decided or not, goes on as far as anybody's, and may be needed for a majority. */
static void look_up(struct replica *r) {
    for (uint32_t i = 0; i < r->nodes; i++)
        if (i != r->self && r->peers[i].alive && r->peers[i].progress.index > r->commit.index) return;
    r->damage = REPLICA_SOUND;
    replica_publish_status(r);
}

/* The leader's ring no longer reaches back to here; without a leader, that of nobody who is ahead and may lead. What a ring
 * still holds is of no use where its owner never feeds anybody: it is no member any more, or its backend is down. Only if
 * all who are ahead are such, one of them may yet be copied by whoever leads. */
static bool out_of_reach(const struct replica *r) {
    uint32_t ahead = 0, heirs = 0, reaching = 0;
    for (uint32_t i = 0; i < r->nodes; i++) {
        const struct peer *p = &r->peers[i];
        if (i == r->self || !p->alive || p->progress.index <= r->commit.index) continue;
        if (r->leader != REPLICA_NOBODY && r->leader != i) continue;
        ahead |= bit(i);
        if (r->leader == i || (p->status.eligible && !config_is_gone(r, i))) heirs |= bit(i);
        if (p->progress.oldest_position <= r->commit.position) reaching |= bit(i);
    }
    uint32_t counting = heirs ? heirs : ahead;
    return counting != 0 && (reaching & counting) == 0;
}

static void look_behind(struct replica *r) {
    if (r->damage == REPLICA_LAPPED && r->leader == REPLICA_NOBODY) look_up(r);
    if (r->damage != REPLICA_SOUND || r->role != REPLICA_FOLLOWER || !out_of_reach(r)) return;
    follow_scan(r, UINT32_MAX); /* it may have come meanwhile */
    if (r->damage == REPLICA_SOUND && out_of_reach(r)) r->damage = REPLICA_LAPPED;
}

/* ---- verdicts ------------------------------------------------------------------------------------------------ */

/* An alive peer that says it leads; the highest term is right. */
static void find_leader(struct replica *r) {
    uint32_t leader = REPLICA_NOBODY;
    uint64_t term = 0;
    for (uint32_t i = 0; i < r->nodes; i++) {
        const struct peer *p = &r->peers[i];
        if (i == r->self || !p->alive || p->status.role != REPLICA_LEADER || p->status.term < term) continue;
        if (config_is_gone(r, i)) continue;
        leader = i;
        term = p->status.term;
    }
    if (r->role == REPLICA_LEADER) {
        if (leader == REPLICA_NOBODY || term < replica_term(r) || planted(PLANT_DEAF)) leader = r->self;
        else leader_step_down(r); /* a majority granted to somebody else since */
    }
    if (leader == REPLICA_NOBODY && r->leader != REPLICA_NOBODY) r->leaderless_us = r->now_us;
    if (leader != r->leader) r->takeover.attempts = 0;
    r->leader = leader;
}

void election_sampled(struct replica *r, uint32_t peer, bool done) {
    struct peer *p = &r->peers[peer];
    p->sampling = false;
    if (!done) return;
    election_adopt_view(r, p, &p->sample);
    find_leader(r);
}

void election_lost(struct replica *r, uint32_t peer) {
    struct peer *p = &r->peers[peer];
    p->alive = false;
    p->suspected = true;
    find_leader(r);
}

void election_verdict(struct replica *r) {
    for (uint32_t i = 0; i < r->nodes; i++) {
        struct peer *p = &r->peers[i];
        if (i == r->self) continue;
        uint64_t silent_us = r->now_us - sooner(p->seen_us, r->now_us);
        p->suspected = !p->alive || silent_us > (uint64_t)r->config.suspect_us + p->status.interval_us;
        if (p->alive && silent_us > (uint64_t)r->config.fail_us + p->status.interval_us) election_lost(r, i);
    }
    find_leader(r);
    look_behind(r);
}

/* ---- campaigning --------------------------------------------------------------------------------------------- */

bool election_may_lead(struct replica *r) {
    if (!r->eligible || r->damage != REPLICA_SOUND || r->now_us < r->hold_us || r->now_us < r->defer_us) return false;
    return r->role == REPLICA_CANDIDATE || config_is_member(r); /* a candidate's log may end anywhere; see takeover.c */
}

uint64_t election_backoff(struct replica *r, uint32_t attempts) {
    uint64_t base = (uint64_t)r->config.request_us << (attempts < 6 ? attempts : 6);
    return base / 2 + mix_next(&r->random) % (base + 1);
}

/* Somebody else has the better claim, and looks as if it would use it. */
static bool better_claim(const struct replica *r) {
    /* Without a leader for so long, whoever has the better claim cannot use it. */
    uint64_t patience_us = 8ull * r->config.fail_us * (r->self + 1);
    bool patient = r->now_us - r->leaderless_us <= patience_us;
    for (uint32_t i = 0; i < r->nodes; i++) {
        const struct peer *p = &r->peers[i];
        if (i == r->self || !p->alive || !patient || config_is_gone(r, i)) continue;
        if (i < r->self && p->status.eligible) return true;
        if (p->status.role == REPLICA_CANDIDATE && r->granted_to == i &&
            r->now_us - r->granted_us <= (uint64_t)r->config.fail_us + 4ull * r->config.request_us)
            return true;
    }
    return false;
}

void election_consider(struct replica *r) {
    r->wake_us = UINT64_MAX;
    if (r->role != REPLICA_FOLLOWER || r->leader != REPLICA_NOBODY || !election_may_lead(r)) return;
    if (!config_majority_alive(r) || better_claim(r)) return;
    if (r->paused && r->now_us >= r->planned_us) return;
    if (r->now_us < r->backoff_us) {
        r->wake_us = r->backoff_us;
        return;
    }
    takeover_begin(r);
}
