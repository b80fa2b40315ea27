/*
 * replicas.c: whole replicas as threads of one process over the shm fabric, to be run under ASan, UBSan and TSan.
 *
 *   replicas [records] [seed]
 *
 * Whoever leads proposes records of random sizes; now and then it resigns, or stands still between posting and polling
 * until the others have deposed it (then its mapping is fenced, and its late stores must be refused). Whom the ring has
 * left behind starts anew from a snapshot (here: a point of the log that somebody reached). In the end the leader's
 * thread dies. Checked, record by record: all replicas hand out the same log, nothing twice, nothing that was
 * not proposed, and the log goes on after every change. Exit 0 only if so.
 */
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "check.h"
#include "core/replica.h"
#include "fabric/shm.h"

#define NODES 3u
#define RING_BYTES (256u << 10)
#define PAYLOAD_MAX 4000u
#define TICK_US 300u
#define SUSPECT_US 5000u
#define FAIL_US 20000u
#define DEADLINE_S 120
#define INDEXES_MAX (1u << 20)

struct proposal { /* starts every payload; the rest repeats the last byte of the sequence */
    uint64_t node, sequence;
};

struct member {
    uint32_t self;
    struct shm *shm;
    struct replica *replica;
    pthread_t thread;
    uint64_t next_tick_us, proposed, random;
    uint64_t stalls, resignations, installed;
    _Atomic uint64_t applied;
};

static struct member members[NODES];

/* What was handed out, by whoever did so first. */
static pthread_mutex_t history = PTHREAD_MUTEX_INITIALIZER;
static uint64_t hashes[INDEXES_MAX]; /* running hash after each record */
static struct point { uint64_t index, position, hash; } newest;
static uint64_t seen[NODES]; /* highest sequence that came out */

static _Atomic uint64_t proposed[NODES];     /* highest sequence proposed by each node */
static _Atomic uint64_t commands;            /* handed out so far, once each */
static _Atomic uint64_t target;              /* how many are wanted */
static _Atomic uint64_t finish;              /* index that every living replica is to reach before it ends; 0: go on */
static _Atomic uint32_t victim = REPLICA_NOBODY; /* whose thread is to die */

static uint64_t now_us(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000u + (uint64_t)t.tv_nsec / 1000u;
}

static uint64_t draw(struct member *m, uint64_t below) {
    m->random = m->random * 6364136223846793005u + 1442695040888963407u;
    return (m->random >> 33) % below;
}

/* ---- what comes out ---------------------------------------------------------------------------------------------- */

static void check_command(const struct record_header *h, bool first) {
    const uint8_t *payload = record_payload(h);
    struct proposal p;
    CHECK(h->length >= sizeof p);
    memcpy(&p, payload, sizeof p);
    CHECK(p.node < NODES && p.sequence <= atomic_load(&proposed[p.node]));
    for (uint32_t i = sizeof p; i < h->length; i++) CHECK(payload[i] == (uint8_t)p.sequence);
    if (!first) return;
    CHECK(p.sequence > seen[p.node]); /* in order: so nothing comes twice */
    seen[p.node] = p.sequence;
    atomic_fetch_add(&commands, 1);
}

static void check_record(struct member *m, const struct record_header *h) {
    uint64_t hash = record_hash(h);
    CHECK(h->index == atomic_load(&m->applied) + 1 && h->index < INDEXES_MAX);
    bool first = h->index > newest.index;
    CHECK(!first || h->index == newest.index + 1);
    CHECK(first || hashes[h->index] == hash); /* agreement */
    if (h->kind == RECORD_COMMAND) check_command(h, first);
    hashes[h->index] = hash;
    atomic_store(&m->applied, h->index);
    replica_applied(m->replica, h->index);
    if (!first) return;
    replica_applied_point(m->replica, &newest.index, &newest.position, &newest.hash);
    CHECK(newest.index == h->index && newest.hash == hash);
}

static void apply(struct member *m) {
    const struct record_header *h;
    while ((h = replica_next(m->replica))) {
        pthread_mutex_lock(&history);
        check_record(m, h);
        pthread_mutex_unlock(&history);
    }
}

