/*
 * registry.h: where HERD's processes and its clients find each other's queue pairs: a memcached, of which they use `set NAME 0 0
 * BYTES` and `get NAME`. The sidecar is that memcached itself, and HERD's only client, by as many client ids as HERD has: all of
 * them are one pair of queue pairs.
 *
 * HERD's master sets master-0-<i> for each client i, then gets client-conn-0, client-conn-1, ... and answers each with the name
 * below, "hrd_ready". So the number of clients is known at the first such get. Each worker gets client-dgram-0 to the last,
 * once it is filled, and serves then. What is set again, or got more often than there are workers, comes of another life of HERD.
 */
#ifndef MUSIDECAR_HERD_REGISTRY_H
#define MUSIDECAR_HERD_REGISTRY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "buffer.h"

#define HERD_CLIENTS_MAX 1024u
#define HERD_REGISTRY_PORT 11211u /* HERD knows no other */
#define HERD_READY_PREFIX "__HRD_RESERVED_NAME_PREFIX"

/* As they stand in HERD's memory. */
struct herd_record {
    char name[200];
    uint64_t address; /* of the request region */
    uint32_t bytes, rkey;
    int32_t lid, qpn;
};

struct herd_registry {
    struct herd_record own_conn, own_dgram; /* without a name */
    uint32_t workers;                       /* that are expected */
    struct herd_record masters[HERD_CLIENTS_MAX];
    bool set[HERD_CLIENTS_MAX], ready[HERD_CLIENTS_MAX];
    uint32_t clients;                       /* 0: not known yet */
    uint32_t published, connected, met;     /* masters; ... that are ready; workers that have all clients' records */
    uint32_t asked_first;                   /* workers that got client-dgram-0 */
    char trouble[200];                      /* not empty: this HERD is not one to work with, and why */
};

void herd_record_write(struct herd_record *out, const struct herd_record *of, const char *name);
void herd_registry_start(struct herd_registry *r, int32_t lid, uint32_t conn_qpn, uint32_t dgram_qpn, uint32_t workers);
/* Whole requests at the start of a connection's input; returns how many bytes they are. False in *good: close it. */
size_t herd_registry_feed(struct herd_registry *r, const uint8_t *bytes, size_t length, struct buffer *out, bool *good);
static inline bool herd_registry_connected(const struct herd_registry *r) { return r->clients > 0 && r->connected == r->clients; }
static inline bool herd_registry_whole(const struct herd_registry *r) { return herd_registry_connected(r) && r->met == r->workers; }

#endif
