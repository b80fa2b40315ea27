/*
 * verbs_state.h: what the files of the verbs fabric share. Private to them.
 *
 *   verbs.c             life of a node's fabric; waking and sleeping
 *   verbs_queue.c       posts and completions
 *   verbs_link.c        the queue pairs to one peer: making, connecting, replacing
 *   verbs_permission.c  revoke, grant, accept, release
 *   verbs_device.c      the device; verbs_library.c: libibverbs
 *
 * Threads: the engine's drives the fabric. Another may make links (describe, attach, open); an opened link is adopted by
 * the engine's thread with its next call, and the one it replaces is given back there.
 */
#ifndef MUSIDECAR_VERBS_STATE_H
#define MUSIDECAR_VERBS_STATE_H

#include <stdatomic.h>

#include "check.h"
#include "fabric/verbs_device.h"

#ifdef VERBS_BUILT

#define VERBS_POSTS 2048u /* of one peer and region, not polled; a power of two */
#define VERBS_STUCK 1536u /* unfinished ones: the peer hangs, and the link is given up */
#define VERBS_LINE 64

enum verbs_kind { VERBS_WRITE, VERBS_READ, VERBS_RING };
#define VERBS_UNSETTLED 0xffu

struct verbs_post {
    uint64_t id, offset;
    union {
        const uint8_t *source; /* of a write; one of at most FABRIC_INLINE_MAX that has to wait is in `kept` */
        uint8_t *into;         /* of a read */
    };
    uint64_t staged;       /* staging in use up to here once it is sent; 0: none of its own */
    uint32_t length;
    uint32_t session;
    uint8_t kind, status;  /* enum fabric_status, or VERBS_UNSETTLED */
    bool internal;         /* nobody is told of it */
};

/* What was posted to one region of one peer, in order: taken <= settled <= sent <= posted. */
struct verbs_queue {
    uint32_t taken, settled, sent, posted;
    uint32_t session; /* begins with accept(), or a new link */
    uint32_t told;    /* the session whose first failure was told */
    uint32_t serial;  /* of wr_id: completions of what was given up are not counted */
    bool broken;      /* of this session: everything is FLUSHED */
    uint8_t region;
    uint8_t *staging;
    uint64_t staging_head, staging_tail; /* byte counts; the place is modulo staging_bytes */
    struct ibv_send_wr work; /* as it was posted last: most of it never changes */
    struct ibv_sge piece;
    struct verbs_post posts[VERBS_POSTS];
    uint8_t kept[VERBS_POSTS][FABRIC_INLINE_MAX]; /* element i: of posts[i], if it has to wait */
};

struct verbs_link { /* the queue pairs to one peer */
    struct ibv_qp *out[FABRIC_REGIONS]; /* this end sends to the peer's region; the peer may do nothing here */
    struct ibv_qp *in[FABRIC_REGIONS];  /* the peer sends to the own region */
    struct ibv_qp *retired;             /* the log's former `in`: whoever still writes there is refused */
    struct verbs_end own, theirs;
    enum ibv_mtu mtu;
};

struct verbs_peer {
    struct verbs_link *making;           /* described, not attached */
    _Atomic(struct verbs_link *) coming; /* attached, not adopted yet */
    _Atomic uint64_t attached, adopted;  /* their lives; 0: none */
    _Atomic bool cut;                    /* the link in use has failed */
    struct verbs_link *link;             /* in use, or NULL */
    struct verbs_queue *queues[FABRIC_REGIONS];
    /* writer's side */
    uint64_t token;      /* grant epoch under which its log may be written; 0: none */
    uint64_t epoch_seen; /* the largest one accepted */
    uint32_t connected;  /* number of the queue pair that out[FABRIC_LOG] is connected to */
    bool failed;         /* out[FABRIC_LOG] has to be cycled */
    uint64_t cycles_wanted;
    /* owner's side */
    uint64_t granted;     /* epoch granted on the present in[FABRIC_LOG]; 0: none yet */
    uint64_t wanted_seen; /* cycles_wanted, as this peer last said */
    bool in_failed;       /* in[FABRIC_LOG] has to be cycled */
};

