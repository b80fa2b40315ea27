#include "fabric/shm_notice.h"

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef __GLIBC__
#error "the death notice has to know where the C library keeps the futex word of a mutex"
#endif

/* The futex word: owner's thread id | FUTEX_WAITERS | FUTEX_OWNER_DIED, by the kernel's robust futex ABI. */
static _Atomic uint32_t *life_word(struct shm_control *control, uint32_t peer) {
    return (_Atomic uint32_t *)(void *)&control->lives[peer].__data.__lock;
}

static void futex_wait(_Atomic uint32_t *word, uint32_t value) {
    syscall(SYS_futex, word, FUTEX_WAIT, value, NULL, NULL, 0);
}

static void futex_wake_all(_Atomic uint32_t *word) { syscall(SYS_futex, word, FUTEX_WAKE, INT_MAX, NULL, NULL, 0); }

int shm_notice_init(struct shm_control *own) {
    pthread_mutexattr_t attributes;
    int error = pthread_mutexattr_init(&attributes);
    if (error) return error;
    error = pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
    if (!error) error = pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
    for (uint32_t peer = 0; !error && peer < own->identity.nodes; peer++) {
        error = pthread_mutex_init(&own->lives[peer], &attributes);
    }
    pthread_mutexattr_destroy(&attributes);
    return error;
}

int shm_notice_enter(struct shm_control *own) {
    for (uint32_t peer = 0; peer < own->identity.nodes; peer++) {
        int error = pthread_mutex_trylock(&own->lives[peer]);
        if (error) return error; /* the first already: somebody has entered */
    }
    atomic_store(&own->permission.state, SHM_OPEN);
    /* Who came before us sleeps on the word's former value, 0. */
    for (uint32_t peer = 0; peer < own->identity.nodes; peer++) futex_wake_all(life_word(own, peer));
    return 0;
}

bool shm_notice_leave(struct shm_control *own, bool entered, pthread_t enterer) {
    bool held = entered && !(atomic_load(life_word(own, 0)) & FUTEX_OWNER_DIED);
    bool here = held && pthread_equal(enterer, pthread_self());
    atomic_store(&own->permission.state, SHM_CLOSED);
    for (uint32_t peer = 0; peer < own->identity.nodes; peer++) {
        _Atomic uint32_t *word = life_word(own, peer);
        if (here) pthread_mutex_unlock(&own->lives[peer]);
        /* Nobody takes the mutex again, so the word is ours to spend: a waiter about to sleep on its former value must
         * not. */
        if (here || !held) atomic_store(word, FUTEX_OWNER_DIED);
        futex_wake_all(word);
    }
    return here || !held;
}

bool shm_notice_wait(struct shm_control *peer, uint32_t self, const _Atomic bool *stop) {
    _Atomic uint32_t *word = life_word(peer, self);
    while (!atomic_load(stop)) {
        uint32_t value = atomic_load(word);
        if (value & FUTEX_OWNER_DIED || atomic_load(&peer->permission.state) == SHM_CLOSED) {
            atomic_store(&peer->permission.state, SHM_CLOSED); /* for those who have not been told yet */
            return true;
        }
        if (value & FUTEX_TID_MASK && !(value & FUTEX_WAITERS)) {
            if (!atomic_compare_exchange_strong(word, &value, value | FUTEX_WAITERS)) continue;
            value |= FUTEX_WAITERS;
        }
        futex_wait(word, value); /* 0: the peer has not entered yet, and will wake us when it does */
    }
    return false;
}

void shm_notice_recall(struct shm_control *peer, uint32_t self) { futex_wake_all(life_word(peer, self)); }
