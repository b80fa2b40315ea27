/*
 * takeover.c: from elected to serving (R12), and back. In order: feed the own backend to the end of the last committed
 * EFFECT and wait until it has applied it; promote it; attach to its stream; log the EPOCH; log which commands no EFFECT
 * covers and run them, once ever (R13); only then serve. Stepping down closes whatever waits with an unknown outcome
 * (R10) and leaves the backend dirty unless it was still a replica (R16).
 *
 * The last resort: leaders that lost their majority one after the other leave dirty backends behind, and a node that forgot
 * meanwhile an empty one; then none could be filled from another. But as long as the log's last EPOCH is that of such a
 * backend, the backend holds all of the log, and beyond it only what nobody was told of. Where no node that is there may
 * lead otherwise it leads again, with the backend as it is: what that did beyond the log is logged, as its effects
 * always are, and what it may have run already is not run again.
 */
#include "engine/engine_state.h"
#include "plant.h"

static const struct record_origin NO_ORIGIN = {0, 0, 0};

#define RESORT_AFTER_US 500000u

/* Is the log's last history that of the own backend, which has gone on by itself since? */
static bool led_last(const struct engine *e) {
    const struct log_state *log = &e->log;
    if (e->backend != BACKEND_DIRTY || e->led_replid[0] == 0 || log->epochs_kept == 0) return false;
    const struct epoch_mark *last = &log->epochs[log->epochs_kept - 1];
    return last->leader == e->self && memcmp(last->replid, e->led_replid, REPLID_BYTES) == 0;
}

static bool last_resort(const struct engine *e) {
    return led_last(e) && e->resort_us != 0 && e->now_us - e->resort_us >= RESORT_AFTER_US;
}

void engine_update_eligible(struct engine *e) {
    bool first = e->config.seed && e->log.epoch == 0 && e->admin.socket.source.fd >= 0;
    bool fed = backend_follows(e);
    replica_set_eligible(e->replica, first || fed || e->backend > BACKEND_FED || last_resort(e));
}

bool backend_follows(const struct engine *e) {
    return e->backend == BACKEND_FED && (e->feed.streaming || e->machine.protocol != NULL);
}

void takeover_tick(struct engine *e) {
    bool nobody_else = link_leader(e) == REPLICA_NOBODY && replica_heirs(e->replica) == 0;
    bool possible = led_last(e) && nobody_else && e->takeover == TAKE_IDLE && e->admin.socket.source.fd >= 0;
    if (!possible && e->resort_us == 0) return;
    if (possible && e->resort_us == 0) e->resort_us = e->now_us;
    if (!possible) e->resort_us = 0;
    engine_update_eligible(e);
}

void backend_set(struct engine *e, enum backend_state state) {
    if (state == BACKEND_DIRTY && e->backend >= BACKEND_SYNCING) feed_stop(e);
    if (state == BACKEND_FED) e->feed.stays = false;
    if (state != BACKEND_FED) stale_close(e);
    if (state == BACKEND_DIRTY && e->machine.protocol != NULL) machine_dirty(e);
    bool filled = state == BACKEND_FED && e->backend == BACKEND_SYNCING;
    if (filled) engine_log(e, 20, "the backend holds the cluster's data and follows the log");
    e->backend = state;
    if (e->machine.protocol != NULL) machine_backend(e);
    if (filled) settings_hand_on(e);
    engine_update_eligible(e);
}

static void takeover_end(struct engine *e, enum backend_state state) {
    if (e->takeover == TAKE_IDLE) return;
    bool was_serving = engine_leads(e);
    if (e->takeover >= TAKE_EPOCH) memcpy(e->led_replid, e->stream.psync.replid, sizeof e->led_replid);
    e->resumes = false;
    handover_cancel(e, "this node does not lead any more");
    e->takeover = TAKE_IDLE;
    e->counters.stepdowns++;
    if (e->machine.protocol != NULL) {
        machine_recede(e);
        if (state != BACKEND_DOWN) state = BACKEND_FED; /* it has done nothing that is not in the log */
    } else {
        shared_close(e);
        stream_close(e);
    }
    turn_reset(e);
    owns_drop(e);
    e->client_pause = (struct client_pause){0}; /* it was this leader's */
    admin_settings_drop(e);
    waits_drop(e);
    censuses_drop(e);
    clients_unsettle(e);
    links_drop_held(e);
    if (was_serving) link_announce(e, false);
    e->context.busy = false;
    if (state != BACKEND_FED) feed_stop(e);
    backend_set(e, state);
}

