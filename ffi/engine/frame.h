/*
 * frame.h: what one engine sends another over a mesh link: a head, as it stands in memory (both ends are of one build, on
 * one host), then `length` bytes. The other side has proved that it is a member; what it sends is judged all the same,
 * as soon as the head is there: nothing is taken for a request that the backend could not answer one by one.
 */
#ifndef MUSIDECAR_FRAME_H
#define MUSIDECAR_FRAME_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum frame_type {
    FRAME_REQUEST = 1, FRAME_REPLY = 2, FRAME_SERVING = 3, FRAME_NOT_SERVING = 4, FRAME_SNAPSHOT_ASK = 5, FRAME_SNAPSHOT = 6,
    FRAME_JOIN = 7, /* sequence: the incarnation that wants to be a member */
    /* A planned hand-over (handover.c); generation: its number. */
    FRAME_HOLD = 8,      /* leader: keep your clients' requests back. slot: who is to lead */
    FRAME_HELD = 9,      /* nothing more comes from here, and everything is answered */
    FRAME_CATCH_UP = 10, /* leader: tell when your backend has applied up to `sequence`; FRAME_LAST: take over then */
    FRAME_CAUGHT_UP = 11, /* it has; FRAME_REFUSED: this node cannot lead */
    FRAME_UNKNOWN = 12, /* what became of this request nobody can tell any more */
    /* Clients with a connection of their own at the leader (own.c). */
    FRAME_OWN_REQUEST = 13, /* FRAME_LAST: a new connection logs in as everybody's does */
    FRAME_OWN_PUSH = 14,    /* bytes for the client that answer no request in particular */
    FRAME_OWN_END = 15,     /* the backend has closed it */
    FRAME_OWN_EOF = 16,     /* the client has sent its last byte ... */
    FRAME_OWN_GONE = 17,    /* ... or is gone */
    FRAME_OWN_TAKEN = 18,   /* it is a replica, and took another `sequence` bytes */
    FRAME_OWN_PEER = 19,    /* the addresses that it is connected by: struct own_peer */
    /* Reads that a follower's own backend answers (stale.c). */
    FRAME_FRESH_ASK = 20,   /* how far do the effects go of what was acknowledged up to now? */
    FRAME_FRESH = 21,       /* so far: a uint64_t; sequence: of the question */
    FRAME_WHO = 22,         /* leader: who is this client of yours? ... */
    FRAME_WHO_IS = 23,      /* ... struct slow_client */
    /* The clients of all nodes (census.c). */
    FRAME_CLIENTS_ASK = 24, /* leader: who are your clients? ... */
    FRAME_CLIENTS = 25,     /* ... each a struct census_entry and a line; sequence: of the question */
    FRAME_CLIENT_KILL = 26, /* leader: this one is to be closed; FRAME_LAST: once it has been told all */
    FRAME_CLIENT_COUNT = 27 /* so many there are */
};
/* One bit has a meaning of its own in another type of frame. */
enum frame_flags {
    FRAME_WRITES = 1, FRAME_RESP3 = 2, FRAME_LOSES_DATABASE = 4, FRAME_LAST = 8, FRAME_FLUSHES_SCRIPTS = 16,
    FRAME_ADMIN = 32,      /* for the admin connection */
    FRAME_BUSY = 64,       /* SERVING: the backend runs a script that does not end */
    FRAME_AGAIN = 128,     /* REQUEST: was sent to a leader before this one */
    FRAME_STANDS_IN = 8,   /* REQUEST: see session.h; with ADMIN: it is a struct session_wait */
    FRAME_REFUSED = 128,   /* CAUGHT_UP */
    FRAME_SYNCS = 1,       /* OWN_REQUEST: SYNC or PSYNC ... */
    FRAME_LISTS = 2,       /* ... CLIENT LIST or INFO; script_offset is what was added */
    FRAME_RESETS = 4,      /* ... see session.h */
    FRAME_VERIFIES = 32    /* ... credentials that a node's client would be let in with */
};
struct frame {
    uint32_t length; /* payload bytes */
    uint8_t type, flags;
    uint16_t database;
    uint32_t slot, generation;
    uint64_t sequence; /* SERVING: term */
    uint32_t replies, swallow;
    uint32_t script_offset, script_length;
    uint64_t term;       /* REQUEST: of the leader it is meant for */
    uint64_t life;       /* ... the sender's incarnation */
    uint32_t unanswered; /* ... see struct origin */
    uint32_t pause;      /* ... see enum pause_kind */
    uint16_t loads, view; /* ... enum session_loads, enum session_view */
    int32_t view_count;
    uint32_t sets, pad;  /* OWN_REQUEST: enum session_sets; script_offset is what was added */
};

struct frame_limits {
    uint64_t request_bytes_max;
    uint32_t databases;
};

enum frame_status { FRAME_MORE = 0, FRAME_WHOLE = 1, FRAME_BAD = -1 };

/* Looks at the frame that begins at `bytes`. *whole is its bytes, head included, once the head is there: at MORE, too,
 * and else 0. */
enum frame_status frame_read(const uint8_t *bytes, size_t length, const struct frame_limits *limits, struct frame *frame,
                             size_t *whole);

#endif
