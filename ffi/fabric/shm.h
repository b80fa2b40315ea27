/*
 * shm.h: the fabric between processes of one host. A one-sided write is a store by the writer's own CPU into a memfd
 * that the owner handed over; it needs nobody else to run. Revocation (mu.md section 7.2): hazard word and re-check,
 * with a bounded wait, then a hard fence for a writer stopped in mid-write: userfaultfd write-protection of the writer's
 * mapping, or, where that is barred, the writer's death.
 *
 * Hand-over, by whoever carries file descriptors between the nodes (musidecar.mesh):
 *   shm_new() here and there; each sends its shm_fds() to the other, who calls shm_attach() with them; then each sends
 *   the shm_fence_fd() it made for the other's log, who calls shm_set_fence() with it; then shm_open_link().
 */
#ifndef MUSIDECAR_SHM_H
#define MUSIDECAR_SHM_H

#include "fabric/fabric.h"

enum shm_fence { SHM_FENCE_USERFAULTFD = 1, SHM_FENCE_KILL = 2 };

struct shm_config {
    uint32_t self, nodes;
    uint64_t log_bytes, background_bytes;
    uint32_t hazard_us;     /* how long a revocation waits for a writer in mid-write before it fences hard */
    uint32_t force_fence;   /* 0: the best that works here; else enum shm_fence */
    uint32_t hurries;       /* whoever entered is put in front of all else (prompt.h) when a peer dies; he ends that himself */
};

struct shm;
/* NULL with errno set. */
struct shm *shm_new(const struct shm_config *config);
void shm_free(struct shm *s);
struct fabric *shm_fabric(struct shm *s);
void *shm_log(struct shm *s);        /* own regions */
void *shm_background(struct shm *s);

/* log memfd, background memfd (which also holds grant word, hazard words, state and the death notice's mutex) and
 * the ringing end of the doorbell: this node's, to be sent to every peer. They stay the fabric's. */
struct shm_descriptors { int log, background, doorbell; };
struct shm_descriptors shm_fds(const struct shm *s);
/* Maps a peer's regions; takes the descriptors. -1 with errno if sizes or layout do not match. */
int shm_attach(struct shm *s, uint32_t peer, struct shm_descriptors fds, int peer_pid);
/* A descriptor by which the owner of `peer`'s log can bar this process's mapping of it, to be sent to the owner with the
 * address of the mapping; -1 when this host has none (then the fence is death). It stays the fabric's. */
int shm_fence_fd(struct shm *s, uint32_t peer, uint64_t *mapping);
/* What a peer sent of the same: takes the descriptor (-1: none, fence by pidfd). */
int shm_set_fence(struct shm *s, uint32_t peer, int fd, uint64_t mapping);
/* The link works from here on. Starts the thread that waits for the peer's death. Once the engine's thread has entered
 * it is for that one to call: what it posted over a former link is settled first. */
int shm_open_link(struct shm *s, uint32_t peer);
/* Which life of the peer is attached: a random number of its region; 0: none. Any thread. */
uint64_t shm_region(const struct shm *s, uint32_t peer);
/* Has shm_open_link() been called for it? Any thread. */
bool shm_is_open(const struct shm *s, uint32_t peer);

/* By the engine's thread, once, before anything else: it is the one whose death is noticed. */
int shm_enter(struct shm *s);
/* Readable when a peer rang or died; shm_drain() empties it and returns a bit mask of the peers newly dead. */
int shm_wait_fd(const struct shm *s);
uint32_t shm_drain(struct shm *s);
enum shm_fence shm_fence_kind(const struct shm *s);
/* Does userfaultfd write-protection work in this process? For `musidecar doctor`; says why not in `why`. */
bool shm_fence_check(char *why, uint32_t why_bytes);

/* Counters. */
struct shm_counters { uint64_t writes, write_bytes, reads, refused, revocations, fences, fence_ns_max; };
struct shm_counters shm_counters(const struct shm *s);

#endif
