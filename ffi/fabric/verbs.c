/* verbs.c: life of a node's verbs fabric; waking and sleeping. */
#include "fabric/verbs_state.h"

#ifdef VERBS_BUILT

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define HUGE_PAGE_BYTES (2ull << 20)
#define ALIGN_BYTES 4096ull

uint64_t verbs_now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* ---- waking ------------------------------------------------------------------------------------------------------------- */

static void wake(struct fabric *f, uint32_t peer) {
    verbs_adopt(verbs_of(f));
    verbs_post_internal(verbs_of(f), peer, VERBS_RING, 0, NULL, 0);
}

int verbs_wait_fd(const struct verbs *v) { return v->wait_fd; }
bool verbs_outstanding(const struct verbs *v) { return v->under_way > 0 || v->waiting != 0; }

/* Each ring that came in makes room for another one. */
static void take_rings(struct verbs *v) {
    struct ibv_wc rings[32];
    for (int count = 32; count == 32;) {
        count = ibv_poll_cq(v->device.rung, 32, rings);
        CHECK(count >= 0);
        for (int i = 0; i < count; i++) {
            const struct verbs_peer *p = &v->peers[rings[i].wr_id];
            struct ibv_recv_wr again = {.wr_id = rings[i].wr_id}, *bad;
            if (rings[i].status == IBV_WC_SUCCESS && p->link && p->link->in[FABRIC_BACKGROUND]->qp_num == rings[i].qp_num)
                (void)ibv_post_recv(p->link->in[FABRIC_BACKGROUND], &again, &bad); /* in error: nobody rings there any more */
        }
    }
}

void verbs_drain(struct verbs *v) {
    const struct verbs_library *lib = v->device.lib;
    struct ibv_cq *queue;
    struct ibv_async_event event;
    void *of;
    verbs_adopt(v);
    while (lib->get_cq_event(v->device.channel, &queue, &of) == 0) lib->ack_cq_events(queue, 1);
    CHECK(errno == EAGAIN || errno == EINTR);
    while (lib->get_async_event(v->device.context, &event) == 0) lib->ack_async_event(&event); /* completions tell it all */
    CHECK(ibv_req_notify_cq(v->device.rung, 0) == 0);
    take_rings(v);
}

bool verbs_arm(struct verbs *v) {
    if (!verbs_outstanding(v)) return v->ready == 0;
    CHECK(ibv_req_notify_cq(v->device.sent, 0) == 0);
    verbs_progress(v); /* what came before that gives no event */
    return v->ready == 0;
}

/* ---- life --------------------------------------------------------------------------------------------------------------- */

static const struct fabric_ops verbs_ops = {.post_write = verbs_post_write,
                                            .post_read = verbs_post_read,
                                            .poll = verbs_poll,
                                            .revoke = verbs_revoke,
                                            .grant = verbs_grant,
                                            .accept = verbs_accept,
                                            .holds_own = verbs_holds_own,
                                            .wake = wake,
                                            .release = verbs_release};

static void *host_memory(struct fabric *f, enum fabric_region region) { return verbs_of(f)->memory[region]; }
static int host_enter(struct fabric *f) { return f ? 0 : -1; }
static int host_wait_fd(struct fabric *f) { return verbs_of(f)->wait_fd; }
static uint32_t host_drain(struct fabric *f) {
    verbs_drain(verbs_of(f));
    return 0; /* the dead say nothing here: they are noticed by their heartbeats */
}
static bool host_arm(struct fabric *f) { return verbs_arm(verbs_of(f)); }
static bool host_outstanding(struct fabric *f) { return verbs_outstanding(verbs_of(f)); }
static uint64_t host_life(struct fabric *f, uint32_t peer) { return verbs_life(verbs_of(f), peer); }
static int host_open_link(struct fabric *f, uint32_t peer) { return verbs_open_link(verbs_of(f), peer); }

