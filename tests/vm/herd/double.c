/*
 * double.c: stands in for HERD in tests: its command line, its registry records, its request region, its replies, and its ways of
 * failing: one request at a time of each client, no length but the first for a key, lossy buckets of eight, partitions that
 * share nothing, requests and replies that are not sent again, one life of a client. What it is not: fast, large, or MICA.
 *
 * In the environment: HRD_REGISTRY_IP, as HERD has it. HERD_DOUBLE="workers=2 clients=8 buckets=4096 filled=64" says how large it is;
 * "preset=<32 hex digits>" puts a value of 32 bytes under that key. A worker process that gets SIGUSR1 keeps its next reply to itself.
 */
#if __has_include(<infiniband/verbs.h>) /* else there is nothing to be run on, and nothing to be linted */

#include <arpa/inet.h>
#include <assert.h>
#include <infiniband/verbs.h>
#include <malloc.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define REGION_KEY 24
#define REGION_BYTES (16u << 20)
#define SLOT_BYTES 64u
#define WINDOW 32u
#define CLIENTS_MAX 128u
#define VALUE_BYTES_MAX 62u
#define FILLED_BYTES 32u
#define INLINE_BYTES 60u
#define PSN 3185u
#define QKEY 0x11111111u
#define GET 121
#define IDLE_ROUNDS 64
#define PAUSE_NS 500000 /* HERD never sleeps; the processors of a guest are few */
#define IDLE_NS 5000000

struct record { char name[200]; uint64_t address; uint32_t bytes, rkey; int32_t lid, qpn; };
static_assert(sizeof(struct record) == 224, "as HERD's");

struct request { uint8_t key[16]; volatile uint8_t opcode; uint8_t length, value[46]; };
static_assert(sizeof(struct request) == SLOT_BYTES, "a slot");

static uint32_t workers = 2, clients = 8, buckets = 4096, filled = 64, port_index;
static volatile sig_atomic_t lose;

#define MUST(what) do { if (!(what)) { fprintf(stderr, "double: %s failed\n", #what); exit(1); } } while (0)

/* ---- the registry ---------------------------------------------------------------------------------------------------------- */

static int registry_connect(void) {
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(11211)};
    const char *ip = getenv("HRD_REGISTRY_IP");
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    MUST(ip != NULL && inet_pton(AF_INET, ip, &to.sin_addr) == 1);
    MUST(connect(fd, (struct sockaddr *)&to, sizeof to) == 0);
    return fd;
}

static size_t ask(int fd, const void *request, size_t length, char *answer, size_t room) {
    size_t have = 0;
    MUST(send(fd, request, length, MSG_NOSIGNAL) == (ssize_t)length);
    for (;;) {
        ssize_t n = recv(fd, answer + have, room - have, 0);
        MUST(n > 0);
        have += (size_t)n;
        if (have >= 5 && memcmp(answer + have - 5, "END\r\n", 5) == 0) return have;
        if (have == 8 && memcmp(answer, "STORED\r\n", 8) == 0) return have;
        MUST(have < room);
    }
}

static void registry_set(int fd, const char *name, const void *value, size_t length) {
    char request[1024], answer[64];
    size_t n = (size_t)snprintf(request, sizeof request, "set %s 0 0 %zu\r\n", name, length);
    memcpy(request + n, value, length);
    memcpy(request + n + length, "\r\n", 2);
    ask(fd, request, n + length + 2, answer, sizeof answer);
}

/* Asks until it is there. */
static struct record registry_wait(int fd, const char *name) {
    char request[300], answer[1024];
    struct record found;
    for (;; usleep(200000)) {
        size_t n = ask(fd, request, (size_t)snprintf(request, sizeof request, "get %s\r\n", name), answer, sizeof answer);
        const char *value = memchr(answer, '\n', n);
        if (n <= 5) continue;
        MUST(value != NULL && (size_t)(answer + n - value - 1) == sizeof found + 7);
        memcpy(&found, value + 1, sizeof found);
        return found;
    }
}

static void publish(int fd, const char *name, struct record record) {
    memset(record.name, 0, sizeof record.name);
    snprintf(record.name, sizeof record.name, "%s", name);
    registry_set(fd, name, &record, sizeof record);
}

/* ---- the device ------------------------------------------------------------------------------------------------------------ */

