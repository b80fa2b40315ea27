/* limits.h: how much the core does, or has under way, at once. Constants; in the simulator (MUSIDECAR_SIMULATED) they are
 * variables, so that its short logs and few records meet them, too. */
#ifndef MUSIDECAR_LIMITS_H
#define MUSIDECAR_LIMITS_H

#include <stdint.h>

struct replica_limits {
    uint32_t completions;  /* taken from the fabric at once, at most REPLICA_COMPLETIONS */
    uint32_t record_posts; /* in flight to one follower; beyond, records are fed in larger posts, and the rest waits */
    uint32_t feed_posts;   /* such larger posts in flight to one follower */
    uint32_t feed_bytes;   /* records copied to a follower by one post */
    uint32_t scan_records; /* validated by a follower per poll */
    uint32_t walk_first;   /* bytes of the first read of a walk: mostly there is nothing; not more than walk_bytes */
    uint32_t walk_bytes;   /* of the others, unless one record is longer; a multiple of RECORD_ALIGN */
};

#define REPLICA_COMPLETIONS 64u
#define REPLICA_LIMITS {REPLICA_COMPLETIONS, 512u, 8u, 256u << 10, 4096u, 4096u, 64u << 10}

#ifdef MUSIDECAR_SIMULATED
extern struct replica_limits replica_limits;
#else
static const struct replica_limits replica_limits = REPLICA_LIMITS;
#endif

#endif