static const struct fabric_host verbs_host = {.memory = host_memory,
                                              .enter = host_enter,
                                              .wait_fd = host_wait_fd,
                                              .drain = host_drain,
                                              .arm = host_arm,
                                              .outstanding = host_outstanding,
                                              .life = host_life,
                                              .open_link = host_open_link};

static uint64_t round_up(uint64_t bytes, uint64_t unit) { return (bytes + unit - 1) / unit * unit; }

/* Present, and not inherited by children: the device writes to these very pages. */
static uint8_t *allocate(uint64_t *bytes, bool huge, char *why, uint32_t why_bytes) {
    *bytes = round_up(*bytes, huge ? HUGE_PAGE_BYTES : ALIGN_BYTES);
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE | (huge ? MAP_HUGETLB : 0);
    void *memory = mmap(NULL, *bytes, PROT_READ | PROT_WRITE, flags, -1, 0);
    if (memory == MAP_FAILED) {
        snprintf(why, why_bytes, huge ? "no %llu KiB of huge pages (%s): sysctl vm.nr_hugepages=%llu, or verbs.huge_pages = false"
                                      : "no %llu KiB of memory (%s)",
                 (unsigned long long)*bytes >> 10, strerror(errno), (unsigned long long)(*bytes / HUGE_PAGE_BYTES) + 1);
        return NULL;
    }
    madvise(memory, *bytes, MADV_DONTFORK);
    madvise(memory, *bytes, MADV_DONTDUMP);
    return memory;
}

static bool make_regions(struct verbs *v, char *why, uint32_t why_bytes) {
    uint32_t peers = v->config.nodes;
    v->control_offset = round_up(v->config.background_bytes, VERBS_LINE);
    v->memory_bytes[FABRIC_LOG] = v->config.log_bytes;
    v->memory_bytes[FABRIC_BACKGROUND] = v->control_offset + sizeof *v->control;
    v->staging_bytes = round_up(v->config.staging_bytes, ALIGN_BYTES);
    for (int i = 0; i < FABRIC_REGIONS; i++) {
        uint64_t staging_bytes = v->staging_bytes * peers;
        v->memory[i] = allocate(&v->memory_bytes[i], v->config.huge_pages && i == FABRIC_LOG, why, why_bytes);
        if (v->memory[i]) v->staging[i] = allocate(&staging_bytes, false, why, why_bytes);
        if (!v->staging[i]) return false;
        v->keys[i] = verbs_register(&v->device, (enum fabric_region)i, v->memory[i], v->memory_bytes[i], true, why, why_bytes);
        if (!v->keys[i]) return false;
        v->staging_keys[i] = verbs_register(&v->device, (enum fabric_region)i, v->staging[i], staging_bytes, false, why, why_bytes);
        if (!v->staging_keys[i]) return false;
    }
    v->control = (struct verbs_control *)(void *)(v->memory[FABRIC_BACKGROUND] + v->control_offset);
    return true;
}

/* How much a send may carry itself: devices round up what they are asked for, and refuse what is too much. */
static bool probe_inline(struct verbs *v, char *why, uint32_t why_bytes) {
    static const uint32_t sizes[] = {512, 256, 188, 128, 64, 0};
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        struct ibv_qp_init_attr wanted = {.send_cq = v->device.sent, .recv_cq = v->device.rung, .qp_type = IBV_QPT_RC,
                                          .cap = {.max_send_wr = v->device.place.queue_depth, .max_recv_wr = 1, .max_send_sge = 1,
                                                  .max_recv_sge = 1, .max_inline_data = sizes[i]}};
        struct ibv_qp *pair = v->device.lib->create_qp(v->device.domains[FABRIC_LOG], &wanted);
        if (!pair) continue;
        v->device.lib->destroy_qp(pair);
        v->device.place.inline_bytes = sizes[i];
        return true;
    }
    snprintf(why, why_bytes, "%s gives no queue pair: %s", v->device.place.device, strerror(errno));
    return false;
}

