/*
 * queues.h: the two queue pairs of HERD's client, over libibverbs: an unreliable connection, by which requests are written into
 * HERD's memory, and an unreliable datagram one, which gets the replies. InfiniBand by LID, RoCE by this port's own GID: HERD is
 * on this host. Nothing is sent again, by neither side.
 */
#ifndef MUSIDECAR_GATE_QUEUES_H
#define MUSIDECAR_GATE_QUEUES_H

#include <stdbool.h>
#include <stdint.h>

#include "gate/gate.h"
#include "protocols/herd/registry.h"

#define QUEUES_REPLY_BYTES_MAX 88u

struct queues;

struct queues_reply {
    uint32_t worker, from_qpn, length;
    uint8_t bytes[QUEUES_REPLY_BYTES_MAX];
};

/* port_index: of the active ports of this host's devices, as HERD counts them (--base-port-index). NULL: why. */
struct queues *queues_new(uint32_t port_index, uint32_t workers, char *why, uint32_t why_bytes);
void queues_free(struct queues *q);
int32_t queues_lid(const struct queues *q);
uint32_t queues_conn_qpn(const struct queues *q);
uint32_t queues_dgram_qpn(const struct queues *q);
const char *queues_device(const struct queues *q);
bool queues_connect(struct queues *q, const struct herd_record *master, char *why, uint32_t why_bytes);

/* Is there room for one step more? */
bool queues_room(struct queues *q);
/* False: the connection is broken. */
bool queues_post(struct queues *q, const struct gate_step *step);
/* Replies that have come; -1: broken. */
int queues_poll(struct queues *q, struct queues_reply *out, int max);
/* Readable once a reply has come after queues_arm(). */
int queues_fd(const struct queues *q);
bool queues_arm(struct queues *q);
void queues_drain(struct queues *q);

#endif