static void reinstall(struct member *m) {
    CHECK(replica_damage(m->replica) == REPLICA_LAPPED);
    pthread_mutex_lock(&history);
    struct point to = newest;
    pthread_mutex_unlock(&history);
    m->installed++;
    atomic_store(&m->applied, to.index);
    struct replica_membership members = replica_applied_members(m->replica); /* it never changes here */
    replica_install(m->replica, to.index, to.position, to.hash, &members, now_us());
}

/* ---- what goes in ------------------------------------------------------------------------------------------------ */

static void propose(struct member *m) {
    uint32_t length = (uint32_t)(sizeof(struct proposal) + draw(m, draw(m, 8) ? 100 : PAYLOAD_MAX));
    uint8_t *place = replica_reserve(m->replica, RECORD_COMMAND, length);
    if (!place) return;
    struct proposal p = {.node = m->self, .sequence = ++m->proposed};
    atomic_store(&proposed[m->self], p.sequence);
    memset(place, (uint8_t)p.sequence, length);
    memcpy(place, &p, sizeof p);
    struct record_origin origin = {.node = m->self, .stream = 1, .sequence = p.sequence};
    CHECK(replica_propose_reserved(m->replica, RECORD_COMMAND, 0, origin, length) > 0);
}

static void pause_us(uint64_t us) {
    struct timespec pause = {.tv_sec = (time_t)(us / 1000000), .tv_nsec = (long)(us % 1000000) * 1000};
    nanosleep(&pause, NULL);
}

static void lead(struct member *m) {
    if (atomic_load(&commands) >= atomic_load(&target)) return;
    for (uint64_t burst = 1 + draw(m, 6); burst > 0; burst--) propose(m);
    switch (draw(m, 400)) {
    case 0: /* its burst is open: only a fence can take the permission away */
        m->stalls++;
        pause_us(4 * FAIL_US);
        break;
    case 1:
        m->resignations++;
        replica_resign(m->replica, now_us());
        break;
    }
}

/* ---- a member's life --------------------------------------------------------------------------------------------- */

static void turn(struct member *m) {
    uint64_t at_us = now_us();
    for (uint32_t dead = shm_drain(m->shm); dead; dead &= dead - 1)
        replica_peer_down(m->replica, (uint32_t)__builtin_ctz(dead), at_us);
    if (at_us >= m->next_tick_us) {
        replica_tick(m->replica, at_us, TICK_US);
        m->next_tick_us = at_us + TICK_US;
    }
    while (replica_poll(m->replica, at_us)) apply(m);
    apply(m);
}

/* Not one by one: who is behind needs a majority to learn the rest from. */
static bool finished(void) {
    uint64_t until = atomic_load(&finish);
    for (uint32_t i = 0; until && i < NODES; i++)
        if (i != atomic_load(&victim) && atomic_load(&members[i].applied) < until) return false;
    return until != 0;
}

static void *live(void *argument) {
    struct member *m = argument;
    CHECK(shm_enter(m->shm) == 0);
    for (uint32_t i = 0; i < NODES; i++)
        if (i != m->self) replica_peer_up(m->replica, i, now_us());
    replica_set_eligible(m->replica, true);
    for (;;) {
        turn(m);
        if (atomic_load(&victim) == m->self) return NULL;
        if (finished()) return NULL;
        if (replica_damage(m->replica) != REPLICA_SOUND) reinstall(m);
        if (replica_role(m->replica) == REPLICA_LEADER) {
            lead(m);
            replica_flush_commit(m->replica);
        } else {
            struct pollfd bell = {.fd = shm_wait_fd(m->shm), .events = POLLIN};
            struct timespec tick = {.tv_nsec = TICK_US * 1000};
            ppoll(&bell, 1, &tick, NULL);
        }
    }
}

static void link_members(void) {
    for (uint32_t i = 0; i < NODES; i++)
        for (uint32_t j = 0; j < NODES; j++) {
            if (i == j) continue;
            struct shm_descriptors theirs = shm_fds(members[j].shm);
            struct shm_descriptors fds = {dup(theirs.log), dup(theirs.background), dup(theirs.doorbell)};
            CHECK(shm_attach(members[i].shm, j, fds, getpid()) == 0);
        }
    for (uint32_t i = 0; i < NODES; i++)
        for (uint32_t j = 0; j < NODES; j++) {
            if (i == j) continue;
            uint64_t mapping;
            int fd = shm_fence_fd(members[i].shm, j, &mapping);
            CHECK(shm_set_fence(members[j].shm, i, fd >= 0 ? dup(fd) : -1, mapping) == 0);
        }
    for (uint32_t i = 0; i < NODES; i++)
        for (uint32_t j = 0; j < NODES; j++)
            if (i != j) CHECK(shm_open_link(members[i].shm, j) == 0);
}

