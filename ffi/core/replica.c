/* replica.c: life of a replica, who drives it, and where completions go. */
#include "core/replica.h"

#include <string.h>

#include "core/replica_state.h"

/* ---- life ---------------------------------------------------------------------------------------------------- */

static uint64_t landing_span(const struct replica_config *c) {
    return later(record_span(c->piece_bytes_max), replica_limits.walk_bytes);
}

uint64_t replica_log_bytes(const struct replica_config *c) {
    uint64_t bytes = REPLICA_RING_OFFSET + c->ring_bytes + record_span(c->piece_bytes_max);
    return (bytes + 4095) & ~(uint64_t)4095;
}

uint64_t replica_background_bytes(void) { return sizeof(struct replica_background); }

static bool possible(const struct replica_config *c) {
    return c->nodes >= 1 && c->nodes <= FABRIC_NODES_MAX && c->self < c->nodes && c->ring_bytes >= 1024 &&
           c->ring_bytes <= 1u << 30 && (c->ring_bytes & (c->ring_bytes - 1)) == 0 && c->piece_bytes_max >= 8 &&
           c->piece_bytes_max <= c->ring_bytes / 4 && c->request_us > 0 && c->suspect_us > 0 &&
           c->fail_us >= c->suspect_us;
}

struct replica *replica_new(const struct replica_config *config, struct fabric *fabric, void *log, void *background) {
    _Static_assert(sizeof(struct replica_log_head) <= REPLICA_RING_OFFSET, "the head lies before the ring");
    if (!possible(config) || fabric->self != config->self) return NULL;
    struct replica *r = aligned_alloc(_Alignof(struct replica), sizeof *r); /* it holds images of whole lines */
    if (!r) return NULL;
    memset(r, 0, sizeof *r);
    r->landings = aligned_alloc(RECORD_ALIGN, landing_span(config) * config->nodes);
    if (!r->landings) {
        free(r);
        return NULL;
    }
    r->config = *config;
    r->self = config->self;
    r->nodes = config->nodes;
    r->salt = config->salt;
    r->fabric = fabric;
    r->ops = fabric->ops;
    r->head = log;
    r->background = background;
    r->limit = config->ring_bytes;
    r->leader = r->granted_to = REPLICA_NOBODY;
    r->wake_us = UINT64_MAX;
    r->random = config->seed ^ ((uint64_t)config->self << 32);
    ring_init(&r->ring, (uint8_t *)log + REPLICA_RING_OFFSET, config->ring_bytes, record_span(config->piece_bytes_max));
    for (uint32_t i = 0; i < r->nodes; i++) r->peers[i].walk.landing = r->landings + i * landing_span(config);
    if (!config_form(r)) {
        replica_free(r);
        return NULL;
    }
    return r;
}

void replica_free(struct replica *r) {
    if (!r) return;
    free(r->landings);
    free(r);
}

/* ---- completions --------------------------------------------------------------------------------------------- */

void log_write(struct replica *r, uint32_t peer, uint64_t offset, const void *bytes, uint32_t length,
               enum post_kind kind, uint64_t value) {
    struct peer *p = &r->peers[peer];
    p->log_posts++;
    r->posted_us = r->now_us;
    r->ops->post_write(r->fabric, peer, FABRIC_LOG, offset, bytes, length, post_id(kind, p->generation, value));
}

void log_read(struct replica *r, uint32_t peer, uint64_t offset, void *into, uint32_t length, enum post_kind kind) {
    struct peer *p = &r->peers[peer];
    p->log_posts++;
    r->ops->post_read(r->fabric, peer, FABRIC_LOG, offset, into, length, post_id(kind, p->generation, 0));
}

static void log_completed(struct replica *r, uint32_t peer, const struct fabric_completion *c) {
    struct peer *p = &r->peers[peer];
    enum post_kind kind = (enum post_kind)(c->id >> 56);
    uint64_t value = c->id & POST_VALUE_MASK;
    CHECK(p->log_posts > 0);
    p->log_posts--;
    if (kind == POST_WALK) p->walk.reading = false;
    if ((uint8_t)(c->id >> POST_VALUE_BITS) != p->generation || p->stage < PEER_PERMITTED) return;
    if (c->status != FABRIC_DONE) {
        confirm_lose(r, peer);
        return;
    }
    switch (kind) {
    case POST_RECORD:
        if (!p->pins && !confirm_landed(r, peer, value)) return;
        p->acked = value;
        if (value > r->commit.index) leader_commit(r);
        break;
    case POST_PROBE:
        p->probed = value;
        if (value > r->probed) leader_probed(r);
        break;
    case POST_HEAD: p->headed = true; break;
    case POST_ANNOUNCE: p->announced = true; break;
    case POST_WALK: walk_landed(r, peer); break;
    default: break;
    }
    if (p->stage == PEER_CONFIRMED && p->probing < r->probe) leader_probe_peer(r, peer); /* its queue was full */
}

