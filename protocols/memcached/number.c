/*
 * number.c: numbers as the server reads them, which is as the C library does: blanks and a sign in front, and anything behind a blank
 * that follows, or a NUL. What does not fit in 32 bits loses the rest.
 */
#include "protocols/memcached/parts.h"

static bool is_blank(uint8_t c) { return c == ' ' || (c >= '\t' && c <= '\r'); }

struct number { uint64_t magnitude; bool negative; };

static bool read(const uint8_t *text, size_t length, struct number *number) {
    size_t i = 0;
    while (i < length && is_blank(text[i])) i++;
    number->negative = i < length && text[i] == '-';
    if (i < length && (text[i] == '-' || text[i] == '+')) i++;
    size_t first = i;
    number->magnitude = 0;
    for (; i < length && text[i] >= '0' && text[i] <= '9'; i++) {
        if (__builtin_mul_overflow(number->magnitude, 10, &number->magnitude)) return false;
        if (__builtin_add_overflow(number->magnitude, (uint64_t)(text[i] - '0'), &number->magnitude)) return false;
    }
    return i > first && (i == length || text[i] == 0 || is_blank(text[i]));
}

bool read_u64(const uint8_t *text, size_t length, uint64_t *value) {
    struct number number;
    *value = 0;
    if (!read(text, length, &number)) return false;
    uint64_t n = number.negative ? 0 - number.magnitude : number.magnitude;
    /* Only of one that looks negative does the server ask where the minus is; it finds any. */
    if (n > INT64_MAX && memchr(text, '-', strnlen((const char *)text, length)) != NULL) return false;
    *value = n;
    return true;
}

bool read_u32(const uint8_t *text, size_t length, uint32_t *value) {
    uint64_t wide;
    bool good = read_u64(text, length, &wide);
    *value = (uint32_t)wide;
    return good;
}

bool read_i32(const uint8_t *text, size_t length, int32_t *value) {
    struct number number;
    *value = 0;
    if (!read(text, length, &number)) return false;
    if (number.magnitude > (uint64_t)INT64_MAX + number.negative) return false;
    uint32_t low = (uint32_t)(number.negative ? 0 - number.magnitude : number.magnitude);
    memcpy(value, &low, sizeof low);
    return true;
}
