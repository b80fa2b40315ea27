/*
 * plant.h: mistakes that the tests plant, to see that they would notice them. In a production build planted() is the
 * constant false, and what it guards is compiled out. With -DMUSIDECAR_PLANTS it is asked at run time: the mistakes are
 * those that the environment names when the program starts (MUSIDECAR_PLANT=effect-twice,promoted-early), or those that
 * the program itself chooses with plant_choose().
 *
 *     if (!planted(PLANT_NO_REVOKE)) revoke(...);
 *
 * A new mistake: a line in the enumeration, one in the table at the same place, and a test that catches it.
 */
#ifndef MUSIDECAR_PLANT_H
#define MUSIDECAR_PLANT_H

#include <stdbool.h>
#include <stdint.h>

enum plant {
    /* ffi/core, ffi/fabric: tests/sim/test_plants.py */
    PLANT_NO_REVOKE,             /* permission is granted, but not taken from its former holder */
    PLANT_OWN_UNFENCED,          /* a leader goes on writing its own log after it granted it to somebody */
    PLANT_PREPARE_SKIPPED,       /* whoever has led before opens its next term without reading the others' logs */
    PLANT_TORN_ADOPTED,          /* a record is believed by its header, whatever its payload and tail word say */
    PLANT_DEAD_ACKS,             /* the memory of the dead acknowledges */
    PLANT_BALLOT_REUSED,         /* a term's ballot may have been used before */
    PLANT_FIRST_ACK_COMMITS,     /* one follower that holds a record is enough */
    PLANT_UNCONFIRMED_COMMIT,    /* followers are told that a record is committed before it is */
    PLANT_FORMER_LAP_ACCEPTED,   /* a record of the ring's previous lap passes for one of this lap */
    PLANT_READ_UNPROBED,         /* a read is answered without the permission probe */
    PLANT_AMNESIAC_VOTES,        /* a replica that lost its memory grants and counts as the old one */
    PLANT_EARLIER_TERM_COMMITTED, /* records of earlier terms are committed before the own NOOP is */
    PLANT_SMALL_MAJORITY,        /* half of the nodes is enough */
    PLANT_RING_UNPINNED,         /* the ring is reused before followers have applied what is in it */
    PLANT_PRESENT_IS_COMMITTED,  /* a follower takes what is present for committed */
    PLANT_COMMIT_AHEAD,          /* the commit index is told ahead of the records */
    PLANT_PERMISSION_KEPT,       /* no new permission is asked for after a failure */
    PLANT_LEADS_ON,              /* leading on after having granted to another */
    PLANT_LATE_WRITES,           /* revoking does not keep out what was posted before */
    /* ffi/engine: tests/fault */
    PLANT_EFFECT_TWICE,     /* an EFFECT is applied twice */
    PLANT_PROMOTED_EARLY,   /* the backend is promoted before it has applied what it was fed */
    PLANT_CUT_WITHOUT_ROLE, /* an EFFECT ends where the stream is when answers come, not where ROLE says */
    PLANT_COVERED_RERUN,    /* the last COMMAND that an EFFECT covers is run again by the next leader */
    PLANT_DEAF,             /* no mistake but a lot: a leader hears of no other one, as if cut off in one direction */
    PLANTS
};

#ifdef MUSIDECAR_PLANTS

#include <stdlib.h>
#include <string.h>

static const char *const plant_names[PLANTS] = {
    "no-revoke",        "own-unfenced",     "prepare-skipped",     "torn-adopted",
    "dead-acks",        "ballot-reused",    "first-ack-commits",   "unconfirmed-commit",
    "former-lap-accepted", "read-unprobed", "amnesiac-votes",      "earlier-term-committed",
    "small-majority",   "ring-unpinned",    "present-is-committed", "commit-ahead",
    "permission-kept",  "leads-on",         "late-writes",         "effect-twice",
    "promoted-early",   "cut-without-role", "covered-rerun",
    "deaf",
};

/* Weak: every file that includes this shares the one mask. Set before threads start. */
__attribute__((weak)) uint64_t plants_chosen;

static inline bool planted(enum plant which) { return plants_chosen >> which & 1; }

/* Names separated by commas; NULL or "": none. False, and nothing chosen, when one of them is unknown. */
static inline bool plant_choose(const char *names) {
    uint64_t chosen = 0;
    while (names && *names) {
        size_t length = strcspn(names, ",");
        int which = 0;
        while (which < PLANTS && (strlen(plant_names[which]) != length || strncmp(plant_names[which], names, length))) which++;
        if (which == PLANTS) return false;
        chosen |= 1ull << which;
        names += length + (names[length] == ',');
    }
    plants_chosen = chosen;
    return true;
}

__attribute__((weak, constructor)) void plants_from_environment(void);
__attribute__((weak, constructor)) void plants_from_environment(void) {
    if (!plant_choose(getenv("MUSIDECAR_PLANT"))) abort(); /* a test that plants nothing shows nothing */
}

#else

static inline bool planted(enum plant which) {
    (void)which;
    return false;
}

#endif
#endif
