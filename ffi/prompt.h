/*
 * prompt.h: how soon the scheduler runs a thread that has something to do. Under load a wake-up waits for the running
 * thread's slice to end, milliseconds where the work takes microseconds. A short slice of one's own (Linux 6.12 and later,
 * no privilege needed) makes it preempt; the share of the processor stays the same. In a take-over that is not enough: the
 * dead node's processes are freeing their memory meanwhile, which takes milliseconds, and whoever has used his share waits
 * for them, though another processor may be idle. So a thread is put in front of all others for that time (SCHED_RR), or
 * gets a larger share. Where the system grants none of it, nothing changes.
 */
#ifndef MUSIDECAR_PROMPT_H
#define MUSIDECAR_PROMPT_H

#include <stdbool.h>
#include <stdint.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#define PROMPT_SLICE_NS 100000u /* the least that the kernel takes */
#define PROMPT_NICE (-10)
#define PROMPT_PRIORITY 1u
#define PROMPT_OURS 1u /* SCHED_FLAG_RESET_ON_FORK: what a hurried thread starts is in no hurry */

struct prompt_attributes { /* struct sched_attr of <linux/sched/types.h>, first version */
    uint32_t size, policy;
    uint64_t flags;
    int32_t nice;
    uint32_t priority;
    uint64_t runtime_ns, deadline_ns, period_ns;
};

enum prompt_level {
    PROMPT_SOON, /* preempts whoever runs when it wakes */
    PROMPT_NOW,  /* and whoever has waited for longer, if the process has the right to (CAP_SYS_NICE, RLIMIT_RTPRIO, RLIMIT_NICE) */
};

static inline bool prompt_read(int32_t thread, struct prompt_attributes *a) {
    return syscall(SYS_sched_getattr, thread, a, sizeof *a, 0) == 0;
}

static inline bool prompt_write(int32_t thread, struct prompt_attributes *a) {
    a->size = sizeof *a;
    return syscall(SYS_sched_setattr, thread, a, 0) == 0;
}

/* In front of all that have no such priority, or else with the larger share. */
static inline bool prompt_hurry(int32_t thread) {
    struct prompt_attributes first = {.policy = SCHED_RR, .flags = PROMPT_OURS, .priority = PROMPT_PRIORITY};
    struct prompt_attributes more = {.flags = PROMPT_OURS, .nice = PROMPT_NICE, .runtime_ns = PROMPT_SLICE_NS};
    return prompt_write(thread, &first) || prompt_write(thread, &more);
}

/* thread: 0 for the one that calls. */
static inline void prompt_thread(int32_t thread, enum prompt_level level) {
    struct prompt_attributes now, soon = {.flags = PROMPT_OURS, .runtime_ns = PROMPT_SLICE_NS};
    if (!prompt_read(thread, &now)) return;
    if (now.policy != SCHED_OTHER && !(now.flags & PROMPT_OURS)) return; /* somebody chose: SCHED_RR and the like stay */
    if (level == PROMPT_NOW && prompt_hurry(thread)) return;
    (void)prompt_write(thread, &soon);
}

#endif