static void make(uint64_t seed) {
    struct replica_config config = {.nodes = NODES,
                                    .ring_bytes = RING_BYTES,
                                    .piece_bytes_max = PAYLOAD_MAX + 96,
                                    .salt = 0x73616c74,
                                    .suspect_us = SUSPECT_US,
                                    .fail_us = FAIL_US,
                                    .late_us = SUSPECT_US / 2,
                                    .request_us = 2000};
    for (uint32_t i = 0; i < NODES; i++) {
        struct shm_config shm = {.self = i,
                                 .nodes = NODES,
                                 .log_bytes = replica_log_bytes(&config),
                                 .background_bytes = replica_background_bytes(),
                                 .hazard_us = 50};
        members[i].self = i;
        members[i].random = seed * NODES + i;
        members[i].shm = shm_new(&shm);
        CHECK(members[i].shm != NULL);
    }
    link_members();
    for (uint32_t i = 0; i < NODES; i++) {
        struct shm *s = members[i].shm;
        config.self = i;
        config.seed = seed + i;
        members[i].replica = replica_new(&config, shm_fabric(s), shm_log(s), shm_background(s));
        CHECK(members[i].replica != NULL);
    }
}

/* Waits until `wanted` commands have come out; false when that takes for ever. */
static bool await(uint64_t wanted) {
    for (uint64_t start_us = now_us(); now_us() - start_us < DEADLINE_S * 1000000ull; pause_us(2000))
        if (atomic_load(&commands) >= wanted) return true;
    return false;
}

static uint32_t most_applied(void) {
    uint32_t most = 0;
    for (uint32_t i = 1; i < NODES; i++)
        if (atomic_load(&members[i].applied) > atomic_load(&members[most].applied)) most = i;
    return most;
}

static int report(void) {
    uint64_t stalls = 0, fences = 0;
    for (uint32_t i = 0; i < NODES; i++) {
        struct shm_counters c = shm_counters(members[i].shm);
        stalls += members[i].stalls;
        fences += c.fences;
        printf("node %u: applied %lu, proposed %lu, stalled %lu, resigned %lu, installed %lu; ", i,
               atomic_load(&members[i].applied), members[i].proposed, members[i].stalls, members[i].resignations,
               members[i].installed);
        printf("revocations %lu, fences %lu, refused %lu\n", c.revocations, c.fences, c.refused);
    }
    if (stalls > 3 && fences == 0) {
        printf("leaders stood still in mid-write, and nobody fenced them\n");
        return 1;
    }
    return 0;
}

int main(int count, char **arguments) {
    uint64_t records = count > 1 ? strtoull(arguments[1], NULL, 10) : 20000;
    uint64_t seed = count > 2 ? strtoull(arguments[2], NULL, 10) : 1;
    make(seed);
    atomic_store(&target, records + records / 4);
    for (uint32_t i = 0; i < NODES; i++) CHECK(pthread_create(&members[i].thread, NULL, live, &members[i]) == 0);
    bool went_on = await(records);
    atomic_store(&victim, most_applied()); /* mostly the leader */
    pthread_join(members[atomic_load(&victim)].thread, NULL);
    went_on = went_on && await(records + records / 4);
    if (!went_on) {
        printf("the log stands still at %lu commands\n", atomic_load(&commands));
        return 1;
    }
    atomic_store(&finish, atomic_load(&members[most_applied()].applied));
    for (uint32_t i = 0; i < NODES; i++)
        if (i != atomic_load(&victim)) pthread_join(members[i].thread, NULL);
    int result = report();
    for (uint32_t i = 0; i < NODES; i++) {
        shm_free(members[i].shm);
        replica_free(members[i].replica);
    }
    return result;
}
