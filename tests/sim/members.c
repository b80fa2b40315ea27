/* members.c: see members.h. */
#include "members.h"

#include <string.h>

#include "oracle.h"
#include "trace.h"

#define PROPOSED_MAX 64u
#define GRAVES_MAX 56u
#define GRAVES_AT_THE_END 8u /* of them: a life that was removed must be able to end when the faults have stopped */

struct grave {
    uint32_t slot;
    uint64_t incarnation, delivered, lived_to;
    uint8_t *log;
};

static struct {
    struct replica_membership decided;
    struct { uint64_t index; struct membership_change change; } proposed[PROPOSED_MAX];
    uint32_t proposals, graves;
    struct grave grave[GRAVES_MAX];
} m;

/* Mostly all form the cluster; else some of them do, and the others are to be added. */
void members_begin(void) {
    uint64_t sequence = world.settings.seed ^ MIX_C;
    uint32_t all = (1u << world.nodes) - 1, mask = draw(&sequence, 4) ? all : 1 + (uint32_t)draw(&sequence, all);
    memset(&m, 0, sizeof m);
    for (uint32_t i = 0; i < world.nodes; i++) m.decided.incarnation[i] = mask >> i & 1 ? INCARNATION_FIRST : 0;
    memcpy(world.config.members, m.decided.incarnation, sizeof world.config.members);
}

void members_turn(const struct node *n) {
    if (replica_commit(n->replica) != n->delivered || n->delivered < m.decided.index) return; /* it knows an earlier one */
    for (uint32_t i = 0; i < world.nodes; i++)
        if (replica_incarnation(n->replica, i) != m.decided.incarnation[i])
            violation("node %u takes incarnation %llu of node %u for a member, not %llu", n->number,
                      (unsigned long long)replica_incarnation(n->replica, i), i, (unsigned long long)m.decided.incarnation[i]);
}

void members_end(void) {
    while (m.graves) free(m.grave[--m.graves].log);
}

/* ---- what may be in force ------------------------------------------------------------------------------------------ */

/* Those beyond what is decided; the others are settled, one way or the other. */
static void forget_settled(void) {
    uint32_t kept = 0;
    for (uint32_t i = 0; i < m.proposals; i++)
        if (m.proposed[i].index > world.top) m.proposed[kept++] = m.proposed[i];
    m.proposals = kept;
}

void members_proposed(uint64_t index, const struct membership_change *change) {
    forget_settled();
    CHECK(m.proposals < PROPOSED_MAX);
    m.proposed[m.proposals].index = index;
    m.proposed[m.proposals++].change = *change;
}

void members_withdraw(uint64_t index, const struct membership_change *change) {
    for (uint32_t i = m.proposals; i-- > 0;) {
        if (m.proposed[i].index != index || memcmp(&m.proposed[i].change, change, sizeof *change) != 0) continue;
        m.proposed[i] = m.proposed[--m.proposals];
        return;
    }
}

bool members_decided(const struct record_header *h) {
    struct membership_change change;
    bool known = false;
    if (h->length != sizeof change) return false;
    memcpy(&change, record_payload(h), sizeof change);
    for (uint32_t i = 0; i < m.proposals; i++)
        known |= m.proposed[i].index == h->index && memcmp(&m.proposed[i].change, &change, sizeof change) == 0;
    bool possible = membership_take(&m.decided, &change, h->index);
    world.counts.changes++;
    if (tracing())
        trace(SIM_NOBODY, "decided: incarnation %llu of node %u is %s", (unsigned long long)change.incarnation, change.slot,
              change.step == MEMBERSHIP_ADD ? "a member" : "none any more");
    return known && possible;
}

/* The decided membership, then what each undecided change would make of it. */
static bool possible(uint32_t which, struct replica_membership *membership) {
    *membership = m.decided;
    return which == 0 || (m.proposed[which - 1].index > m.decided.index &&
                          membership_take(membership, &m.proposed[which - 1].change, m.proposed[which - 1].index));
}

static bool majority(const struct replica_membership *membership, uint32_t count) {
    return count > (uint32_t)__builtin_popcount(membership_mask(membership)) / 2;
}

/* ---- memory -------------------------------------------------------------------------------------------------------- */

