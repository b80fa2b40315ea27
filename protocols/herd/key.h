/*
 * key.h: what HERD knows a key by. HERD's keys have 16 bytes: a hash of the client's key. Another hash of it, the check, stands in
 * the value, so that two keys that share their 16 bytes are a miss to each other, never each other's value.
 *
 * Both are SipHash-2-4 with 128 bits of output (Aumasson, Bernstein: SipHash: a fast short-input PRF), under two fixed secrets:
 * every node must come to the same ones.
 */
#ifndef MUSIDECAR_HERD_KEY_H
#define MUSIDECAR_HERD_KEY_H

#include <stddef.h>
#include <stdint.h>

#define HERD_KEY_BYTES 16u

struct herd_key {
    uint8_t bytes[HERD_KEY_BYTES]; /* the first 8 are never all zero */
    uint64_t check;
};

void herd_key_of(const void *text, size_t length, struct herd_key *key);
/* The one of HERD's workers that keeps it: partitions share nothing. By bits that HERD uses for neither bucket nor tag. */
uint32_t herd_worker(const uint8_t bytes[HERD_KEY_BYTES], uint32_t workers);
/* The hash itself. */
void herd_siphash(const uint8_t secret[16], const void *text, size_t length, uint8_t out[16]);

#endif
