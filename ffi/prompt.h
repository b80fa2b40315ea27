/*
 * prompt.h: how soon the scheduler runs this thread after it wakes. Under load a wake-up waits for the running thread's
 * slice to end, milliseconds where the work takes microseconds. A short slice of one's own (Linux 6.12 and later, no
 * privilege needed) makes it preempt; the share of the processor stays the same. In a take-over the share counts, too:
 * there a larger one is asked for. Where the system grants neither, nothing changes.
 */
#ifndef MUSIDECAR_PROMPT_H
#define MUSIDECAR_PROMPT_H

#include <stdint.h>
#include <sys/syscall.h>
#include <unistd.h>

#define PROMPT_SLICE_NS 100000u /* the least that the kernel takes */
#define PROMPT_NICE (-10)

struct prompt_attributes { /* struct sched_attr of <linux/sched/types.h>, first version */
    uint32_t size, policy;
    uint64_t flags;
    int32_t nice;
    uint32_t priority;
    uint64_t runtime_ns, deadline_ns, period_ns;
};

enum prompt_level {
    PROMPT_SOON, /* preempts whoever runs when it wakes */
    PROMPT_NOW,  /* and is not preempted by them, if the process has the right to (CAP_SYS_NICE or RLIMIT_NICE) */
};

static inline void prompt_thread(enum prompt_level level) {
    struct prompt_attributes attributes = {0};
    if (syscall(SYS_sched_getattr, 0, &attributes, sizeof attributes, 0) != 0) return;
    if (attributes.policy != 0) return; /* somebody chose: SCHED_RR and the like stay */
    attributes.size = sizeof attributes;
    attributes.runtime_ns = PROMPT_SLICE_NS;
    attributes.nice = level == PROMPT_NOW ? PROMPT_NICE : 0;
    if (syscall(SYS_sched_setattr, 0, &attributes, 0) == 0) return;
    attributes.nice = 0;
    (void)syscall(SYS_sched_setattr, 0, &attributes, 0);
}

#endif
