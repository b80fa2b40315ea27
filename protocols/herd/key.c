/* key.c: see key.h. */
#include "protocols/herd/key.h"

#include <string.h>

static const uint8_t KEY_SECRET[16] = "musidecar: key  ";
static const uint8_t CHECK_SECRET[16] = "musidecar: check";

struct state { uint64_t a, b, c, d; };

static inline uint64_t rotate(uint64_t x, int bits) { return x << bits | x >> (64 - bits); }

static void rounds(struct state *s, int count) {
    while (count-- > 0) {
        s->a += s->b, s->b = rotate(s->b, 13) ^ s->a, s->a = rotate(s->a, 32);
        s->c += s->d, s->d = rotate(s->d, 16) ^ s->c;
        s->a += s->d, s->d = rotate(s->d, 21) ^ s->a;
        s->c += s->b, s->b = rotate(s->b, 17) ^ s->c, s->c = rotate(s->c, 32);
    }
}

/* Little endian, as all that this runs on. */
static uint64_t word(const uint8_t *bytes, size_t length) {
    uint64_t value = 0;
    memcpy(&value, bytes, length);
    return value;
}

static void compress(struct state *s, uint64_t m) {
    s->d ^= m;
    rounds(s, 2);
    s->a ^= m;
}

void herd_siphash(const uint8_t secret[16], const void *text, size_t length, uint8_t out[16]) {
    const uint8_t *bytes = text;
    uint64_t k0 = word(secret, 8), k1 = word(secret + 8, 8);
    struct state s = {k0 ^ 0x736f6d6570736575u, k1 ^ 0x646f72616e646f6du ^ 0xee, k0 ^ 0x6c7967656e657261u, k1 ^ 0x7465646279746573u};
    size_t whole = length & ~(size_t)7;
    for (size_t at = 0; at < whole; at += 8) compress(&s, word(bytes + at, 8));
    compress(&s, (length > whole ? word(bytes + whole, length - whole) : 0) | (uint64_t)length << 56);
    s.c ^= 0xee;
    rounds(&s, 4);
    uint64_t low = s.a ^ s.b ^ s.c ^ s.d;
    s.b ^= 0xdd;
    rounds(&s, 4);
    uint64_t high = s.a ^ s.b ^ s.c ^ s.d;
    memcpy(out, &low, 8);
    memcpy(out + 8, &high, 8);
}

void herd_key_of(const void *text, size_t length, struct herd_key *key) {
    uint8_t check[16];
    herd_siphash(KEY_SECRET, text, length, key->bytes);
    herd_siphash(CHECK_SECRET, text, length, check);
    key->check = word(check, 8);
    if (word(key->bytes, 8) == 0) key->bytes[0] = 1;
}

uint32_t herd_worker(const uint8_t bytes[HERD_KEY_BYTES], uint32_t workers) {
    return (uint32_t)((word(bytes + 4, 4) * workers) >> 32); /* the upper half of the word that HERD only compares */
}
