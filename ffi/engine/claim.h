/*
 * claim.h: what the own backend holds from before this life of its node, until it is decided about (claim.c).
 */
#ifndef MUSIDECAR_CLAIM_H
#define MUSIDECAR_CLAIM_H

#include <stdbool.h>
#include <stdint.h>

struct engine;
struct control;

struct claim {
    bool open, asked;  /* asked: what it lacks is on its way */
    bool taken;        /* it was told to go on from there */
    uint64_t until_us; /* so long the log may take to come that far */
};

void claim_init(struct engine *e);
bool claim_step(struct engine *e); /* each tick, of a backend that is not to be fed as it is; false: it is to be filled */
void claim_tail(struct engine *e, struct control *c); /* what it lacks has come */
bool claim_failed(struct engine *e, uint64_t number); /* it will not; false: something else was asked for by this number */
void claim_lost(struct engine *e);                    /* the backend went away */
void claim_settled(struct engine *e, bool right);     /* it has asked for its feed: from where it claimed to be? */

#endif
