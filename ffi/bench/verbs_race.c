/* verbs_race.c: see verbs_race.h. */
#include "bench/verbs_race.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/replica.h"
#include "fabric/verbs_state.h"

#ifdef VERBS_BUILT

#define RING_BYTES (1u << 20)
#define PIECE_BYTES_MAX (16u << 10)
#define BARE_BYTES 4096u
#define TICK_US 20000u
#define TURNS_BETWEEN_TICKS 256u /* far less than fills the ring */
#define LEAD_TICKS 2000u
#define SALT 0x72616365u

struct race {
    struct race_config config;
    struct verbs *nodes[FABRIC_NODES_MAX]; /* the cluster's */
    struct replica *replicas[FABRIC_NODES_MAX];
    struct verbs *bare[FABRIC_NODES_MAX];
    uint64_t sequence;
};

/* ---- making -------------------------------------------------------------------------------------------------------- */

static struct replica_config replica_settings(const struct race_config *c, uint32_t self) {
    return (struct replica_config){.self = self, .nodes = c->nodes, .ring_bytes = RING_BYTES, .piece_bytes_max = PIECE_BYTES_MAX,
                                   .salt = SALT, .suspect_us = 5000000, .fail_us = 10000000, .late_us = 5000000,
                                   .request_us = 1000000, .seed = self + 1};
}

static struct verbs *make(const struct race_config *c, uint32_t self, uint64_t log_bytes, uint64_t background_bytes, char *why,
                          uint32_t why_bytes) {
    struct verbs_config config = {.self = self, .nodes = c->nodes, .log_bytes = log_bytes, .background_bytes = background_bytes,
                                  .staging_bytes = 256u << 10, .gid_index = c->gid_index, .timeout = c->timeout, .retry_count = 7};
    memcpy(config.device, c->device, sizeof config.device);
    return verbs_new(&config, why, why_bytes);
}

static bool connect_all(struct verbs **all, uint32_t nodes, char *why, uint32_t why_bytes) {
    for (uint32_t i = 0; i < nodes; i++) {
        for (uint32_t j = 0; j < i; j++) {
            struct verbs_end here, there;
            if (verbs_describe(all[i], j, &here, why, why_bytes) || verbs_describe(all[j], i, &there, why, why_bytes)) return false;
            if (verbs_attach(all[i], j, &there, why, why_bytes) || verbs_attach(all[j], i, &here, why, why_bytes)) return false;
            CHECK(verbs_open_link(all[i], j) == 0 && verbs_open_link(all[j], i) == 0);
        }
    }
    for (uint32_t i = 0; i < nodes; i++) verbs_adopt(all[i]);
    return true;
}

static void turn(struct race *r, bool with_tick) {
    uint64_t now_us = verbs_now_ns() / 1000;
    for (uint32_t i = 0; i < r->config.nodes; i++) {
        struct replica *replica = r->replicas[i];
        if (with_tick) replica_tick(replica, now_us, TICK_US);
        while (replica_poll(replica, now_us) || verbs_outstanding(r->nodes[i])) continue;
        uint64_t index = 0;
        for (const struct record_header *h; (h = replica_next(replica));) index = h->index;
        if (index) replica_applied(replica, index);
    }
}

static bool lead(struct race *r) {
    uint32_t all = (1u << r->config.nodes) - 1;
    for (uint32_t i = 0; i < LEAD_TICKS; i++) {
        turn(r, true);
        if (replica_role(r->replicas[0]) == REPLICA_LEADER && replica_confirmed(r->replicas[0]) == all) return true;
    }
    return false;
}

