/*
 * sim.h: a fabric of simulated nodes in one process, for tests. Deterministic: the same seed and the same calls give the
 * same run. Posts take time, land in parts (so that readers and crashes see torn writes), and fail when a link is cut,
 * a node is down or a permission is gone. With delays of zero everything completes at the poster's next poll.
 */
#ifndef MUSIDECAR_SIM_H
#define MUSIDECAR_SIM_H

#include "fabric/fabric.h"

#define SIM_NOBODY 0xffffffffu

struct sim_config {
    uint32_t nodes;
    uint64_t log_bytes, background_bytes;
    uint64_t seed;
    uint32_t delay_min_us, delay_max_us; /* of each way of a post */
    uint32_t part_bytes;                 /* a post lands in parts of this size; 0: in one */
    bool scatter;                        /* its parts land in any order */
    /* Logs are written by the writers' processors, as over shared memory, not by their network cards: they look at the
     * permission, store, and look again, and may be stopped anywhere between. Who revokes then fences them. */
    bool processor;
};

/* Part of a write, about to be stored. */
struct sim_landing {
    uint32_t from, to;
    enum fabric_region region;
    uint64_t epoch; /* of the grant under which it is written; 0: none */
    uint64_t offset;
    const void *bytes;
    uint32_t length;
};

/* What a test wants to see; what is NULL is not called. */
struct sim_watch {
    void *context;
    void (*landing)(void *context, const struct sim_landing *what);
    /* A permission was granted, or (holder SIM_NOBODY) revoked: at the end of the owner's call. */
    void (*granted)(void *context, uint32_t owner, uint32_t holder, uint64_t epoch);
    /* A node is between two of its steps, in the middle of a call to its fabric: here it may be stopped. */
    void (*between)(void *context, uint32_t node);
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
/* The node begins anew, with blank memory: what was under way from and to its former life comes to nothing, and every
 * link with it is cut until sim_heal(). Whoever drives it frees its replica first. */
void sim_wipe(struct sim *s, uint32_t node);
/* Lets only the next `parts` parts of posts from `from` to `to` land; the rest stands still. UINT32_MAX: all. */
void sim_hold(struct sim *s, uint32_t from, uint32_t to, uint32_t parts);
/* The log link fails once, as a queue pair does: until the next accept(). */
void sim_break(struct sim *s, uint32_t from, uint32_t to);
void sim_watch(struct sim *s, const struct sim_watch *watch);

/* What was seen. */
uint64_t sim_posts(const struct sim *s);              /* posts made so far */
uint32_t sim_holder(const struct sim *s, uint32_t node); /* who may write its log; 0xffffffff: nobody */
uint64_t sim_wakes(const struct sim *s, uint32_t node);

#endif
