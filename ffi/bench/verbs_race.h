/*
 * verbs_race.h: what replicating costs over verbs, beside bare writes. All in one thread, op by op in turn: a virtual
 * machine changes its speed within a second, so that only neighbours can be compared. Every node of a small cluster lives
 * in this process, with queue pairs of its own on one device; the bare writes have others.
 */
#ifndef MUSIDECAR_BENCH_VERBS_RACE_H
#define MUSIDECAR_BENCH_VERBS_RACE_H

#include "fabric/verbs.h"

struct race_config {
    uint32_t nodes, payload_bytes;
    char device[64];   /* as in verbs_config */
    int32_t gid_index;
    uint32_t timeout;
};

struct race;
/* A leader with all followers confirmed. NULL, with the reason in `why`. */
struct race *race_new(const struct race_config *config, char *why, uint32_t why_bytes);
void race_free(struct race *r);
/* `count` turns: nanoseconds of each commit, of one bare write of `bare_bytes` to its completion, and of such writes to
 * `parallel` peers to the last of their completions. False: the leader lost its leadership. */
bool race_run(struct race *r, uint32_t count, uint32_t parallel, uint32_t bare_bytes, uint32_t *commit_ns, uint32_t *one_ns, uint32_t *parallel_ns);
/* `count` changes of permission, by access flags or by the state cycle: what each step takes. False: one went the other
 * way, or a write under the new permission failed. */
bool race_switch(struct race *r, uint32_t count, bool cycle, uint32_t *revoke_ns, uint32_t *grant_ns, uint32_t *accept_ns);
/* Equal on all nodes, once the followers have caught up? */
bool race_agrees(struct race *r);

#endif
