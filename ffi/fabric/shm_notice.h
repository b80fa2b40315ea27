/*
 * shm_notice.h: how the peers of a node learn of its death. The engine thread holds a robust mutex in its own region;
 * when it ends, for whatever reason, the kernel marks the mutex's futex word before it frees the memory or closes the
 * files of the process, and wakes one waiter. That the thread is gone also proves that it stores nothing more.
 *
 * The waiters never take the mutex: they sleep on its futex word, as a thread that wanted it would. So any number of
 * them can learn, and one can be called back.
 */
#ifndef MUSIDECAR_SHM_NOTICE_H
#define MUSIDECAR_SHM_NOTICE_H

#include <stdbool.h>

#include "fabric/shm_region.h"

/* Makes the mutex in fresh memory. 0 or an errno. */
int shm_notice_init(struct shm_control *own);
/* By the engine thread: takes the mutex, says OPEN. 0 or an errno. */
int shm_notice_enter(struct shm_control *own);
/* An orderly end: says CLOSED to every waiter, and lets go of the mutex if the calling thread holds it. False when some
 * other thread still does: then the memory must stay mapped. */
bool shm_notice_leave(struct shm_control *own, bool entered, pthread_t enterer);
/* Sleeps until the peer is dead (true) or `stop` is set and shm_notice_recall() called (false). */
bool shm_notice_wait(struct shm_control *peer, const _Atomic bool *stop);
/* Wakes every waiter of this process and others; those without `stop` go to sleep again. */
void shm_notice_recall(struct shm_control *peer);

#endif
