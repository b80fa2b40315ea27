/*
 * stale.h: reads that a follower's own backend answers, for clients that said READONLY (reads = "local"). Such a read sees
 * every write that was acknowledged more than `stale_us` before it was sent, and everything that its own connection was
 * answered before; nothing that is not committed; and no connection goes back in time.
 *
 * How current the own backend is, is proved, and never concluded from a clock of another host: the leader is asked, and
 * says behind a gate, so that it led still, how far the effects of all that it has acknowledged go. Once the backend has
 * applied that much it holds what was acknowledged before the question was put.
 *
 * A read that needs a later proof than there is waits for one, for a few milliseconds, and goes to the leader then. So it
 * does at once behind requests of its client that the leader has not answered, and wherever this node is no sound follower.
 * Reads that wait for the own backend stand in client.pending, with their bytes: should it be lost, or be about to lead,
 * they are put to the leader like everything else that has no answer.
 */
#ifndef MUSIDECAR_STALE_H
#define MUSIDECAR_STALE_H

#include <stdbool.h>

#include "engine/source.h"
#include "protocols/redis/resp.h"

struct stale {
    struct socket socket;    /* to the own backend; opened by the first read */
    struct queue expects;    /* answers to come */
    struct resp_reply reply;
    int32_t database;        /* that the connection will be in */
    uint8_t protocol;
    uint64_t proved_us;      /* the backend holds all that was acknowledged before; 0: nothing is known */
    uint64_t asked_us, asked_term, number; /* the question that is under way; asked_us 0: there is none */
    uint64_t wanted_offset;  /* ... what it was answered ... */
    bool answered;           /* ... if it was */
    bool waited_for;         /* clients wait for a proof */
    bool told;               /* at the leader: answers to such questions wait for their gate */
};

enum stale_way { STALE_NO, STALE_TAKEN, STALE_WAITS };

#endif