static void background_completed(struct replica *r, uint32_t peer, const struct fabric_completion *c) {
    struct peer *p = &r->peers[peer];
    bool done = c->status == FABRIC_DONE;
    enum post_kind kind = (enum post_kind)(c->id >> 56);
    if (kind == POST_SAMPLE) election_sampled(r, peer, done);
    if (kind == POST_INSPECT) {
        p->inspecting = false;
        bool status, progress;
        if (done && p->inspect_generation == p->generation) {
            peer_view_whole(&p->inspect, &status, &progress);
            uint64_t whose = p->inspect.progress.incarnation; /* 0: nothing published yet */
            p->inspected = progress && (whose == p->grantor || whose == 0); /* torn, or another's: once more */
            if (p->inspected) p->progress = p->inspect.progress;
        }
    }
    if (!done && (uint8_t)(c->id >> POST_VALUE_BITS) == p->link) p->linked = false; /* until replica_peer_up() */
}

bool replica_complete(struct replica *r) {
    struct fabric_completion done[REPLICA_COMPLETIONS];
    bool any = false;
    int most = (int)replica_limits.completions;
    for (int count = most; count == most;) {
        count = r->ops->poll(r->fabric, done, most);
        for (int i = 0; i < count; i++) {
            CHECK(done[i].peer < r->nodes && done[i].peer != r->self);
            if (done[i].id >> 56 >= POST_RECORD) log_completed(r, done[i].peer, &done[i]);
            else background_completed(r, done[i].peer, &done[i]);
        }
        any |= count > 0;
    }
    return any;
}

/* ---- driving ------------------------------------------------------------------------------------------------- */

static bool role_step(struct replica *r) {
    if (r->awaiting && permission_collect(r)) return true;
    if (r->role == REPLICA_CANDIDATE) return takeover_advance(r);
    if (r->role == REPLICA_LEADER) return leader_poll(r);
    return follow_scan(r, replica_limits.scan_records);
}

bool replica_poll(struct replica *r, uint64_t now_us) {
    uint64_t commit = r->commit.index, probed = r->probed;
    enum replica_role role = r->role;
    bool any = false;
    r->now_us = now_us;
    /* Where completions come at once (shm) a whole take-over runs through here; a bound keeps one call short. */
    for (int round = 0; round < 64; round++) {
        bool completed = replica_complete(r);
        bool moved = permission_serve(r);
        moved |= role_step(r);
        any |= completed || moved;
        /* Completions alone: on a leader that is the request path, and whoever waits for more calls again. */
        if (!moved && (!completed || r->role == REPLICA_LEADER)) break;
    }
    if (now_us >= r->wake_us) election_consider(r);
    if (r->dirty && r->role != REPLICA_LEADER) replica_publish_progress(r);
    return any || r->commit.index != commit || r->probed != probed || r->role != role;
}

void replica_tick(struct replica *r, uint64_t now_us, uint32_t next_interval_us) {
    uint64_t late_us = now_us > r->tick_us ? now_us - r->tick_us : 0; /* tick_us: when this one was promised */
    if (r->tick_us && late_us > r->config.late_us)
        for (uint32_t i = 0; i < r->nodes; i++) r->peers[i].seen_us = sooner(r->peers[i].seen_us + late_us, now_us);
    if (!r->tick_us) r->leaderless_us = now_us;
    r->now_us = now_us;
    r->tick_us = now_us + next_interval_us;
    r->interval_us = next_interval_us;
    r->background->status.heartbeat++;
    replica_publish_status(r);
    election_sample(r);
    replica_complete(r);
    election_verdict(r);
    if (r->role == REPLICA_LEADER) leader_tick(r);
    if (r->role == REPLICA_FOLLOWER) follow_reset(r); /* look again at what lies behind: it may have been overwritten */
    election_consider(r);
    replica_publish_progress(r);
    replica_complete(r);
}

void replica_peer_down(struct replica *r, uint32_t peer, uint64_t now_us) {
    CHECK(peer < r->nodes && peer != r->self);
    r->now_us = now_us;
    r->peers[peer].rebase = true; /* it may have moved since we looked, before it stopped */
    replica_complete(r);
    if (r->peers[peer].stage != PEER_APART) confirm_lose(r, peer);
    election_lost(r, peer);
    election_consider(r);
}

void replica_peer_up(struct replica *r, uint32_t peer, uint64_t now_us) {
    CHECK(peer < r->nodes && peer != r->self);
    struct peer *p = &r->peers[peer];
    r->now_us = now_us;
    if (p->stage != PEER_APART) confirm_lose(r, peer); /* that was the former link */
    p->linked = true;
    p->link++;
    p->known = false;
    p->rebase = true;
    p->retry_us = 0;
}