void backend_lost(struct engine *e, const char *what) {
    if (e->backend == BACKEND_DOWN && e->admin.socket.source.fd < 0) return;
    engine_log(e, 30, "the backend is lost: %s", what);
    if (e->takeover != TAKE_IDLE) {
        takeover_end(e, e->takeover == TAKE_FEED ? BACKEND_FED : BACKEND_DOWN);
        replica_resign(e->replica, e->now_us);
    }
    e->feed.stays = e->backend == BACKEND_FED || e->feed.stays; /* one that merely hung goes on where it was */
    if (!e->feed.stays) feed_stop(e);
    claim_lost(e);
    e->led_replid[0] = 0;
    if (e->machine.protocol != NULL) {
        e->feed.stays = false;
        shared_close(e);
    }
    admin_close(e);
    backend_set(e, BACKEND_DOWN);
    e->admin.left_alone = true;
    engine_tell(e, ENGINE_BACKEND_LOST, 0, 0);
}

static void takeover_fail(struct engine *e, const char *why) {
    engine_log(e, 40, "the take-over failed: %s", why);
    takeover_end(e, e->takeover == TAKE_FEED ? BACKEND_FED : BACKEND_DIRTY);
    replica_resign(e->replica, e->now_us);
}

void backend_changed(struct engine *e, const char *what) {
    engine_log(e, 40, "the backend holds other data than the log says: %s", what);
    takeover_end(e, BACKEND_DIRTY);
    replica_resign(e->replica, e->now_us);
}

/* The own backend led when the log ended, and goes on from there. */
static void takeover_resume(struct engine *e) {
    engine_log(e, 30, "no node's backend follows the log: this one led last, and goes on with what it has done since");
    feed_stop(e);
    memcpy(e->feed.told_replid, e->led_replid, sizeof e->feed.told_replid);
    e->resumes = true;
    e->takeover = TAKE_ATTACH;
    backend_set(e, BACKEND_PROMOTING);
    if (!shared_open(e) || !stream_open(e, false, e->log.effect_offset)) backend_lost(e, "it does not take connections");
}

static void takeover_begin(struct engine *e) {
    e->takeover_since_us = e->now_us;
    e->effect_index = e->log.effect_index;
    e->command_index = e->admin_index = e->covered_index = 0;
    e->counters.takeovers++;
    stale_close(e); /* soon it holds what is not committed */
    links_depose(e); /* a former leader that merely stands still has its link open */
    if (e->machine.protocol != NULL) return machine_takeover_begin(e);
    if (e->admin.socket.source.fd < 0) {
        replica_resign(e->replica, e->now_us);
        return;
    }
    if (e->log.epoch == 0) { /* the first leader: its backend's data is the cluster's */
        e->takeover = TAKE_ATTACH;
        backend_set(e, BACKEND_PROMOTING);
        if (!shared_open(e) || !stream_open(e, true, 0)) backend_lost(e, "it does not take connections");
        return;
    }
    if (last_resort(e)) return takeover_resume(e);
    if (e->backend != BACKEND_FED) {
        replica_resign(e->replica, e->now_us);
        return;
    }
    e->takeover = TAKE_FEED;
    if (!planted(PLANT_PROMOTED_EARLY)) feed_flush(e);
    admin_ask_role(e);
    if (!shared_open(e)) backend_lost(e, "it does not take connections");
}

