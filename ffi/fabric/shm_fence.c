#include "fabric/shm_fence.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#include "check.h"
#include "fabric/shm.h"

/* Older kernel headers lack them; the running kernel is asked. */
#ifndef UFFD_USER_MODE_ONLY
#define UFFD_USER_MODE_ONLY 1
#endif
#ifndef UFFD_FEATURE_WP_HUGETLBFS_SHMEM
#define UFFD_FEATURE_WP_HUGETLBFS_SHMEM (1 << 12)
#endif

/* ---- the two fences -------------------------------------------------------------------------------------------- */

int shm_fence_open(void *mapping, uint64_t bytes) {
    int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);
    if (fd < 0) return -1;
    struct uffdio_api api = {.api = UFFD_API, .features = UFFD_FEATURE_SIGBUS | UFFD_FEATURE_WP_HUGETLBFS_SHMEM};
    struct uffdio_register range = {.range = {.start = (uintptr_t)mapping, .len = bytes},
                                    .mode = UFFDIO_REGISTER_MODE_WP};
    if (ioctl(fd, UFFDIO_API, &api) || ioctl(fd, UFFDIO_REGISTER, &range)) {
        int error = errno;
        close(fd);
        errno = error;
        return -1;
    }
    if (!(range.ioctls & (uint64_t)1 << _UFFDIO_WRITEPROTECT)) {
        close(fd);
        errno = EOPNOTSUPP;
        return -1;
    }
    return fd;
}

int shm_fence_bar(int fd, uint64_t mapping, uint64_t bytes, bool bar) {
    struct uffdio_writeprotect range = {.range = {.start = mapping, .len = bytes},
                                        .mode = bar ? UFFDIO_WRITEPROTECT_MODE_WP : 0};
    while (ioctl(fd, UFFDIO_WRITEPROTECT, &range)) {
        if (errno != EAGAIN && errno != EINTR) return errno; /* EAGAIN: its memory map is changing just now */
    }
    return 0;
}

bool shm_fence_ended(int pidfd) {
    struct pollfd one = {.fd = pidfd, .events = POLLIN};
    return poll(&one, 1, 0) == 1 && one.revents & POLLIN;
}

int shm_fence_kill_process(int pidfd) {
    if (syscall(SYS_pidfd_send_signal, pidfd, SIGKILL, NULL, 0) && errno != ESRCH) return errno;
    struct pollfd one = {.fd = pidfd, .events = POLLIN};
    while (poll(&one, 1, -1) != 1 || !(one.revents & POLLIN)) CHECK(errno == EINTR);
    return 0;
}

/* ---- the copy that can be refused -------------------------------------------------------------------------------- */

struct guarded {
    sigjmp_buf refused;
    uintptr_t from, until;
};

/* Initial-exec: reading it in a signal handler must not allocate. */
static _Thread_local struct guarded *volatile guarded_now __attribute__((tls_model("initial-exec")));
static struct sigaction handled_before;
static pthread_once_t handled_once = PTHREAD_ONCE_INIT;

static void on_bus_error(int number, siginfo_t *info, void *context) {
    struct guarded *guarded = guarded_now;
    uintptr_t address = (uintptr_t)info->si_addr;
    if (guarded && address >= guarded->from && address < guarded->until) {
        /* As it was before: whoever installed this handler on our behalf (a sanitizer) may have blocked everything. */
        pthread_sigmask(SIG_SETMASK, &((ucontext_t *)context)->uc_sigmask, NULL);
        siglongjmp(guarded->refused, 1);
    }
    if (handled_before.sa_flags & SA_SIGINFO) {
        handled_before.sa_sigaction(number, info, context);
    } else if (handled_before.sa_handler != SIG_DFL && handled_before.sa_handler != SIG_IGN) {
        handled_before.sa_handler(number);
    } else {
        signal(number, SIG_DFL); /* on return the instruction faults again */
    }
}

static void install_handler(void) {
    struct sigaction action = {.sa_sigaction = on_bus_error, .sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK};
    CHECK(sigaction(SIGBUS, &action, &handled_before) == 0);
}

void shm_fence_handle(void) { CHECK(pthread_once(&handled_once, install_handler) == 0); }

/* The stores themselves, apart so that no variable lives across the jump. Not for ThreadSanitizer, whose store takes a
 * lock that the jump would leave behind. */
__attribute__((no_sanitize("thread"))) static void copy_tail_last(uint8_t *to, const uint8_t *bytes, uint32_t length) {
    const uint32_t word = sizeof(uint64_t);
    if (length < word) {
        memcpy(to, bytes, length);
        return;
    }
    memcpy(to, bytes, length - word);
    uint64_t tail;
    memcpy(&tail, bytes + length - word, word);
    uint8_t *last = to + length - word;
    if ((uintptr_t)last % word == 0) {
        atomic_store_explicit((_Atomic uint64_t *)(void *)last, tail, memory_order_release);
    } else {
        atomic_thread_fence(memory_order_release);
        memcpy(last, &tail, word);
    }
}

__attribute__((no_sanitize("thread"))) bool shm_fence_copy(uint8_t *to, const void *bytes, uint32_t length,
                                                           uint8_t *mapping, uint64_t mapping_bytes) {
    struct guarded guarded;
    guarded.from = (uintptr_t)mapping;
    guarded.until = guarded.from + mapping_bytes;
    if (sigsetjmp(guarded.refused, 0)) {
        guarded_now = NULL;
        return false;
    }
    guarded_now = &guarded;
    atomic_signal_fence(memory_order_seq_cst);
    copy_tail_last(to, bytes, length);
    atomic_signal_fence(memory_order_seq_cst);
    guarded_now = NULL;
    return true;
}

/* ---- does it work here? ------------------------------------------------------------------------------------------ */

static bool fence_check_on(uint8_t *writer, const uint8_t *owner, uint64_t bytes, const char **why) {
    uint64_t word = 1;
    int fd = shm_fence_open(writer, bytes);
    if (fd < 0) {
        *why = errno == EPERM ? "userfaultfd is not permitted (a container's seccomp profile, or sysctl)"
                              : "the kernel cannot write-protect shared memory by userfaultfd (needs Linux 5.19)";
        return false;
    }
    bool works = shm_fence_bar(fd, (uintptr_t)writer, bytes, true) == 0 &&
                 !shm_fence_copy(writer, &word, sizeof word, writer, bytes) && owner[0] == 0 &&
                 shm_fence_bar(fd, (uintptr_t)writer, bytes, false) == 0 &&
                 shm_fence_copy(writer, &word, sizeof word, writer, bytes) && owner[0] == 1;
    if (!works) *why = "userfaultfd accepted a write protection but did not keep it";
    close(fd);
    return works;
}

bool shm_fence_check(char *why, uint32_t why_bytes) {
    const uint64_t bytes = (uint64_t)sysconf(_SC_PAGESIZE);
    const char *reason = "no shared memory can be made";
    bool works = false;
    shm_fence_handle();
    int memory = memfd_create("musidecar-fence-check", MFD_CLOEXEC);
    if (memory >= 0 && ftruncate(memory, (off_t)bytes) == 0) {
        uint8_t *owner = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, memory, 0);
        uint8_t *writer = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, memory, 0);
        if (owner != MAP_FAILED && writer != MAP_FAILED) works = fence_check_on(writer, owner, bytes, &reason);
        if (owner != MAP_FAILED) munmap(owner, bytes);
        if (writer != MAP_FAILED) munmap(writer, bytes);
    }
    if (memory >= 0) close(memory);
    if (why && why_bytes) snprintf(why, why_bytes, "%s", works ? "" : reason);
    return works;
}
