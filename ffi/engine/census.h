/*
 * census.h: CLIENT LIST, INFO and KILL, of the clients of all nodes as of one server's.
 *
 * The leader asks every node for its clients, each with the line that CLIENT LIST would have of it, and its backend for those
 * that have a connection of their own there, of whom that knows more. A client has one number wherever it is shown: the one
 * that its node gave it, so that no two nodes give the same; the backend's stays between the leader and the backend.
 *
 * Who goes around the sidecar, to the backend itself, is no client here: so are connections of the sidecar's.
 *
 * A node that does not answer soon is left out. Who is killed is closed by its node, and its own connection by the leader at
 * once; what is asked later over the same links finds it gone.
 */
#ifndef MUSIDECAR_ENGINE_CENSUS_H
#define MUSIDECAR_ENGINE_CENSUS_H

#include "buffer.h"
#include "engine/source.h"
#include "fabric/fabric.h"

#define CENSUS_BYTES_MAX (64u << 20) /* of one node's answer */

struct census_entry { /* as a node tells of a client, in front of its line */
    uint64_t id;
    uint32_t slot, generation, line_bytes;
    uint32_t on_own; /* the backend knows more of it */
};

struct census {
    struct census *next;
    struct destination to;
    uint64_t number, since_us;
    uint32_t waits;   /* nodes that have not answered; this one: the backend */
    uint8_t protocol; /* of who asks */
    struct buffer request, backend, entries[FABRIC_NODES_MAX];
};

struct censuses {
    struct census *first;
    uint64_t asked;
    uint64_t told, told_term; /* to the leader: how many clients this node has */
};

#endif