/* A ROLE answer on the admin connection. */
void takeover_role(struct engine *e, bool is_master, uint64_t offset, bool connected) {
    e->counters.backend_offset = offset;
    if (e->backend == BACKEND_SYNCING && !is_master && connected && e->feed.streaming) backend_set(e, BACKEND_FED);
    if (e->backend == BACKEND_SYNCING && is_master && e->feed.stays) backend_set(e, BACKEND_DIRTY); /* it was started anew */
    if (!is_master && connected) feed_acknowledged(&e->feed, offset);
    if (!is_master && connected) handover_role(e, offset);
    if (e->takeover != TAKE_FEED) return;
    if (is_master) {
        takeover_fail(e, "the backend is no replica of its node any more");
        return;
    }
    bool applied = connected && offset == e->log.effect_offset;
    if (!applied && !planted(PLANT_PROMOTED_EARLY)) return;
    e->takeover = TAKE_PROMOTE;
    e->counters.takeover_fed_us = clock_ns() / 1000;
    backend_set(e, BACKEND_PROMOTING);
    static const char promote[] = "*3\r\n$9\r\nREPLICAOF\r\n$2\r\nNO\r\n$3\r\nONE\r\n";
    admin_send(e, ADMIN_PROMOTE, promote, sizeof promote - 1);
}

void takeover_promoted(struct engine *e) {
    if (e->takeover != TAKE_PROMOTE) return;
    e->counters.takeover_promoted_us = clock_ns() / 1000;
    e->takeover = TAKE_ATTACH;
    feed_stop(e);
    if (!stream_open(e, planted(PLANT_PROMOTED_EARLY), e->log.effect_offset)) backend_lost(e, "it does not let itself be replicated from");
}

void takeover_attached(struct engine *e, bool continued) {
    if (e->takeover != TAKE_ATTACH) return;
    e->counters.takeover_attached_us = clock_ns() / 1000;
    struct epoch_record epoch = {.kind = ADMIN_RECORD_EPOCH, .leader = e->self, .epoch = e->log.epoch + 1,
                                 .start = continued ? e->log.effect_offset : e->stream.cut_offset};
    memcpy(epoch.replid, e->stream.psync.replid, REPLID_BYTES);
    int64_t index = replica_propose(e->replica, RECORD_ADMIN, 0, NO_ORIGIN, &epoch, sizeof epoch);
    if (index <= 0) {
        takeover_fail(e, "the log did not take the epoch");
        return;
    }
    e->admin_index = e->effect_index = (uint64_t)index;
    e->takeover = TAKE_EPOCH;
}

/* ---- commands that were accepted but whose effect is in no record ------------------------------------------------------ */

static void rerun_log(struct engine *e) {
    struct log_state *log = &e->log;
    struct buffer set = {0};
    uint64_t kind = ADMIN_RECORD_RERUN, poisonous = 0;
    buffer_append(&set, &kind, sizeof kind);
    for (uint64_t i = log->uncovered.head; i < log->uncovered.tail; i++) {
        struct uncovered *u = queue_at(&log->uncovered, i);
        e->command_index = u->index;
        u->mine = !u->tried && !e->resumes;
        if (u->tried) poisonous++;
        else if (u->mine) buffer_append(&set, &u->index, sizeof u->index);
    }
    if (poisonous > 0) engine_log(e, 30, "%llu requests were tried by an earlier leader and broke it: dropped", (unsigned long long)poisonous);
    e->takeover = TAKE_RERUN_LOG;
    uint32_t most = (e->config.replica.piece_bytes_max - 8) / 8 * 8;
    size_t total = buffer_length(&set) - 8;
    for (size_t at = 0; at < total; at += most) {
        uint32_t length = (uint32_t)(total - at < most ? total - at : most);
        uint8_t *payload = replica_reserve(e->replica, RECORD_ADMIN, length + 8);
        int64_t index = -1;
        if (payload != NULL) {
            memcpy(payload, &kind, 8);
            memcpy(payload + 8, buffer_bytes(&set) + 8 + at, length);
            index = replica_propose_reserved(e->replica, RECORD_ADMIN, 0, NO_ORIGIN, length + 8);
        }
        if (index <= 0) {
            buffer_free(&set);
            takeover_fail(e, "the log did not take the set of commands to run again");
            return;
        }
        e->admin_index = (uint64_t)index;
    }
    if (total > 0) engine_log(e, 20, "runs %zu records of accepted commands whose effect is not known", total / 8);
    e->counters.rerun += total / 8;
    buffer_free(&set);
}

