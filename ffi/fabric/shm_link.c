#include "fabric/shm_link.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "check.h"
#include "fabric/shm_copy.h"
#include "fabric/shm_fence.h"
#include "fabric/shm_notice.h"
#include "prompt.h"

#define NOTICE_STACK_BYTES (64 * 1024)

static uint64_t round_to_page(uint64_t bytes) {
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
    return (bytes + page - 1) / page * page;
}

static void close_fd(int fd) {
    if (fd >= 0) close(fd);
}

/* ---- own regions --------------------------------------------------------------------------------------------------- */

/* Maps with every page present, so that nothing faults later. Not inherited by children: a copy of a mapping would not
 * be under the fence. */
static uint8_t *map_shared(int fd, uint64_t bytes) {
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, 0);
    if (memory == MAP_FAILED) return NULL;
    madvise(memory, bytes, MADV_DONTFORK);
    madvise(memory, bytes, MADV_DONTDUMP); /* a core dump of the rings would only put off the death notice */
    return memory;
}

/* A memfd with all its pages, which nobody can shrink under those who mapped it. */
static int make_memory(const char *what, uint32_t self, uint64_t bytes, uint8_t **mapping) {
    char name[64];
    snprintf(name, sizeof name, "musidecar-%s-%u", what, self);
    int fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0) return -1;
    int error = posix_fallocate(fd, 0, (off_t)bytes);
    if (!error && fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)) error = errno;
    if (!error && !(*mapping = map_shared(fd, bytes))) error = errno;
    if (error) {
        close(fd);
        errno = error;
        return -1;
    }
    return fd;
}

static int init_control(struct shm *s) {
    const struct shm_config *c = &s->config;
    s->control->identity = (struct shm_identity){.magic = SHM_MAGIC,
                                                 .layout = SHM_LAYOUT,
                                                 .owner = c->self,
                                                 .nodes = c->nodes,
                                                 .mutex_bytes = sizeof(pthread_mutex_t),
                                                 .log_bytes = c->log_bytes,
                                                 .background_bytes = c->background_bytes};
    uint64_t *incarnation = &s->control->identity.incarnation;
    if (getrandom(incarnation, sizeof *incarnation, 0) != (ssize_t)sizeof *incarnation) return errno;
    return shm_notice_init(s->control);
}

static int make_regions(struct shm *s) {
    const struct shm_config *c = &s->config;
    s->background_memory_bytes = round_to_page(c->background_bytes) + round_to_page(sizeof(struct shm_control));
    s->fds.log = make_memory("log", c->self, c->log_bytes, &s->log);
    if (s->fds.log < 0) return errno;
    s->fds.background = make_memory("background", c->self, s->background_memory_bytes, &s->background);
    if (s->fds.background < 0) return errno;
    s->control = (struct shm_control *)(void *)(s->background + round_to_page(c->background_bytes));
    int bell[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, bell)) return errno;
    s->bell = bell[0];
    s->fds.doorbell = bell[1];
    return init_control(s);
}

static int choose_fence(struct shm *s) {
    bool works = shm_fence_check(NULL, 0);
    if (s->config.force_fence == SHM_FENCE_USERFAULTFD && !works) return EOPNOTSUPP;
    bool kill = s->config.force_fence == SHM_FENCE_KILL || !works;
    s->fence_kind = kill ? SHM_FENCE_KILL : SHM_FENCE_USERFAULTFD;
    return 0;
}

struct shm *shm_new(const struct shm_config *config) {
    bool possible = config->nodes >= 1 && config->nodes <= FABRIC_NODES_MAX && config->self < config->nodes &&
                    config->log_bytes > 0 && config->background_bytes > 0 &&
                    config->log_bytes % (uint64_t)sysconf(_SC_PAGESIZE) == 0 && config->force_fence <= SHM_FENCE_KILL;
    struct shm *s = possible ? calloc(1, sizeof *s) : NULL;
    if (!s) {
        errno = possible ? ENOMEM : EINVAL;
        return NULL;
    }
    s->config = *config;
    s->fds = (struct shm_descriptors){-1, -1, -1};
    s->bell = -1;
    s->fabric = (struct fabric){.ops = &shm_ops, .self = config->self, .nodes = config->nodes, .host = &shm_host};
    shm_copy_init();
    int error = choose_fence(s);
    if (!error) error = make_regions(s);
    if (error) {
        shm_free(s);
        errno = error;
        return NULL;
    }
    return s;
}

struct fabric *shm_fabric(struct shm *s) { return &s->fabric; }
void *shm_log(struct shm *s) { return s->log; }
void *shm_background(struct shm *s) { return s->background; }
struct shm_descriptors shm_fds(const struct shm *s) { return s->fds; }
enum shm_fence shm_fence_kind(const struct shm *s) { return s->fence_kind; }
int shm_wait_fd(const struct shm *s) { return s->bell; }

