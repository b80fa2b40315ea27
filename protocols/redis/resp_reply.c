/*
 * resp_reply.c: where a reply ends. See resp.h.
 *
 * An aggregate of n elements replaces one pending element by n, an attribute adds its own in front of the element it is
 * about, so one counter follows any nesting. Lengths up to 10^18 are taken at their word: nothing is stored for them.
 * Streamed strings and aggregates ("$?", "*?") are not emitted by Redis: BAD.
 */
#include "protocols/redis/resp.h"

#include <string.h>

enum stage { STAGE_ELEMENT = 0, STAGE_TEXT, STAGE_LINE, STAGE_BULK, STAGE_BAD };

void resp_reply_reset(struct resp_reply *reply) {
    reply->type = 0;
    reply->is_push = false;
    reply->is_null = false;
    reply->outermost = false;
    reply->stage = STAGE_ELEMENT;
    reply->pending = 1;
    reply->line_length = 0;
}

static bool element_begin(struct resp_reply *reply, uint8_t c) {
    switch (c) {
        case '+': case '-': case ',': case '(':
            reply->stage = STAGE_TEXT;
            break;
        case ':': case '$': case '*': case '_': case '#': case '!': case '=': case '~': case '%': case '>': case '|':
            reply->stage = STAGE_LINE;
            break;
        default: return false;
    }
    reply->element = c;
    reply->line_length = 0;
    reply->outermost = reply->pending == 1 && reply->type == 0 && c != '|';
    if (reply->outermost) {
        reply->type = c;
        reply->is_push = c == '>';
    }
    return true;
}

static inline void element_end(struct resp_reply *reply) {
    reply->pending--;
    reply->stage = STAGE_ELEMENT;
}

/* Text that may be of any length: only its end matters. line[0] keeps the byte before a break between two feeds. */
static size_t feed_text(struct resp_reply *reply, const uint8_t *bytes, size_t at, size_t length) {
    while (at < length) {
        const uint8_t *found = memchr(bytes + at, '\n', length - at);
        if (found == NULL) {
            reply->line[0] = (char)bytes[length - 1];
            reply->line_length = 1;
            return length;
        }
        size_t newline = (size_t)(found - bytes);
        bool whole = newline > at ? bytes[newline - 1] == '\r' : reply->line_length == 1 && reply->line[0] == '\r';
        at = newline + 1;
        reply->line_length = 1; /* a '\n' alone is part of the text */
        reply->line[0] = '\n';
        if (whole) {
            element_end(reply);
            return at;
        }
    }
    return at;
}

/* A decimal of at most 18 digits; a '-' only where Redis may send one. */
static inline bool read_size(const char *text, size_t length, uint64_t *value) {
    if (length == 0 || length > 18) return false;
    uint64_t sum = 0;
    for (size_t i = 0; i < length; i++) {
        unsigned digit = (unsigned)(uint8_t)text[i] - '0';
        if (digit > 9) return false;
        sum = sum * 10 + digit;
    }
    *value = sum;
    return true;
}

static bool is_integer(const char *text, size_t length) {
    size_t i = length > 0 && (text[0] == '-' || text[0] == '+') ? 1 : 0;
    if (i == length || length > 20) return false;
    for (; i < length; i++) {
        if (text[i] < '0' || text[i] > '9') return false;
    }
    return true;
}

static inline bool null_end(struct resp_reply *reply) {
    if (reply->outermost) reply->is_null = true;
    element_end(reply);
    return true;
}

/* The line of an element is whole, without its type and end. */
static bool line_done(struct resp_reply *reply, const char *text, size_t length) {
    uint64_t n;
    uint8_t element = reply->element;
    switch (element) {
        case ':':
            if (!is_integer(text, length)) return false;
            element_end(reply);
            return true;
        case '#':
            if (length != 1 || (text[0] != 't' && text[0] != 'f')) return false;
            element_end(reply);
            return true;
        case '_': return length == 0 && null_end(reply);
        default: break;
    }
    if ((element == '$' || element == '*') && length == 2 && memcmp(text, "-1", 2) == 0) return null_end(reply);
    if (!read_size(text, length, &n)) return false;
    if (element == '$' || element == '!' || element == '=') {
        reply->bulk_left = n + 2;
        reply->stage = STAGE_BULK;
        return true;
    }
    if (element == '%' || element == '|') n *= 2;
    if (element == '|') n++; /* the element it is about */
    reply->stage = STAGE_ELEMENT;
    reply->pending--;
    return !__builtin_add_overflow(reply->pending, n, &reply->pending);
}

/* A line of at most 31 bytes: read where it stands if it is whole, else gathered. */
static size_t feed_line(struct resp_reply *reply, const uint8_t *bytes, size_t at, size_t length) {
    size_t room = length - at < sizeof reply->line ? length - at : sizeof reply->line;
    if (reply->line_length == 0) {
        for (size_t i = 0; i + 1 < room; i++) {
            if (bytes[at + i] != '\r') continue;
            if (bytes[at + i + 1] != '\n' || !line_done(reply, (const char *)bytes + at, i)) reply->stage = STAGE_BAD;
            return at + i + 2;
        }
    }
    while (at < length) {
        uint32_t n = reply->line_length;
        char c = (char)bytes[at++];
        if (n > 0 && reply->line[n - 1] == '\r') {
            if (c != '\n' || !line_done(reply, reply->line, n - 1)) reply->stage = STAGE_BAD;
            return at;
        }
        if (n == sizeof reply->line || c == '\n') {
            reply->stage = STAGE_BAD;
            return at;
        }
        reply->line[reply->line_length++] = c;
    }
    return at;
}

/* The bytes of a bulk and its CR LF, which is checked: losing step with the backend must not go unnoticed. */
static size_t feed_bulk(struct resp_reply *reply, const uint8_t *bytes, size_t at, size_t length) {
    size_t data = reply->bulk_left > 2 ? reply->bulk_left - 2 : 0;
    if (data > length - at) data = length - at;
    at += data;
    reply->bulk_left -= data;
    for (; reply->bulk_left > 0 && reply->bulk_left <= 2 && at < length; at++, reply->bulk_left--) {
        if (bytes[at] == (reply->bulk_left == 2 ? '\r' : '\n')) continue;
        reply->stage = STAGE_BAD;
        return at;
    }
    if (reply->bulk_left == 0) element_end(reply);
    return at;
}

size_t resp_reply_feed(struct resp_reply *reply, const uint8_t *bytes, size_t length, enum resp_status *status) {
    size_t at = 0;
    if (reply->pending == 1 && reply->stage == STAGE_ELEMENT && reply->type == 0 && length >= 5 &&
        memcmp(bytes, "+OK\r\n", 5) == 0) {
        reply->type = '+';
        reply->pending = 0;
        *status = RESP_DONE;
        return 5;
    }
    while (at < length && reply->pending > 0 && reply->stage != STAGE_BAD) {
        if (reply->stage == STAGE_ELEMENT && !element_begin(reply, bytes[at++])) {
            reply->stage = STAGE_BAD;
            break;
        }
        switch ((enum stage)reply->stage) {
            case STAGE_TEXT: at = feed_text(reply, bytes, at, length); break;
            case STAGE_LINE: at = feed_line(reply, bytes, at, length); break;
            default: at = feed_bulk(reply, bytes, at, length); break;
        }
    }
    *status = reply->stage == STAGE_BAD ? RESP_BAD : reply->pending == 0 ? RESP_DONE : RESP_MORE;
    return at;
}
