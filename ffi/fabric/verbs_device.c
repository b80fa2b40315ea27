/* verbs_device.c: see verbs_device.h. */
#include "fabric/verbs_device.h"

#ifdef VERBS_BUILT

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/utsname.h>

#define VENDOR_RXE 0xffffffu /* soft-RoCE calls itself that */
#define RXE_RETRIES_MAX 6u   /* it takes 7, the most that there is, for "without end": no link to the dead would ever break */

__attribute__((format(printf, 3, 4))) static bool fail(char *why, uint32_t why_bytes, const char *format, ...) {
    va_list words;
    va_start(words, format);
    vsnprintf(why, why_bytes, format, words);
    va_end(words);
    return false;
}

/* ---- the device -------------------------------------------------------------------------------------------------- */

static void list_names(const struct verbs_library *lib, struct ibv_device **list, int count, char *out, size_t bytes) {
    size_t used = 0;
    out[0] = 0;
    for (int i = 0; i < count && used < bytes; i++)
        used += (size_t)snprintf(out + used, bytes - used, "%s%s", i ? ", " : "", lib->get_device_name(list[i]));
}

/* The first device with an active port, when none is named: tried one after the other. */
static bool port_is_active(const struct verbs_library *lib, struct ibv_device *device, uint32_t wanted) {
    struct ibv_context *context = lib->open_device(device);
    struct ibv_device_attr limits;
    bool active = false;
    if (!context) return false;
    if (!lib->query_device(context, &limits)) {
        for (uint8_t port = 1; port <= limits.phys_port_cnt && !active; port++) {
            struct ibv_port_attr attributes = {0};
            if (wanted && port != wanted) continue;
            active = !lib->query_port(context, port, &attributes) && attributes.state == IBV_PORT_ACTIVE;
        }
    }
    lib->close_device(context);
    return active;
}

static struct ibv_device *choose(const struct verbs_library *lib, const struct verbs_config *config,
                                 struct ibv_device **list, int count) {
    for (int i = 0; i < count; i++) {
        if (config->device[0] && strcmp(config->device, lib->get_device_name(list[i])) == 0) return list[i];
        if (!config->device[0] && list[i]->transport_type == IBV_TRANSPORT_IB && port_is_active(lib, list[i], config->port))
            return list[i];
    }
    return config->device[0] || count == 0 ? NULL : list[0];
}

static bool open_context(struct verbs_device *d, const struct verbs_config *config, char *why, uint32_t why_bytes) {
    int count = 0;
    struct ibv_device **list = d->lib->get_device_list(&count);
    if (!list || count == 0) {
        if (list) d->lib->free_device_list(list);
        return fail(why, why_bytes, "no RDMA device on this host: load its driver, or put soft-RoCE on an Ethernet "
                                    "interface: modprobe rdma_rxe; rdma link add rxe0 type rxe netdev eth0");
    }
    char names[200];
    list_names(d->lib, list, count, names, sizeof names);
    struct ibv_device *device = choose(d->lib, config, list, count);
    bool suits = device && device->transport_type == IBV_TRANSPORT_IB;
    if (suits) d->context = d->lib->open_device(device);
    int error = errno;
    if (suits) snprintf(d->place.device, sizeof d->place.device, "%s", d->lib->get_device_name(device));
    d->lib->free_device_list(list);
    if (!device) return fail(why, why_bytes, "no RDMA device %s: verbs.device may be one of %s", config->device, names);
    if (!suits)
        return fail(why, why_bytes, "%s is an iWARP device, which connects by other means: use InfiniBand, RoCE or soft-RoCE "
                                    "(there are: %s)", config->device[0] ? config->device : "the RDMA device", names);
    if (!d->context)
        return fail(why, why_bytes, "RDMA device %s cannot be opened: %s: its driver's library comes with ibverbs-providers, and "
                                    "/dev/infiniband/uverbs* must be readable and writable", d->place.device, strerror(error));
    return true;
}

/* ---- the port ---------------------------------------------------------------------------------------------------- */

static const char *state_name(enum ibv_port_state state) {
    switch (state) {
    case IBV_PORT_DOWN: return "down";
    case IBV_PORT_INIT: return "initializing";
    case IBV_PORT_ARMED: return "armed";
    case IBV_PORT_ACTIVE: return "active";
    default: return "in an unknown state";
    }
}

