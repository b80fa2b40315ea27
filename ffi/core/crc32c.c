/* crc32c.c: the implementation is chosen once, before main() runs, so that the request path has no check. */
#include "core/crc32c.h"

#include <string.h>

#define CRC32C_POLYNOMIAL 0x82f63b78u /* reflected */
#define CRC32C_SLICES 8

static uint32_t tables[CRC32C_SLICES][256];

static uint64_t load64(const uint8_t *p) {
    uint64_t word;
    memcpy(&word, p, sizeof word);
    return word;
}

uint32_t crc32c_tables(uint32_t seed, const void *bytes, size_t length) {
    const uint8_t *p = bytes;
    uint32_t crc = ~seed;
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    for (; length >= 8; length -= 8, p += 8) {
        uint64_t word = load64(p) ^ crc;
        crc = 0;
        for (int slice = 0; slice < CRC32C_SLICES; slice++)
            crc ^= tables[CRC32C_SLICES - 1 - slice][(word >> (8 * slice)) & 0xff];
    }
#endif
    for (; length > 0; length--, p++) crc = (crc >> 8) ^ tables[0][(crc ^ *p) & 0xff];
    return ~crc;
}

static uint32_t (*chosen)(uint32_t, const void *, size_t) = crc32c_tables;

#if defined(__x86_64__)
#include <nmmintrin.h>

__attribute__((target("sse4.2"))) static uint32_t crc32c_sse42(uint32_t seed, const void *bytes, size_t length) {
    const uint8_t *p = bytes;
    uint64_t crc = (uint32_t)~seed;
    for (; length >= 32; length -= 32, p += 32) {
        crc = _mm_crc32_u64(crc, load64(p));
        crc = _mm_crc32_u64(crc, load64(p + 8));
        crc = _mm_crc32_u64(crc, load64(p + 16));
        crc = _mm_crc32_u64(crc, load64(p + 24));
    }
    for (; length >= 8; length -= 8, p += 8) crc = _mm_crc32_u64(crc, load64(p));
    uint32_t crc32 = (uint32_t)crc;
    if (length >= 4) {
        uint32_t word;
        memcpy(&word, p, sizeof word);
        crc32 = _mm_crc32_u32(crc32, word);
        p += 4;
        length -= 4;
    }
    for (; length > 0; length--, p++) crc32 = _mm_crc32_u8(crc32, *p);
    return ~crc32;
}
#endif

__attribute__((constructor)) static void crc32c_choose(void) {
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t crc = i;
        for (int bit = 0; bit < 8; bit++) crc = (crc >> 1) ^ ((crc & 1) ? CRC32C_POLYNOMIAL : 0);
        tables[0][i] = crc;
    }
    for (uint32_t i = 0; i < 256; i++)
        for (int slice = 1; slice < CRC32C_SLICES; slice++)
            tables[slice][i] = (tables[slice - 1][i] >> 8) ^ tables[0][tables[slice - 1][i] & 0xff];
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("sse4.2")) chosen = crc32c_sse42;
#endif
}

bool crc32c_hardware(void) { return chosen != crc32c_tables; }

uint32_t crc32c(uint32_t seed, const void *bytes, size_t length) { return chosen(seed, bytes, length); }
