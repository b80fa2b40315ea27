#include "bench/replicate.h"

#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

#include "check.h"
#include "core/replica.h"
#include "engine/histogram.h"

#define CALIBRATION_NS 20000000u
#define CATCH_UP_US 2000000u
#define SALT 0x62656e63686d7573ull

struct replicate_control { /* shared by all members, zero at first */
    _Atomic uint64_t stop;    /* the commit index up to which to follow, plus one; 0: go on */
    _Atomic uint32_t arrived; /* followers that got there */
};

struct replicate_member {
    struct replicate_config config;
    struct shm *shm;
    struct replica *replica;
    uint8_t *scratch[FABRIC_NODES_MAX];
    uint64_t scratch_bytes;
    struct replicate_control *control;
    uint32_t gone; /* peers that died */
    uint64_t next_tick_us;
    double ns_per_tick; /* of the processor's time stamp counter */
    uint64_t clock_ns;
    uint64_t copied; /* position of the copies in the scratch memory */
    struct histogram coarse;
    uint32_t fine[REPLICATE_FINE_NS];
};

/* ---- time ------------------------------------------------------------------------------------------------------- */

static uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static uint64_t now_us(void) { return now_ns() / 1000; }

/* Ticks, read neither before what precedes has been executed nor after what follows has begun. */
static inline uint64_t ticks(void) {
#if defined(__x86_64__)
    __builtin_ia32_lfence();
    uint64_t now = __builtin_ia32_rdtsc();
    __builtin_ia32_lfence();
    return now;
#else
    return now_ns();
#endif
}

static void calibrate(struct replicate_member *m) {
    uint64_t start_ns = now_ns(), start = ticks(), end_ns;
    while ((end_ns = now_ns()) - start_ns < CALIBRATION_NS) continue;
    m->ns_per_tick = (double)(end_ns - start_ns) / (double)(ticks() - start);
    uint64_t least = UINT64_MAX;
    for (int i = 0; i < 10000; i++) {
        uint64_t before = ticks(), took = ticks() - before;
        if (took < least) least = took;
    }
    m->clock_ns = (uint64_t)((double)least * m->ns_per_tick + 0.5);
}

/* ---- durations -------------------------------------------------------------------------------------------------- */

static void forget(struct replicate_member *m) {
    memset(&m->coarse, 0, sizeof m->coarse);
    memset(m->fine, 0, sizeof m->fine);
}

static inline void record_duration(struct replicate_member *m, uint64_t took_ticks) {
    uint64_t ns = (uint64_t)((double)took_ticks * m->ns_per_tick);
    if (ns < REPLICATE_FINE_NS) m->fine[ns]++;
    else histogram_add(&m->coarse, ns);
}

static uint64_t quantile_ns(const struct replicate_member *m, uint64_t count, double share) {
    uint64_t wanted = (uint64_t)((double)count * share), seen = 0;
    for (uint32_t ns = 0; ns < REPLICATE_FINE_NS; ns++) {
        seen += m->fine[ns];
        if (seen > wanted) return ns;
    }
    for (uint32_t i = 0; i < HISTOGRAM_BUCKETS; i++) {
        seen += m->coarse.buckets[i];
        if (seen > wanted) return histogram_floor_ns(i);
    }
    return m->coarse.max_ns;
}

static struct replicate_result summarise(const struct replicate_member *m, uint64_t total_ticks, uint64_t full) {
    struct replicate_result result = {.count = m->coarse.count, .full = full, .clock_ns = m->clock_ns};
    result.max_ns = m->coarse.max_ns;
    for (uint32_t ns = 0; ns < REPLICATE_FINE_NS; ns++) {
        result.count += m->fine[ns];
        if (m->fine[ns] && !m->coarse.count) result.max_ns = ns;
    }
    result.seconds = (double)total_ticks * m->ns_per_tick / 1e9;
    result.p50_ns = quantile_ns(m, result.count, 0.5);
    result.p90_ns = quantile_ns(m, result.count, 0.9);
    result.p99_ns = quantile_ns(m, result.count, 0.99);
    result.p999_ns = quantile_ns(m, result.count, 0.999);
    return result;
}

const uint32_t *replicate_counts(const struct replicate_member *m) { return m->fine; }

/* ---- members ---------------------------------------------------------------------------------------------------- */

static struct replica_config replica_settings(const struct replicate_config *c) {
    return (struct replica_config){.self = c->self,
                                   .nodes = c->nodes,
                                   .ring_bytes = c->ring_bytes,
                                   .piece_bytes_max = c->piece_bytes_max,
                                   .salt = SALT,
                                   .suspect_us = 1000000, /* fail-over is not what is measured */
                                   .fail_us = 2000000,
                                   .late_us = 500000,
                                   .request_us = 20000,
                                   .seed = c->self + 1};
}

