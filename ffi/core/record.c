/* record.c: sealing and validating log entries. A slot may be written by another process while it is looked at here:
 * the header is copied before it is judged, and nothing is believed before tail word, header and payload agree. */
#include "core/record.h"

#include <string.h>

#include "core/mix.h"
#include "plant.h"

#define BLOCK_BYTES 32u

static uint64_t tail_offset(uint64_t length) { return record_bytes(length) - RECORD_TAIL_BYTES; }

/* ---- checksums --------------------------------------------------------------------------------------------------- */

struct lanes { /* two, so that a processor need not wait for one multiplication before it begins the next */
    uint64_t a, b;
};

static struct lanes add_block(struct lanes at, const uint8_t *block) {
    uint64_t words[BLOCK_BYTES / 8];
    memcpy(words, block, sizeof words);
    return (struct lanes){mix_pair(at.a, words[0], words[1]), mix_pair(at.b, words[2], words[3])};
}

/* One pass. The last block overlaps the one before where the length is no multiple; it is the header that says how long. */
static uint64_t payload_sum(const uint8_t *payload, uint64_t length, uint64_t salt) {
    struct lanes at = {salt ^ MIX_B, salt ^ MIX_C};
    uint8_t padded[BLOCK_BYTES];
    uint64_t left = length;
    for (; left > BLOCK_BYTES; left -= BLOCK_BYTES, payload += BLOCK_BYTES) at = add_block(at, payload);
    if (length >= BLOCK_BYTES) {
        at = add_block(at, payload + left - BLOCK_BYTES);
    } else {
        memset(padded, 0, sizeof padded);
        memcpy(padded, payload, left);
        at = add_block(at, padded);
    }
    return mix_pair(MIX_D, at.a, at.b);
}

uint64_t record_hash(const struct record_header *header) {
    uint64_t content[4];
    memcpy(content, (const uint8_t *)header + offsetof(struct record_header, length), sizeof content);
    uint64_t place = mix_pair(MIX_B, header->index, header->prev_hash);
    uint64_t whose = mix_pair(MIX_C, content[0], content[1]);
    return mix_pair(place, mix_pair(whose, content[2], content[3]), MIX_D);
}

_Static_assert(offsetof(struct record_header, length) + 32 == sizeof(struct record_header), "contents close the header");

/* The checksum of the header, given the hash, which covers all of it but two fields. */
static uint64_t tail(const struct record_header *header, uint64_t hash, uint64_t salt) {
    return mix_pair(hash ^ salt, mix_pair(MIX_D, header->ballot, header->commit), MIX_C);
}

uint64_t record_seal(struct record_header *header, uint64_t salt) {
    uint8_t *payload = (uint8_t *)(header + 1);
    header->reserved = 0;
    header->payload_sum = payload_sum(payload, header->length, salt);
    uint64_t hash = record_hash(header);
    uint64_t *last = (uint64_t *)((uint8_t *)header + tail_offset(header->length));
    __atomic_store_n(last, tail(header, hash, salt), __ATOMIC_RELEASE);
    return hash;
}

/* ---- validating -------------------------------------------------------------------------------------------------- */

static bool indexed(uint64_t found, uint64_t index) {
    return (found == index || (planted(PLANT_FORMER_LAP_ACCEPTED) && found < index)) && found != 0;
}

/* Does the payload agree with its checksum? */
static bool summed(const void *slot, const struct record_header *header, uint64_t salt) {
    return payload_sum((const uint8_t *)slot + sizeof *header, header->length, salt) == header->payload_sum ||
           planted(PLANT_TORN_ADOPTED);
}

static bool chained(const struct record_header *header, uint64_t index, uint64_t prev_hash) {
    return header->prev_hash == prev_hash || (planted(PLANT_FORMER_LAP_ACCEPTED) && header->index < index);
}

/* Copies the header of the slot and judges everything but the chain and the payload. */
static bool headed(const void *slot, uint64_t room, uint64_t index, uint64_t salt, struct record_header *header) {
    const uint64_t *first = slot;
    if (room < record_bytes(0)) return false;
    if (!indexed(__atomic_load_n(first, __ATOMIC_ACQUIRE), index)) return false; /* mostly ends here */
    memcpy(header, slot, sizeof *header);
    if (!indexed(header->index, index) || header->reserved != 0) return false;
    if (header->kind < RECORD_COMMAND || header->kind > RECORD_ADMIN) return false;
    if (record_bytes(header->length) > room) return false;
    const uint64_t *last = (const uint64_t *)((const uint8_t *)slot + tail_offset(header->length));
    return __atomic_load_n(last, __ATOMIC_ACQUIRE) == tail(header, record_hash(header), salt) || planted(PLANT_TORN_ADOPTED);
}

static bool whole(const void *slot, uint64_t room, uint64_t index, uint64_t salt, struct record_header *header) {
    return headed(slot, room, index, salt, header) && summed(slot, header, salt);
}

bool record_headed(const void *slot, uint64_t room, uint64_t index, uint64_t prev_hash, uint64_t salt) {
    struct record_header header;
    return headed(slot, room, index, salt, &header) && chained(&header, index, prev_hash);
}

bool record_whole(const void *slot, uint64_t room, uint64_t index, uint64_t salt) {
    struct record_header header;
    return whole(slot, room, index, salt, &header);
}

bool record_valid(const void *slot, uint64_t room, uint64_t index, uint64_t prev_hash, uint64_t salt) {
    struct record_header header; /* mostly it is another's index: the rest is not looked at */
    return headed(slot, room, index, salt, &header) && chained(&header, index, prev_hash) && summed(slot, &header, salt);
}
