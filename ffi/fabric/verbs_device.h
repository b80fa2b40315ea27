/*
 * verbs_device.h: the opened RDMA device of a node: port, address, limits, and what all its queue pairs share.
 *
 * Two protection domains: what belongs to the log and what belongs to the background know nothing of each other, so the
 * key of the log is of no use on a queue pair of the background, which everybody may write.
 */
#ifndef MUSIDECAR_VERBS_DEVICE_H
#define MUSIDECAR_VERBS_DEVICE_H

#include "fabric/verbs.h"
#include "fabric/verbs_library.h"

#ifdef VERBS_BUILT

#define VERBS_RINGS 256u /* wake-ups of one peer that may arrive unread */
#define VERBS_READS 16u  /* reads under way on one queue pair, if the device has that many */

struct verbs_device {
    const struct verbs_library *lib;
    struct ibv_context *context;
    struct ibv_pd *domains[FABRIC_REGIONS];
    struct ibv_comp_channel *channel;
    struct ibv_cq *sent; /* of everything this node sends */
    struct ibv_cq *rung; /* of the wake-ups it receives */
    struct ibv_device_attr limits;
    struct verbs_place place;
    enum ibv_mtu mtu;
    uint32_t reads; /* under way per queue pair */
    uint32_t timeout, retry_count;
};

/* Opens what the configuration asks for. False, with reason and remedy in `why`, and nothing kept but what
 * verbs_device_close() gives back. */
bool verbs_device_open(struct verbs_device *d, const struct verbs_config *config, char *why, uint32_t why_bytes);
void verbs_device_close(struct verbs_device *d);
/* Memory that peers may write and read, or that sends come from. NULL with `why`. */
struct ibv_mr *verbs_register(struct verbs_device *d, enum fabric_region region, void *memory, uint64_t bytes,
                              bool is_remote, char *why, uint32_t why_bytes);

static inline uint32_t verbs_mtu_bytes(enum ibv_mtu mtu) { return 128u << mtu; }

#endif
#endif
