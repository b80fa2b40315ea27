/* membership.c: see membership.h. */
#include "core/membership.h"

uint32_t membership_mask(const struct replica_membership *m) {
    uint32_t mask = 0;
    for (uint32_t i = 0; i < FABRIC_NODES_MAX; i++)
        if (m->incarnation[i]) mask |= 1u << i;
    return mask;
}

bool membership_gone(const struct replica_membership *m, uint32_t slot, uint64_t incarnation) {
    return incarnation <= m->former[slot] || incarnation < m->incarnation[slot];
}

static bool possible(const struct replica_membership *m, const struct membership_change *change) {
    if (change->slot >= FABRIC_NODES_MAX) return false;
    switch (change->step) {
    case MEMBERSHIP_ADD:
        return m->incarnation[change->slot] == 0 && !membership_gone(m, change->slot, change->incarnation);
    case MEMBERSHIP_REMOVE:
        return membership_has(m, change->slot, change->incarnation) && membership_mask(m) != 1u << change->slot;
    default:
        return false;
    }
}

bool membership_take(struct replica_membership *m, const struct membership_change *change, uint64_t index) {
    if (!possible(m, change)) return false;
    m->index = index;
    if (change->step == MEMBERSHIP_ADD) {
        m->incarnation[change->slot] = change->incarnation;
    } else {
        m->incarnation[change->slot] = 0;
        m->former[change->slot] = change->incarnation;
    }
    return true;
}
