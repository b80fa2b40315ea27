/*
 * faults.h: what may happen to a cluster. A fault has two arguments, mostly nodes, and a value; one that is impossible
 * (it would leave no majority, its node is dead) is none. They come from the seed, by weights, or from a script:
 *
 *   "40 pause 0 0 1; 120 cut 0 2; 300 continue 0"          step, name, up to three numbers
 */
#ifndef MUSIDECAR_FAULTS_H
#define MUSIDECAR_FAULTS_H

#include "world.h"

/* Draws the weights of this seed; overridden by `weights` ("crash=3,pause=10"), silenced by a script. False: not
 * understood. */
bool faults_begin(const char *weights, const char *script);
void faults_step(void);
void faults_stop(void); /* everything is as it was, but for the dead */
void faults_list(void); /* their names, one a line */

#endif
