/* record.c: sealing and validating log entries. A slot may be written by another process while it is looked at here:
 * the header is copied before it is judged, and nothing is believed before the tail word, checksum and payload agree. */
#include "core/record.h"

#include <string.h>

#include "core/crc32c.h"
#include "core/mix.h"
#include "plant.h"

_Static_assert(offsetof(struct record_header, crc) == 60, "the checksum closes the header");

static uint64_t tail_offset(uint64_t length) { return record_bytes(length) - RECORD_TAIL_BYTES; }

static uint32_t header_crc(const struct record_header *header, uint64_t salt) {
    /* The payload's checksum is part of what is summed; as a seed it would only make one wait for the other. */
    return crc32c((uint32_t)(salt ^ salt >> 32), header, offsetof(struct record_header, crc));
}

uint64_t record_tail(const struct record_header *header) {
    return mix_fold(header->index ^ MIX_A, header->ballot ^ MIX_B) ^ mix_fold(header->crc ^ MIX_C, MIX_D);
}

void record_close(struct record_header *header) {
    uint64_t *tail = (uint64_t *)((uint8_t *)header + tail_offset(header->length));
    __atomic_store_n(tail, record_tail(header), __ATOMIC_RELEASE);
}

void record_seal(struct record_header *header, const void *payload, uint64_t salt) {
    header->payload_crc = crc32c(0, payload, header->length);
    header->reserved = 0;
    header->crc = header_crc(header, salt);
}

uint64_t record_hash(const struct record_header *header) {
    uint64_t what = header->length | (uint64_t)header->kind << 32 | (uint64_t)header->flags << 40 |
                    (uint64_t)header->origin_node << 48;
    uint64_t whence = header->origin_stream | (uint64_t)header->payload_crc << 32;
    uint64_t place = mix_fold(header->prev_hash ^ MIX_A, header->index ^ MIX_B);
    uint64_t content = mix_fold(what ^ MIX_C, whence ^ MIX_D);
    return mix_fold(place ^ header->origin_sequence ^ MIX_B, content ^ MIX_C);
}

static bool indexed(uint64_t found, uint64_t index) {
    return (found == index || (planted(PLANT_FORMER_LAP_ACCEPTED) && found < index)) && found != 0;
}

/* Does the payload agree with its checksum? */
static bool summed(const void *slot, const struct record_header *header) {
    return crc32c(0, (const uint8_t *)slot + sizeof *header, header->length) == header->payload_crc ||
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
    const uint64_t *tail = (const uint64_t *)((const uint8_t *)slot + tail_offset(header->length));
    if (__atomic_load_n(tail, __ATOMIC_ACQUIRE) != record_tail(header) && !planted(PLANT_TORN_ADOPTED)) return false;
    return header->crc == header_crc(header, salt);
}

static bool whole(const void *slot, uint64_t room, uint64_t index, uint64_t salt, struct record_header *header) {
    return headed(slot, room, index, salt, header) && summed(slot, header);
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
    return headed(slot, room, index, salt, &header) && chained(&header, index, prev_hash) && summed(slot, &header);
}
