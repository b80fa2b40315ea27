#include "fabric/shm.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "check.h"
#include "fabric/shm_copy.h"
#include "fabric/shm_fence.h"
#include "fabric/shm_link.h"
#include "failpoint.h"
#include "plant.h"

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

static struct shm *shm_of(struct fabric *f) { return (struct shm *)(void *)f; }

static uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static _Atomic uint64_t *hazard_at(const struct shm *s, const struct shm_link *link) {
    return &link->control->hazards[s->config.self].raised;
}

static bool permitted(const struct shm_link *link) {
    if (planted(PLANT_NO_REVOKE)) return link->token != SHM_NO_GRANT;
    return atomic_load_explicit(&link->control->permission.grant, memory_order_relaxed) == link->token;
}

/* Nothing of this link is being stored any more. */
static void lower(struct shm *s, struct shm_link *link) {
    atomic_store_explicit(hazard_at(s, link), 0, memory_order_release);
    s->hazardous &= ~(1u << link->peer);
}

static void lose(struct shm *s, struct shm_link *link) {
    link->fault = SHM_LOST;
    s->writable &= ~(1u << link->peer);
}

/* ---- the writer's side ------------------------------------------------------------------------------------------- */

/* A burst: hazard words up at every log that I may write; a fence; a look at the grants. Whoever revokes exchanges the
 * grant first and looks at the hazard word then, so one of the two sees the other. All logs at once, because the fence
 * is what costs. */
static void open_burst(struct shm *s) {
    failpoint(FAIL_BEFORE_HAZARD);
    s->burst = true;
    s->hazardous = s->writable;
    for (uint32_t rest = s->writable; rest; rest &= rest - 1) {
        struct shm_link *link = shm_link_of(s, (uint32_t)__builtin_ctz(rest));
        atomic_store_explicit(hazard_at(s, link), 1, memory_order_relaxed);
    }
    atomic_thread_fence(memory_order_seq_cst);
    for (uint32_t rest = s->writable; rest; rest &= rest - 1) {
        struct shm_link *link = shm_link_of(s, (uint32_t)__builtin_ctz(rest));
        if (permitted(link)) continue;
        lower(s, link);
        lose(s, link);
    }
}

static void close_burst(struct shm *s) {
    for (uint32_t rest = s->hazardous; rest; rest &= rest - 1) {
        struct shm_link *link = shm_link_of(s, (uint32_t)__builtin_ctz(rest));
        if (!permitted(link)) lose(s, link);
        lower(s, link);
    }
    s->burst = false;
}

static uint8_t outcome(struct shm_post *post) {
    struct shm_link *link = post->link;
    if (shm_link_dead(link) && !planted(PLANT_DEAD_ACKS)) return FABRIC_DOWN;
    if (post->kind == SHM_POST_BACKGROUND || link->fault == SHM_SOUND) return FABRIC_DONE;
    if (link->fault == SHM_BROKEN) return FABRIC_FLUSHED;
    if (post->kind == SHM_POST_LOG_READ) return FABRIC_DONE; /* ahead of the write that will be the first to fail */
    link->fault = SHM_BROKEN;
    return FABRIC_REFUSED;
}

void shm_settle(struct shm *s) {
    if (s->settled == s->posted) return;
    if (s->burst) failpoint(FAIL_AFTER_STORE);
    bool burst = s->burst;
    /* The stores are visible before the grants are looked at again: DONE means that the owner sees the bytes, and that
     * nobody had taken the permission by then. */
    atomic_thread_fence(memory_order_seq_cst);
    if (s->burst) close_burst(s);
    for (; s->settled < s->posted; s->settled++) {
        struct shm_post *post = &s->posts[s->settled];
        if (post->status == SHM_UNSETTLED) post->status = outcome(post);
        if (post->status != FABRIC_DONE) s->counters.refused++;
    }
    if (burst) failpoint(FAIL_SETTLED);
}

static void remember(struct shm *s, struct shm_link *link, uint32_t peer, enum shm_post_kind kind, uint8_t status,
                     uint64_t id) {
    CHECK(s->posted < SHM_POSTS_MAX);
    s->posts[s->posted++] =
        (struct shm_post){.id = id, .link = link, .peer = peer, .kind = (uint8_t)kind, .status = status};
}

/* The link if posts to it can have an effect. */
static struct shm_link *usable(struct shm *s, uint32_t peer) {
    struct shm_link *link = shm_link_of(s, peer);
    return link && atomic_load_explicit(&link->open, memory_order_acquire) ? link : NULL;
}

static void check_post(const struct shm *s, uint32_t peer, enum fabric_region region, uint64_t offset, uint32_t length) {
    uint64_t bytes = region == FABRIC_LOG ? s->config.log_bytes : s->config.background_bytes;
    fabric_check_post(&s->fabric, peer, region, bytes, offset, length);
}

