/*
 * resp.c: framing of requests: arrays of bulk strings here, inline ones with the help of resp_inline.c. See resp.h.
 *
 * Invariants: `scanned` is the start of the first line or bulk that is not whole yet, everything before it is checked and
 * never looked at again; no offset exceeds request_bytes_max, which is below 4 GiB.
 */
#include "protocols/redis/resp.h"

#include "check.h"
#include "protocols/redis/resp_inline.h"

#include <limits.h>
#include <stdio.h>
#include <string.h>

enum stage { STAGE_NEW = 0, STAGE_COUNT, STAGE_LENGTH, STAGE_BULK, STAGE_INLINE, STAGE_DONE, STAGE_EMPTY, STAGE_BAD };

#define UNAUTHENTICATED_ARGUMENTS_MAX 10
#define UNAUTHENTICATED_BULK_BYTES_MAX 16384
#define NUMBER_BYTES_MAX 20u /* longest text that Redis reads as a number */

static enum resp_status bad(struct resp_request *request, const char *error) {
    request->stage = STAGE_BAD;
    request->error = error;
    return RESP_BAD;
}

void resp_request_reset(struct resp_request *request) {
    request->length = 0;
    request->argc = 0;
    request->is_inline = false;
    request->error = NULL;
    request->scanned = 0;
    request->searched = 0;
    request->left = 0;
    request->bulk_left = 0;
    request->stage = STAGE_NEW;
}

/* ---- lines with a length ---------------------------------------------------------------------------------------- */

/* A number as Redis reads lengths (util.c: string2ll): no '+', no blanks, no leading zeros, "-0" neither. */
static bool read_number(const uint8_t *text, size_t length, int64_t *value) {
    if (length == 0 || length > NUMBER_BYTES_MAX) return false;
    if (length == 1 && text[0] == '0') {
        *value = 0;
        return true;
    }
    bool negative = text[0] == '-';
    size_t i = negative ? 1 : 0;
    if (i == length || text[i] < '1' || text[i] > '9') return false;
    int64_t sum = 0;
    for (; i < length; i++) {
        if (text[i] < '0' || text[i] > '9') return false;
        int digit = text[i] - '0';
        if (__builtin_mul_overflow(sum, 10, &sum)) return false;
        if (__builtin_add_overflow(sum, negative ? -digit : digit, &sum)) return false;
    }
    *value = sum;
    return true;
}

/* The usual case: "<mark><digits>\r" and a byte, whole in the buffer. Bytes it takes, or 0 for "look closer". */
static inline size_t head_fast(const uint8_t *text, size_t room, uint8_t mark, uint64_t *value) {
    if (room < 4 || text[0] != mark) return 0;
    unsigned digit = (unsigned)text[1] - '0';
    if (digit > 9) return 0;
    uint64_t sum = digit;
    size_t i = 2;
    if (digit != 0) {
        for (; i < 11 && i + 2 < room && (digit = (unsigned)text[i] - '0') <= 9; i++) sum = sum * 10 + digit;
    }
    if (i + 2 > room || text[i] != '\r') return 0;
    *value = sum;
    return i + 2;
}

enum line { LINE_WHOLE, LINE_MORE, LINE_LONG };

/* Finds the end of the line at `scanned`: *end is the index of `last` in it. A NUL hides whatever is behind it. */
static enum line line_find(struct resp_request *request, const uint8_t *bytes, size_t length,
                           const struct resp_limits *limits, uint8_t last, size_t *end) {
    size_t start = request->scanned;
    size_t room = length - start;
    size_t stop = room > limits->inline_bytes_max ? start + limits->inline_bytes_max + 1 : length;
    size_t i = request->searched > start ? request->searched : start;
    while (i < stop && bytes[i] != last && bytes[i] != 0) i++;
    request->searched = i;
    if (i < stop && bytes[i] == last) {
        *end = i;
        return LINE_WHOLE;
    }
    return room > limits->inline_bytes_max ? LINE_LONG : LINE_MORE;
}

