/*
 * fabric.h: one-sided memory between the replicas of a cluster. The contract that shm.c, verbs.c and sim.c keep.
 *
 * Every replica owns two regions: its LOG (writable by the one peer that holds its permission) and its BACKGROUND
 * (writable by every peer, words of one writer each). A post names a peer and reads or writes that peer's region; its
 * outcome comes back from poll(). Posting to oneself is not allowed: a replica uses its own regions as plain memory.
 *
 * Promised by every fabric:
 *   - FIFO per (peer, region): posts take effect, and complete, in the order in which they were posted.
 *   - A write completed with FABRIC_DONE is visible to the owner, and nobody has been granted the owner's permission
 *     since the writer got it ("solo detection", Mu section 4).
 *   - After revoke() returns no earlier write of the former holder lands in the log, also not in part.
 *   - The first failure breaks the (peer, region) link: everything posted later fails too, until accept().
 *   - A peer that is down fails every post: the memory of the dead does not acknowledge.
 *   - Bytes of a write up to FABRIC_INLINE_MAX are copied by the post; longer ones stay as they are until completion.
 *   - A read may see a write of somebody else half done; whoever reads validates what it got.
 *
 * One thread drives one fabric object: no call here is thread-safe unless it says so.
 */
#ifndef MUSIDECAR_FABRIC_H
#define MUSIDECAR_FABRIC_H

#include <stdbool.h>
#include <stdint.h>

#include "check.h"

#define FABRIC_NODES_MAX 8  /* members of one cluster, self included; ids are 0 .. nodes-1 */
#define FABRIC_INLINE_MAX 64

enum fabric_region { FABRIC_LOG = 0, FABRIC_BACKGROUND = 1, FABRIC_REGIONS = 2 };

enum fabric_status {
    FABRIC_DONE = 0,
    FABRIC_REFUSED = 1, /* no permission (any more); whether the bytes landed is unknown */
    FABRIC_DOWN = 2,    /* the peer is dead or unreachable */
    FABRIC_FLUSHED = 3  /* posted behind a failure */
};

struct fabric_completion {
    uint64_t id; /* as given to the post */
    uint32_t peer;
    uint32_t status; /* enum fabric_status */
};

struct fabric;

struct fabric_ops {
    /* Copies `length` bytes to `offset` of the peer's region. */
    void (*post_write)(struct fabric *f, uint32_t peer, enum fabric_region region, uint64_t offset, const void *bytes,
                       uint32_t length, uint64_t id);
    /* Copies `length` bytes from the peer's region; `into` is filled when the completion is polled. Reading a log needs
     * no permission. */
    void (*post_read)(struct fabric *f, uint32_t peer, enum fabric_region region, uint64_t offset, void *into,
                      uint32_t length, uint64_t id);
    /* Takes up to `max` completions; returns how many. */
    int (*poll)(struct fabric *f, struct fabric_completion *out, int max);
    /* Owner's side. revoke: nobody may write my log any more. grant: `peer` (may be self) may; returns the new grant
     * epoch, larger than every earlier one. revoke() comes first, always. */
    void (*revoke)(struct fabric *f);
    uint64_t (*grant)(struct fabric *f, uint32_t peer);
    /* Writer's side: the owner `peer` acknowledged that I hold its permission under `epoch`: the log link works
     * (again). Every post that was made before is finished or flushed. */
    void (*accept)(struct fabric *f, uint32_t peer, uint64_t epoch);
    /* Writer's side, optional (NULL: nothing to do): I write `peer`'s log no more under the permission I had; the next
     * word about it is accept(). Before asking for permission again: an owner that knows need not cut the link. */
    void (*release)(struct fabric *f, uint32_t peer);
    /* Does this replica hold the permission on its own log? (what fences the local leader) */
    bool (*holds_own)(struct fabric *f);
    /* Wakes the peer's thread if it sleeps. */
    void (*wake)(struct fabric *f, uint32_t peer);
};

/* What else the engine needs of a fabric. Its own thread calls all of it. */
struct fabric_host {
    void *(*memory)(struct fabric *f, enum fabric_region region); /* of the own region */
    int (*enter)(struct fabric *f);                               /* first of all; 0, or -1 */
    /* Readable when there is something to look after; drain() empties it and gives a bit mask of the peers newly dead. */
    int (*wait_fd)(struct fabric *f);
    uint32_t (*drain)(struct fabric *f);
    /* Before sleeping on wait_fd: what completes from here on makes it readable. False: something has completed already. */
    bool (*arm)(struct fabric *f);
    /* Are there posts that nothing was heard of? Never where a post takes effect at once. */
    bool (*outstanding)(struct fabric *f);
    uint64_t (*life)(struct fabric *f, uint32_t peer);    /* which life of the peer is attached: a random number; 0: none */
    int (*open_link)(struct fabric *f, uint32_t peer);    /* to that life; -1 with errno, EBUSY: it is open */
};

struct fabric {
    const struct fabric_ops *ops;
    uint32_t self;
    uint32_t nodes;
    const struct fabric_host *host; /* NULL in the simulator's */
};

static inline bool fabric_is_peer(const struct fabric *f, uint32_t peer) { return peer < f->nodes && peer != f->self; }

/* Of every post in every fabric: it is to a peer, and stays in the region. */
static inline void fabric_check_post(const struct fabric *f, uint32_t peer, enum fabric_region region, uint64_t region_bytes,
                                     uint64_t offset, uint32_t length) {
    CHECK(fabric_is_peer(f, peer) && region < FABRIC_REGIONS);
    CHECK(length > 0 && length <= region_bytes && offset <= region_bytes - length);
}

#endif
