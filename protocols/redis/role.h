/*
 * role.h: the answer to ROLE (redis-server 7.0, replication.c: roleCommand), RESP2 and RESP3 alike.
 */
#ifndef MUSIDECAR_REDIS_ROLE_H
#define MUSIDECAR_REDIS_ROLE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct redis_role {
    bool is_master;
    bool is_connected; /* a replica: its link to the master stands */
    uint64_t offset;   /* of the master's stream, or how far this replica has applied it; 0: it does not know */
};

/* The whole answer at `bytes`. False: it is another one (an error, a sentinel's). */
bool redis_role_read(const uint8_t *bytes, size_t length, struct redis_role *role);

#endif
