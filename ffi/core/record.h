/*
 * record.h: one log entry as it stands in a ring, in the memory of every replica.
 *
 *   [ 64-byte header | payload | tail word ] padded to a multiple of 64 bytes
 *
 * A record validates itself. It is the record wanted at (index, position, prev_hash) of a log only if the header says
 * so, the tail word, which is written last, is the checksum of the header, and the header's of the payload is right.
 * Whatever does not validate is an empty slot: torn, of a previous lap, of another cluster, or left by a deposed leader
 * behind another prefix. The checksums are of 64 bits, and seeded by the cluster's salt. The chain of running hashes
 * covers contents (index, kind, flags, origin, payload) but not the ballot.
 *
 * A record never changes once it is proposed: a later leader that adopts it copies it as it is, under the ballot of the
 * leader that proposed it. Rewriting a record in place to raise its ballot would tear, if the writer died meanwhile, a
 * copy that a majority may have counted on; with five members that loses a decided record.
 */
#ifndef MUSIDECAR_RECORD_H
#define MUSIDECAR_RECORD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define RECORD_ALIGN 64u
#define RECORD_TAIL_BYTES 8u

enum record_kind {
    RECORD_COMMAND = 1, /* client requests, to be run by the backend once committed */
    RECORD_EFFECT = 2,  /* what they did */
    RECORD_NOOP = 3,    /* opens a term; voids unfinished pieces of earlier terms */
    RECORD_CONFIG = 4,  /* membership */
    RECORD_ADMIN = 5    /* state that effects do not show */
};

enum record_flags { RECORD_MORE = 1 /* the next record of this kind continues the payload */ };

struct record_origin {
    uint32_t node;
    uint32_t stream;
    uint64_t sequence;
};

struct record_header { /* 64 bytes, one cache line */
    uint64_t index;     /* absolute, from 1 */
    uint64_t ballot;    /* term << 8 | leader id */
    uint64_t commit;    /* all indexes <= commit are decided, as the writer knew */
    uint64_t prev_hash; /* running hash of the log up to index - 1 */
    uint32_t length;    /* payload bytes */
    uint8_t kind;
    uint8_t flags;
    uint16_t origin_node;
    uint32_t origin_stream;
    uint32_t reserved; /* zero */
    uint64_t origin_sequence;
    uint64_t payload_sum; /* checksum of the payload */
};

_Static_assert(sizeof(struct record_header) == 64, "a record header is one cache line");

/* Bytes that a record with this payload takes in the ring, padding included. */
static inline uint64_t record_span(uint64_t payload_bytes) {
    uint64_t raw = sizeof(struct record_header) + payload_bytes + RECORD_TAIL_BYTES;
    return (raw + RECORD_ALIGN - 1) & ~(uint64_t)(RECORD_ALIGN - 1);
}

/* Bytes of a record from its header to the end of its tail word, which is aligned: what has to be written. */
static inline uint64_t record_bytes(uint64_t payload_bytes) {
    uint64_t raw = sizeof(struct record_header) + payload_bytes;
    return ((raw + 7) & ~(uint64_t)7) + RECORD_TAIL_BYTES;
}

/* Finishes a record whose other fields and payload are there: payload_sum, and the tail word, last, with release.
 * Returns the running hash of the log after it. */
uint64_t record_seal(struct record_header *header, uint64_t salt);

/* Running hash of the log after this record. */
uint64_t record_hash(const struct record_header *header);

/* Does the slot at `slot` (header, payload, tail; `room` readable bytes) hold the record wanted? */
bool record_valid(const void *slot, uint64_t room, uint64_t index, uint64_t prev_hash, uint64_t salt);
/* The same without looking at the payload: enough to believe the header. */
bool record_headed(const void *slot, uint64_t room, uint64_t index, uint64_t prev_hash, uint64_t salt);
/* Does it hold a whole record with this index, whatever prefix it stands behind? */
bool record_whole(const void *slot, uint64_t room, uint64_t index, uint64_t salt);

static inline const uint8_t *record_payload(const struct record_header *header) {
    return (const uint8_t *)(header + 1);
}

#endif
