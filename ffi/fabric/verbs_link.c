/* verbs_link.c: the queue pairs between this node and a peer. Four: an `out` and an `in` for each region; the `out` of
 * one end is connected to the `in` of the other. */
#include "fabric/verbs_state.h"

#ifdef VERBS_BUILT

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#define HOPS_MAX 64
#define RNR_TIMER 6     /* a wake-up that finds no room is sent again after 80 us ... */
#define RNR_FOR_EVER 7  /* ... without end: a stopped peer is no broken one */

static int say(char *why, uint32_t why_bytes, const char *text) {
    if (why_bytes > 0) snprintf(why, why_bytes, "%s", text);
    return -1;
}

/* ---- one queue pair ------------------------------------------------------------------------------------------------ */

static struct ibv_qp *make(struct verbs *v, enum fabric_region region, bool out) {
    uint32_t receives = !out && region == FABRIC_BACKGROUND ? VERBS_RINGS : 1;
    struct ibv_qp_init_attr wanted = {.send_cq = v->device.sent, .recv_cq = v->device.rung, .qp_type = IBV_QPT_RC, .sq_sig_all = 0,
                                      .cap = {.max_send_wr = out ? v->device.place.queue_depth : 1, .max_recv_wr = receives,
                                              .max_send_sge = 1, .max_recv_sge = 1,
                                              .max_inline_data = out ? v->device.place.inline_bytes : 0}};
    return v->device.lib->create_qp(v->device.domains[region], &wanted);
}

struct ibv_qp *verbs_make_in(struct verbs *v, enum fabric_region region) { return make(v, region, false); }

bool verbs_reset(struct verbs *v, struct ibv_qp *pair) {
    struct ibv_qp_attr attributes = {.qp_state = IBV_QPS_RESET};
    return v->device.lib->modify_qp(pair, &attributes, IBV_QP_STATE) == 0;
}

void verbs_stop(struct verbs *v, struct ibv_qp *pair) {
    struct ibv_qp_attr attributes = {.qp_state = IBV_QPS_ERR};
    if (v->device.lib->modify_qp(pair, &attributes, IBV_QP_STATE)) CHECK(verbs_reset(v, pair));
}

static bool to_init(struct verbs *v, struct ibv_qp *pair, unsigned access) {
    struct ibv_qp_attr a = {.qp_state = IBV_QPS_INIT, .pkey_index = 0, .port_num = (uint8_t)v->device.place.port,
                            .qp_access_flags = access};
    return v->device.lib->modify_qp(pair, &a, IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS) == 0;
}

static bool to_ready_to_receive(struct verbs *v, const struct verbs_link *link, struct ibv_qp *pair, uint32_t number, uint32_t psn) {
    const struct verbs_place *place = &v->device.place;
    struct ibv_qp_attr a = {.qp_state = IBV_QPS_RTR, .path_mtu = link->mtu, .dest_qp_num = number, .rq_psn = psn,
                            .max_dest_rd_atomic = (uint8_t)v->device.reads, .min_rnr_timer = RNR_TIMER,
                            .ah_attr = {.dlid = (uint16_t)link->theirs.lid, .port_num = (uint8_t)place->port}};
    if (place->gid_index >= 0) {
        a.ah_attr.is_global = 1;
        a.ah_attr.grh.sgid_index = (uint8_t)place->gid_index;
        a.ah_attr.grh.hop_limit = HOPS_MAX;
        memcpy(a.ah_attr.grh.dgid.raw, link->theirs.gid, sizeof link->theirs.gid);
    }
    return v->device.lib->modify_qp(pair, &a, IBV_QP_STATE | IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN | IBV_QP_RQ_PSN |
                                                  IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER) == 0;
}

static bool to_ready_to_send(struct verbs *v, struct ibv_qp *pair, uint32_t psn) {
    struct ibv_qp_attr a = {.qp_state = IBV_QPS_RTS, .timeout = (uint8_t)v->device.timeout,
                            .retry_cnt = (uint8_t)v->device.retry_count, .rnr_retry = RNR_FOR_EVER, .sq_psn = psn,
                            .max_rd_atomic = (uint8_t)v->device.reads};
    return v->device.lib->modify_qp(pair, &a, IBV_QP_STATE | IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY | IBV_QP_SQ_PSN |
                                                  IBV_QP_MAX_QP_RD_ATOMIC) == 0;
}

bool verbs_connect(struct verbs *v, const struct verbs_link *link, struct ibv_qp *pair, uint32_t number, uint32_t psn_theirs,
                   uint32_t psn_own, unsigned access) {
    return to_init(v, pair, access) && to_ready_to_receive(v, link, pair, number, psn_theirs) && to_ready_to_send(v, pair, psn_own);
}

