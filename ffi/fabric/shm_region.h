/*
 * shm_region.h: what stands in the memfds that the nodes of one host hand to each other.
 *
 *   log memfd          [ log_bytes ]                                   mapped by its owner and every peer
 *   background memfd   [ background_bytes, rounded up to pages | struct shm_control ]
 *
 * Invariants: the grant word is written by the owner's thread alone; hazards[w] by writer w alone (by the owner only
 * once w is proved dead); the mutexes are held by the owner's engine thread from shm_enter() until it ends, and by nobody
 * else, ever. Words of different writers share no cache line, nor the pair of lines that a prefetcher fetches.
 */
#ifndef MUSIDECAR_SHM_REGION_H
#define MUSIDECAR_SHM_REGION_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>

#include "fabric/fabric.h"

#define SHM_LINE 128
#define SHM_MAGIC 0x6d7573692d73686dull /* "musi-shm" */
#define SHM_LAYOUT 1u

enum shm_state {
    SHM_NEW = 0,   /* made; its engine thread has not entered */
    SHM_OPEN = 1,  /* the engine thread runs, or nobody has proved the contrary */
    SHM_CLOSED = 2 /* gone, orderly or not: this memory acknowledges nothing any more */
};

struct shm_identity { /* fixed before the memfd is handed out */
    uint64_t magic;
    uint32_t layout, owner, nodes, mutex_bytes;
    uint64_t log_bytes, background_bytes;
    uint64_t incarnation; /* random: another life of the same node is another region */
};

struct shm_permission {
    /* epoch << 8 | holder + 1; holder part 0: nobody. Epochs only grow. */
    _Alignas(SHM_LINE) _Atomic uint64_t grant;
    _Atomic uint32_t state; /* enum shm_state; beside the grant because writers look at both */
};

struct shm_hazard {
    /* 1 while this writer may be storing into the log: from before it looks at the grant until it has looked again. */
    _Alignas(SHM_LINE) _Atomic uint64_t raised;
};

struct shm_barred {
    _Alignas(SHM_LINE) _Atomic uint64_t times; /* how often the owner has write-protected this writer's mapping */
};

struct shm_control {
    struct shm_identity identity;
    struct shm_permission permission;
    struct shm_hazard hazards[FABRIC_NODES_MAX];
    struct shm_barred barred[FABRIC_NODES_MAX];
    /* Robust, process-shared, held by the owner; lives[p] is for peer p to wait on. One each, because the kernel wakes
     * one waiter of a dead thread's mutex, and that one may be dying itself. */
    _Alignas(SHM_LINE) pthread_mutex_t lives[FABRIC_NODES_MAX];
};

#define SHM_NOBODY UINT32_MAX
#define SHM_NO_GRANT UINT64_MAX /* no grant word is ever this */
static inline uint64_t shm_grant_word(uint64_t epoch, uint32_t holder) { return epoch << 8 | (uint64_t)(holder + 1); }
static inline uint64_t shm_grant_epoch(uint64_t word) { return word >> 8; }
static inline uint32_t shm_grant_holder(uint64_t word) { return (uint32_t)(word & 0xff) - 1; }

#endif
