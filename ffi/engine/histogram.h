/*
 * histogram.h: log-linear counts of durations, 16 steps an octave (an error of at most 6 %), nanoseconds. Recording is
 * two shifts and an increment.
 */
#ifndef MUSIDECAR_HISTOGRAM_H
#define MUSIDECAR_HISTOGRAM_H

#include <stdint.h>

#define HISTOGRAM_STEPS 16u
#define HISTOGRAM_BUCKETS (HISTOGRAM_STEPS * 61u)

struct histogram {
    uint64_t count, max_ns;
    uint64_t buckets[HISTOGRAM_BUCKETS];
};

static inline uint32_t histogram_bucket(uint64_t ns) {
    if (ns < HISTOGRAM_STEPS) return (uint32_t)ns;
    uint32_t octave = 63u - (uint32_t)__builtin_clzll(ns);
    return (octave - 3) * HISTOGRAM_STEPS + (uint32_t)((ns >> (octave - 4)) & (HISTOGRAM_STEPS - 1));
}

/* Smallest duration that falls into the bucket. */
static inline uint64_t histogram_floor_ns(uint32_t bucket) {
    if (bucket < HISTOGRAM_STEPS) return bucket;
    uint32_t octave = bucket / HISTOGRAM_STEPS + 3;
    return (1ull << octave) + ((uint64_t)(bucket % HISTOGRAM_STEPS) << (octave - 4));
}

static inline void histogram_add(struct histogram *h, uint64_t ns) {
    h->count++;
    if (ns > h->max_ns) h->max_ns = ns;
    h->buckets[histogram_bucket(ns)]++;
}

static inline uint64_t histogram_quantile_ns(const struct histogram *h, double quantile) {
    uint64_t wanted = (uint64_t)((double)h->count * quantile), seen = 0;
    for (uint32_t i = 0; i < HISTOGRAM_BUCKETS; i++) {
        seen += h->buckets[i];
        if (seen > wanted) return histogram_floor_ns(i);
    }
    return h->max_ns;
}

#endif