static bool find_port(struct verbs_device *d, const struct verbs_config *config, struct ibv_port_attr *found, char *why,
                      uint32_t why_bytes) {
    if (config->port > d->limits.phys_port_cnt)
        return fail(why, why_bytes, "%s has no port %u: verbs.port may be 1 to %u", d->place.device, config->port,
                    d->limits.phys_port_cnt);
    uint8_t first = (uint8_t)(config->port ? config->port : 1);
    for (uint8_t port = first; port <= d->limits.phys_port_cnt; port++) {
        memset(found, 0, sizeof *found);
        if (d->lib->query_port(d->context, port, found))
            return fail(why, why_bytes, "port %u of %s does not answer: %s", port, d->place.device, strerror(errno));
        d->place.port = port;
        if (found->state == IBV_PORT_ACTIVE || config->port) break;
    }
    if (found->state == IBV_PORT_ACTIVE) return true;
    return fail(why, why_bytes, "port %u of %s is %s: plug it in, and bring its interface up (ip link set DEV up; on "
                                "InfiniBand a subnet manager must run)", d->place.port, d->place.device, state_name(found->state));
}

static bool choose_mtu(struct verbs_device *d, const struct verbs_config *config, const struct ibv_port_attr *port, char *why,
                       uint32_t why_bytes) {
    d->mtu = port->active_mtu;
    if (config->mtu) {
        for (d->mtu = IBV_MTU_256; d->mtu <= IBV_MTU_4096 && verbs_mtu_bytes(d->mtu) != config->mtu; d->mtu++) continue;
        if (d->mtu > IBV_MTU_4096) return fail(why, why_bytes, "verbs.mtu %u is not one of 256, 512, 1024, 2048, 4096", config->mtu);
    }
    d->place.mtu = verbs_mtu_bytes(d->mtu);
    if (d->mtu <= port->active_mtu) return true;
    return fail(why, why_bytes, "verbs.mtu %u is more than the %u that port %u of %s carries: lower it, or raise the MTU of its interface",
                config->mtu, verbs_mtu_bytes(port->active_mtu), d->place.port, d->place.device);
}

/* ---- the address ------------------------------------------------------------------------------------------------- */

static bool gid_at(struct verbs_device *d, int index, union ibv_gid *gid) {
    static const union ibv_gid none;
    return !d->lib->query_gid(d->context, (uint8_t)d->place.port, index, gid) && memcmp(gid, &none, sizeof none) != 0;
}

static bool is_ipv4(const union ibv_gid *gid) {
    static const uint8_t prefix[12] = {[10] = 0xff, [11] = 0xff};
    return memcmp(gid->raw, prefix, sizeof prefix) == 0;
}

/* RoCE v2 travels in UDP and can be routed; the kernel tells which index is which. */
static bool is_version_2(const struct verbs_device *d, int index) {
    char path[160], text[32] = "";
    snprintf(path, sizeof path, "/sys/class/infiniband/%s/ports/%u/gid_attrs/types/%d", d->place.device, d->place.port, index);
    FILE *file = fopen(path, "re");
    if (!file) return false;
    bool is = fgets(text, sizeof text, file) && strncmp(text, "RoCE v2", 7) == 0;
    fclose(file);
    return is;
}

/* The best index, or -1: version 2 over IPv4, then version 2, then any. */
static int discover_gid(struct verbs_device *d, int entries) {
    int best = -1, best_rank = 0;
    for (int i = 0; i < entries; i++) {
        union ibv_gid gid;
        if (!gid_at(d, i, &gid)) continue;
        int rank = 1 + 2 * is_version_2(d, i) + is_ipv4(&gid);
        if (rank > best_rank) best = i, best_rank = rank;
    }
    return best;
}

static bool choose_gid(struct verbs_device *d, const struct verbs_config *config, const struct ibv_port_attr *port, char *why,
                       uint32_t why_bytes) {
    d->place.is_ethernet = port->link_layer == IBV_LINK_LAYER_ETHERNET;
    d->place.lid = port->lid;
    d->place.gid_index = config->gid_index;
    if (!d->place.is_ethernet && config->gid_index < 0) return true; /* LIDs do */
    int found = discover_gid(d, port->gid_tbl_len);
    if (found < 0)
        return fail(why, why_bytes, "port %u of %s has no GID: give its interface an IP address", d->place.port, d->place.device);
    union ibv_gid gid;
    if (config->gid_index < 0) d->place.gid_index = found;
    if (d->place.gid_index >= port->gid_tbl_len || !gid_at(d, d->place.gid_index, &gid))
        return fail(why, why_bytes, "verbs.gid_index %d: port %u of %s has no GID there; %d is one (`musidecar doctor` lists them): "
                                    "correct it, or leave it out", config->gid_index, d->place.port, d->place.device, found);
    memcpy(d->place.gid, gid.raw, sizeof gid.raw);
    return true;
}

/* ---- what queue pairs share ---------------------------------------------------------------------------------------- */

