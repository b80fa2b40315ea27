/* ring.c: see ring.h. */
#include "core/ring.h"

#include "check.h"

void ring_init(struct ring *ring, uint8_t *base, uint64_t bytes, uint64_t overhang) {
    CHECK(bytes >= RECORD_ALIGN && (bytes & (bytes - 1)) == 0);
    *ring = (struct ring){.base = base, .bytes = bytes, .mask = bytes - 1, .area = bytes + overhang};
}

bool ring_holds(const struct ring *ring, const struct cursor *at, uint64_t salt) {
    return record_valid(ring_slot(ring, at->position), ring_room(ring, at->position), at->index + 1, at->hash, salt);
}

void cursor_step(struct cursor *at, const struct record_header *header) {
    at->index += 1;
    at->position += record_span(header->length);
    at->hash = record_hash(header);
}

void ring_step(const struct ring *ring, struct cursor *at) {
    const struct record_header *header = ring_slot(ring, at->position);
    CHECK(header->index == at->index + 1);
    cursor_step(at, header);
}
