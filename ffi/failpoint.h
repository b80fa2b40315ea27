/*
 * failpoint.h: places in the code at which tests stop the whole process, exactly there, as a scheduler or a signal might.
 * In a production build failpoint() is empty and failpoint_waits() is the constant false. With -DMUSIDECAR_PLANTS a place
 * is armed from outside, by writing `failpoint_armed` of the running process (tests/fault/plants.py: arm()): the thread
 * that passes there next, or after `passes` more, disarms it and raises SIGSTOP. It goes on with SIGCONT.
 *
 * A new place: a line in the enumeration, the same name in tests/fault/plants.py, and failpoint() where it is.
 */
#ifndef MUSIDECAR_FAILPOINT_H
#define MUSIDECAR_FAILPOINT_H

#include <stdbool.h>
#include <stdint.h>

enum failpoint {
    FAIL_NOWHERE,
    /* shm.c, the writer */
    FAIL_BEFORE_HAZARD, /* a burst of writes begins: hazard words down, grants not looked at */
    FAIL_BEFORE_STORE,  /* permission was checked, nothing of this record is stored */
    FAIL_BEFORE_TAIL,   /* all of it is stored but the last word */
    FAIL_AFTER_STORE,   /* stored whole, the grants not looked at again */
    FAIL_SETTLED,       /* outcomes are known, nobody has been told */
    FAIL_ACCEPTED,      /* a permission was given to this process, and not used yet */
    /* shm.c, the owner */
    FAIL_REVOKING, /* the former holder has lost the grant, and was not waited for */
    FAIL_REVOKED,  /* nothing of it can land any more; nobody has the permission */
    FAIL_GRANTED,  /* the next one has it, and does not know */
    /* handover.c, the leader */
    FAIL_YIELDED, /* its successor has been told to take over */
    /* permission.c */
    FAIL_ANSWERED, /* the next one knows that it has the permission */
};

#ifdef MUSIDECAR_PLANTS

#include <signal.h>

struct failpoint_armed {
    uint32_t place, passes;
};

/* Weak: one for all files that include this. Visible: tests find it by its name. Volatile: they write it from outside. */
__attribute__((weak, visibility("default"))) volatile struct failpoint_armed failpoint_armed;

static inline bool failpoint_waits(enum failpoint place) { return failpoint_armed.place == place; }

static inline void failpoint(enum failpoint place) {
    if (failpoint_armed.place != place) return;
    if (failpoint_armed.passes > 0) {
        failpoint_armed.passes--;
        return;
    }
    failpoint_armed.place = FAIL_NOWHERE;
    raise(SIGSTOP);
}

#else

static inline bool failpoint_waits(enum failpoint place) {
    (void)place;
    return false;
}

static inline void failpoint(enum failpoint place) { (void)place; }

#endif
#endif