static bool make_shared(struct verbs_device *d, uint32_t nodes, uint32_t depth, char *why, uint32_t why_bytes) {
    /* Twice: a replaced link's completions may still lie there. */
    uint32_t peers = nodes > 1 ? nodes - 1 : 1, queues = 2 * FABRIC_REGIONS * peers;
    uint32_t most = (uint32_t)d->limits.max_qp_wr;
    if (depth == 0) depth = VERBS_DEPTH;
    if (depth > most) depth = most;
    if (depth * queues > (uint32_t)d->limits.max_cqe) depth = (uint32_t)d->limits.max_cqe / queues;
    d->place.queue_depth = depth;
    d->reads = VERBS_READS;
    if (d->reads > (uint32_t)d->limits.max_qp_rd_atom) d->reads = (uint32_t)d->limits.max_qp_rd_atom;
    if (d->reads > (uint32_t)d->limits.max_qp_init_rd_atom) d->reads = (uint32_t)d->limits.max_qp_init_rd_atom;
    if (depth < 16 || d->reads == 0)
        return fail(why, why_bytes, "%s is too small: queues of %u sends, %u reads at a time", d->place.device, depth, d->reads);
    d->channel = d->lib->create_comp_channel(d->context);
    if (d->channel) d->sent = d->lib->create_cq(d->context, (int)(depth * queues), NULL, d->channel, 0);
    if (d->sent) d->rung = d->lib->create_cq(d->context, (int)(2 * VERBS_RINGS * peers), NULL, d->channel, 0);
    for (int i = 0; i < FABRIC_REGIONS && d->rung; i++) d->domains[i] = d->lib->alloc_pd(d->context);
    if (!d->domains[FABRIC_REGIONS - 1])
        return fail(why, why_bytes, "%s has no room for another user: %s", d->place.device, strerror(errno));
    fcntl(d->channel->fd, F_SETFL, fcntl(d->channel->fd, F_GETFL) | O_NONBLOCK);
    fcntl(d->context->async_fd, F_SETFL, fcntl(d->context->async_fd, F_GETFL) | O_NONBLOCK);
    if (ibv_req_notify_cq(d->rung, 0)) return fail(why, why_bytes, "%s gives no completion events", d->place.device);
    return true;
}

bool verbs_device_open(struct verbs_device *d, const struct verbs_config *config, char *why, uint32_t why_bytes) {
    memset(d, 0, sizeof *d);
    d->lib = verbs_library(why, why_bytes);
    if (!d->lib || !open_context(d, config, why, why_bytes)) return false;
    if (d->lib->query_device(d->context, &d->limits))
        return fail(why, why_bytes, "%s does not tell its limits: %s", d->place.device, strerror(errno));
    d->place.is_software = d->limits.vendor_id == VENDOR_RXE;
    d->timeout = config->timeout;
    d->retry_count = config->retry_count;
    if (d->place.is_software && d->retry_count > RXE_RETRIES_MAX) d->retry_count = RXE_RETRIES_MAX;
    struct ibv_port_attr port;
    return find_port(d, config, &port, why, why_bytes) && choose_mtu(d, config, &port, why, why_bytes) &&
           choose_gid(d, config, &port, why, why_bytes) && make_shared(d, config->nodes, config->queue_depth, why, why_bytes);
}

void verbs_device_close(struct verbs_device *d) {
    for (int i = 0; i < FABRIC_REGIONS; i++)
        if (d->domains[i]) d->lib->dealloc_pd(d->domains[i]);
    if (d->rung) d->lib->destroy_cq(d->rung);
    if (d->sent) d->lib->destroy_cq(d->sent);
    if (d->channel) d->lib->destroy_comp_channel(d->channel);
    if (d->context) d->lib->close_device(d->context);
    memset(d, 0, sizeof *d);
}

struct ibv_mr *verbs_register(struct verbs_device *d, enum fabric_region region, void *memory, uint64_t bytes,
                              bool is_remote, char *why, uint32_t why_bytes) {
    int access = IBV_ACCESS_LOCAL_WRITE | (is_remote ? IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_READ : 0);
    struct ibv_mr *found = d->lib->reg_mr(d->domains[region], memory, bytes, access);
    if (found) return found;
    int error = errno;
    struct rlimit lock;
    getrlimit(RLIMIT_MEMLOCK, &lock);
    if (lock.rlim_cur != RLIM_INFINITY && (error == ENOMEM || error == EAGAIN || error == EPERM)) {
        fail(why, why_bytes, "%s cannot pin %llu KiB of memory (%s): the limit is %llu KiB: ulimit -l unlimited, or "
                             "LimitMEMLOCK=infinity in the systemd unit", d->place.device, (unsigned long long)bytes >> 10,
             strerror(error), (unsigned long long)lock.rlim_cur >> 10);
        return NULL;
    }
    fail(why, why_bytes, "%s cannot pin %llu KiB of memory: %s", d->place.device, (unsigned long long)bytes >> 10, strerror(error));
    return NULL;
}

#endif
