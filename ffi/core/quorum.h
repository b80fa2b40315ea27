/* quorum.h: the arithmetic of majorities. Members are bits of a mask; everybody, the leader too, counts once. */
#ifndef MUSIDECAR_QUORUM_H
#define MUSIDECAR_QUORUM_H

#include <stdbool.h>
#include <stdint.h>

#include "plant.h"

/* More than half of `nodes`: 1 of 1, 2 of 2, 2 of 3, 3 of 4, 3 of 5. */
static inline uint32_t quorum_majority(uint32_t nodes) {
    return planted(PLANT_SMALL_MAJORITY) && nodes > 2 ? nodes / 2 : nodes / 2 + 1;
}
static inline bool quorum_met(uint32_t members, uint32_t nodes) {
    return (uint32_t)__builtin_popcount(members) >= quorum_majority(nodes);
}
/* The largest value that at least `majority` of `count` entries (at most FABRIC_NODES_MAX) reach; 0 if too few. */
uint64_t quorum_value(const uint64_t *values, uint32_t count, uint32_t majority);

#endif
