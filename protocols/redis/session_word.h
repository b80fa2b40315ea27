/* session_word.h: the arguments of a request as words, for session.c and session_own.c. */
#ifndef MUSIDECAR_REDIS_SESSION_WORD_H
#define MUSIDECAR_REDIS_SESSION_WORD_H

#include <strings.h>

#include "protocols/redis/ask.h"
#include "protocols/redis/session.h"

struct word {
    const char *text;
    size_t length;
};

static inline struct word word_at(const struct resp_request *request, const uint8_t *bytes, uint64_t i) {
    struct resp_argument a = resp_request_argument(request, bytes, i);
    return (struct word){(const char *)bytes + a.offset, a.length};
}

static inline bool word_is(struct word w, const char *name) {
    return w.length == strlen(name) && strncasecmp(w.text, name, w.length) == 0;
}

/* A decimal number as Redis's string2ll reads it: no sign but '-', no leading zeros or blanks. */
static inline bool word_number(struct word w, long long *value) {
    if (w.length == 0 || w.length > 19) return false;
    bool negative = w.text[0] == '-';
    size_t i = negative ? 1 : 0;
    if (i == w.length || (w.text[i] == '0' && w.length > i + 1)) return false;
    unsigned long long sum = 0;
    for (; i < w.length; i++) {
        if (w.text[i] < '0' || w.text[i] > '9') return false;
        sum = sum * 10 + (unsigned long long)(w.text[i] - '0');
    }
    if (sum > 9223372036854775807ull) return false;
    *value = negative ? -(long long)sum : (long long)sum;
    return true;
}

#endif
