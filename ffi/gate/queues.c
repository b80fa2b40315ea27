/* queues.c: see queues.h. */
#include "gate/queues.h"

#include <stdio.h>

#include "fabric/verbs_device.h"

#ifdef VERBS_BUILT

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

#define PSN 3185u /* HERD's, in both directions */
#define QKEY 0x11111111u
#define GRH_BYTES 40u /* in front of every datagram */
#define BUFFER_BYTES 128u
#define SPARE_RECEIVES 64u
#define SEND_DEPTH 512u
#define SIGNAL_EVERY 16u

struct queues {
    struct verbs_device device;
    struct ibv_comp_channel *channel;
    struct ibv_cq *sent, *received;
    struct ibv_qp *conn, *dgram;
    struct ibv_mr *key;
    uint8_t *buffers;
    uint32_t receives;
    uint64_t region;          /* HERD's */
    uint32_t rkey;
    uint64_t posted, signalled, completed; /* sends */
    bool broken;
};

static bool fail(char *why, uint32_t why_bytes, const char *what) {
    snprintf(why, why_bytes, "%s: %s", what, strerror(errno));
    return false;
}

/* ---- which port -------------------------------------------------------------------------------------------------------------- */

/* How many active ports the device has; the one with this rank becomes *port. HERD compares the physical state. */
static uint32_t active_ports(const struct verbs_library *lib, struct ibv_device *device, uint32_t rank, uint32_t *port) {
    struct ibv_context *context = lib->open_device(device);
    struct ibv_device_attr limits;
    uint32_t found = 0;
    if (context == NULL) return 0;
    if (lib->query_device(context, &limits) == 0) {
        for (uint8_t i = 1; i <= limits.phys_port_cnt; i++) {
            struct ibv_port_attr attributes = {0};
            if (lib->query_port(context, i, &attributes) != 0 || attributes.phys_state < 4 || attributes.phys_state > 5) continue;
            if (found++ == rank) *port = i;
        }
    }
    lib->close_device(context);
    return found;
}

static bool find_port(uint32_t index, struct verbs_config *config, char *why, uint32_t why_bytes) {
    const struct verbs_library *lib = verbs_library(why, why_bytes);
    if (lib == NULL) return false;
    int count = 0;
    uint32_t rank = index;
    struct ibv_device **list = lib->get_device_list(&count);
    for (int i = 0; list != NULL && i < count && config->port == 0; i++) {
        uint32_t found = active_ports(lib, list[i], rank, &config->port);
        if (config->port != 0) snprintf(config->device, sizeof config->device, "%s", lib->get_device_name(list[i]));
        rank -= found < rank ? found : rank;
    }
    if (list != NULL) lib->free_device_list(list);
    if (config->port != 0) return true;
    if (count == 0) snprintf(why, why_bytes, "no RDMA device on this host: `musidecar doctor` says what it takes");
    else snprintf(why, why_bytes, "no active port with the index %u among this host's RDMA devices (port_index)", index);
    return false;
}

/* ---- the pairs --------------------------------------------------------------------------------------------------------------- */

static struct ibv_qp *make_pair(struct queues *q, enum ibv_qp_type type, uint32_t sends, uint32_t receives) {
    struct ibv_qp_init_attr wanted = {.qp_type = type, .send_cq = q->sent, .recv_cq = q->received};
    wanted.cap = (struct ibv_qp_cap){.max_send_wr = sends, .max_recv_wr = receives, .max_send_sge = 1, .max_recv_sge = 1,
                                     .max_inline_data = type == IBV_QPT_UC ? HERD_SLOT_BYTES : 0};
    return q->device.lib->create_qp(q->device.domains[0], &wanted);
}

static bool modify(struct queues *q, struct ibv_qp *pair, struct ibv_qp_attr *to, int mask) {
    int error = q->device.lib->modify_qp(pair, to, mask | IBV_QP_STATE);
    if (error != 0) errno = error > 0 ? error : errno;
    return error == 0;
}

static bool ready_dgram(struct queues *q) {
    struct ibv_qp_attr to = {.qp_state = IBV_QPS_INIT, .port_num = (uint8_t)q->device.place.port, .qkey = QKEY};
    if (!modify(q, q->dgram, &to, IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_QKEY)) return false;
    to = (struct ibv_qp_attr){.qp_state = IBV_QPS_RTR};
    if (!modify(q, q->dgram, &to, 0)) return false;
    to = (struct ibv_qp_attr){.qp_state = IBV_QPS_RTS, .sq_psn = PSN};
    return modify(q, q->dgram, &to, IBV_QP_SQ_PSN);
}

static bool start_conn(struct queues *q) {
    struct ibv_qp_attr to = {.qp_state = IBV_QPS_INIT, .port_num = (uint8_t)q->device.place.port};
    return modify(q, q->conn, &to, IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS);
}

static bool receive(struct queues *q, uint32_t buffer) {
    struct ibv_sge piece = {.addr = (uintptr_t)(q->buffers + (size_t)buffer * BUFFER_BYTES), .length = BUFFER_BYTES, .lkey = q->key->lkey};
    struct ibv_recv_wr work = {.wr_id = buffer, .sg_list = &piece, .num_sge = 1}, *bad;
    return ibv_post_recv(q->dgram, &work, &bad) == 0;
}