uint64_t replicate_log_bytes(const struct replicate_config *config) {
    struct replica_config settings = replica_settings(config);
    return replica_log_bytes(&settings);
}

uint64_t replicate_background_bytes(void) { return replica_background_bytes(); }

static int settle_down(struct replicate_member *m) {
    if (prctl(PR_SET_PDEATHSIG, SIGKILL)) return errno;
    if (m->config.processor == UINT32_MAX) return 0;
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(m->config.processor, &one);
    return sched_setaffinity(0, sizeof one, &one) ? errno : 0;
}

static int map_scratch(struct replicate_member *m, const int *scratch, int control) {
    const int protection = PROT_READ | PROT_WRITE, flags = MAP_SHARED | MAP_POPULATE;
    m->scratch_bytes = replicate_log_bytes(&m->config);
    for (uint32_t i = 0; i < m->config.nodes; i++) {
        void *memory = mmap(NULL, m->scratch_bytes, protection, flags, scratch[i], 0);
        if (memory == MAP_FAILED) return errno;
        m->scratch[i] = memory;
    }
    void *memory = mmap(NULL, sizeof *m->control, protection, flags, control, 0);
    if (memory == MAP_FAILED) return errno;
    m->control = memory;
    return 0;
}

static int begin_replica(struct replicate_member *m) {
    struct replica_config settings = replica_settings(&m->config);
    m->replica = replica_new(&settings, shm_fabric(m->shm), shm_log(m->shm), shm_background(m->shm));
    if (!m->replica) return EINVAL;
    if (shm_enter(m->shm)) return errno;
    for (uint32_t i = 0; i < m->config.nodes; i++) {
        if (i != m->config.self) replica_peer_up(m->replica, i, now_us());
    }
    replica_set_eligible(m->replica, m->config.self == 0); /* the one that measures leads */
    return 0;
}

struct replicate_member *replicate_new(const struct replicate_config *config, struct shm *shm, const int *scratch,
                                       int control) {
    bool possible = config->nodes <= FABRIC_NODES_MAX && config->payload_bytes <= config->piece_bytes_max;
    struct replicate_member *m = possible ? calloc(1, sizeof *m) : NULL;
    if (!m) {
        errno = possible ? ENOMEM : EINVAL;
        return NULL;
    }
    m->config = *config;
    m->shm = shm;
    int error = settle_down(m);
    if (!error) error = map_scratch(m, scratch, control);
    if (!error) error = begin_replica(m);
    if (error) {
        replicate_free(m);
        errno = error;
        return NULL;
    }
    calibrate(m);
    return m;
}

void replicate_free(struct replicate_member *m) {
    if (!m) return;
    replica_free(m->replica);
    for (uint32_t i = 0; i < m->config.nodes; i++) {
        if (m->scratch[i]) munmap(m->scratch[i], m->scratch_bytes);
    }
    if (m->control) munmap(m->control, sizeof *m->control);
    free(m);
}

uint64_t replicate_hash(const struct replicate_member *m) { return replica_hash(m->replica); }

/* ---- turns ------------------------------------------------------------------------------------------------------ */

/* What is committed counts as applied at once. */
static void apply(struct replicate_member *m) {
    uint64_t index = 0;
    for (const struct record_header *h; (h = replica_next(m->replica));) index = h->index;
    if (index) replica_applied(m->replica, index);
}

static void tick(struct replicate_member *m, uint64_t at_us) {
    uint32_t dead = shm_drain(m->shm) & ~m->gone;
    m->gone |= dead;
    for (; dead; dead &= dead - 1) replica_peer_down(m->replica, (uint32_t)__builtin_ctz(dead), at_us);
    replica_tick(m->replica, at_us, m->config.tick_us);
    m->next_tick_us = at_us + m->config.tick_us;
}

static void turn(struct replicate_member *m) {
    uint64_t at_us = now_us();
    tick(m, at_us);
    while (replica_poll(m->replica, at_us)) apply(m);
    apply(m);
}

/* Sleeps for a tick, or until a peer rings. */
static void rest(const struct replicate_member *m) {
    struct pollfd bell = {.fd = shm_wait_fd(m->shm), .events = POLLIN};
    struct timespec pause = {.tv_nsec = (long)m->config.tick_us * 1000};
    ppoll(&bell, 1, &pause, NULL);
}