static bool make_queues(struct verbs *v, char *why, uint32_t why_bytes) {
    for (uint32_t peer = 0; peer < v->config.nodes; peer++) {
        for (uint32_t i = 0; i < FABRIC_REGIONS; i++) {
            struct verbs_queue *q = v->peers[peer].queues[i] = calloc(1, sizeof *q);
            if (!q) {
                snprintf(why, why_bytes, "out of memory");
                return false;
            }
            q->region = (uint8_t)i;
            q->session = 1;
            q->staging = v->staging[i] + peer * v->staging_bytes;
        }
    }
    return true;
}

static bool make_wait(struct verbs *v) {
    int fds[] = {v->device.channel->fd, v->device.context->async_fd};
    v->wait_fd = epoll_create1(EPOLL_CLOEXEC);
    for (int i = 0; i < 2 && v->wait_fd >= 0; i++) {
        struct epoll_event event = {.events = EPOLLIN};
        if (epoll_ctl(v->wait_fd, EPOLL_CTL_ADD, fds[i], &event)) return false;
    }
    return v->wait_fd >= 0;
}

static bool possible(const struct verbs_config *c) {
    return c->nodes >= 1 && c->nodes <= FABRIC_NODES_MAX && c->self < c->nodes && c->log_bytes > 0 && c->background_bytes > 0 &&
           c->log_bytes % ALIGN_BYTES == 0 && c->staging_bytes > 0 && c->timeout < 32 && c->retry_count < 8;
}

struct verbs *verbs_new(const struct verbs_config *config, char *why, uint32_t why_bytes) {
    if (!possible(config)) {
        snprintf(why, why_bytes, "the verbs fabric cannot be set up like that");
        return NULL;
    }
    struct verbs *v = calloc(1, sizeof *v);
    CHECK(v != NULL);
    v->config = *config;
    v->config.device[sizeof v->config.device - 1] = 0;
    v->fabric = (struct fabric){.ops = &verbs_ops, .self = config->self, .nodes = config->nodes, .host = &verbs_host};
    v->holder = VERBS_NOBODY;
    v->wait_fd = -1;
    bool made = verbs_device_open(&v->device, &v->config, why, why_bytes) && make_regions(v, why, why_bytes) &&
                probe_inline(v, why, why_bytes) && make_queues(v, why, why_bytes);
    if (made && !make_wait(v)) {
        snprintf(why, why_bytes, "no epoll: %s", strerror(errno));
        made = false;
    }
    if (made) return v;
    verbs_free(v);
    return NULL;
}

void verbs_free(struct verbs *v) {
    if (!v) return;
    for (uint32_t peer = 0; peer < v->config.nodes; peer++) {
        struct verbs_peer *p = &v->peers[peer];
        verbs_link_free(v, atomic_exchange(&p->coming, NULL));
        verbs_link_free(v, p->making);
        verbs_link_free(v, p->link);
        for (int i = 0; i < FABRIC_REGIONS; i++) free(p->queues[i]);
    }
    if (v->wait_fd >= 0) close(v->wait_fd);
    for (int i = 0; i < FABRIC_REGIONS; i++) {
        if (v->keys[i]) v->device.lib->dereg_mr(v->keys[i]);
        if (v->staging_keys[i]) v->device.lib->dereg_mr(v->staging_keys[i]);
    }
    verbs_device_close(&v->device);
    for (int i = 0; i < FABRIC_REGIONS; i++) {
        if (v->memory[i]) munmap(v->memory[i], v->memory_bytes[i]);
        if (v->staging[i]) munmap(v->staging[i], v->staging_bytes * v->config.nodes);
    }
    free(v);
}

struct fabric *verbs_fabric(struct verbs *v) { return &v->fabric; }
void *verbs_log(struct verbs *v) { return v->memory[FABRIC_LOG]; }
void *verbs_background(struct verbs *v) { return v->memory[FABRIC_BACKGROUND]; }
struct verbs_place verbs_place(const struct verbs *v) { return v->device.place; }
struct verbs_counters verbs_counters(const struct verbs *v) { return v->counters; }

#endif