/* In two parts where a test wants to stop between them. */
static bool store(uint8_t *to, const uint8_t *bytes, uint32_t length) {
    const uint32_t tail = sizeof(uint64_t);
    failpoint(FAIL_BEFORE_STORE);
    if (!failpoint_waits(FAIL_BEFORE_TAIL) || length <= tail) return shm_copy(to, bytes, length);
    if (!shm_copy(to, bytes, length - tail)) return false;
    failpoint(FAIL_BEFORE_TAIL);
    return shm_copy(to + length - tail, bytes + length - tail, tail);
}

static void write_log(struct shm *s, struct shm_link *link, uint64_t offset, const void *bytes, uint32_t length) {
    if (!s->burst) open_burst(s);
    if (!(s->hazardous >> link->peer & 1)) {
        if (link->fault == SHM_SOUND) lose(s, link); /* never accepted */
        return;
    }
    if (store(link->log + offset, bytes, length)) return;
    lower(s, link);
    lose(s, link);
}

static void post_write(struct fabric *f, uint32_t peer, enum fabric_region region, uint64_t offset, const void *bytes,
                       uint32_t length, uint64_t id) {
    struct shm *s = shm_of(f);
    check_post(s, peer, region, offset, length);
    struct shm_link *link = usable(s, peer);
    enum shm_post_kind kind = region == FABRIC_LOG ? SHM_POST_LOG_WRITE : SHM_POST_BACKGROUND;
    s->counters.writes++;
    s->counters.write_bytes += length;
    if (!link) {
        remember(s, NULL, peer, kind, FABRIC_DOWN, id);
        return;
    }
    if (region == FABRIC_LOG) {
        write_log(s, link, offset, bytes, length);
    } else {
        shm_copy(link->background + offset, bytes, length);
    }
    remember(s, link, peer, kind, SHM_UNSETTLED, id);
}

static void post_read(struct fabric *f, uint32_t peer, enum fabric_region region, uint64_t offset, void *into,
                      uint32_t length, uint64_t id) {
    struct shm *s = shm_of(f);
    check_post(s, peer, region, offset, length);
    struct shm_link *link = usable(s, peer);
    enum shm_post_kind kind = region == FABRIC_LOG ? SHM_POST_LOG_READ : SHM_POST_BACKGROUND;
    s->counters.reads++;
    if (!link) {
        remember(s, NULL, peer, kind, FABRIC_DOWN, id);
        return;
    }
    if (s->settled < s->posted) atomic_thread_fence(memory_order_seq_cst); /* behind my own writes, for everybody */
    memcpy(into, (region == FABRIC_LOG ? link->log : link->background) + offset, length);
    remember(s, link, peer, kind, SHM_UNSETTLED, id);
}

static int poll_completions(struct fabric *f, struct fabric_completion *out, int max) {
    struct shm *s = shm_of(f);
    shm_settle(s);
    int count = 0;
    for (; count < max && s->taken < s->posted; s->taken++) {
        const struct shm_post *post = &s->posts[s->taken];
        out[count++] = (struct fabric_completion){.id = post->id, .peer = post->peer, .status = post->status};
    }
    if (s->taken == s->posted) {
        s->taken = s->settled = s->posted = 0;
        if (atomic_load_explicit(&s->retired, memory_order_relaxed)) shm_reap(s);
    }
    return count;
}

static void accept_permission(struct fabric *f, uint32_t peer, uint64_t epoch) {
    struct shm *s = shm_of(f);
    CHECK(fabric_is_peer(f, peer));
    struct shm_link *link = usable(s, peer);
    shm_settle(s); /* under the former token */
    if (!link) return;
    link->token = shm_grant_word(epoch, s->config.self);
    link->fault = SHM_SOUND;
    s->writable |= 1u << peer;
    failpoint(FAIL_ACCEPTED);
    uint64_t barred = atomic_load(&link->control->barred[s->config.self].times);
    if (barred == link->barred_seen) return;
    /* Lifting a write protection leaves the pages to be faulted in one by one: once, here. */
    madvise(link->log, s->config.log_bytes, MADV_POPULATE_WRITE);
    link->barred_seen = barred;
}

static void wake(struct fabric *f, uint32_t peer) {
    CHECK(fabric_is_peer(f, peer));
    struct shm_link *link = usable(shm_of(f), peer);
    if (link) shm_ring(link->doorbell);
}

/* ---- the owner's side -------------------------------------------------------------------------------------------- */

/* Waits until the writer is known to store nothing: its hazard word is down, or it is dead. False when the time is up. */
static bool await_calm(const struct shm *s, const struct shm_link *link, uint64_t wait_ns) {
    _Atomic uint64_t *raised = &s->control->hazards[link->peer].raised;
    uint64_t start = now_ns();
    for (;;) {
        for (int spin = 0; spin < 32; spin++) {
            if (!atomic_load_explicit(raised, memory_order_seq_cst)) return true;
        }
        if (shm_link_dead(link)) return true;
        if (wait_ns != UINT64_MAX && now_ns() - start >= wait_ns) return false;
        nanosleep(&(struct timespec){.tv_nsec = 1000}, NULL); /* it may be waiting for this very processor, which is not yielded to all */
    }
}