uint64_t replicate_follow(struct replicate_member *m) {
    uint32_t everybody = ((1u << m->config.nodes) - 1) & ~(1u << m->config.self);
    for (;;) {
        uint64_t stop = atomic_load(&m->control->stop);
        turn(m);
        if (m->gone == everybody || (stop && replica_commit(m->replica) + 1 >= stop)) break;
        rest(m);
    }
    atomic_fetch_add(&m->control->arrived, 1);
    return replica_commit(m->replica);
}

bool replicate_lead(struct replicate_member *m, uint64_t timeout_us) {
    uint32_t all = (1u << m->config.nodes) - 1;
    uint64_t start_us = now_us();
    for (;;) {
        turn(m);
        if (replica_role(m->replica) == REPLICA_LEADER && replica_confirmed(m->replica) == all) return true;
        if (now_us() - start_us > timeout_us) return false;
        rest(m);
    }
}

uint64_t replicate_stop(struct replicate_member *m) {
    uint64_t start_us = now_us();
    atomic_store(&m->control->stop, replica_commit(m->replica) + 1);
    while (now_us() - start_us < CATCH_UP_US) {
        turn(m);
        replica_flush_commit(m->replica);
        if (m->gone || atomic_load(&m->control->arrived) == m->config.nodes - 1) break;
        rest(m);
    }
    return replica_commit(m->replica);
}

/* ---- the two contestants ---------------------------------------------------------------------------------------- */

struct replicate_result replicate_commits(struct replicate_member *m, uint64_t duration_us) {
    struct record_origin origin = {.node = m->config.self, .stream = 1, .sequence = 1};
    uint64_t total = 0, full = 0, start = ticks(), start_us = now_us(), at_us = start_us;
    uint8_t *payload = calloc(1, m->config.payload_bytes + 1);
    CHECK(payload);
    forget(m);
    for (; at_us - start_us < duration_us; origin.sequence++) {
        memcpy(payload, &origin.sequence, m->config.payload_bytes < 8 ? m->config.payload_bytes : 8);
        uint64_t before = ticks();
        int64_t index = replica_propose(m->replica, RECORD_COMMAND, 0, origin, payload, m->config.payload_bytes);
        while (index > 0 && replica_commit(m->replica) < (uint64_t)index && replica_poll(m->replica, at_us)) continue;
        uint64_t after = ticks();
        at_us = start_us + (uint64_t)((double)(after - start) * m->ns_per_tick / 1000);
        if (index > 0 && replica_commit(m->replica) >= (uint64_t)index) {
            record_duration(m, after - before);
            total += after - before;
        } else if (index == REPLICA_FULL) {
            full++;
            rest(m);
        } else {
            forget(m); /* not the leader any more */
            break;
        }
        apply(m);
        if (at_us >= m->next_tick_us) tick(m, at_us);
    }
    replica_flush_commit(m->replica);
    turn(m);
    free(payload);
    return summarise(m, total, full);
}

static void copy_tail_last(uint8_t *to, const uint8_t *record, uint64_t bytes) {
    uint64_t tail;
    memcpy(to, record, bytes - sizeof tail);
    memcpy(&tail, record + bytes - sizeof tail, sizeof tail);
    __atomic_store_n((uint64_t *)(void *)(to + bytes - sizeof tail), tail, __ATOMIC_RELEASE);
}

struct replicate_result replicate_copies(struct replicate_member *m, uint64_t duration_us) {
    uint64_t bytes = record_bytes(m->config.payload_bytes), span = record_span(m->config.payload_bytes);
    uint64_t total = 0, start = ticks(), start_us = now_us(), at_us = start_us;
    uint8_t *record = aligned_alloc(RECORD_ALIGN, span);
    CHECK(record);
    memset(record, 1, span);
    forget(m);
    for (; at_us - start_us < duration_us; m->copied += span) {
        uint64_t offset = REPLICA_RING_OFFSET + (m->copied & (m->config.ring_bytes - 1));
        memcpy(record, &m->copied, sizeof m->copied);
        uint64_t before = ticks();
        copy_tail_last(m->scratch[m->config.self] + offset, record, bytes);
        atomic_thread_fence(memory_order_seq_cst);
        for (uint32_t i = 0; i < m->config.nodes; i++) {
            if (i != m->config.self) copy_tail_last(m->scratch[i] + offset, record, bytes);
        }
        atomic_thread_fence(memory_order_seq_cst);
        uint64_t after = ticks();
        record_duration(m, after - before);
        total += after - before;
        at_us = start_us + (uint64_t)((double)(after - start) * m->ns_per_tick / 1000);
        if (at_us >= m->next_tick_us) tick(m, at_us);
    }
    turn(m);
    free(record);
    return summarise(m, total, 0);
}
