/*
 * commit.c: so many commits of 64 bytes by a leader with two followers, and nothing else, for counting instructions:
 * `make instructions`, which runs it under valgrind with two numbers of commits and divides the difference.
 *   shm    three replicas over shm, in one process
 *   verbs  the same leader, once elected, over the verbs fabric and a device that completes at once and does nothing
 */
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "core/replica_state.h"
#include "fabric/shm.h"
#include "fabric/verbs_state.h"

#define NODES 3u
#define ALL ((1u << NODES) - 1)
#define PAYLOAD_BYTES 64u
#define COMMITS_MAX 100000u /* the followers apply nothing meanwhile: all of it stays in the ring */
#define RING_BYTES (64u << 20)
#define TICK_US 200u

static struct shm *fabrics[NODES];
static struct replica *replicas[NODES];

static uint64_t now_us(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000u + (uint64_t)t.tv_nsec / 1000;
}

/* ---- the cluster -------------------------------------------------------------------------------------------------- */

static void link_to(uint32_t self, uint32_t peer) {
    struct shm_descriptors its = shm_fds(fabrics[peer]);
    its = (struct shm_descriptors){.log = dup(its.log), .background = dup(its.background), .doorbell = dup(its.doorbell)};
    CHECK(shm_attach(fabrics[self], peer, its, getpid()) == 0);
    CHECK(shm_set_fence(fabrics[self], peer, -1, 0) == 0 && shm_open_link(fabrics[self], peer) == 0);
}

static void make(void) {
    for (uint32_t i = 0; i < NODES; i++) { /* under valgrind everything takes long: nobody is suspected */
        struct replica_config settings = {.self = i, .nodes = NODES, .ring_bytes = RING_BYTES, .piece_bytes_max = 128u << 10,
                                          .salt = 0x636f6d6d6974, .suspect_us = 100000000, .fail_us = 200000000,
                                          .late_us = 50000000, .request_us = 20000, .seed = i + 1};
        struct shm_config config = {.self = i, .nodes = NODES, .log_bytes = replica_log_bytes(&settings),
                                    .background_bytes = replica_background_bytes(), .hazard_us = 50,
                                    .force_fence = SHM_FENCE_KILL};
        fabrics[i] = shm_new(&config);
        CHECK(fabrics[i] != NULL);
        replicas[i] = replica_new(&settings, shm_fabric(fabrics[i]), shm_log(fabrics[i]), shm_background(fabrics[i]));
        CHECK(replicas[i] != NULL);
    }
    CHECK(shm_enter(fabrics[0]) == 0);
    for (uint32_t i = 0; i < NODES; i++) {
        for (uint32_t j = 0; j < NODES; j++) {
            if (i == j) continue;
            link_to(i, j);
            replica_peer_up(replicas[i], j, now_us());
        }
        replica_set_eligible(replicas[i], i == 0);
    }
}

static void turn(struct replica *r) {
    uint64_t at_us = now_us(), index = 0;
    replica_tick(r, at_us, TICK_US);
    while (replica_poll(r, at_us)) continue;
    for (const struct record_header *h; (h = replica_next(r));) index = h->index;
    if (index) replica_applied(r, index);
}

static struct replica *elect(void) {
    struct replica *leader = replicas[0];
    while (replica_confirmed(leader) != ALL || leader->feeding) {
        for (uint32_t i = 0; i < NODES; i++) turn(replicas[i]);
        usleep(TICK_US);
    }
    return leader;
}

/* ---- a device that completes at once -------------------------------------------------------------------------------- */

#ifdef VERBS_BUILT

static uint64_t done[NODES];
static int finished;

static int post_send(struct ibv_qp *pair, struct ibv_send_wr *work, struct ibv_send_wr **bad) {
    (void)pair, (void)bad;
    CHECK(work->send_flags == (IBV_SEND_SIGNALED | IBV_SEND_INLINE) && finished < (int)NODES);
    done[finished++] = work->wr_id;
    return 0;
}

static int poll_cq(struct ibv_cq *queue, int most, struct ibv_wc *out) {
    (void)queue;
    CHECK(finished <= most);
    int count = finished;
    for (int i = 0; i < count; i++) {
        out[i].wr_id = done[i];
        out[i].status = IBV_WC_SUCCESS;
    }
    finished = 0;
    return count;
}

static void use_verbs(struct replica *leader) {
    static struct ibv_context context = {.ops = {.post_send = post_send, .poll_cq = poll_cq}};
    static struct ibv_cq queue = {.context = &context};
    static struct ibv_qp pair = {.context = &context};
    static struct verbs_link link = {.out = {&pair, &pair}};
    static struct verbs_queue queues[NODES][FABRIC_REGIONS];
    static const struct fabric_ops ops = {.post_write = verbs_post_write, .post_read = verbs_post_read, .poll = verbs_poll,
                                          .holds_own = verbs_holds_own};
    static struct verbs v = {.fabric = {.ops = &ops, .nodes = NODES},
                             .config = {.nodes = NODES, .log_bytes = 2 * RING_BYTES, .background_bytes = 1u << 20},
                             .device = {.sent = &queue, .place = {.inline_bytes = 256, .queue_depth = VERBS_DEPTH}}};
    for (uint32_t i = 1; i < NODES; i++) {
        v.peers[i].link = &link;
        v.peers[i].token = 1;
        for (uint8_t k = 0; k < FABRIC_REGIONS; k++) {
            queues[i][k].region = k;
            v.peers[i].queues[k] = &queues[i][k];
        }
    }
    leader->fabric = &v.fabric;
    leader->ops = &ops;
}

#else

static void use_verbs(struct replica *leader) {
    (void)leader;
    fputs("commit: built without the headers of libibverbs (apt-get install libibverbs-dev)\n", stderr);
    exit(2);
}

#endif

/* ---- what is counted ------------------------------------------------------------------------------------------------ */

static void commit(struct replica *leader, uint64_t number, uint64_t at_us) {
    uint8_t payload[PAYLOAD_BYTES] = {0};
    memcpy(payload, &number, sizeof number);
    struct record_origin origin = {.node = 0, .stream = 1, .sequence = number};
    int64_t index = replica_propose(leader, RECORD_COMMAND, 0, origin, payload, sizeof payload);
    CHECK(index > 0);
    while (replica_commit(leader) < (uint64_t)index) CHECK(replica_poll(leader, at_us));
}

int main(int count, char **words) {
    uint64_t commits = count == 3 ? strtoull(words[2], NULL, 10) : 0;
    if (commits == 0 || commits > COMMITS_MAX || (strcmp(words[1], "shm") && strcmp(words[1], "verbs"))) {
        fprintf(stderr, "usage: commit shm|verbs COMMITS (at most %u)\n", COMMITS_MAX);
        return 2;
    }
    make();
    struct replica *leader = elect();
    if (!strcmp(words[1], "verbs")) use_verbs(leader);
    uint64_t at_us = now_us();
    for (uint64_t number = 1; number <= commits; number++) commit(leader, number, at_us);
    _exit(0); /* threads wait for deaths that do not come */
}