static bool remembers(uint32_t slot, uint64_t incarnation, uint64_t index) {
    const struct node *n = &world.node[slot];
    if (n->incarnation == incarnation) {
        const uint8_t *log = sim_log(world.sim, slot);
        return oracle_in_memory(log, n->delivered, n->dead ? n->lived_to : UINT64_MAX, index);
    }
    for (uint32_t i = 0; i < m.graves; i++)
        if (m.grave[i].slot == slot && m.grave[i].incarnation == incarnation)
            return oracle_in_memory(m.grave[i].log, m.grave[i].delivered, m.grave[i].lived_to, index);
    return false;
}

bool members_hold(uint64_t index, uint32_t *holders) {
    *holders = 0;
    for (uint32_t which = 0; which <= m.proposals; which++) {
        struct replica_membership membership;
        uint32_t count = 0;
        if (!possible(which, &membership)) continue;
        for (uint32_t i = 0; i < world.nodes; i++)
            count += membership.incarnation[i] && remembers(i, membership.incarnation[i], index);
        if (count > *holders) *holders = count;
        if (majority(&membership, count)) return true;
    }
    return false;
}

bool members_bury(const struct node *n) {
    if (m.graves >= GRAVES_MAX - (world.settling ? 0 : GRAVES_AT_THE_END)) return false;
    uint64_t bytes = replica_log_bytes(&world.config);
    struct grave *g = &m.grave[m.graves++];
    *g = (struct grave){.slot = n->number, .incarnation = n->incarnation, .delivered = n->delivered,
                        .lived_to = n->dead ? n->lived_to : world.proposed, .log = malloc(bytes)};
    CHECK(g->log != NULL);
    memcpy(g->log, sim_log(world.sim, n->number), bytes);
    return true;
}

/* ---- what may happen to them ----------------------------------------------------------------------------------------- */

bool members_count_on(uint32_t slot) {
    for (uint32_t which = 0; which <= m.proposals; which++) {
        struct replica_membership membership;
        if (possible(which, &membership) && membership_has(&membership, slot, world.node[slot].incarnation)) return true;
    }
    return false;
}

static bool lives(const struct replica_membership *membership, uint32_t but) {
    uint32_t left = 0;
    for (uint32_t i = 0; i < world.nodes; i++) {
        const struct node *n = &world.node[i];
        left += i != but && !n->dead && membership_has(membership, i, n->incarnation);
    }
    return majority(membership, left);
}

bool members_can_spare(uint32_t slot) {
    for (uint32_t which = 0; which <= m.proposals; which++) {
        struct replica_membership membership;
        if (possible(which, &membership) && !lives(&membership, slot)) return false;
    }
    return true;
}

bool members_bear(const struct membership_change *change) {
    for (uint32_t which = 0; which <= m.proposals; which++) {
        struct replica_membership membership;
        if (!possible(which, &membership) || !membership_take(&membership, change, membership.index + 1)) continue;
        if (!lives(&membership, SIM_NOBODY)) return false;
    }
    return true;
}

static struct node *leader(void) {
    struct node *found = NULL;
    for (uint32_t i = 0; i < world.nodes; i++)
        if (running(&world.node[i]) && world.node[i].term && (!found || world.node[i].term > found->term)) found = &world.node[i];
    return found;
}

/* Removed in its present life: it can only come back in another. */
static bool is_gone(uint32_t slot) { return membership_gone(&m.decided, slot, world.node[slot].incarnation); }

void members_operate(void) {
    uint32_t i = (uint32_t)roll(world.nodes);
    struct node *n = &world.node[i], *to = leader();
    if (n->dead || !to || n->busy || roll(8)) return;
    if (is_gone(i)) {
        if (members_can_spare(i)) node_rebirth(i);
        return;
    }
    uint64_t member = m.decided.incarnation[i];
    if (member != n->incarnation) node_send(to, member ? MAIL_REMOVE : MAIL_ADD, i);
}

bool members_settled(void) {
    for (uint32_t i = 0; i < world.nodes; i++)
        if (!world.node[i].dead && m.decided.incarnation[i] != world.node[i].incarnation) return false;
    return true;
}
