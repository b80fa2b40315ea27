/*
 * fuzz.h: what the harnesses share. Each fuzz_<parser>.c is one libFuzzer target; with replay.c instead of libFuzzer it
 * replays files. An input begins with a few bytes of choices (limits, where to split); what is parsed follows.
 *
 * What is parsed stands at the very end of a static block, so that the sanitizer sees a read of one byte too many and
 * nothing is allocated for it.
 */
#ifndef MUSIDECAR_FUZZ_H
#define MUSIDECAR_FUZZ_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "check.h"

#define FUZZ_BYTES_MAX 4096u

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct edge { _Alignas(64) uint8_t bytes[FUZZ_BYTES_MAX]; };

static inline uint8_t *edge_put(struct edge *edge, const uint8_t *bytes, size_t length) {
    CHECK(length <= FUZZ_BYTES_MAX);
    uint8_t *at = edge->bytes + FUZZ_BYTES_MAX - length;
    if (length > 0) memcpy(at, bytes, length);
    return at;
}

/* The input, read from the front; zeros when it is used up. */
struct input { const uint8_t *bytes; size_t left; };

static inline uint8_t input_byte(struct input *in) {
    if (in->left == 0) return 0;
    in->left--;
    return *in->bytes++;
}

static inline uint32_t input_below(struct input *in, uint32_t n) { return input_byte(in) % n; }

static inline uint64_t input_word(struct input *in) { /* eight bytes */
    uint64_t value = 0;
    for (int i = 0; i < 8; i++) value = value << 8 | input_byte(in);
    return value;
}

static inline const uint8_t *input_take(struct input *in, size_t *length) { /* at most *length bytes */
    const uint8_t *at = in->bytes;
    if (*length > in->left) *length = in->left;
    in->bytes += *length;
    in->left -= *length;
    return at;
}

/* Random, but the same for the same input: where to split. */
struct dice { uint64_t state; };

static inline uint32_t dice_below(struct dice *d, uint32_t n) { /* xorshift64*; state is not 0 */
    d->state ^= d->state >> 12;
    d->state ^= d->state << 25;
    d->state ^= d->state >> 27;
    return (uint32_t)((d->state * 0x2545f4914f6cdd1du) >> 33) % n;
}

/* Length of the next part: mostly short ones, where the edges are. */
static inline size_t dice_part(struct dice *d, size_t left) {
    size_t part = 1 + dice_below(d, dice_below(d, 4) == 0 ? 64 : 6);
    return part < left ? part : left;
}

/* What a parser told, in order: two ways of feeding it must tell the same. */
#define STORY_MAX 16384u
struct story { size_t count; uint64_t events[STORY_MAX]; };

static inline void story_tell(struct story *s, uint64_t event) {
    CHECK(s->count < STORY_MAX);
    s->events[s->count++] = event;
}

static inline void story_bytes(struct story *s, const uint8_t *bytes, size_t length) {
    uint64_t hash = length;
    for (size_t i = 0; i < length; i++) hash = (hash ^ bytes[i]) * 0x100000001b3u;
    story_tell(s, hash);
}

static inline void story_compare(const struct story *a, const struct story *b) {
    CHECK(a->count == b->count && memcmp(a->events, b->events, a->count * sizeof a->events[0]) == 0);
}

typedef void feed(struct story *story, const uint8_t *bytes, size_t length, struct dice *dice); /* dice NULL: in one part */

static inline void story_twice(feed *fed, struct story stories[2], const uint8_t *bytes, size_t length, struct dice *dice) {
    fed(&stories[0], bytes, length, NULL);
    fed(&stories[1], bytes, length, dice);
    story_compare(&stories[0], &stories[1]);
}

#endif