static void fence_hard(struct shm *s, struct shm_link *link) {
    uint64_t start = now_ns();
    bool fenced = false;
    s->counters.fences++;
    if (s->fence_kind == SHM_FENCE_USERFAULTFD && link->bar_fd >= 0) {
        int error = shm_fence_bar(link->bar_fd, link->bar_mapping, s->config.log_bytes, true);
        link->barred = !error;
        if (!error) atomic_fetch_add(&s->control->barred[link->peer].times, 1);
        fenced = !error || error == ESRCH;
    }
    if (!fenced && link->pidfd >= 0) fenced = shm_fence_kill_process(link->pidfd) == 0;
    if (!fenced) await_calm(s, link, UINT64_MAX); /* neither is allowed here: safe, at the price of waiting */
    uint64_t took = now_ns() - start;
    if (took > s->counters.fence_ns_max) s->counters.fence_ns_max = took;
}

static void revoke_permission(struct fabric *f) {
    struct shm *s = shm_of(f);
    _Atomic uint64_t *grant = &s->control->permission.grant;
    uint64_t word = atomic_load_explicit(grant, memory_order_relaxed);
    uint32_t holder = shm_grant_holder(word);
    atomic_exchange(grant, shm_grant_word(shm_grant_epoch(word) + 1, SHM_NOBODY));
    s->counters.revocations++;
    failpoint(FAIL_REVOKING);
    if (holder == SHM_NOBODY || holder == s->config.self) return;
    if (planted(PLANT_NO_REVOKE) || planted(PLANT_LATE_WRITES)) return;
    struct shm_link *link = shm_link_of(s, holder);
    if (!link || link->barred) return; /* barred: still write-protected since an earlier revocation */
    if (!await_calm(s, link, (uint64_t)s->config.hazard_us * 1000)) fence_hard(s, link);
    failpoint(FAIL_REVOKED);
}

/* Lets a writer store again that was write-protected: only when the burst in which it was caught is over, so that no
 * store of it is left. Otherwise it stays barred, and finds its first write refused. */
static void lift_bar(struct shm *s, struct shm_link *link) {
    if (!await_calm(s, link, (uint64_t)s->config.hazard_us * 1000)) return;
    link->barred = shm_fence_bar(link->bar_fd, link->bar_mapping, s->config.log_bytes, false) != 0;
}

static uint64_t grant_permission(struct fabric *f, uint32_t peer) {
    struct shm *s = shm_of(f);
    _Atomic uint64_t *grant = &s->control->permission.grant;
    uint64_t word = atomic_load_explicit(grant, memory_order_relaxed);
    CHECK(peer < s->config.nodes && shm_grant_holder(word) == SHM_NOBODY);
    struct shm_link *link = peer == s->config.self ? NULL : shm_link_of(s, peer);
    if (link && link->barred) lift_bar(s, link);
    uint64_t epoch = shm_grant_epoch(word) + 1;
    atomic_store(grant, shm_grant_word(epoch, peer));
    failpoint(FAIL_GRANTED);
    return epoch;
}

static bool holds_own(struct fabric *f) {
    struct shm *s = shm_of(f);
    uint64_t word = atomic_load_explicit(&s->control->permission.grant, memory_order_relaxed);
    return shm_grant_holder(word) == s->config.self;
}

const struct fabric_ops shm_ops = {
    .post_write = post_write,
    .post_read = post_read,
    .poll = poll_completions,
    .revoke = revoke_permission,
    .grant = grant_permission,
    .accept = accept_permission,
    .holds_own = holds_own,
    .wake = wake,
};

static void *host_memory(struct fabric *f, enum fabric_region region) {
    return region == FABRIC_LOG ? shm_log(shm_of(f)) : shm_background(shm_of(f));
}
static int host_enter(struct fabric *f) { return shm_enter(shm_of(f)); }
static int host_wait_fd(struct fabric *f) { return shm_wait_fd(shm_of(f)); }
static uint32_t host_drain(struct fabric *f) { return shm_drain(shm_of(f)); }
static bool host_arm(struct fabric *f) { return f != NULL; } /* nothing completes by itself */
static bool host_outstanding(struct fabric *f) { return f == NULL; }
static uint64_t host_life(struct fabric *f, uint32_t peer) { return shm_region(shm_of(f), peer); }
static int host_open_link(struct fabric *f, uint32_t peer) { return shm_open_link(shm_of(f), peer); }

const struct fabric_host shm_host = {.memory = host_memory,
                                     .enter = host_enter,
                                     .wait_fd = host_wait_fd,
                                     .drain = host_drain,
                                     .arm = host_arm,
                                     .outstanding = host_outstanding,
                                     .life = host_life,
                                     .open_link = host_open_link};

/* ---- the engine's thread ----------------------------------------------------------------------------------------- */

uint32_t shm_drain(struct shm *s) {
    uint8_t rings[256];
    if (recv(s->bell, rings, sizeof rings, 0) < 0) CHECK(errno == EAGAIN);
    return atomic_exchange(&s->newly_dead, 0);
}

struct shm_counters shm_counters(const struct shm *s) { return s->counters; }
