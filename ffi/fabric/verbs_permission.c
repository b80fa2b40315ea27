/* verbs_permission.c: who may write the own log, and which logs this node may write.
 *
 * Permission is the access flags of the owner's end of the log's queue pair. Flags alone do not tell one grant to a peer
 * from the next one to the same peer: a write that it posted under the former would land under the latter. So the fast
 * path, the flags, is taken for the first grant on a queue pair, and later only when the peer has released the former one
 * (it writes nothing more under it) and neither end has failed. Otherwise both ends are cycled: the owner connects a fresh
 * queue pair, the writer resets its own; the grant epoch carries the number of the owner's, and both ends derive the
 * packet numbers from it. What was under way to the former queue pair finds nobody there who takes it. */
#include "fabric/verbs_state.h"

#ifdef VERBS_BUILT

#include <sched.h>
#include <stddef.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "core/mix.h"
#include "failpoint.h"
#include "plant.h"

#define MEMBARRIER_GLOBAL 1

/* ---- the owner's side -------------------------------------------------------------------------------------------------- */

static bool set_flags(struct verbs *v, struct ibv_qp *pair, bool writable) {
    struct ibv_qp_attr attributes = {.qp_state = IBV_QPS_RTS,
                                     .qp_access_flags = IBV_ACCESS_REMOTE_READ | (writable ? IBV_ACCESS_REMOTE_WRITE : 0u)};
    return v->device.lib->modify_qp(pair, &attributes, IBV_QP_STATE | IBV_QP_ACCESS_FLAGS) == 0;
}

/* A software device looks at the flags and then copies, on whichever processor the packet came in, without being
 * preempted: when this thread has been on each of them, nothing that began under the old flags is left. */
static void await_packets(void) {
    cpu_set_t allowed, one;
    if (sched_getaffinity(0, sizeof allowed, &allowed) || CPU_COUNT(&allowed) < sysconf(_SC_NPROCESSORS_ONLN)) {
        CHECK(syscall(SYS_membarrier, MEMBARRIER_GLOBAL, 0, 0) == 0); /* slower: waits for a grace period of the kernel */
        return;
    }
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
        if (!CPU_ISSET(cpu, &allowed)) continue;
        CPU_ZERO(&one);
        CPU_SET(cpu, &one);
        sched_setaffinity(0, sizeof one, &one); /* fails for a processor that has gone: so have its packets */
    }
    sched_setaffinity(0, sizeof allowed, &allowed);
}

void verbs_revoke(struct fabric *f) {
    struct verbs *v = verbs_of(f);
    verbs_adopt(v);
    uint32_t holder = v->holder;
    v->holder = VERBS_NOBODY;
    v->epoch++;
    v->counters.revocations++;
    failpoint(FAIL_REVOKING);
    if (holder == VERBS_NOBODY || holder == v->config.self || planted(PLANT_NO_REVOKE)) return;
    struct verbs_peer *p = &v->peers[holder];
    if (v->config.always_cycle || !set_flags(v, p->link->in[FABRIC_LOG], false)) {
        p->in_failed = true;
        verbs_stop(v, p->link->in[FABRIC_LOG]);
    }
    if (v->device.place.is_software) await_packets();
    failpoint(FAIL_REVOKED);
}

static uint32_t packet_number(uint64_t epoch, uint64_t whose) {
    return (uint32_t)mix_words((const uint64_t[]){epoch, whose}, 2) & VERBS_NUMBER_MASK;
}

/* A fresh queue pair in place of in[FABRIC_LOG], writable. False: the device gives none. */
static bool cycle(struct verbs *v, uint32_t peer, uint64_t counter) {
    struct verbs_link *link = v->peers[peer].link;
    struct ibv_qp *fresh = verbs_make_in(v, FABRIC_LOG);
    if (!fresh) return false;
    uint64_t epoch = counter << VERBS_NUMBER_BITS | fresh->qp_num;
    if (!verbs_connect(v, link, fresh, link->theirs.out_number[FABRIC_LOG], packet_number(epoch, 1), packet_number(epoch, 2),
                       IBV_ACCESS_REMOTE_READ | IBV_ACCESS_REMOTE_WRITE)) {
        v->device.lib->destroy_qp(fresh);
        return false;
    }
    if (link->retired) v->device.lib->destroy_qp(link->retired);
    link->retired = link->in[FABRIC_LOG];
    link->in[FABRIC_LOG] = fresh;
    return true;
}

