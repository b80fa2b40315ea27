/* shared.h: the shared connection, and what waits for its answers (shared.c, turn.c; of a machine: machine.c). */
#ifndef MUSIDECAR_ENGINE_SHARED_H
#define MUSIDECAR_ENGINE_SHARED_H

#include "engine/busy.h"
#include "engine/slowlog.h"
#include "engine/source.h"
#include "protocols/redis/resp.h"

enum expect_kind { EXPECT_CLIENT, EXPECT_LOCAL, EXPECT_SWALLOW, EXPECT_ROLE, EXPECT_RERUN /* kept for its origin, who will ask */,
                   EXPECT_DROP /* answered with -BUSY meanwhile */,
                   EXPECT_GATE, EXPECT_QUESTION /* machine.c */,
                   EXPECT_AOF, EXPECT_LOAD, EXPECT_LOADED, EXPECT_FUNCTIONS, EXPECT_WRITTEN, EXPECT_POPULATE /* load.c */,
                   EXPECT_SLOW_LIMITS, EXPECT_SLOW_ENTRIES /* slowlog.c */ };

struct expect { /* one request in flight on the shared connection */
    uint8_t kind;
    bool reads;
    bool stands_in;
    uint8_t loads;     /* enum session_loads */
    uint8_t view;      /* enum session_view */
    bool block;        /* a transaction */
    uint32_t replies, swallow;
    int32_t view_count;
    union { uint32_t local_bytes, behind; /* LOCAL; else of the request: see slowlog.h */ };
    int32_t database_after;
    uint32_t pause;    /* see enum pause_kind */
    struct destination to;
    uint64_t life;     /* not 0: of the node that forwarded this write; the EFFECT tells what it was answered (R1) */
    uint64_t covered;  /* ROLE: last COMMAND index before it; GATE: its probe; QUESTION: the key's hash */
    uint64_t end;      /* absolute count of bytes of the connection, this request's included */
    union {
        struct {
            uint32_t style, reply_bytes; /* machine.c: see protocol.h; of machine.replies */
            uint64_t arrivals;           /* ROLE: what had come on own connections before it */
        };
        uint8_t head[SLOW_HEAD_BYTES]; /* CLIENT: see slowlog.h */
    };
    uint64_t since_ns;
};

struct segment { /* answer bytes of one destination that one gate lets go */
    uint32_t node, slot, generation; /* of another node: its link's session stands for the generation */
    size_t bytes;
};

struct gate { /* a ROLE that came back: answers before it leave when its effects are committed (R9) */
    uint64_t offset;
    uint64_t covered;
    uint64_t segments;
    uint64_t kept;         /* answers kept until then: absolute count of bytes */
    uint64_t effect_index; /* once cut */
    uint64_t probe;
    uint64_t since_ns, known_ns; /* its turn began; its ROLE came back */
    bool cut;
};

struct staged { /* bytes of shared.out up to `end` may be sent once `index` is committed */
    uint64_t end, index;
    uint64_t since_ns;
};

struct shared {
    struct socket socket;
    uint64_t appended, sendable, sent; /* absolute byte counts of socket.out */
    struct queue staged, expects, segments, gates;
    uint64_t open_segments;            /* since the last gate */
    uint32_t roles_in_flight;
    uint64_t refused_since_us, refused_us; /* writes were refused for want of memory or disk: first and last of them */
    bool unproven;                     /* something was staged since the last ROLE */
    int32_t database;                  /* that the connection will be in; -1 unknown */
    uint8_t protocol;
    struct resp_reply reply;
    struct busy busy;
    struct buffer role;                /* the ROLE reply coming in */
    struct buffer info;                /* what it is asked for load.c and slowlog.c: the reply coming in */
    uint64_t heard_ns;                 /* when it was read last */
    bool changed;                      /* a load left other data than the log's */
    bool writes_out;                   /* what it loaded is on its way into the stream: nothing counts, or comes, before it is there */
    struct buffer populate;            /* requests, while the backend is asked whether it would */
    struct buffer local;               /* bytes of EXPECT_LOCAL answers, in order */
    struct buffer refusal;             /* an error in the place of a +QUEUED that was given before ... */
    struct buffer views;               /* of transactions that are under way: see view_block_note() */
    struct buffer edited;              /* ... and what its EXEC is answered, until it is whole */
    struct buffer kept;                /* answers that go into the next EFFECT: struct origin_reply, bytes */
    uint64_t kept_whole, kept_cut;     /* absolute counts of its bytes: whole answers; those in an EFFECT */
    size_t kept_open;                  /* bytes of the one that is coming in */
    bool kept_large;                   /* ... and is not kept */
};

#endif
