/*
 * verbs_links.c: two nodes over the verbs fabric, each with a thread that drives it, while a third thread makes the links
 * between them anew again and again: before they were taken up, and in the middle of posts. Run under sanitizers in the
 * virtual machine, as it needs a device (test_sanitized.py).
 *
 *   verbs_links [links]
 *
 * Each node writes a number that grows into the other's log, a page behind it, and a beat into its background, and reads
 * all of it back; who is refused asks the owner again. Checked: a completed write is there, and each link brings some.
 */
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "fabric/verbs.h"

#define LOG_BYTES (64u << 10)
#define BACKGROUND_BYTES 4096u
#define PAGE_BYTES 4096u /* too long to go inline */
#define WRITES_PER_LINK 20u
#define WAIT_MS 5

enum { NUMBER_AT = 0, PAGE_AT = PAGE_BYTES, BEAT_AT = 0 };

struct node {
    uint32_t self, peer;
    struct verbs *verbs;
    pthread_t thread;
    uint64_t number, number_done, epoch_taken;
    uint8_t page[PAGE_BYTES], page_read[PAGE_BYTES];
    uint64_t number_read;
    _Atomic uint64_t asked, granted; /* by this node, of the peer's log; to the peer, of its own */
    _Atomic uint64_t done;           /* writes of the log that were completed */
};

static struct node nodes[2];
static _Atomic bool stopping;

static uint64_t first_word(void *memory) { return __atomic_load_n((uint64_t *)memory, __ATOMIC_ACQUIRE); }

/* ---- one node's thread ------------------------------------------------------------------------------------------------- */

static void serve(struct node *n) {
    struct fabric *f = verbs_fabric(n->verbs);
    struct node *other = &nodes[n->peer];
    uint64_t asked = atomic_load(&other->asked);
    if (asked <= n->epoch_taken) return;
    n->epoch_taken = asked;
    f->ops->revoke(f);
    atomic_store(&n->granted, f->ops->grant(f, n->peer));
}

static void post_all(struct node *n) {
    struct fabric *f = verbs_fabric(n->verbs);
    n->number++;
    memset(n->page, (int)n->number, sizeof n->page);
    f->ops->post_write(f, n->peer, FABRIC_LOG, PAGE_AT, n->page, sizeof n->page, 0);
    f->ops->post_write(f, n->peer, FABRIC_LOG, NUMBER_AT, &n->number, sizeof n->number, n->number);
    f->ops->post_read(f, n->peer, FABRIC_LOG, PAGE_AT, n->page_read, sizeof n->page_read, 0);
    f->ops->post_write(f, n->peer, FABRIC_BACKGROUND, BEAT_AT, &n->number, sizeof n->number, 0);
    f->ops->post_read(f, n->peer, FABRIC_BACKGROUND, BEAT_AT, &n->number_read, sizeof n->number_read, 0);
}

/* Waits for all five; whether the number was written. */
static bool take_all(struct node *n) {
    struct fabric *f = verbs_fabric(n->verbs);
    bool all_done = true, written = false;
    for (uint32_t taken = 0; taken < 5;) {
        struct fabric_completion done[8];
        int count = f->ops->poll(f, done, 8);
        for (int i = 0; i < count; i++) {
            CHECK(done[i].peer == n->peer);
            all_done = all_done && done[i].status == FABRIC_DONE;
            written = written || (done[i].id == n->number && done[i].status == FABRIC_DONE);
        }
        taken += (uint32_t)count;
        if (count > 0 || !verbs_arm(n->verbs)) continue;
        struct pollfd wait = {.fd = verbs_wait_fd(n->verbs), .events = POLLIN};
        poll(&wait, 1, WAIT_MS);
        verbs_drain(n->verbs);
        serve(n);
    }
    if (all_done) CHECK(memcmp(n->page, n->page_read, sizeof n->page) == 0 && n->number_read == n->number);
    return written;
}

static void *drive(void *of) {
    struct node *n = of;
    struct fabric *f = verbs_fabric(n->verbs);
    struct node *other = &nodes[n->peer];
    uint64_t accepted = 0;
    while (!atomic_load(&stopping)) {
        verbs_drain(n->verbs);
        serve(n);
        uint64_t granted = atomic_load(&other->granted);
        if (granted != accepted) f->ops->accept(f, n->peer, accepted = granted);
        post_all(n);
        if (take_all(n)) {
            CHECK(first_word(verbs_log(other->verbs)) >= n->number);
            atomic_fetch_add(&n->done, 1);
            continue;
        }
        f->ops->release(f, n->peer);
        atomic_fetch_add(&n->asked, 1);
        f->ops->wake(f, n->peer);
        struct pollfd wait = {.fd = verbs_wait_fd(n->verbs), .events = POLLIN};
        poll(&wait, 1, WAIT_MS);
    }
    return NULL;
}

/* ---- links --------------------------------------------------------------------------------------------------------------- */

static void make_link(void) {
    char why[VERBS_WHY_BYTES] = "";
    struct verbs_end ends[2];
    for (int i = 0; i < 2; i++) CHECK(verbs_describe(nodes[i].verbs, nodes[i].peer, &ends[i], why, sizeof why) == 0);
    for (int i = 0; i < 2; i++) {
        if (verbs_attach(nodes[i].verbs, nodes[i].peer, &ends[1 - i], why, sizeof why)) fprintf(stderr, "%s\n", why);
        CHECK(verbs_life(nodes[i].verbs, nodes[i].peer) == ends[1 - i].life);
    }
    for (int i = 0; i < 2; i++) CHECK(verbs_open_link(nodes[i].verbs, nodes[i].peer) == 0);
}

static void await_writes(void) {
    for (int i = 0; i < 2; i++) {
        uint64_t before = atomic_load(&nodes[i].done);
        while (atomic_load(&nodes[i].done) < before + WRITES_PER_LINK) poll(NULL, 0, 1);
        CHECK(verbs_is_open(nodes[i].verbs, nodes[i].peer) && !verbs_is_broken(nodes[i].verbs, nodes[i].peer));
    }
}

int main(int argc, char **argv) {
    int links = argc > 1 ? atoi(argv[1]) : 20;
    for (uint32_t i = 0; i < 2; i++) {
        char why[VERBS_WHY_BYTES] = "";
        struct verbs_config config = {.self = i, .nodes = 2, .log_bytes = LOG_BYTES, .background_bytes = BACKGROUND_BYTES,
                                      .staging_bytes = LOG_BYTES, .gid_index = -1, .timeout = 12, .retry_count = 4};
        nodes[i] = (struct node){.self = i, .peer = 1 - i, .verbs = verbs_new(&config, why, sizeof why)};
        if (nodes[i].verbs) continue;
        fprintf(stderr, "%s\n", why);
        return 1;
    }
    make_link();
    for (int i = 0; i < 2; i++) CHECK(pthread_create(&nodes[i].thread, NULL, drive, &nodes[i]) == 0);
    for (int i = 1; i < links; i++) {
        if (i % 4) await_writes(); /* every fourth link replaces one that nobody has used yet */
        make_link();
    }
    await_writes();
    atomic_store(&stopping, true);
    for (int i = 0; i < 2; i++) CHECK(pthread_join(nodes[i].thread, NULL) == 0);
    for (int i = 0; i < 2; i++) verbs_free(nodes[i].verbs);
    printf("%d links, %llu and %llu writes\n", links, (unsigned long long)atomic_load(&nodes[0].done),
           (unsigned long long)atomic_load(&nodes[1].done));
    return 0;
}
