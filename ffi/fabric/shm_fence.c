#include "fabric/shm_fence.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "check.h"
#include "fabric/shm.h"
#include "fabric/shm_copy.h"

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
                 !shm_copy(writer, &word, sizeof word) && owner[0] == 0 &&
                 shm_fence_bar(fd, (uintptr_t)writer, bytes, false) == 0 &&
                 shm_copy(writer, &word, sizeof word) && owner[0] == 1;
    if (!works) *why = "userfaultfd accepted a write protection but did not keep it";
    close(fd);
    return works;
}

bool shm_fence_check(char *why, uint32_t why_bytes) {
    const uint64_t bytes = (uint64_t)sysconf(_SC_PAGESIZE);
    const char *reason = "no shared memory can be made";
    bool works = false;
    shm_copy_init();
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