static bool make(struct queues *q, char *why, uint32_t why_bytes) {
    struct verbs_device *d = &q->device;
    if (q->receives > (uint32_t)d->limits.max_qp_wr || q->receives > (uint32_t)d->limits.max_cqe) {
        snprintf(why, why_bytes, "%s takes no %u receives: fewer workers", d->place.device, q->receives);
        return false;
    }
    q->buffers = aligned_alloc(4096, ((size_t)q->receives * BUFFER_BYTES + 4095) & ~(size_t)4095);
    if (q->buffers == NULL) return fail(why, why_bytes, "no memory");
    q->channel = d->lib->create_comp_channel(d->context);
    if (q->channel == NULL) return fail(why, why_bytes, "no completion channel");
    q->sent = d->lib->create_cq(d->context, (int)SEND_DEPTH, NULL, NULL, 0);
    q->received = d->lib->create_cq(d->context, (int)q->receives, NULL, q->channel, 0);
    if (q->sent == NULL || q->received == NULL) return fail(why, why_bytes, "no completion queues");
    q->conn = make_pair(q, IBV_QPT_UC, SEND_DEPTH, 1);
    q->dgram = make_pair(q, IBV_QPT_UD, 1, q->receives);
    if (q->conn == NULL || q->dgram == NULL) return fail(why, why_bytes, "no queue pairs of unreliable kinds");
    q->key = verbs_register(d, 0, q->buffers, (uint64_t)q->receives * BUFFER_BYTES, false, why, why_bytes);
    if (q->key == NULL) return false;
    if (!ready_dgram(q) || !start_conn(q)) return fail(why, why_bytes, "the queue pairs cannot be made ready");
    for (uint32_t i = 0; i < q->receives; i++)
        if (!receive(q, i)) return fail(why, why_bytes, "no receive can be posted");
    fcntl(q->channel->fd, F_SETFL, fcntl(q->channel->fd, F_GETFL) | O_NONBLOCK);
    return true;
}

struct queues *queues_new(uint32_t port_index, uint32_t workers, char *why, uint32_t why_bytes) {
    struct verbs_config config = {.nodes = 2, .gid_index = -1};
    if (!find_port(port_index, &config, why, why_bytes)) return NULL;
    struct queues *q = calloc(1, sizeof *q);
    if (q == NULL) return NULL;
    q->receives = workers * HERD_WINDOW + SPARE_RECEIVES;
    if (verbs_device_open(&q->device, &config, why, why_bytes) && make(q, why, why_bytes)) return q;
    queues_free(q);
    return NULL;
}

void queues_free(struct queues *q) {
    const struct verbs_library *lib = q->device.lib;
    if (q->conn != NULL) lib->destroy_qp(q->conn);
    if (q->dgram != NULL) lib->destroy_qp(q->dgram);
    if (q->key != NULL) lib->dereg_mr(q->key);
    if (q->sent != NULL) lib->destroy_cq(q->sent);
    if (q->received != NULL) lib->destroy_cq(q->received);
    if (q->channel != NULL) lib->destroy_comp_channel(q->channel);
    verbs_device_close(&q->device);
    free(q->buffers);
    free(q);
}

int32_t queues_lid(const struct queues *q) { return (int32_t)q->device.place.lid; }
uint32_t queues_conn_qpn(const struct queues *q) { return q->conn->qp_num; }
uint32_t queues_dgram_qpn(const struct queues *q) { return q->dgram->qp_num; }
const char *queues_device(const struct queues *q) { return q->device.place.device; }

bool queues_connect(struct queues *q, const struct herd_record *master, char *why, uint32_t why_bytes) {
    const struct verbs_place *place = &q->device.place;
    struct ibv_qp_attr to = {.qp_state = IBV_QPS_RTR, .path_mtu = q->device.mtu, .dest_qp_num = (uint32_t)master->qpn, .rq_psn = PSN};
    to.ah_attr.port_num = (uint8_t)place->port;
    if (place->is_ethernet) {
        to.ah_attr.is_global = 1;
        memcpy(to.ah_attr.grh.dgid.raw, place->gid, sizeof place->gid);
        to.ah_attr.grh.sgid_index = (uint8_t)place->gid_index;
        to.ah_attr.grh.hop_limit = 64;
    } else {
        to.ah_attr.dlid = (uint16_t)master->lid;
    }
    bool good = modify(q, q->conn, &to, IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN | IBV_QP_RQ_PSN);
    to = (struct ibv_qp_attr){.qp_state = IBV_QPS_RTS, .sq_psn = PSN};
    if (!good || !modify(q, q->conn, &to, IBV_QP_SQ_PSN)) return fail(why, why_bytes, "no connection to HERD's queue pair");
    if (master->bytes < HERD_REGION_BYTES) {
        snprintf(why, why_bytes, "HERD's request region has %u bytes, not %u", master->bytes, HERD_REGION_BYTES);
        return false;
    }
    q->region = master->address;
    q->rkey = master->rkey;
    return true;
}

