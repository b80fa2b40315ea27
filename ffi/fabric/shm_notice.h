/*
 * shm_notice.h: how the peers of a node learn of its death. The engine thread holds robust mutexes in its own region, one
 * for each peer; when it ends, for whatever reason, the kernel marks their futex words before it frees the memory or
 * closes the files of the process, and wakes a waiter of each. That the thread is gone also proves that it stores
 * nothing more.
 *
 * The waiter never takes its mutex: it sleeps on the futex word, as a thread that wanted it would. So it can be called
 * back.
 */
#ifndef MUSIDECAR_SHM_NOTICE_H
#define MUSIDECAR_SHM_NOTICE_H

#include <stdbool.h>

#include "fabric/shm_region.h"

/* Makes the mutexes in fresh memory. 0 or an errno. */
int shm_notice_init(struct shm_control *own);
/* By the engine thread: takes the mutexes, says OPEN. 0 or an errno. */
int shm_notice_enter(struct shm_control *own);
/* An orderly end: says CLOSED to every waiter, and lets go of the mutexes if the calling thread holds them. False when
 * some other thread still does: then the memory must stay mapped. */
bool shm_notice_leave(struct shm_control *own, bool entered, pthread_t enterer);
/* By node `self`'s thread for that: sleeps until the peer is dead (true) or `stop` is set and shm_notice_recall() called
 * (false). */
bool shm_notice_wait(struct shm_control *peer, uint32_t self, const _Atomic bool *stop);
void shm_notice_recall(struct shm_control *peer, uint32_t self);

#endif
