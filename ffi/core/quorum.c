/* quorum.c: see quorum.h. */
#include "core/quorum.h"

#include "check.h"
#include "fabric/fabric.h"

uint64_t quorum_value(const uint64_t *values, uint32_t count, uint32_t majority) {
    uint64_t sorted[FABRIC_NODES_MAX];
    CHECK(count <= FABRIC_NODES_MAX && majority > 0);
    if (count < majority) return 0;
    for (uint32_t i = 0; i < count; i++) { /* insertion, largest first: a handful of entries */
        uint32_t at = i;
        for (; at > 0 && sorted[at - 1] < values[i]; at--) sorted[at] = sorted[at - 1];
        sorted[at] = values[i];
    }
    return sorted[majority - 1];
}