static struct ibv_context *open_port(uint8_t *port) {
    int count = 0;
    struct ibv_device **list = ibv_get_device_list(&count);
    uint32_t left = port_index;
    for (int i = 0; i < count; i++) {
        struct ibv_context *context = ibv_open_device(list[i]);
        struct ibv_device_attr limits;
        MUST(context != NULL && ibv_query_device(context, &limits) == 0);
        for (uint8_t p = 1; p <= limits.phys_port_cnt; p++) {
            struct ibv_port_attr attributes;
            MUST(ibv_query_port(context, p, &attributes) == 0);
            if (attributes.phys_state != 4 && attributes.phys_state != 5) continue;
            if (left-- > 0) continue;
            *port = p;
            return context;
        }
        ibv_close_device(context);
    }
    MUST(!"a port with that index");
    return NULL;
}

static int32_t lid_of(struct ibv_context *context, uint8_t port) {
    struct ibv_port_attr attributes;
    MUST(ibv_query_port(context, port, &attributes) == 0);
    return attributes.lid;
}

static struct ibv_qp *make_pair(struct ibv_context *context, struct ibv_pd *domain, enum ibv_qp_type type, uint8_t port) {
    struct ibv_cq *queue = ibv_create_cq(context, 128, NULL, NULL, 0);
    struct ibv_qp_init_attr wanted = {.send_cq = queue, .recv_cq = queue, .qp_type = type};
    wanted.cap = (struct ibv_qp_cap){.max_send_wr = 128, .max_recv_wr = 1, .max_send_sge = 1, .max_recv_sge = 1, .max_inline_data = INLINE_BYTES};
    MUST(queue != NULL);
    struct ibv_qp *pair = ibv_create_qp(domain, &wanted);
    MUST(pair != NULL);
    struct ibv_qp_attr to = {.qp_state = IBV_QPS_INIT, .port_num = port, .qkey = QKEY, .qp_access_flags = IBV_ACCESS_REMOTE_WRITE};
    int mask = type == IBV_QPT_UC ? IBV_QP_ACCESS_FLAGS : IBV_QP_QKEY;
    MUST(ibv_modify_qp(pair, &to, IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT | mask) == 0);
    return pair;
}

/* ---- the master ------------------------------------------------------------------------------------------------------------ */

static void connect_pair(struct ibv_qp *pair, uint8_t port, const struct record *to) {
    struct ibv_qp_attr attr = {.qp_state = IBV_QPS_RTR, .path_mtu = IBV_MTU_4096, .dest_qp_num = (uint32_t)to->qpn, .rq_psn = PSN};
    attr.ah_attr = (struct ibv_ah_attr){.dlid = (uint16_t)to->lid, .port_num = port};
    MUST(ibv_modify_qp(pair, &attr, IBV_QP_STATE | IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN | IBV_QP_RQ_PSN) == 0);
    attr = (struct ibv_qp_attr){.qp_state = IBV_QPS_RTS, .sq_psn = PSN};
    MUST(ibv_modify_qp(pair, &attr, IBV_QP_STATE | IBV_QP_SQ_PSN) == 0);
}

static int run_master(void) {
    uint8_t port;
    struct ibv_context *context = open_port(&port);
    struct ibv_pd *domain = ibv_alloc_pd(context);
    int shm = shmget(REGION_KEY, REGION_BYTES, IPC_CREAT | IPC_EXCL | 0666);
    MUST(shm != -1); /* of an earlier life */
    void *region = shmat(shm, NULL, 0);
    MUST(region != (void *)-1);
    memset(region, 0, REGION_BYTES);
    struct ibv_mr *key = ibv_reg_mr(domain, region, REGION_BYTES, IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_READ);
    struct ibv_qp *pairs[CLIENTS_MAX];
    char name[200];
    int fd = registry_connect();
    MUST(key != NULL);
    for (uint32_t i = 0; i < clients; i++) {
        pairs[i] = make_pair(context, domain, IBV_QPT_UC, port);
        snprintf(name, sizeof name, "master-0-%u", i);
        publish(fd, name, (struct record){.address = (uintptr_t)region, .bytes = REGION_BYTES, .rkey = key->rkey, .lid = lid_of(context, port),
                                          .qpn = (int32_t)pairs[i]->qp_num});
    }
    for (uint32_t i = 0; i < clients; i++) {
        snprintf(name, sizeof name, "client-conn-%u", i);
        struct record client = registry_wait(fd, name);
        connect_pair(pairs[i], port, &client);
        snprintf(name, sizeof name, "__HRD_RESERVED_NAME_PREFIXmaster-0-%u", i);
        registry_set(fd, name, "hrd_ready", 9);
    }
    printf("double: master connected\n");
    sleep(1000000);
    return 0;
}

