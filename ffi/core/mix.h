/* mix.h: mixing 64-bit words by one wide multiplication. For check words and running hashes: fast, not cryptographic. */
#ifndef MUSIDECAR_MIX_H
#define MUSIDECAR_MIX_H

#include <stdint.h>

/* Odd constants with about as many ones as zeros (fractional parts of square roots of 2, 3, 5 and 7). */
#define MIX_A 0x6a09e667f3bcc909u
#define MIX_B 0xbb67ae8584caa73bu
#define MIX_C 0x3c6ef372fe94f82bu
#define MIX_D 0xa54ff53a5f1d36f1u

static inline uint64_t mix_fold(uint64_t a, uint64_t b) {
    unsigned __int128 product = (unsigned __int128)a * b;
    return (uint64_t)product ^ (uint64_t)(product >> 64);
}

/* Two more words for a checksum. They are also added, so that no factor (0, -1) hides the other or what came before. */
static inline uint64_t mix_pair(uint64_t mixed, uint64_t a, uint64_t b) {
    b ^= mixed;
    return mix_fold(a ^ MIX_A, b) + a + b;
}

/* Check word over `count` words: a torn read of them does not match. */
static inline uint64_t mix_words(const uint64_t *words, int count) {
    uint64_t mixed = MIX_C;
    for (int i = 0; i < count; i++) mixed = mix_fold(mixed ^ words[i], MIX_A ^ (uint64_t)i) ^ MIX_D;
    return mixed;
}

/* Next number of a seeded sequence (for back-off and the simulator's schedules). */
static inline uint64_t mix_next(uint64_t *state) {
    *state += 0x9e3779b97f4a7c15u;
    uint64_t z = mix_fold(*state ^ MIX_A, MIX_B);
    return mix_fold(z ^ MIX_C, *state | 1);
}

#endif