static bool make_cluster(struct race *r, char *why, uint32_t why_bytes) {
    const struct race_config *c = &r->config;
    for (uint32_t i = 0; i < c->nodes; i++) {
        struct replica_config settings = replica_settings(c, i);
        r->nodes[i] = make(c, i, replica_log_bytes(&settings), replica_background_bytes(), why, why_bytes);
        if (r->nodes[i]) r->bare[i] = make(c, i, BARE_BYTES, BARE_BYTES, why, why_bytes);
        if (!r->bare[i]) return false;
        r->replicas[i] = replica_new(&settings, verbs_fabric(r->nodes[i]), verbs_log(r->nodes[i]), verbs_background(r->nodes[i]));
        CHECK(r->replicas[i] != NULL);
    }
    uint32_t inline_bytes = r->bare[0]->device.place.inline_bytes;
    if (record_bytes(c->payload_bytes) > inline_bytes) {
        snprintf(why, why_bytes, "the device sends no more than %u bytes inline: a smaller --payload-bytes", inline_bytes);
        return false;
    }
    if (!connect_all(r->nodes, c->nodes, why, why_bytes) || !connect_all(r->bare, c->nodes, why, why_bytes)) return false;
    for (uint32_t i = 0; i < c->nodes; i++) {
        for (uint32_t j = 0; j < c->nodes; j++)
            if (i != j) replica_peer_up(r->replicas[i], j, verbs_now_ns() / 1000);
        replica_set_eligible(r->replicas[i], i == 0);
    }
    if (lead(r)) return true;
    snprintf(why, why_bytes, "no leader with all followers confirmed");
    return false;
}

struct race *race_new(const struct race_config *config, char *why, uint32_t why_bytes) {
    if (config->nodes < 2 || config->nodes > FABRIC_NODES_MAX || config->payload_bytes > PIECE_BYTES_MAX || !config->payload_bytes ||
        config->payload_bytes > BARE_BYTES) {
        snprintf(why, why_bytes, "2 to %d nodes, records of 1 to %u bytes", FABRIC_NODES_MAX, BARE_BYTES);
        return NULL;
    }
    struct race *r = calloc(1, sizeof *r);
    CHECK(r != NULL);
    r->config = *config;
    if (make_cluster(r, why, why_bytes)) return r;
    race_free(r);
    return NULL;
}

void race_free(struct race *r) {
    if (!r) return;
    for (uint32_t i = 0; i < r->config.nodes; i++) replica_free(r->replicas[i]);
    for (uint32_t i = 0; i < r->config.nodes; i++) {
        verbs_free(r->nodes[i]);
        verbs_free(r->bare[i]);
    }
    free(r);
}

/* ---- the contestants ------------------------------------------------------------------------------------------------- */

static bool commit(struct race *r, const uint8_t *payload, uint32_t *took_ns) {
    struct replica *leader = r->replicas[0];
    struct record_origin origin = {.node = 0, .stream = 1, .sequence = ++r->sequence};
    uint64_t before = verbs_now_ns();
    int64_t index = replica_propose(leader, RECORD_COMMAND, 0, origin, payload, r->config.payload_bytes);
    while (index > 0 && replica_role(leader) == REPLICA_LEADER && replica_commit(leader) < (uint64_t)index)
        replica_poll(leader, before / 1000);
    *took_ns = (uint32_t)(verbs_now_ns() - before);
    return index > 0 && replica_commit(leader) >= (uint64_t)index;
}

/* As little as can be: a signalled inline write to each of so many peers, and their completions. */
static void bare_writes(struct race *r, const uint8_t *payload, uint32_t length, uint32_t peers, uint32_t *took_ns) {
    struct verbs *v = r->bare[0];
    uint64_t before = verbs_now_ns();
    for (uint32_t peer = 1; peer <= peers; peer++) {
        const struct verbs_link *link = v->peers[peer].link;
        struct ibv_sge piece = {.addr = (uintptr_t)payload, .length = length};
        struct ibv_send_wr send = {.wr_id = peer, .sg_list = &piece, .num_sge = 1, .opcode = IBV_WR_RDMA_WRITE,
                                   .send_flags = IBV_SEND_SIGNALED | IBV_SEND_INLINE,
                                   .wr.rdma = {.remote_addr = link->theirs.background_address, .rkey = link->theirs.background_key}};
        struct ibv_send_wr *bad;
        CHECK(ibv_post_send(link->out[FABRIC_BACKGROUND], &send, &bad) == 0);
    }
    for (uint32_t done = 0; done < peers;) {
        struct ibv_wc wc[FABRIC_NODES_MAX];
        int count = ibv_poll_cq(v->device.sent, FABRIC_NODES_MAX, wc);
        CHECK(count >= 0);
        for (int i = 0; i < count; i++) CHECK(wc[i].status == IBV_WC_SUCCESS);
        done += (uint32_t)count;
    }
    *took_ns = (uint32_t)(verbs_now_ns() - before);
}