/* ---- a worker's partition ---------------------------------------------------------------------------------------------------- */

struct entry { bool used; uint16_t tag; uint8_t length, key[16], value[VALUE_BYTES_MAX]; };
struct bucket { struct entry entries[8]; };

static uint16_t tag_of(const uint8_t *key) { return (uint16_t)(key[14] | key[15] << 8); }

static struct bucket *bucket_of(struct bucket *partition, const uint8_t *key) {
    uint32_t number;
    memcpy(&number, key + 8, sizeof number);
    return &partition[number % buckets];
}

static struct entry *find(struct bucket *partition, const uint8_t *key) {
    struct bucket *b = bucket_of(partition, key);
    for (int i = 0; i < 8; i++)
        if (b->entries[i].used && b->entries[i].tag == tag_of(key)) return memcmp(b->entries[i].key, key, 16) == 0 ? &b->entries[i] : NULL;
    return NULL;
}

static void put(struct bucket *partition, const uint8_t *key, const uint8_t *value, uint8_t length) {
    struct entry *place = find(partition, key);
    if (place != NULL) {
        assert(place->length == length); /* the whole process dies, as HERD's */
    } else {
        struct bucket *b = bucket_of(partition, key);
        place = &b->entries[tag_of(key) & 7];
        for (int i = 0; i < 8; i++)
            if (!b->entries[i].used || b->entries[i].tag == tag_of(key)) place = &b->entries[i];
    }
    *place = (struct entry){.used = true, .tag = tag_of(key), .length = length};
    memcpy(place->key, key, 16);
    memcpy(place->value, value, length < VALUE_BYTES_MAX ? length : VALUE_BYTES_MAX);
}

static void preset(struct bucket *partition) {
    const char *text = getenv("HERD_DOUBLE") ? strstr(getenv("HERD_DOUBLE"), "preset=") : NULL;
    uint8_t key[16], value[FILLED_BYTES] = {0};
    if (text == NULL) return;
    for (int i = 0; i < 16; i++) MUST(sscanf(text + strlen("preset=") + 2 * i, "%2hhx", &key[i]) == 1);
    put(partition, key, value, sizeof value);
}

static struct bucket *new_partition(void) {
    struct bucket *partition = calloc(buckets, sizeof *partition);
    MUST(partition != NULL);
    srand(1);
    for (uint32_t i = 0; i < filled; i++) {
        uint8_t key[16], value[FILLED_BYTES];
        for (int k = 0; k < 16; k++) key[k] = (uint8_t)(rand() >> 7);
        memset(value, key[8], sizeof value);
        put(partition, key, value, sizeof value);
    }
    preset(partition);
    return partition;
}

/* ---- a worker ---------------------------------------------------------------------------------------------------------------- */

struct worker {
    uint32_t number;
    struct ibv_qp *pair;
    struct ibv_ah *handles[CLIENTS_MAX];
    uint32_t qpn[CLIENTS_MAX], turn[CLIENTS_MAX], sent;
    struct bucket *partition;
};

static void meet_clients(struct worker *w, struct ibv_pd *domain, uint8_t port) {
    int fd = registry_connect();
    char name[200];
    for (uint32_t i = 0; i < clients; i++) {
        snprintf(name, sizeof name, "client-dgram-%u", i);
        struct record client = registry_wait(fd, name);
        struct ibv_ah_attr address = {.dlid = (uint16_t)client.lid, .port_num = port};
        w->handles[i] = ibv_create_ah(domain, &address);
        w->qpn[i] = (uint32_t)client.qpn;
        MUST(w->handles[i] != NULL);
    }
}

static void reply(struct worker *w, uint32_t client, const uint8_t *value, uint32_t length) {
    struct ibv_sge piece = {.addr = (uintptr_t)value, .length = length};
    struct ibv_send_wr work = {.opcode = IBV_WR_SEND_WITH_IMM, .sg_list = &piece, .num_sge = 1, .imm_data = w->number,
                               .send_flags = IBV_SEND_INLINE}, *bad;
    struct ibv_wc done;
    if (lose) {
        lose = 0;
        return;
    }
    work.wr.ud.ah = w->handles[client];
    work.wr.ud.remote_qpn = w->qpn[client];
    work.wr.ud.remote_qkey = QKEY;
    if (++w->sent % 64 == 0) work.send_flags |= IBV_SEND_SIGNALED;
    if (length > INLINE_BYTES || ibv_post_send(w->pair, &work, &bad) != 0) exit(22);
    while (w->sent % 64 == 0 && ibv_poll_cq(w->pair->send_cq, 1, &done) == 0) continue;
}