/* ---- making a link ------------------------------------------------------------------------------------------------- */

void verbs_link_free(struct verbs *v, struct verbs_link *link) {
    if (!link) return;
    for (int i = 0; i < FABRIC_REGIONS; i++) {
        if (link->out[i]) v->device.lib->destroy_qp(link->out[i]);
        if (link->in[i]) v->device.lib->destroy_qp(link->in[i]);
    }
    if (link->retired) v->device.lib->destroy_qp(link->retired);
    free(link);
}

static void describe(const struct verbs *v, struct verbs_link *link) {
    const struct verbs_place *place = &v->device.place;
    link->own = (struct verbs_end){.layout = VERBS_LAYOUT, .node = v->config.self, .mtu = place->mtu, .lid = place->lid,
                                   .is_ethernet = place->is_ethernet, .log_bytes = v->config.log_bytes,
                                   .background_bytes = v->config.background_bytes,
                                   .log_address = (uintptr_t)v->memory[FABRIC_LOG],
                                   .background_address = (uintptr_t)v->memory[FABRIC_BACKGROUND],
                                   .log_key = v->keys[FABRIC_LOG]->rkey, .background_key = v->keys[FABRIC_BACKGROUND]->rkey};
    memcpy(link->own.gid, place->gid, sizeof place->gid);
    for (int i = 0; i < FABRIC_REGIONS; i++) {
        link->own.out_number[i] = link->out[i]->qp_num;
        link->own.in_number[i] = link->in[i]->qp_num;
    }
}

int verbs_describe(struct verbs *v, uint32_t peer, struct verbs_end *own, char *why, uint32_t why_bytes) {
    if (peer >= v->config.nodes || peer == v->config.self) return say(why, why_bytes, "there is no such peer");
    struct verbs_peer *p = &v->peers[peer];
    struct verbs_link *link = calloc(1, sizeof *link);
    if (!link) return say(why, why_bytes, "out of memory");
    verbs_link_free(v, p->making);
    p->making = link;
    for (int i = 0; i < FABRIC_REGIONS; i++) {
        link->out[i] = make(v, (enum fabric_region)i, true);
        if (link->out[i]) link->in[i] = make(v, (enum fabric_region)i, false);
        if (link->in[i]) continue;
        if (why_bytes > 0) snprintf(why, why_bytes, "%s gives no queue pair: %s", v->device.place.device, strerror(errno));
        return -1;
    }
    uint32_t psn[2 * FABRIC_REGIONS];
    uint64_t life;
    if (getrandom(psn, sizeof psn, 0) != (ssize_t)sizeof psn || getrandom(&life, sizeof life, 0) != (ssize_t)sizeof life)
        return say(why, why_bytes, strerror(errno));
    describe(v, link);
    link->own.life = life | 1;
    for (int i = 0; i < FABRIC_REGIONS; i++) {
        link->own.out_psn[i] = psn[2 * i] & VERBS_NUMBER_MASK;
        link->own.in_psn[i] = psn[2 * i + 1] & VERBS_NUMBER_MASK;
    }
    *own = link->own;
    return 0;
}

/* Whatever the two nodes must have in common. */
static int match(const struct verbs *v, const struct verbs_end *own, const struct verbs_end *theirs, char *why, uint32_t why_bytes) {
    uint32_t node = theirs->node + 1;
    if (theirs->layout != VERBS_LAYOUT) return say(why, why_bytes, "it runs another version of musidecar: install the same everywhere");
    if (theirs->is_ethernet != own->is_ethernet)
        return say(why, why_bytes, "one of the two is on InfiniBand, the other on Ethernet: name devices of one network in verbs.device");
    if (theirs->log_bytes != own->log_bytes || theirs->background_bytes != own->background_bytes) {
        snprintf(why, why_bytes, "node %u has a log of %llu bytes, node %u one of %llu: give all nodes the same limits.ring_bytes and "
                                 "piece_bytes_max, in one configuration file", own->node + 1, (unsigned long long)own->log_bytes, node,
                 (unsigned long long)theirs->log_bytes);
        return -1;
    }
    if (theirs->mtu == own->mtu) return 0;
    snprintf(why, why_bytes, "node %u has MTU %u (%s), node %u has %u: set verbs.mtu = %u for all, or give the interfaces the same MTU",
             own->node + 1, own->mtu, v->device.place.device, node, theirs->mtu, own->mtu < theirs->mtu ? own->mtu : theirs->mtu);
    return -1;
}