static void rerun_record(struct engine *e, const uint8_t *bytes, size_t length) {
    while (length > 0) {
        struct command_entry entry;
        CHECK(command_entry_read(bytes, length, &entry));
        const struct origin *o = &entry.origin;
        struct expect x = {.kind = EXPECT_RERUN, .replies = entry.replies, .swallow = entry.swallow, .database_after = -1,
                           .to = {o->node, o->slot, o->generation, o->sequence, 0},
                           .life = entry.flags & COMMAND_FORWARDED ? o->life : 0, .since_ns = e->now_ns};
        turn_forward(e, entry.database, entry.protocol, bytes + sizeof entry, entry.length, &x);
        if (entry.replies > 1) e->shared.database = -1; /* a transaction may have SELECTed */
        bytes += sizeof entry + entry.length;
        length -= sizeof entry + entry.length;
    }
}

/* The set is committed: what it names is marked as tried on every replica, and runs now, in log order. */
static void rerun_run(struct engine *e) {
    struct log_state *log = &e->log;
    const uint8_t *bytes = buffer_bytes(&log->uncovered_bytes);
    for (uint64_t i = log->uncovered.head; i < log->uncovered.tail; i++) {
        const struct uncovered *u = queue_at(&log->uncovered, i);
        if (u->mine) rerun_record(e, u->own ? u->own : bytes, u->length);
        if (u->own == NULL) bytes += u->length;
    }
    e->shared.unproven = true;
    e->takeover = TAKE_RERUN;
    turn_mark(e, e->admin_index);
}

static void serve(struct engine *e) {
    e->takeover = TAKE_SERVING;
    e->counters.takeover_served_us = e->now_us = clock_ns() / 1000;
    backend_set(e, BACKEND_LEADS);
    handover_serves(e, e->self);
    link_announce(e, true);
    clients_wake_all(e);
    slowlog_begin(e);
    engine_log(e, 20, "leads and serves in term %llu", (unsigned long long)e->term);
}

void takeover_step(struct engine *e) {
    struct shared *s = &e->shared;
    switch (e->takeover) {
        case TAKE_FEED:
            if (e->feed.sent_offset < e->feed.end_offset && !planted(PLANT_PROMOTED_EARLY)) feed_flush(e);
            admin_ask_role(e);
            break;
        case TAKE_EPOCH:
            if (e->machine.protocol != NULL) {
                if (e->machine.applied >= e->admin_index && machine_caught_up(e)) serve(e);
                break;
            }
            if (replica_commit(e->replica) >= e->admin_index) rerun_log(e);
            break;
        case TAKE_RERUN_LOG:
            if (replica_commit(e->replica) >= e->admin_index) rerun_run(e);
            break;
        case TAKE_RERUN:
            if (!s->unproven && queue_length(&s->expects) == 0 && queue_length(&s->gates) == 0) serve(e);
            break;
        default: return;
    }
    bool loading = e->takeover == TAKE_ATTACH && e->stream.psync.wants_full; /* a large seed takes its time */
    if (e->takeover != TAKE_IDLE && e->takeover != TAKE_SERVING && !loading &&
        e->now_us - e->takeover_since_us > e->config.takeover_timeout_us)
        takeover_fail(e, "it took longer than takeover_timeout_ms");
}

bool takeover_deposed(const struct engine *e) {
    return e->role == REPLICA_LEADER && (replica_role(e->replica) != REPLICA_LEADER || replica_term(e->replica) != e->term);
}

void takeover_step_down(struct engine *e) {
    if (!takeover_deposed(e)) return;
    e->role = REPLICA_CANDIDATE; /* until its role is followed */
    e->term = replica_term(e->replica);
    if (e->takeover == TAKE_IDLE) return;
    bool handed_over = handover_completed(e);
    engine_log(e, handed_over ? 20 : 30, "does not lead any more");
    takeover_end(e, e->takeover == TAKE_FEED ? BACKEND_FED : BACKEND_DIRTY);
    if (handed_over && e->machine.protocol == NULL) feed_go_on(e, e->handover.offset, e->handover.replid);
}

/* Follows what became of this node in the core. */
void takeover_follow_role(struct engine *e) {
    takeover_step_down(e);
    enum replica_role role = replica_role(e->replica);
    uint64_t term = replica_term(e->replica);
    if (role == e->role && (term == e->term || role != REPLICA_LEADER)) return;
    e->role = role;
    e->term = term;
    if (role != REPLICA_CANDIDATE) engine_tell(e, ENGINE_ROLE, role, term);
    if (role == REPLICA_LEADER) takeover_begin(e);
}
