/*
 * own_replica.h: a client that replicates from the leader's backend (SYNC, PSYNC) on its own connection, and how far it lags.
 * What the backend says there is data and stream, no answers: it is passed on as it comes, a window at a time, each piece
 * once a ROLE behind it is answered and what that covers is committed, as everything else (R9). So its client sees nothing
 * that a later leader's history has not, and can go on there with PSYNC.
 *
 * The backend keeps what a replica does not take, without a limit (R8). How much that is shows here: the stream has grown by
 * so much since the connection was last seen empty, and so much of that was passed on.
 */
#ifndef MUSIDECAR_OWN_REPLICA_H
#define MUSIDECAR_OWN_REPLICA_H

#include "protocols/redis/psync.h"

#define OWN_REPLICA_LOOK_US 100000ull
#define OWN_REPLICA_TELL_BYTES (64u << 10)

struct own_replica {
    struct psync psync;   /* until its stream runs */
    uint64_t position;    /* of the backend's stream when the connection was last empty, or when it asked */
    uint64_t passed;      /* bytes of stream since then */
    uint64_t untaken;     /* bytes on their way to the client */
    uint64_t took_us;
    bool live, refused;
};

struct own_replica *own_replica_new(uint64_t now_us, uint64_t position);
/* Bytes came from the backend; `empty`: for now there are no more. position: of the stream, as the leader has read it. */
void own_replica_passed(struct own_replica *r, const uint8_t *bytes, size_t length, bool empty, uint64_t position);
void own_replica_took(struct own_replica *r, uint64_t bytes, uint64_t now_us);
/* So many bytes may be on their way to a client, where others are closed at twice `output_bytes_max`. */
uint64_t own_replica_window(uint64_t output_bytes_max);
/* `waits`: there is something for it. */
bool own_replica_lags(const struct own_replica *r, bool waits, uint64_t now_us, uint64_t timeout_us, uint64_t position);

#endif
