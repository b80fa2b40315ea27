/*
 * ring.h: the byte ring that holds a log. The record at absolute position p stands at p % bytes; it may run over the
 * end into the overhang behind the ring, so it is contiguous in memory. Positions grow for ever and are the same in
 * every replica. A record before position p is intact as long as nothing at or beyond p + bytes was written.
 */
#ifndef MUSIDECAR_RING_H
#define MUSIDECAR_RING_H

#include "core/record.h"

struct ring {
    uint8_t *base;
    uint64_t bytes; /* power of two */
    uint64_t mask;  /* bytes - 1 */
    uint64_t area;  /* bytes plus the overhang */
};

/* A point in a log: after record `index`, whose successor starts at `position`; `hash` runs up to `index`. */
struct cursor {
    uint64_t index, position, hash;
};

void ring_init(struct ring *ring, uint8_t *base, uint64_t bytes, uint64_t overhang);

static inline uint64_t ring_offset(const struct ring *ring, uint64_t position) { return position & ring->mask; }
static inline struct record_header *ring_slot(const struct ring *ring, uint64_t position) {
    return (struct record_header *)(ring->base + ring_offset(ring, position));
}
/* Bytes from the slot at `position` to the end of the overhang: what a record there may take at most. */
static inline uint64_t ring_room(const struct ring *ring, uint64_t position) {
    return ring->area - ring_offset(ring, position);
}

/* Does the ring hold the record that follows `at`? */
bool ring_holds(const struct ring *ring, const struct cursor *at, uint64_t salt);
/* Steps over the record that follows `at`, which is known to be there. */
void ring_step(const struct ring *ring, struct cursor *at);
/* Steps over the record that follows `at`, given its header (which may lie elsewhere). */
void cursor_step(struct cursor *at, const struct record_header *header);

#endif