/* Behind the background region: words of one writer each. */
struct verbs_word {
    /* The writer's last token: it writes no more under it, nor under any before. */
    _Alignas(VERBS_LINE) uint64_t released;
    uint64_t cycles_wanted; /* changes when its queue pair has to be cycled */
};
struct verbs_control {
    struct verbs_word writers[FABRIC_NODES_MAX];
};

struct verbs {
    struct fabric fabric; /* first: the fabric's address is the verbs's */
    struct verbs_config config;
    struct verbs_device device;
    uint8_t *memory[FABRIC_REGIONS]; /* own regions */
    uint64_t memory_bytes[FABRIC_REGIONS];
    struct ibv_mr *keys[FABRIC_REGIONS];
    uint8_t *staging[FABRIC_REGIONS];
    uint64_t staging_bytes; /* of one peer and region */
    struct ibv_mr *staging_keys[FABRIC_REGIONS];
    uint64_t control_offset; /* in the background region, also the peers' */
    struct verbs_control *control;
    _Atomic uint32_t arrivals; /* bit i: peers[i].coming is there */
    struct verbs_peer peers[FABRIC_NODES_MAX];
    uint32_t holder; /* of the own log's permission, or VERBS_NOBODY */
    uint64_t epoch;  /* counts revocations and grants */
    uint64_t ready;  /* bit peer * 2 + region: something settled is to be taken */
    uint64_t waiting; /* ... something is posted and not sent */
    uint32_t under_way; /* sent, no completion yet */
    int wait_fd;
    struct verbs_counters counters;
};

#define VERBS_NOBODY UINT32_MAX
/* A grant epoch says to which queue pair of the owner it belongs. */
#define VERBS_NUMBER_BITS 24
#define VERBS_NUMBER_MASK 0xffffffu

static inline struct verbs *verbs_of(struct fabric *f) { return (struct verbs *)(void *)f; }
static inline uint64_t verbs_bit(uint32_t peer, uint32_t region) { return 1ull << (peer * FABRIC_REGIONS + region); }
uint64_t verbs_now_ns(void);

/* ---- verbs_queue.c */
void verbs_post_write(struct fabric *f, uint32_t peer, enum fabric_region region, uint64_t offset, const void *bytes,
                             uint32_t length, uint64_t id);
void verbs_post_read(struct fabric *f, uint32_t peer, enum fabric_region region, uint64_t offset, void *into,
                            uint32_t length, uint64_t id);
int verbs_poll(struct fabric *f, struct fabric_completion *out, int max);
void verbs_post_internal(struct verbs *v, uint32_t peer, enum verbs_kind kind, uint64_t offset, const void *bytes, uint32_t length);
void verbs_reap(struct verbs *v);     /* takes the device's completions */
void verbs_progress(struct verbs *v); /* and sends what had to wait */
/* Everything unfinished fails: the first of its session with `status`, the rest FLUSHED. The queue pair must send no more. */
void verbs_give_up(struct verbs *v, uint32_t peer, uint32_t region, enum fabric_status status);

/* ---- verbs_link.c */
void verbs_adopt(struct verbs *v); /* the links that were opened */
void verbs_link_free(struct verbs *v, struct verbs_link *link);
struct ibv_qp *verbs_make_in(struct verbs *v, enum fabric_region region);
bool verbs_connect(struct verbs *v, const struct verbs_link *link, struct ibv_qp *pair, uint32_t number, uint32_t psn_theirs,
                   uint32_t psn_own, unsigned access);
bool verbs_reset(struct verbs *v, struct ibv_qp *pair);
void verbs_stop(struct verbs *v, struct ibv_qp *pair); /* it sends and takes nothing any more */

/* ---- verbs_permission.c */
void verbs_revoke(struct fabric *f);
uint64_t verbs_grant(struct fabric *f, uint32_t peer);
void verbs_accept(struct fabric *f, uint32_t peer, uint64_t epoch);
bool verbs_holds_own(struct fabric *f);
void verbs_release(struct fabric *f, uint32_t peer);
void verbs_tell_broken(struct verbs *v, uint32_t peer); /* the owner of that log: its queue pair has to be cycled */

#endif
#endif