/* The line with a length at `scanned`, all cases. MORE, DONE with *number (and *bytes_taken), or BAD. */
static enum resp_status head_slow(struct resp_request *request, const uint8_t *bytes, size_t length,
                                  const struct resp_limits *limits, uint8_t mark, int64_t *number, size_t *taken) {
    size_t start = request->scanned, end = 0;
    switch (line_find(request, bytes, length, limits, '\r', &end)) {
        case LINE_LONG:
            return bad(request, mark == '*' ? "Protocol error: too big mbulk count string"
                                            : "Protocol error: too big bulk count string");
        case LINE_MORE: return RESP_MORE;
        default: break;
    }
    if (end + 2 > length) return RESP_MORE;
    if (bytes[start] != mark) { /* only a '$' can be missing */
        char got = bytes[start] == '\r' || bytes[start] == '\n' ? ' ' : (char)bytes[start];
        snprintf(request->error_text, sizeof request->error_text, "Protocol error: expected '$', got '%c'", got);
        return bad(request, request->error_text);
    }
    if (!read_number(bytes + start + 1, end - start - 1, number)) {
        return bad(request, mark == '*' ? "Protocol error: invalid multibulk length" : "Protocol error: invalid bulk length");
    }
    *taken = end + 2 - start;
    return RESP_DONE;
}

/* ---- arrays ----------------------------------------------------------------------------------------------------- */

static enum resp_status feed_count(struct resp_request *request, const uint8_t *bytes, size_t length,
                                   const struct resp_limits *limits) {
    uint64_t plain;
    int64_t count;
    size_t taken = head_fast(bytes, length, '*', &plain);
    if (taken != 0) {
        count = (int64_t)plain;
    } else {
        enum resp_status status = head_slow(request, bytes, length, limits, '*', &count, &taken);
        if (status != RESP_DONE) return status;
    }
    if (count > INT_MAX) return bad(request, "Protocol error: invalid multibulk length");
    if (count > UNAUTHENTICATED_ARGUMENTS_MAX && !limits->authenticated)
        return bad(request, "Protocol error: unauthenticated multibulk length");
    request->scanned = taken;
    if (count <= 0) {
        request->length = taken;
        request->stage = STAGE_EMPTY;
        return RESP_EMPTY;
    }
    request->argc = (uint64_t)count;
    request->left = (uint64_t)count;
    request->stage = STAGE_LENGTH;
    return RESP_DONE;
}

/* What is wrong with a bulk of this length whose bytes would start at `at`; NULL: nothing. */
static inline const char *bulk_error(uint64_t bulk, size_t at, const struct resp_limits *limits, uint64_t bytes_max) {
    if (__builtin_expect(bulk > limits->bulk_bytes_max, 0)) return "Protocol error: invalid bulk length";
    if (__builtin_expect(bulk > UNAUTHENTICATED_BULK_BYTES_MAX, 0) && !limits->authenticated)
        return "Protocol error: unauthenticated bulk length";
    /* Told as soon as it is announced: Redis would read up to the limit first, and then close without a word too. */
    if (__builtin_expect(bulk + 2 > bytes_max - at, 0)) return "";
    return NULL;
}

/* From STAGE_LENGTH or STAGE_BULK to the end of the request, or as far as the bytes go. */
static enum resp_status feed_bulks(struct resp_request *request, const uint8_t *bytes, size_t length,
                                   const struct resp_limits *limits) {
    uint64_t bytes_max = limits->request_bytes_max < UINT32_MAX ? limits->request_bytes_max : UINT32_MAX;
    uint64_t bulk = request->bulk_left, left = request->left;
    size_t at = request->scanned;
    bool in_bulk = request->stage == STAGE_BULK;
    for (; left > 0; left--) {
        if (!in_bulk) {
            size_t taken = head_fast(bytes + at, length - at, '$', &bulk);
            if (__builtin_expect(taken == 0, 0)) {
                int64_t number = 0;
                request->scanned = at;
                request->left = left;
                request->stage = STAGE_LENGTH;
                enum resp_status status = head_slow(request, bytes, length, limits, '$', &number, &taken);
                if (status != RESP_DONE) return status;
                if (number < 0) return bad(request, "Protocol error: invalid bulk length");
                bulk = (uint64_t)number;
            }
            if (at + taken > bytes_max) return bad(request, "");
            at += taken;
            const char *error = bulk_error(bulk, at, limits, bytes_max);
            if (__builtin_expect(error != NULL, 0)) return bad(request, error);
        }
        if (length - at < bulk + 2) {
            request->scanned = at;
            request->left = left;
            request->bulk_left = bulk;
            request->stage = STAGE_BULK;
            return RESP_MORE;
        }
        in_bulk = false;
        uint64_t i = request->argc - left;
        if (i < RESP_ARGUMENTS_KEPT) request->arguments[i] = (struct resp_argument){(uint32_t)at, (uint32_t)bulk};
        at += bulk + 2;
    }
    request->length = at;
    request->stage = STAGE_DONE;
    return RESP_DONE;
}