int verbs_attach(struct verbs *v, uint32_t peer, const struct verbs_end *theirs, char *why, uint32_t why_bytes) {
    struct verbs_link *link = peer < v->config.nodes ? v->peers[peer].making : NULL;
    if (!link) return say(why, why_bytes, "nothing was told to this peer");
    if (theirs->node != peer || !theirs->life) return say(why, why_bytes, "it is another node");
    if (match(v, &link->own, theirs, why, why_bytes)) return -1;
    link->theirs = *theirs;
    link->mtu = v->device.mtu;
    struct verbs_end *own = &link->own;
    for (int i = 0; i < FABRIC_REGIONS; i++) {
        unsigned access = IBV_ACCESS_REMOTE_READ | (i == FABRIC_BACKGROUND ? IBV_ACCESS_REMOTE_WRITE : 0);
        if (verbs_connect(v, link, link->in[i], theirs->out_number[i], theirs->out_psn[i], own->in_psn[i], access) &&
            verbs_connect(v, link, link->out[i], theirs->in_number[i], theirs->in_psn[i], own->out_psn[i], 0))
            continue;
        snprintf(why, why_bytes, "%s (GID index %d) cannot connect to node %u: %s: are the two on one network, and is "
                                 "verbs.gid_index of the same kind on both?", v->device.place.device, v->device.place.gid_index,
                 peer + 1, strerror(errno));
        return -1;
    }
    for (uint32_t i = 0; i < VERBS_RINGS; i++) {
        struct ibv_recv_wr ring = {.wr_id = peer}, *bad;
        if (ibv_post_recv(link->in[FABRIC_BACKGROUND], &ring, &bad)) return say(why, why_bytes, "no receive can be posted");
    }
    struct verbs_peer *p = &v->peers[peer];
    p->making = NULL;
    atomic_store(&p->attached, link->theirs.life);
    verbs_link_free(v, atomic_exchange(&p->coming, link));
    return 0;
}

int verbs_open_link(struct verbs *v, uint32_t peer) {
    struct verbs_peer *p = peer < v->config.nodes ? &v->peers[peer] : NULL;
    if (!p || !atomic_load(&p->coming)) {
        errno = p && verbs_is_open(v, peer) ? EBUSY : ENOTCONN;
        return -1;
    }
    atomic_fetch_or(&v->arrivals, 1u << peer);
    return 0;
}

uint64_t verbs_life(const struct verbs *v, uint32_t peer) { return atomic_load(&v->peers[peer].attached); }

bool verbs_is_broken(const struct verbs *v, uint32_t peer) { return atomic_load(&v->peers[peer].cut); }

bool verbs_is_open(const struct verbs *v, uint32_t peer) {
    uint64_t life = verbs_life(v, peer);
    return life && atomic_load(&v->peers[peer].adopted) == life;
}

/* ---- by the engine's thread ------------------------------------------------------------------------------------------ */

static void adopt_one(struct verbs *v, uint32_t peer) {
    struct verbs_peer *p = &v->peers[peer];
    struct verbs_link *link = atomic_exchange(&p->coming, NULL);
    if (!link) return;
    for (uint32_t i = 0; i < FABRIC_REGIONS; i++) {
        struct verbs_queue *q = p->queues[i];
        if (p->link) verbs_stop(v, p->link->out[i]);
        verbs_give_up(v, peer, i, FABRIC_DOWN);
        q->session++;
        q->broken = false;
    }
    verbs_link_free(v, p->link);
    p->link = link;
    atomic_store(&p->adopted, link->theirs.life);
    p->token = p->epoch_seen = 0;
    p->failed = p->in_failed = false;
    atomic_store(&p->cut, false);
    p->connected = link->theirs.in_number[FABRIC_LOG];
    p->granted = 0;
    /* Both ends begin to count at a number that no other life of the link has used. */
    struct verbs_word *said = &v->control->writers[peer];
    p->cycles_wanted = link->own.life;
    p->wanted_seen = link->theirs.life;
    __atomic_store_n(&said->released, 0, __ATOMIC_RELAXED);
    __atomic_store_n(&said->cycles_wanted, link->theirs.life, __ATOMIC_RELEASE);
    if (v->holder != peer) return;
    v->holder = VERBS_NOBODY; /* a permission does not outlive the link it was given on */
    v->epoch++;
}

void verbs_adopt(struct verbs *v) {
    if (!atomic_load_explicit(&v->arrivals, memory_order_relaxed)) return;
    uint32_t mask = atomic_exchange(&v->arrivals, 0);
    for (uint32_t rest = mask; rest; rest &= rest - 1) adopt_one(v, (uint32_t)__builtin_ctz(rest));
}

#endif