/* ---- requests ------------------------------------------------------------------------------------------------------------------ */

static void reap(struct queues *q) {
    struct ibv_wc done[16];
    int count;
    while ((count = ibv_poll_cq(q->sent, 16, done)) > 0) {
        for (int i = 0; i < count; i++) {
            if (done[i].status != IBV_WC_SUCCESS) q->broken = true;
            else q->completed = done[i].wr_id;
        }
    }
    if (count < 0) q->broken = true;
}

bool queues_room(struct queues *q) {
    if (q->posted + 2 - q->completed > SEND_DEPTH / 2) reap(q);
    return q->posted + 2 - q->completed <= SEND_DEPTH;
}

bool queues_post(struct queues *q, const struct gate_step *step) {
    static const uint8_t PUT = HERD_OPCODE_PUT;
    uint64_t at = q->region + step->at;
    struct ibv_sge slot = {.addr = (uintptr_t)step->slot, .length = step->length}, opcode = {.addr = (uintptr_t)&PUT, .length = 1};
    struct ibv_send_wr works[2] = {{.opcode = IBV_WR_RDMA_WRITE, .sg_list = &slot, .num_sge = 1, .send_flags = IBV_SEND_INLINE},
                                   {.opcode = IBV_WR_RDMA_WRITE, .sg_list = &opcode, .num_sge = 1, .send_flags = IBV_SEND_INLINE}};
    struct ibv_send_wr *last = &works[step->is_put], *bad;
    works[0].wr.rdma.remote_addr = at;
    works[1].wr.rdma.remote_addr = at + HERD_OPCODE_AT;
    works[0].wr.rdma.rkey = works[1].wr.rdma.rkey = q->rkey;
    if (step->is_put) works[0].next = &works[1];
    q->posted += step->is_put ? 2 : 1;
    if (q->posted - q->signalled >= SIGNAL_EVERY) {
        last->send_flags |= IBV_SEND_SIGNALED;
        last->wr_id = q->signalled = q->posted;
    }
    return !q->broken && ibv_post_send(q->conn, works, &bad) == 0;
}

/* ---- replies ------------------------------------------------------------------------------------------------------------------- */

int queues_poll(struct queues *q, struct queues_reply *out, int max) {
    struct ibv_wc done[32];
    int count = ibv_poll_cq(q->received, max < 32 ? max : 32, done), replies = 0;
    if (count < 0 || q->broken) return -1;
    for (int i = 0; i < count; i++) {
        const struct ibv_wc *wc = &done[i];
        uint32_t buffer = (uint32_t)wc->wr_id;
        if (wc->status != IBV_WC_SUCCESS) return -1;
        struct queues_reply *reply = &out[replies];
        reply->length = wc->byte_len > GRH_BYTES ? wc->byte_len - GRH_BYTES : 0;
        reply->worker = wc->wc_flags & IBV_WC_WITH_IMM ? wc->imm_data : UINT32_MAX; /* HERD leaves it in the host's order */
        reply->from_qpn = wc->src_qp;
        if (reply->length <= sizeof reply->bytes) memcpy(reply->bytes, q->buffers + (size_t)buffer * BUFFER_BYTES + GRH_BYTES, reply->length);
        else reply->worker = UINT32_MAX;
        replies++;
        if (!receive(q, buffer)) return -1;
    }
    return replies;
}

int queues_fd(const struct queues *q) { return q->channel->fd; }
bool queues_arm(struct queues *q) { return ibv_req_notify_cq(q->received, 0) == 0; }

void queues_drain(struct queues *q) {
    struct ibv_cq *queue;
    void *of;
    while (q->device.lib->get_cq_event(q->channel, &queue, &of) == 0) q->device.lib->ack_cq_events(queue, 1);
}

#else

struct queues *queues_new(uint32_t port_index, uint32_t workers, char *why, uint32_t why_bytes) {
    (void)port_index, (void)workers;
    verbs_usable(why, why_bytes);
    return NULL;
}
/* What is never reached. */
void queues_free(struct queues *q) { (void)q; }
int32_t queues_lid(const struct queues *q) { return (void)q, 0; }
uint32_t queues_conn_qpn(const struct queues *q) { return (void)q, 0; }
uint32_t queues_dgram_qpn(const struct queues *q) { return (void)q, 0; }
const char *queues_device(const struct queues *q) { return (void)q, ""; }
bool queues_connect(struct queues *q, const struct herd_record *master, char *why, uint32_t why_bytes) {
    return (void)q, (void)master, (void)why, (void)why_bytes, false;
}
bool queues_room(struct queues *q) { return (void)q, false; }
bool queues_post(struct queues *q, const struct gate_step *step) { return (void)q, (void)step, false; }
int queues_poll(struct queues *q, struct queues_reply *out, int max) { return (void)q, (void)out, (void)max, -1; }
int queues_fd(const struct queues *q) { return (void)q, -1; }
bool queues_arm(struct queues *q) { return (void)q, false; }
void queues_drain(struct queues *q) { (void)q; }

#endif
