/*
 * members.h: who belongs to the cluster: as the decided log says, as undecided CONFIG records may have it, and as the
 * operator of the simulation wants it. Memory counts by incarnation: that of a life that is over is kept as it was when
 * it ended, for what it acknowledged until then it did acknowledge.
 */
#ifndef MUSIDECAR_MEMBERS_H
#define MUSIDECAR_MEMBERS_H

#include "world.h"

void members_begin(void); /* who forms the cluster: into world.config */
void members_end(void);
/* A CONFIG record was proposed; the first node was handed one (false: nobody proposed that). */
void members_proposed(uint64_t index, const struct membership_change *change);
void members_withdraw(uint64_t index, const struct membership_change *change); /* it was refused */
bool members_decided(const struct record_header *h);
/* Does a majority of some membership that may be in force hold this record? */
bool members_hold(uint64_t index, uint32_t *holders);
/* Is this life of the node a member, or may it become or still be one? */
bool members_count_on(uint32_t slot);
/* May this node die, and a majority of every membership that may be in force be left? */
bool members_can_spare(uint32_t slot);
/* Would a majority be alive after this change? An operator who removes the living, or adds the dead, while
 * nobody knows who is dead, may lose the majority, as he would in any such protocol: this one does not. */
bool members_bear(const struct membership_change *change);
/* This life is over: its memory is about to be lost. False: no room to remember it. */
bool members_bury(const struct node *n);
/* One step towards everybody alive being a member, in its present life. */
void members_operate(void);
/* Are they, and does everybody know? */
bool members_settled(void);
/* After a turn: who has been handed the last change knows whom it leaves. */
void members_turn(const struct node *n);

#endif
