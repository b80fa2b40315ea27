/*
 * own.h: connections of their own, one per client that the leader's backend must keep something for, or make wait (R4).
 * They live at the leader, for its own clients and for those of the other nodes; a request goes there with its client's
 * slot, and what the backend says goes back the same way.
 *
 * What runs on one is conditional (R5): no COMMAND stands for it in the log, nobody runs it again. A permission probe in
 * front of it bounds what a leader without a majority can do, as the record does for other writes. What it changed comes
 * with the stream, and what the backend answered waits until a ROLE sent behind it is answered, and then for that ROLE's
 * gate like everything else (R9).
 */
#ifndef MUSIDECAR_OWN_H
#define MUSIDECAR_OWN_H

#include "buffer.h"

struct own;

struct own_peer { /* as CLIENT LIST shows its client */
    uint64_t id; /* the backend's; 0: not known */
    uint64_t client; /* its node's */
    uint64_t goes_to, goes_to_client; /* where it had its invalidations redirected to: the backend's and its node's, too */
    char addr[64], laddr[64]; /* "127.0.0.1:51234"; "": not known */
};

enum arrival_kind { ARRIVAL_PART, ARRIVAL_LAST /* with this an answer is complete */, ARRIVAL_PUSH /* not counted */, ARRIVAL_END };

struct owns {
    struct own **slots[8]; /* of each node's clients, by slot; made when one is needed */
    struct own *first;     /* all of them */
    struct queue staged;   /* bytes that wait for their probe */
    struct queue unread;   /* sent, and not seen to be read by the backend */
    struct queue arrivals; /* what the backend said since the last ROLE that is answered */
    struct buffer arrived; /* ... its bytes */
    uint64_t sealed;       /* absolute count of arrivals that a ROLE was sent behind */
    struct own *dead;      /* freed at the end of the turn */
    bool unprobed;         /* something was staged since the last probe */
    uint64_t opened;       /* so many there have been */
    uint32_t replicas;     /* so many are clients' that are replicas */
    uint64_t looked_us;    /* ... and when they were looked at */
    uint32_t paused;       /* so many are not read from, as nobody takes what they say */
    uint32_t lent;         /* so many are there because their clients are paused, or were */
};

#endif
