/* digits.h: an unsigned decimal number, nothing else around it, at most what a signed 64-bit one holds. */
#ifndef MUSIDECAR_REDIS_DIGITS_H
#define MUSIDECAR_REDIS_DIGITS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

static inline bool digits_read(const uint8_t *text, size_t length, uint64_t *value) {
    if (length == 0 || length > 19) return false;
    uint64_t sum = 0;
    for (size_t i = 0; i < length; i++) {
        if (text[i] < '0' || text[i] > '9') return false;
        sum = sum * 10 + (uint64_t)(text[i] - '0'); /* 19 digits fit */
    }
    *value = sum;
    return sum <= INT64_MAX;
}

#endif
