/*
 * sim.h: a fabric of simulated nodes in one process, for tests. Deterministic: the same seed and the same calls give the
 * same run. Posts take time, land in parts (so that readers and crashes see torn writes), and fail when a link is cut,
 * a node is down or a permission is gone. With delays of zero everything completes at the poster's next poll.
 */
#ifndef MUSIDECAR_SIM_H
#define MUSIDECAR_SIM_H

#include "fabric/fabric.h"

struct sim_config {
    uint32_t nodes;
    uint64_t log_bytes, background_bytes;
    uint64_t seed;
    uint32_t delay_min_us, delay_max_us; /* of each way of a post */
    uint32_t part_bytes;                 /* a post lands in parts of this size; 0: in one */
};

/* Mistakes that the checks of a test must notice. */
enum sim_bug {
    SIM_BUG_LATE_WRITES = 1, /* revoking does not keep out what was posted before */
    SIM_BUG_DEAD_ACKS = 2    /* the memory of the dead acknowledges */
};

struct sim;
struct sim *sim_new(const struct sim_config *config);
void sim_free(struct sim *s);
struct fabric *sim_fabric(struct sim *s, uint32_t node);
void *sim_log(struct sim *s, uint32_t node);
void *sim_background(struct sim *s, uint32_t node);

uint64_t sim_now_us(const struct sim *s);
/* Everything that is due until then happens, in order. */
void sim_advance(struct sim *s, uint64_t now_us);
void sim_set_delay(struct sim *s, uint32_t min_us, uint32_t max_us);
/* Delay of one direction, on top. */
void sim_set_slow(struct sim *s, uint32_t from, uint32_t to, uint32_t extra_us);

/* Posts from one node to another fail from here on, also those under way. Healing leaves the log link broken until the
 * next accept(); the replicas at both ends are told with replica_peer_up(). */
void sim_cut(struct sim *s, uint32_t from, uint32_t to);
void sim_heal(struct sim *s, uint32_t from, uint32_t to);
/* A frozen node's posts stand still, also half landed (its own processor makes the stores); thawed, they go on. */
void sim_freeze(struct sim *s, uint32_t node, bool frozen);
/* Its posts stop where they are; posts to it fail. */
void sim_crash(struct sim *s, uint32_t node);
/* Lets only the next `parts` parts of posts from `from` to `to` land; the rest stands still. UINT32_MAX: all. */
void sim_hold(struct sim *s, uint32_t from, uint32_t to, uint32_t parts);
void sim_plant(struct sim *s, uint32_t bugs);

/* What was seen. */
uint64_t sim_posts(const struct sim *s);              /* posts made so far */
uint32_t sim_holder(const struct sim *s, uint32_t node); /* who may write its log; 0xffffffff: nobody */
uint64_t sim_wakes(const struct sim *s, uint32_t node);

#endif