int shm_enter(struct shm *s) {
    int error = shm_notice_enter(s->control);
    if (error) {
        errno = error;
        return -1;
    }
    s->entered = true;
    atomic_store(&s->thread, (int32_t)gettid());
    s->enterer = pthread_self();
    return 0;
}

/* ---- ending -------------------------------------------------------------------------------------------------------- */

static void end_notice(struct shm_link *link) {
    if (!link->notice_started) return;
    atomic_store(&link->notice_stop, true);
    const struct timespec pause = {.tv_nsec = 200 * 1000};
    while (!atomic_load(&link->notice_ended)) { /* it may be just about to sleep: call until it heard */
        shm_notice_recall(link->control, link->shm->config.self);
        nanosleep(&pause, NULL);
    }
    CHECK(pthread_join(link->notice, NULL) == 0);
    link->notice_started = false;
}

/* Everything but the memory, which the engine's thread may be looking at. */
static void quiet_link(struct shm_link *link) {
    end_notice(link);
    close_fd(link->bar_fd);
    close_fd(link->pidfd);
    link->bar_fd = link->pidfd = -1;
}

static void free_link(struct shm_link *link) {
    quiet_link(link);
    close_fd(link->own_bar_fd);
    close_fd(link->doorbell);
    if (link->log) munmap(link->log, link->shm->config.log_bytes);
    if (link->background) munmap(link->background, link->shm->background_memory_bytes);
    free(link);
}

void shm_reap(struct shm *s) {
    struct shm_link *link = atomic_exchange(&s->retired, NULL);
    while (link) {
        struct shm_link *next = link->retired_next;
        free_link(link);
        link = next;
    }
}

static void retire(struct shm *s, struct shm_link *link) {
    quiet_link(link);
    link->retired_next = atomic_load(&s->retired);
    while (!atomic_compare_exchange_weak(&s->retired, &link->retired_next, link)) continue;
}

void shm_free(struct shm *s) {
    if (!s) return;
    shm_settle(s);
    bool unmap = !s->control || shm_notice_leave(s->control, s->entered, s->enterer);
    for (uint32_t peer = 0; peer < s->config.nodes; peer++) {
        struct shm_link *link = shm_link_of(s, peer);
        if (link) free_link(link);
    }
    shm_reap(s);
    if (s->log) munmap(s->log, s->config.log_bytes);
    /* A live thread that holds the mutexes has them in its list of robust mutexes: then the page stays. */
    if (s->background && unmap) munmap(s->background, s->background_memory_bytes);
    close_fd(s->fds.log);
    close_fd(s->fds.background);
    close_fd(s->fds.doorbell);
    close_fd(s->bell);
    free(s);
}

/* ---- peers --------------------------------------------------------------------------------------------------------- */

static bool memory_matches(int fd, uint64_t bytes) {
    struct stat file;
    if (fstat(fd, &file) || (uint64_t)file.st_size != bytes) return false;
    int seals = fcntl(fd, F_GET_SEALS);
    return seals >= 0 && seals & F_SEAL_SHRINK;
}

static bool identity_matches(const struct shm *s, const struct shm_identity *theirs, uint32_t peer) {
    const struct shm_identity *own = &s->control->identity;
    return theirs->magic == SHM_MAGIC && theirs->layout == SHM_LAYOUT && theirs->owner == peer &&
           peer < theirs->nodes && s->config.self < theirs->nodes && theirs->mutex_bytes == own->mutex_bytes &&
           theirs->log_bytes == own->log_bytes && theirs->background_bytes == own->background_bytes &&
           theirs->incarnation != own->incarnation;
}

static int map_peer(struct shm *s, struct shm_link *link, struct shm_descriptors fds) {
    if (!memory_matches(fds.log, s->config.log_bytes)) return EINVAL;
    if (!memory_matches(fds.background, s->background_memory_bytes)) return EINVAL;
    link->log = map_shared(fds.log, s->config.log_bytes);
    if (!link->log) return errno;
    link->background = map_shared(fds.background, s->background_memory_bytes);
    if (!link->background) return errno;
    link->control = (struct shm_control *)(void *)(link->background + round_to_page(s->config.background_bytes));
    return identity_matches(s, &link->control->identity, link->peer) ? 0 : EINVAL;
}

static struct shm_link *new_link(struct shm *s, uint32_t peer, int doorbell, int peer_pid) {
    struct shm_link *link = calloc(1, sizeof *link);
    if (!link) return NULL;
    link->peer = peer;
    link->shm = s;
    link->doorbell = doorbell;
    link->token = SHM_NO_GRANT;
    link->bar_fd = link->own_bar_fd = link->pidfd = -1;
    /* Never ourselves: threads of one process may play several nodes in tests. */
    if (peer_pid > 0 && peer_pid != getpid()) link->pidfd = (int)syscall(SYS_pidfd_open, peer_pid, 0);
    return link;
}