/* One request, if there is one. */
static bool serve(struct worker *w, struct request *region, uint32_t client) {
    struct request *slot = &region[(w->number * clients + client) * WINDOW + w->turn[client]];
    if (slot->opcode < GET) return false;
    bool gets = slot->opcode == GET;
    slot->opcode -= 10;
    w->turn[client] = (w->turn[client] + 1) % WINDOW;
    const struct entry *found = gets ? find(w->partition, slot->key) : NULL;
    if (!gets) put(w->partition, slot->key, slot->value, slot->length);
    reply(w, client, found != NULL ? found->value : NULL, found != NULL ? found->length : 0);
    return true;
}

static void *run_worker(void *number) {
    struct worker *w = calloc(1, sizeof *w);
    uint8_t port;
    struct ibv_context *context = open_port(&port);
    struct ibv_pd *domain = ibv_alloc_pd(context);
    w->number = (uint32_t)(uintptr_t)number;
    w->partition = new_partition();
    w->pair = make_pair(context, domain, IBV_QPT_UD, port);
    struct ibv_qp_attr to = {.qp_state = IBV_QPS_RTR};
    MUST(ibv_modify_qp(w->pair, &to, IBV_QP_STATE) == 0);
    to = (struct ibv_qp_attr){.qp_state = IBV_QPS_RTS, .sq_psn = PSN};
    MUST(ibv_modify_qp(w->pair, &to, IBV_QP_STATE | IBV_QP_SQ_PSN) == 0);
    int shm = shmget(REGION_KEY, REGION_BYTES, 0666);
    MUST(shm != -1);
    struct request *region = shmat(shm, NULL, 0);
    MUST(region != (void *)-1);
    meet_clients(w, domain, port);
    for (int idle = 0;; idle++) {
        for (uint32_t i = 0; i < clients; i++)
            if (serve(w, region, i)) idle = 0;
        if (idle > IDLE_ROUNDS) nanosleep(&(struct timespec){.tv_nsec = idle > 2 * IDLE_ROUNDS ? IDLE_NS : PAUSE_NS}, NULL);
    }
    return NULL;
}

static void on_lose(int number) {
    (void)number;
    lose = 1;
}

static int run_workers(void) {
    pthread_t threads[64];
    signal(SIGUSR1, on_lose);
    for (uint32_t i = 0; i < workers; i++) MUST(pthread_create(&threads[i], NULL, run_worker, (void *)(uintptr_t)i) == 0);
    pthread_join(threads[0], NULL);
    return 1;
}

/* ---- */

static void read_size(const char *text, const char *name, uint32_t *value) {
    const char *found = strstr(text, name);
    if (found != NULL) *value = (uint32_t)atoi(found + strlen(name));
}

int main(int argc, char **argv) {
    const char *text = getenv("HERD_DOUBLE") ? getenv("HERD_DOUBLE") : "";
    bool master = false;
    read_size(text, "workers=", &workers);
    read_size(text, "clients=", &clients);
    read_size(text, "buckets=", &buckets);
    read_size(text, "filled=", &filled);
    MUST(clients <= CLIENTS_MAX && workers <= 64 && workers * clients * WINDOW * SLOT_BYTES < REGION_BYTES);
    for (int i = 1; i + 1 < argc; i += 2) {
        if (strcmp(argv[i], "--master") == 0) master = true;
        else if (strcmp(argv[i], "--base-port-index") == 0) port_index = (uint32_t)atoi(argv[i + 1]);
        else if (strcmp(argv[i], "--num-server-ports") == 0) MUST(atoi(argv[i + 1]) == 1);
        else if (strcmp(argv[i], "--postlist") == 0) MUST(atoi(argv[i + 1]) >= 1 && atoi(argv[i + 1]) <= 32);
        else MUST(strcmp(argv[i], "--is-client") == 0 && atoi(argv[i + 1]) == 0);
    }
    setlinebuf(stdout);
    return master ? run_master() : run_workers();
}

#endif