/* ---- inline ----------------------------------------------------------------------------------------------------- */

static enum resp_status feed_inline(struct resp_request *request, const uint8_t *bytes, size_t length,
                                    const struct resp_limits *limits) {
    size_t end = 0;
    switch (line_find(request, bytes, length, limits, '\n', &end)) {
        case LINE_LONG: return bad(request, "Protocol error: too big inline request");
        case LINE_MORE: return RESP_MORE;
        default: break;
    }
    request->length = end + 1; /* a '\r' before the end is a blank like others */
    size_t at = 0, argument_bytes;
    struct resp_argument raw;
    enum inline_token token;
    while ((token = inline_next(bytes, end, &at, &raw, NULL, &argument_bytes)) == INLINE_ARGUMENT) {
        if (request->argc < RESP_ARGUMENTS_KEPT) request->arguments[request->argc] = raw;
        request->argc++;
    }
    if (token == INLINE_UNBALANCED) return bad(request, "Protocol error: unbalanced quotes in request");
    request->stage = request->argc > 0 ? STAGE_DONE : STAGE_EMPTY;
    return request->argc > 0 ? RESP_DONE : RESP_EMPTY;
}

/* ---- both ------------------------------------------------------------------------------------------------------- */

enum resp_status resp_request_feed(struct resp_request *request, const uint8_t *bytes, size_t length,
                                   const struct resp_limits *limits) {
    enum resp_status status;
    switch ((enum stage)request->stage) {
        case STAGE_NEW:
            if (length == 0) return RESP_MORE;
            if (bytes[0] != '*') {
                request->is_inline = true;
                request->stage = STAGE_INLINE;
                return feed_inline(request, bytes, length, limits);
            }
            request->stage = STAGE_COUNT;
            /* fall through */
        case STAGE_COUNT:
            status = feed_count(request, bytes, length, limits);
            return status == RESP_DONE ? feed_bulks(request, bytes, length, limits) : status;
        case STAGE_LENGTH:
        case STAGE_BULK: return feed_bulks(request, bytes, length, limits);
        case STAGE_INLINE: return feed_inline(request, bytes, length, limits);
        case STAGE_DONE: return RESP_DONE;
        case STAGE_EMPTY: return RESP_EMPTY;
        default: return RESP_BAD;
    }
}

struct resp_argument resp_request_next(const struct resp_request *request, const uint8_t *bytes,
                                       struct resp_argument before) {
    size_t at = (size_t)before.offset + before.length;
    if (request->is_inline) {
        struct resp_argument raw = {0, 0};
        size_t argument_bytes;
        CHECK(inline_next(bytes, request->length, &at, &raw, NULL, &argument_bytes) == INLINE_ARGUMENT);
        return raw;
    }
    at += 2;
    CHECK(at < request->length && bytes[at] == '$');
    uint64_t bulk = 0;
    for (at++; bytes[at] != '\r'; at++) bulk = bulk * 10 + (uint64_t)(bytes[at] - '0');
    at += 2;
    CHECK(bulk + 2 <= request->length - at);
    return (struct resp_argument){(uint32_t)at, (uint32_t)bulk};
}

struct resp_argument resp_request_argument(const struct resp_request *request, const uint8_t *bytes, uint64_t i) {
    CHECK(i < request->argc);
    if (i < RESP_ARGUMENTS_KEPT) return request->arguments[i];
    struct resp_argument argument = request->arguments[RESP_ARGUMENTS_KEPT - 1];
    for (uint64_t k = RESP_ARGUMENTS_KEPT - 1; k < i; k++) argument = resp_request_next(request, bytes, argument);
    return argument;
}