void replica_set_eligible(struct replica *r, bool eligible) {
    if (r->eligible == eligible) return;
    r->eligible = eligible;
    replica_publish_status(r);
}

void replica_resign(struct replica *r, uint64_t now_us) {
    r->now_us = now_us;
    if (r->role == REPLICA_LEADER) leader_step_down(r);
    if (r->role == REPLICA_CANDIDATE) takeover_fail(r);
    r->hold_us = now_us + 4ull * r->config.fail_us; /* long enough for somebody else */
    replica_publish_status(r);
}

bool replica_campaign(struct replica *r, uint64_t now_us) {
    r->now_us = now_us;
    r->defer_us = 0;
    if (r->role != REPLICA_FOLLOWER || !election_may_lead(r)) return false;
    r->leaderless_us = now_us;
    r->planned_us = now_us + PLANNED_FACTOR * r->config.fail_us;
    takeover_begin(r);
    return r->role == REPLICA_CANDIDATE;
}

void replica_defer(struct replica *r, uint64_t until_us) {
    r->defer_us = until_us;
    replica_publish_status(r);
}

void replica_pause(struct replica *r, bool paused) { r->paused = paused; }

/* ---- accessors ----------------------------------------------------------------------------------------------- */

uint64_t replica_oldest(const struct replica *r) {
    uint64_t written = later(r->reserved_end, r->last.position);
    return later(r->base, written > r->ring.bytes ? written - r->ring.bytes : 0);
}

enum replica_role replica_role(const struct replica *r) { return r->role; }
uint32_t replica_leader(const struct replica *r) { return r->leader; }
uint64_t replica_commit(const struct replica *r) { return r->commit.index; }
uint64_t replica_last(const struct replica *r) { return r->last.index; }
uint64_t replica_hash(const struct replica *r) { return r->commit.hash; }
enum replica_damage replica_damage(const struct replica *r) { return r->damage; }
struct replica_takeover replica_takeover_times(const struct replica *r) { return r->times; }

uint32_t replica_source(const struct replica *r) {
    uint32_t source = REPLICA_NOBODY;
    uint64_t most = r->commit.index;
    for (uint32_t i = 0; i < r->nodes; i++) {
        const struct peer *p = &r->peers[i];
        if (i == r->self || !p->alive || p->progress.applied_index <= (i == r->leader ? r->commit.index : most)) continue;
        source = i;
        most = p->progress.applied_index;
        if (i == r->leader) break;
    }
    return source;
}

/* The own term while leading or campaigning; else that of the leader, or the last one announced here. */
uint64_t replica_term(const struct replica *r) {
    if (r->role != REPLICA_FOLLOWER) return r->ballot >> 8;
    if (r->leader != REPLICA_NOBODY && r->leader != r->self) return r->peers[r->leader].status.term;
    return __atomic_load_n(&r->head->min_proposal, __ATOMIC_ACQUIRE) >> 8;
}

uint32_t replica_suspects(const struct replica *r) {
    uint32_t mask = 0;
    for (uint32_t i = 0; i < r->nodes; i++)
        if (i != r->self && r->peers[i].suspected) mask |= bit(i);
    return mask;
}

uint32_t replica_alive(const struct replica *r) {
    uint32_t mask = bit(r->self);
    for (uint32_t i = 0; i < r->nodes; i++)
        if (i != r->self && r->peers[i].alive) mask |= bit(i);
    return mask;
}

uint32_t replica_evicted(const struct replica *r) { return r->role == REPLICA_LEADER ? r->evicted : 0; }

uint64_t replica_completed(const struct replica *r, uint32_t peer) { return replica_confirmed(r) & bit(peer) ? r->peers[peer].acked : 0; }

uint32_t replica_confirmed(const struct replica *r) { return r->role == REPLICA_LEADER ? r->confirmed : 0; }

uint32_t replica_heirs(const struct replica *r) {
    uint32_t mask = replica_confirmed(r) & ~bit(r->self);
    for (uint32_t rest = mask; rest; rest &= rest - 1) {
        const struct peer *p = &r->peers[__builtin_ctz(rest)];
        if (!p->alive || p->suspected || !p->status.eligible) mask &= ~(rest & -rest);
    }
    return mask;
}

uint64_t replica_deadline_us(const struct replica *r) {
    uint64_t deadline_us = r->wake_us;
    if (r->role == REPLICA_CANDIDATE) deadline_us = r->now_us + r->config.request_us;
    if (r->role == REPLICA_LEADER)
        for (uint32_t i = 0; i < r->nodes; i++)
            if (i != r->self && r->peers[i].linked && r->peers[i].alive && r->peers[i].stage == PEER_APART &&
                !config_is_gone(r, i))
                deadline_us = sooner(deadline_us, later(r->peers[i].retry_us, r->now_us + r->config.request_us));
    return deadline_us;
}