static bool give(struct verbs *v, uint32_t peer, uint64_t counter) {
    struct verbs_peer *p = &v->peers[peer];
    const struct verbs_word *said = &v->control->writers[peer];
    uint64_t wanted = __atomic_load_n(&said->cycles_wanted, __ATOMIC_ACQUIRE);
    bool clear = !p->granted || __atomic_load_n(&said->released, __ATOMIC_ACQUIRE) == p->granted;
    bool sound = !v->config.always_cycle && wanted == p->wanted_seen && !p->in_failed;
    p->wanted_seen = wanted;
    uint64_t start = verbs_now_ns(), *longest;
    if (clear && sound && set_flags(v, p->link->in[FABRIC_LOG], true)) {
        v->counters.flags++;
        longest = &v->counters.flags_ns_max;
    } else {
        p->in_failed = !cycle(v, peer, counter);
        if (p->in_failed) return false;
        v->counters.cycles++;
        longest = &v->counters.cycle_ns_max;
    }
    uint64_t took = verbs_now_ns() - start;
    if (took > *longest) *longest = took;
    return true;
}

uint64_t verbs_grant(struct fabric *f, uint32_t peer) {
    struct verbs *v = verbs_of(f);
    verbs_adopt(v);
    CHECK(peer < v->config.nodes && v->holder == VERBS_NOBODY);
    uint64_t epoch = ++v->epoch << VERBS_NUMBER_BITS;
    struct verbs_peer *p = &v->peers[peer];
    if (peer == v->config.self) v->holder = peer;
    if (p->link && give(v, peer, v->epoch)) {
        v->holder = peer;
        epoch |= p->link->in[FABRIC_LOG]->qp_num;
        p->granted = epoch;
    }
    failpoint(FAIL_GRANTED);
    return epoch;
}

bool verbs_holds_own(struct fabric *f) { return verbs_of(f)->holder == verbs_of(f)->config.self; }

/* ---- the writer's side ------------------------------------------------------------------------------------------------- */

static void tell(struct verbs *v, uint32_t peer, uint64_t released) {
    struct verbs_word word = {.released = released, .cycles_wanted = v->peers[peer].cycles_wanted};
    uint64_t offset = v->control_offset + offsetof(struct verbs_control, writers) + v->config.self * sizeof word;
    verbs_post_internal(v, peer, VERBS_WRITE, offset, &word, offsetof(struct verbs_word, cycles_wanted) + sizeof word.cycles_wanted);
}

void verbs_tell_broken(struct verbs *v, uint32_t peer) {
    struct verbs_peer *p = &v->peers[peer];
    p->failed = true;
    p->cycles_wanted++;
    tell(v, peer, p->token);
    p->token = 0;
}

void verbs_release(struct fabric *f, uint32_t peer) {
    struct verbs *v = verbs_of(f);
    struct verbs_peer *p = &v->peers[peer];
    if (!p->token) return;
    uint64_t token = p->token;
    p->token = 0;
    tell(v, peer, token);
}

/* Connects out[FABRIC_LOG] to the queue pair of that number. */
static bool reconnect(struct verbs *v, uint32_t peer, uint64_t epoch, uint32_t number) {
    struct verbs_peer *p = &v->peers[peer];
    struct ibv_qp *pair = p->link->out[FABRIC_LOG];
    if (!verbs_reset(v, pair)) return false;
    verbs_give_up(v, peer, FABRIC_LOG, FABRIC_REFUSED); /* under the new permission a post from before would land */
    p->connected = number;
    p->failed = !verbs_connect(v, p->link, pair, number, packet_number(epoch, 2), packet_number(epoch, 1), 0);
    return !p->failed;
}

void verbs_accept(struct fabric *f, uint32_t peer, uint64_t epoch) {
    struct verbs *v = verbs_of(f);
    verbs_adopt(v);
    verbs_reap(v);
    struct verbs_peer *p = &v->peers[peer];
    uint32_t number = epoch & VERBS_NUMBER_MASK;
    if (!p->link || !number || epoch <= p->epoch_seen) return; /* nothing new: the link is as it was */
    bool same = number == p->connected;
    p->epoch_seen = epoch;
    if ((same && p->failed) || (!same && !reconnect(v, peer, epoch, number))) {
        verbs_tell_broken(v, peer); /* the next grant mends it */
        return;
    }
    struct verbs_queue *q = p->queues[FABRIC_LOG];
    p->token = epoch;
    q->session++;
    q->broken = false;
    failpoint(FAIL_ACCEPTED);
}

#endif
