/*
 * verbs.h: the fabric between hosts, over libibverbs: InfiniBand, RoCE, soft-RoCE. Reliable connections; per ordered pair
 * of nodes one queue pair for the log (replication) and one for the background, so that a refused write never disturbs
 * heartbeats. Write permission is the access flags of the owner's end of the log's queue pair.
 *
 * libibverbs is loaded by the first verbs_new(), not before; without its headers at build time there is only
 * verbs_built() == false and functions that fail.
 *
 * Connecting, by whoever carries small messages between the nodes (musidecar.mesh): verbs_new() here and there; each
 * sends the other its verbs_describe(); then verbs_attach() with what came; then, when both have done that,
 * verbs_open_link(). Doing all of it again for a peer replaces the link: its posts fail, and a permission is gone.
 */
#ifndef MUSIDECAR_VERBS_H
#define MUSIDECAR_VERBS_H

#include "fabric/fabric.h"

#define VERBS_LAYOUT 1u /* of what the nodes tell each other, and of the words behind the background region */
#define VERBS_WHY_BYTES 400
#define VERBS_DEPTH 512u

struct verbs_config {
    uint32_t self, nodes;
    uint64_t log_bytes, background_bytes;
    uint64_t staging_bytes; /* per region and peer: longest read, and longest write from outside of the own regions */
    char device[64];        /* "": the first with a usable port */
    uint32_t port;          /* 0: the first usable one */
    int32_t gid_index;      /* -1: found (RoCE v2 over IPv4 if there is one); not used with InfiniBand LIDs */
    uint32_t mtu;           /* bytes; 0: the port's */
    uint32_t timeout;       /* a packet unanswered for 4.096 us << timeout is sent again ... */
    uint32_t retry_count;   /* ... so often; then the link is broken */
    uint32_t queue_depth;   /* sends under way on one queue pair; 0: VERBS_DEPTH, or what the device has */
    bool huge_pages;        /* for the log; needs vm.nr_hugepages */
    bool always_cycle;      /* change permission by the slow path only: for tests and measurements */
};

/* What a node tells one peer. */
struct verbs_end {
    uint32_t layout, node, mtu, lid;
    bool is_ethernet;
    uint8_t gid[16];
    uint64_t log_bytes, background_bytes, log_address, background_address;
    uint64_t life; /* random: another link is another life */
    uint32_t log_key, background_key;
    uint32_t out_number[FABRIC_REGIONS], in_number[FABRIC_REGIONS]; /* queue pairs: to the peer's region; to the own */
    uint32_t out_psn[FABRIC_REGIONS], in_psn[FABRIC_REGIONS];       /* their first packet numbers */
};

/* Was it built in? Can libibverbs be loaded? `why` says what is missing, and the remedy. */
bool verbs_built(void);
bool verbs_usable(char *why, uint32_t why_bytes);

struct verbs;
/* NULL, with the reason and the remedy in `why`. */
struct verbs *verbs_new(const struct verbs_config *config, char *why, uint32_t why_bytes);
void verbs_free(struct verbs *v);
struct fabric *verbs_fabric(struct verbs *v);
void *verbs_log(struct verbs *v); /* own regions */
void *verbs_background(struct verbs *v);

/* Any thread, one at a time. 0, or -1 with the reason in `why`. */
int verbs_describe(struct verbs *v, uint32_t peer, struct verbs_end *own, char *why, uint32_t why_bytes);
int verbs_attach(struct verbs *v, uint32_t peer, const struct verbs_end *theirs, char *why, uint32_t why_bytes);
int verbs_open_link(struct verbs *v, uint32_t peer); /* -1 with errno; EBUSY: it is open */
uint64_t verbs_life(const struct verbs *v, uint32_t peer); /* which end of the peer is attached; 0: none */
/* Has the background to the peer failed? Then the link has to be made anew. Any thread. */
bool verbs_is_broken(const struct verbs *v, uint32_t peer);
bool verbs_is_open(const struct verbs *v, uint32_t peer);  /* and has the engine's thread taken it up? */

/* The engine's thread. wait_fd is readable when a peer rang, or when something completed after verbs_arm(). */
int verbs_wait_fd(const struct verbs *v);
void verbs_drain(struct verbs *v);
/* Before sleeping on wait_fd: false when something has completed already. */
bool verbs_arm(struct verbs *v);
/* Are there posts that nothing was heard of? */
bool verbs_outstanding(const struct verbs *v);

/* What was found and agreed on. */
struct verbs_place {
    char device[64];
    uint32_t port, mtu, lid, inline_bytes, queue_depth;
    int32_t gid_index;
    uint8_t gid[16];
    bool is_ethernet, is_software;
};
struct verbs_place verbs_place(const struct verbs *v);
/* Counters. flags, cycles: permissions given by access flags, and by the state cycle. */
struct verbs_counters {
    uint64_t writes, write_bytes, reads, refused, revocations, flags, cycles, broken, waits, flags_ns_max, cycle_ns_max;
};
struct verbs_counters verbs_counters(const struct verbs *v);

#endif
