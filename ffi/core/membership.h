/*
 * membership.h: who belongs to a cluster. For each slot (node id) the incarnation that is a member. An incarnation is one
 * life of a node, with one memory: a node that lost its memory comes back under a larger number, and what its former life
 * granted, acknowledged or held counts for nothing.
 *
 * A CONFIG record adds or removes exactly one incarnation. Replacing is two of them: remove, then add. It is in force for
 * every majority that is counted as soon as it stands in the counting replica's log, decided or not, and out of force again if
 * it is overwritten there (Raft's rule for single steps). A leader proposes one only
 *   (a) once the NOOP of its own term is committed, and
 *   (b) once the last CONFIG before it is committed,
 * and a candidate leads only if those that granted it their logs before it read them include a majority of the
 * membership in force at the end of the log that it chose.
 *
 * Why what is decided is never lost, and so no two leaders have disjoint majorities, whatever becomes of a CONFIG record.
 * Majorities of n members, and of those and one more, have a member in common: call two memberships adjacent if they are
 * equal or one step apart. Suppose that leader L of ballot b decided e, and that L', of ballot b' > b, chose a log without e.
 * Take the smallest such b', and for it the e of the smallest index. C is what was in force at the end of L's log when e was
 * first decided, D at the end of the log that L' chose.
 *   1. C and D are not adjacent. Else some replica is in both majorities; its copy of e was complete before it granted its
 *      log to L' (a completed write proves that), and leaders in between kept it (b' is the smallest), so L' read e there.
 *      What it chose instead ends under a larger ballot, whose leader had e, or under the same one and is longer: it has e.
 *   2. Let P be the last CONFIG (or the formation) that L's log and the chosen log share. Each has at most one CONFIG
 *      behind it. Of two, the first was decided, by (b): on L's side that is a decided record that L' lacks, before e,
 *      or e was decided when it alone was in force; on the side of L', it was decided under a ballot below b (then L has
 *      it), b (then it lies behind e, and L' has e) or above (then that leader has e as well, and one lies before the other).
 *   3. So C and D are different children of P, by leaders X and Y of different ballots (one leader writes one line). The
 *      one of the larger ballot had, before it proposed, a record f of its own term decided by a majority of P: its
 *      NOOP, by (a), or P itself. If that is X, L' has f by step 1, for P and D are adjacent; D's record, of the smaller
 *      ballot, lies before f, so in X's log, before C's. If it is Y and its ballot is at most b, L has f, and C's record
 *      before it, so Y has it before D's; if it is above b, Y chose a log with e, and L' has e with D's record.
 *      Each contradicts what was supposed.
 * A CONFIG record that the next leader adopts is in force at the end of its log, so it needs a majority of the membership
 * with that step; one that it overwrites was decided by nobody. It does not need to know which. Permission probes
 * are counted like records, so a deposed leader answers no read either.
 *
 * Amnesia changes nothing in this: to lose the memory is to be dead, and majorities are counted in incarnations. If a
 * majority lost its memory, no majority exists, and nothing starts by itself.
 */
#ifndef MUSIDECAR_MEMBERSHIP_H
#define MUSIDECAR_MEMBERSHIP_H

#include <stdbool.h>
#include <stdint.h>

#include "fabric/fabric.h"

#define INCARNATION_FIRST 1u /* of every node that takes part in a formation, unless the configuration says otherwise */

struct replica_membership {
    uint64_t index;                         /* of the CONFIG record that made it; 0: the formation */
    uint64_t incarnation[FABRIC_NODES_MAX]; /* 0: the slot has no member */
    uint64_t former[FABRIC_NODES_MAX];      /* the largest incarnation that was a member and is none any more */
};

enum membership_step { MEMBERSHIP_ADD = 1, MEMBERSHIP_REMOVE = 2 };

struct membership_change { /* the payload of a CONFIG record */
    uint32_t slot;
    uint32_t step; /* enum membership_step */
    uint64_t incarnation;
};

/* Bit i: slot i has a member. */
uint32_t membership_mask(const struct replica_membership *m);
static inline bool membership_has(const struct replica_membership *m, uint32_t slot, uint64_t incarnation) {
    return incarnation != 0 && m->incarnation[slot] == incarnation;
}
/* This life of the node was a member and is none any more, or a later one has come into its place. */
bool membership_gone(const struct replica_membership *m, uint32_t slot, uint64_t incarnation);
/* Takes the step that the CONFIG record `index` describes; false, and nothing done, when it is none: to add, the slot
 * must be empty and the incarnation new there; to remove, it must be the one that is there, and not the last member. */
bool membership_take(struct replica_membership *m, const struct membership_change *change, uint64_t index);

#endif
