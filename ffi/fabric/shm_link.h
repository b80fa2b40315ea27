/*
 * shm_link.h: one node's regions and its links to the peers' (making, mapping, retiring: nothing here runs per request).
 *
 * Threads: the engine's thread drives the fabric. Another may make a link (attach, set fence, open): the engine uses it
 * only once it is open, and it is the engine's thread that gives back the memory of a link that was replaced.
 */
#ifndef MUSIDECAR_SHM_LINK_H
#define MUSIDECAR_SHM_LINK_H

#include "fabric/shm.h"
#include "fabric/shm_region.h"

/* What is wrong with a log link. */
enum shm_fault {
    SHM_SOUND = 0,
    SHM_LOST = 1,  /* the permission is gone, no completion has told yet: the next unfinished write is REFUSED */
    SHM_BROKEN = 2 /* told: everything is FLUSHED until accept() */
};

struct shm_link { /* one peer, as one node sees it */
    /* the peer's memory, as mapped here */
    uint8_t *log;
    uint8_t *background;
    struct shm_control *control;
    /* writer's side */
    uint64_t token;       /* the grant word under which I may write, or SHM_NO_GRANT */
    enum shm_fault fault;
    uint64_t barred_seen; /* control->barred[self].times at the last accept() */
    /* owner's side */
    bool barred;          /* this peer's mapping of my log is write-protected */
    int bar_fd;           /* the peer's userfaultfd, or -1 */
    uint64_t bar_mapping; /* where the peer mapped my log */
    int pidfd;            /* the peer's process, or -1 */
    /* both */
    uint32_t peer;
    int doorbell;
    int own_bar_fd; /* my userfaultfd over `log`, or -1 */
    struct shm *shm;
    struct shm_link *retired_next;
    pthread_t notice; /* waits for the peer's death */
    bool notice_started;
    _Atomic bool notice_stop;  /* asks the notice thread to end */
    _Atomic bool notice_ended; /* by the notice thread, last thing */
    _Atomic bool open;         /* by shm_open_link(): from here on the fabric uses the link */
    _Atomic bool dead;         /* by the notice thread, or whoever has another proof */
};

static inline bool shm_link_dead(const struct shm_link *link) {
    return atomic_load_explicit(&link->dead, memory_order_acquire) ||
           atomic_load_explicit(&link->control->permission.state, memory_order_acquire) == SHM_CLOSED;
}

/* Posts whose completions have not been polled. */
enum shm_post_kind { SHM_POST_LOG_WRITE, SHM_POST_LOG_READ, SHM_POST_BACKGROUND };
#define SHM_UNSETTLED 0xffu
struct shm_post {
    uint64_t id;
    struct shm_link *link; /* NULL: there was none */
    uint32_t peer;
    uint8_t kind;   /* enum shm_post_kind */
    uint8_t status; /* enum fabric_status, or SHM_UNSETTLED */
};
#define SHM_POSTS_MAX 16384

struct shm {
    struct fabric fabric; /* first: the fabric's address is the shm's */
    struct shm_config config;
    uint8_t *log;
    uint8_t *background;
    struct shm_control *control;
    uint64_t background_memory_bytes; /* control included */
    struct shm_descriptors fds;
    int bell; /* the end of the doorbell that this node listens to */
    enum shm_fence fence_kind;
    bool entered;
    pthread_t enterer;
    _Atomic int32_t thread; /* the same, as the scheduler calls it; 0: nobody has entered */
    _Atomic(struct shm_link *) links[FABRIC_NODES_MAX];
    _Atomic(struct shm_link *) retired;
    _Atomic uint32_t newly_dead;
    /* Bit i: the log of peer i may be written, as far as is known: its link is accepted and sound. */
    uint32_t writable;
    /* Bit i: my hazard word at peer i is raised. From a burst's first log write to the next settlement. */
    uint32_t hazardous;
    bool burst;
    uint32_t posted, settled, taken; /* in posts[]; all back to 0 when everything is taken */
    struct shm_post posts[SHM_POSTS_MAX];
    struct shm_counters counters;
};

static inline struct shm_link *shm_link_of(struct shm *s, uint32_t peer) {
    return atomic_load_explicit(&s->links[peer], memory_order_acquire);
}

/* By the engine's thread, with no post outstanding: gives back what links that were replaced had mapped. */
void shm_reap(struct shm *s);
/* The operations of the fabric (shm.c). */
extern const struct fabric_ops shm_ops;
extern const struct fabric_host shm_host;
/* Finishes the burst: all hazard words lowered, every post's outcome known (shm.c). */
void shm_settle(struct shm *s);
void shm_ring(int doorbell);

#endif
