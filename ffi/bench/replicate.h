/*
 * replicate.h: how long a commit takes, without a network or a backend: one process per replica over shm, the leader's
 * loop in C. Beside it, in the same processes and in turns with it, the least that replication could cost: copies of the
 * same record bytes, between the same two fences, into three mappings of the same size.
 *
 * Control memory that all members share says what the followers do: they follow until it tells them to stop.
 */
#ifndef MUSIDECAR_BENCH_REPLICATE_H
#define MUSIDECAR_BENCH_REPLICATE_H

#include <stdbool.h>
#include <stdint.h>

#include "fabric/shm.h"

#define REPLICATE_FINE_NS 32768u /* durations below are counted nanosecond by nanosecond */

struct replicate_config {
    uint32_t self, nodes;
    uint64_t ring_bytes;
    uint32_t piece_bytes_max, payload_bytes;
    uint32_t tick_us;
    uint32_t processor; /* to run on; UINT32_MAX: wherever the scheduler likes */
};

struct replicate_result {
    uint64_t count;
    double seconds;    /* spent in timed operations */
    uint64_t full;     /* how often the ring had no room: waited for, and not timed */
    uint64_t clock_ns; /* what timing itself costs; it is in every duration */
    uint64_t p50_ns, p90_ns, p99_ns, p999_ns, max_ns;
};

/* Region sizes for shm_new(). */
uint64_t replicate_log_bytes(const struct replicate_config *config);
uint64_t replicate_background_bytes(void);

struct replicate_member;
/* `scratch`: one memfd per node, as large as a log, for the copies; `control`: a memfd of a page, zero. The
 * links of `shm` are open. From here on the process dies with its parent. NULL with errno. */
struct replicate_member *replicate_new(const struct replicate_config *config, struct shm *shm, const int *scratch,
                                       int control);
void replicate_free(struct replicate_member *m);

/* A follower's whole life: a turn each tick, until it is told to stop or every peer is dead. Returns its commit
 * index. */
uint64_t replicate_follow(struct replicate_member *m);
/* Node 0, which alone is eligible: turns until it leads with every node confirmed. False after `timeout_us`. */
bool replicate_lead(struct replicate_member *m, uint64_t timeout_us);
/* For `duration_us`: proposes a record, polls until it is committed, and times that. Stops short (count 0) if
 * leadership is lost. */
struct replicate_result replicate_commits(struct replicate_member *m, uint64_t duration_us);
/* For `duration_us`: the copies alone. */
struct replicate_result replicate_copies(struct replicate_member *m, uint64_t duration_us);
/* Counts of the last run: element i: durations of i nanoseconds. REPLICATE_FINE_NS elements. */
const uint32_t *replicate_counts(const struct replicate_member *m);
/* Lets the followers catch up, and stops them. Returns the leader's commit index. */
uint64_t replicate_stop(struct replicate_member *m);
/* Running hash up to the commit index: equal on all members after replicate_stop(). */
uint64_t replicate_hash(const struct replicate_member *m);

#endif
