/*
 * shm_fence.h: stopping the stores of a process that does not cooperate, because it was stopped or preempted between
 * its look at the grant word and the end of its copy.
 *
 * userfaultfd: the writer opens one over its own mapping of the owner's log and gives it away; the owner write-protects
 * the writer's mapping through it. The ioctl returns when no processor can store there any more. A store then raises
 * SIGBUS in the writer, which shm_copy() turns into an error. The owner's own mapping stays writable.
 * kill: SIGKILL through a pidfd, and waiting until the process is gone.
 */
#ifndef MUSIDECAR_SHM_FENCE_H
#define MUSIDECAR_SHM_FENCE_H

#include <stdbool.h>
#include <stdint.h>

/* A userfaultfd registered for write protection over own memory. -1 with errno. */
int shm_fence_open(void *mapping, uint64_t bytes);
/* Write-protects (or lets write again) `bytes` at `mapping` of the process that made `fd`. 0; ESRCH: that process's
 * memory is gone, nothing can store there; or another errno. */
int shm_fence_bar(int fd, uint64_t mapping, uint64_t bytes, bool bar);
/* Kills and waits for the end. 0 or an errno (it may not be allowed). */
int shm_fence_kill_process(int pidfd);
/* Has the process ended? */
bool shm_fence_ended(int pidfd);

#endif