int shm_attach(struct shm *s, uint32_t peer, struct shm_descriptors fds, int peer_pid) {
    struct shm_link *former = peer < s->config.nodes ? shm_link_of(s, peer) : NULL;
    bool replaceable = !former || !atomic_load(&former->open) || shm_link_dead(former);
    int error = peer >= s->config.nodes || peer == s->config.self ? EINVAL : replaceable ? 0 : EBUSY;
    struct shm_link *link = error ? NULL : new_link(s, peer, fds.doorbell, peer_pid);
    if (!error && !link) error = ENOMEM;
    if (!error) error = map_peer(s, link, fds);
    close_fd(fds.log); /* whoever writes keeps no way around its mapping, which is under the fence */
    close_fd(fds.background);
    if (error) {
        if (link) free_link(link);
        else close_fd(fds.doorbell);
        errno = error;
        return -1;
    }
    /* The former life of this peer is over, and its hazard word with it; the new one raises it only after a grant. */
    atomic_store(&s->control->hazards[peer].raised, 0);
    atomic_store_explicit(&s->links[peer], link, memory_order_release);
    if (former) retire(s, former);
    return 0;
}

int shm_fence_fd(struct shm *s, uint32_t peer, uint64_t *mapping) {
    struct shm_link *link = shm_link_of(s, peer);
    *mapping = (uintptr_t)link->log;
    if (s->fence_kind == SHM_FENCE_USERFAULTFD && link->own_bar_fd < 0) {
        link->own_bar_fd = shm_fence_open(link->log, s->config.log_bytes);
    }
    return link->own_bar_fd;
}

int shm_set_fence(struct shm *s, uint32_t peer, int fd, uint64_t mapping) {
    struct shm_link *link = shm_link_of(s, peer);
    if (!link || atomic_load(&link->open)) {
        close_fd(fd);
        errno = link ? EBUSY : ENOTCONN;
        return -1;
    }
    close_fd(link->bar_fd);
    link->bar_fd = fd;
    link->bar_mapping = mapping;
    return 0;
}

/* A socket rather than an eventfd: the kernel takes its wake-up as that of somebody who is about to sleep, and lets the
 * woken run here. Where it ran last another dying process may be freeing its memory, a millisecond nothing interrupts. */
void shm_ring(int doorbell) {
    const uint8_t one = 1;
    if (send(doorbell, &one, sizeof one, MSG_NOSIGNAL) < 0) /* full: it has been ringing for long; or nobody is left */
        CHECK(errno == EAGAIN || errno == EPIPE || errno == ECONNRESET);
}

static void *wait_for_death(void *argument) {
    struct shm_link *link = argument;
    prompt_thread(0, PROMPT_SOON);
    if (shm_notice_wait(link->control, link->shm->config.self, &link->notice_stop)) {
        int32_t thread = atomic_load(&link->shm->thread);
        if (link->shm->config.hurries && thread != 0 && tgkill(getpid(), thread, 0) == 0) prompt_thread(thread, PROMPT_NOW);
        atomic_store(&link->dead, true);
        atomic_fetch_or(&link->shm->newly_dead, 1u << link->peer);
        shm_ring(link->shm->fds.doorbell);
    }
    atomic_store(&link->notice_ended, true);
    return NULL;
}

static int start_notice(struct shm_link *link) {
    pthread_attr_t attributes;
    sigset_t all, before;
    sigfillset(&all);
    int error = pthread_attr_init(&attributes);
    if (error) return error;
    error = pthread_attr_setstacksize(&attributes, NOTICE_STACK_BYTES);
    pthread_sigmask(SIG_SETMASK, &all, &before); /* signals are for the threads of the program */
    if (!error) error = pthread_create(&link->notice, &attributes, wait_for_death, link);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
    link->notice_started = !error;
    return error;
}

uint64_t shm_region(const struct shm *s, uint32_t peer) {
    const struct shm_link *link = atomic_load_explicit(&s->links[peer], memory_order_acquire);
    return link ? link->control->identity.incarnation : 0;
}

bool shm_is_open(const struct shm *s, uint32_t peer) {
    const struct shm_link *link = atomic_load_explicit(&s->links[peer], memory_order_acquire);
    return link && atomic_load(&link->open);
}

int shm_open_link(struct shm *s, uint32_t peer) {
    struct shm_link *link = shm_link_of(s, peer);
    int error = !link ? ENOTCONN : atomic_load(&link->open) ? EBUSY : start_notice(link);
    if (error) {
        errno = error;
        return -1;
    }
    if (s->entered && pthread_equal(s->enterer, pthread_self())) {
        shm_settle(s);
        s->writable &= ~(1u << peer); /* the permission was a former life's */
    }
    atomic_store(&link->open, true);
    return 0;
}
