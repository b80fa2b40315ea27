/*
 * replconf.h: what a Redis that replicates asks its master, one request in array form at a time (redis-server 7.0,
 * replication.c: syncWithMaster, replicationSendAck).
 */
#ifndef MUSIDECAR_REDIS_REPLCONF_H
#define MUSIDECAR_REDIS_REPLCONF_H

#include "protocols/redis/resp.h"

enum replica_asks { ASKS_NOTHING_KNOWN = 0, ASKS_PING, ASKS_AUTH, ASKS_REPLCONF, ASKS_ACK, ASKS_PSYNC };

struct replica_ask {
    enum replica_asks asks;
    struct resp_argument password; /* AUTH */
    struct resp_argument replid;   /* PSYNC */
    uint64_t offset;               /* ACK: applied up to here; PSYNC: the first byte wanted, 0: everything anew */
};

/* A framed request. ASKS_NOTHING_KNOWN: no replica says that. */
struct replica_ask replica_ask_read(const struct resp_request *request, const uint8_t *bytes);

#endif