bool race_run(struct race *r, uint32_t count, uint32_t parallel, uint32_t bare_bytes, uint32_t *commit_ns, uint32_t *one_ns, uint32_t *parallel_ns) {
    uint8_t payload[BARE_BYTES] = {0};
    CHECK(parallel < r->config.nodes && bare_bytes > 0 && bare_bytes <= r->bare[0]->device.place.inline_bytes);
    for (uint32_t i = 0; i < count; i++) {
        memcpy(payload, &i, sizeof i < r->config.payload_bytes ? sizeof i : 1);
        for (uint32_t k = 0; k < 3; k++) {
            switch ((i + k) % 3) { /* each follows each equally often */
            case 0:
                if (!commit(r, payload, &commit_ns[i])) return false;
                while (verbs_outstanding(r->nodes[0])) replica_poll(r->replicas[0], verbs_now_ns() / 1000); /* the slower ones' */
                break;
            case 1: bare_writes(r, payload, bare_bytes, 1, &one_ns[i]); break;
            default: bare_writes(r, payload, bare_bytes, parallel, &parallel_ns[i]); break;
            }
        }
        if (i % TURNS_BETWEEN_TICKS == 0) turn(r, true);
    }
    return true;
}

/* The writer holds the permission; `released`: it has told the owner that it needs it no more. */
static void settle(struct race *r, bool released) {
    struct fabric *writer = verbs_fabric(r->bare[0]);
    if (released) writer->ops->release(writer, 1);
    while (verbs_outstanding(r->bare[0])) verbs_progress(r->bare[0]);
}

static bool write_lands(struct race *r, uint64_t word) {
    struct fabric *writer = verbs_fabric(r->bare[0]);
    struct fabric_completion done = {.status = FABRIC_DOWN};
    writer->ops->post_write(writer, 1, FABRIC_LOG, 0, &word, sizeof word, word);
    while (writer->ops->poll(writer, &done, 1) == 0) continue;
    return done.status == FABRIC_DONE;
}

bool race_switch(struct race *r, uint32_t count, bool cycle, uint32_t *revoke_ns, uint32_t *grant_ns, uint32_t *accept_ns) {
    struct fabric *owner = verbs_fabric(r->bare[1]), *writer = verbs_fabric(r->bare[0]);
    owner->ops->revoke(owner);
    writer->ops->accept(writer, 1, owner->ops->grant(owner, 0));
    for (uint32_t i = 0; i < count; i++) {
        settle(r, !cycle);
        struct verbs_counters before = verbs_counters(r->bare[1]);
        uint64_t t0 = verbs_now_ns();
        owner->ops->revoke(owner);
        uint64_t t1 = verbs_now_ns(), epoch = owner->ops->grant(owner, 0), t2 = verbs_now_ns();
        writer->ops->accept(writer, 1, epoch);
        uint64_t t3 = verbs_now_ns();
        revoke_ns[i] = (uint32_t)(t1 - t0);
        grant_ns[i] = (uint32_t)(t2 - t1);
        accept_ns[i] = (uint32_t)(t3 - t2);
        if (!write_lands(r, i) || verbs_counters(r->bare[1]).cycles - before.cycles != cycle) return false;
    }
    return true;
}

bool race_agrees(struct race *r) {
    replica_flush_commit(r->replicas[0]);
    turn(r, true);
    turn(r, true);
    for (uint32_t i = 1; i < r->config.nodes; i++) {
        if (replica_commit(r->replicas[i]) != replica_commit(r->replicas[0])) return false;
        if (replica_hash(r->replicas[i]) != replica_hash(r->replicas[0])) return false;
    }
    return true;
}

#else

struct race *race_new(const struct race_config *config, char *why, uint32_t why_bytes) {
    (void)config;
    verbs_usable(why, why_bytes);
    return NULL;
}
void race_free(struct race *r) { (void)r; }
bool race_run(struct race *r, uint32_t count, uint32_t parallel, uint32_t bare_bytes, uint32_t *commit_ns, uint32_t *one_ns, uint32_t *parallel_ns) {
    return (void)r, (void)count, (void)parallel, (void)bare_bytes, (void)commit_ns, (void)one_ns, (void)parallel_ns, false;
}
bool race_switch(struct race *r, uint32_t count, bool cycle, uint32_t *revoke_ns, uint32_t *grant_ns, uint32_t *accept_ns) {
    return (void)r, (void)count, (void)cycle, (void)revoke_ns, (void)grant_ns, (void)accept_ns, false;
}
bool race_agrees(struct race *r) { return (void)r, false; }

#endif
