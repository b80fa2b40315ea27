/* resp_inline.c: see resp_inline.h. */
#include "protocols/redis/resp_inline.h"

#include "check.h"

#include <string.h>

/* isspace() of the C locale: what Redis skips between arguments. */
static bool is_blank(uint8_t c) {
    return c == ' ' || (c >= '\t' && c <= '\r');
}

/* Fewer bytes end an argument that is not in quotes: \v and \f are part of it. */
static bool ends_plain(uint8_t c) {
    return c == ' ' || c == '\n' || c == '\r' || c == '\t';
}

static int hex_value(uint8_t c) {
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    return -1;
}

static uint8_t escaped(uint8_t c) {
    switch (c) {
        case 'n': return '\n';
        case 'r': return '\r';
        case 't': return '\t';
        case 'b': return '\b';
        case 'a': return '\a';
        default: return c;
    }
}

struct sink {
    uint8_t *out; /* or NULL: only counted */
    size_t length;
};

static void put(struct sink *sink, uint8_t c) {
    if (sink->out != NULL) sink->out[sink->length] = c;
    sink->length++;
}

/* A "quoted" part that starts behind its quote: the index behind the closing quote, or 0 if there is none. */
static size_t take_double(const uint8_t *bytes, size_t end, size_t i, struct sink *sink) {
    while (i < end && bytes[i] != '"') {
        if (bytes[i] != '\\' || i + 1 == end) {
            put(sink, bytes[i++]);
        } else if (bytes[i + 1] == 'x' && i + 3 < end && hex_value(bytes[i + 2]) >= 0 && hex_value(bytes[i + 3]) >= 0) {
            put(sink, (uint8_t)(hex_value(bytes[i + 2]) * 16 + hex_value(bytes[i + 3])));
            i += 4;
        } else {
            put(sink, escaped(bytes[i + 1]));
            i += 2;
        }
    }
    return i < end ? i + 1 : 0;
}

static size_t take_single(const uint8_t *bytes, size_t end, size_t i, struct sink *sink) {
    while (i < end && bytes[i] != '\'') {
        if (bytes[i] == '\\' && i + 1 < end && bytes[i + 1] == '\'') i++;
        put(sink, bytes[i++]);
    }
    return i < end ? i + 1 : 0;
}

enum inline_token inline_next(const uint8_t *bytes, size_t end, size_t *at, struct resp_argument *raw, uint8_t *out,
                              size_t *out_length) {
    size_t i = *at;
    while (i < end && is_blank(bytes[i])) i++;
    *at = i;
    if (i == end) return INLINE_END;
    size_t start = i;
    struct sink sink = {out, 0};
    while (i < end && !ends_plain(bytes[i])) {
        if (bytes[i] != '"' && bytes[i] != '\'') {
            put(&sink, bytes[i++]);
            continue;
        }
        i = bytes[i] == '"' ? take_double(bytes, end, i + 1, &sink) : take_single(bytes, end, i + 1, &sink);
        /* a closing quote ends the argument, so nothing but a blank may follow */
        if (i == 0 || (i < end && !is_blank(bytes[i]))) return INLINE_UNBALANCED;
        break;
    }
    *at = i;
    *raw = (struct resp_argument){(uint32_t)start, (uint32_t)(i - start)};
    *out_length = sink.length;
    return INLINE_ARGUMENT;
}

/* ---- normalising ------------------------------------------------------------------------------------------------ */

static size_t number_bytes(uint64_t value) {
    size_t n = 1;
    while (value >= 10) {
        value /= 10;
        n++;
    }
    return n;
}

/* mark, number, CR LF: at `out` unless NULL; how many bytes. */
static size_t write_head(uint8_t *out, char mark, uint64_t value) {
    size_t digits = number_bytes(value);
    if (out == NULL) return digits + 3;
    out[0] = (uint8_t)mark;
    for (size_t i = digits; i > 0; i--) {
        out[i] = (uint8_t)('0' + value % 10);
        value /= 10;
    }
    memcpy(out + 1 + digits, "\r\n", 2);
    return digits + 3;
}

static size_t write_array(const struct resp_request *request, const uint8_t *bytes, uint8_t *out) {
    size_t end = request->length - 1, at = 0, length; /* without the '\n' */
    size_t written = write_head(out, '*', request->argc);
    struct resp_argument raw;
    for (;;) {
        size_t before = at;
        if (inline_next(bytes, end, &at, &raw, NULL, &length) != INLINE_ARGUMENT) return written;
        written += write_head(out == NULL ? NULL : out + written, '$', length);
        if (out != NULL) {
            inline_next(bytes, end, &before, &raw, out + written, &length);
            memcpy(out + written + length, "\r\n", 2);
        }
        written += length + 2;
    }
}

size_t resp_request_normalised_bytes(const struct resp_request *request, const uint8_t *bytes) {
    CHECK(request->length > 0);
    return request->is_inline ? write_array(request, bytes, NULL) : request->length;
}

size_t resp_request_normalise(const struct resp_request *request, const uint8_t *bytes, uint8_t *out) {
    CHECK(request->length > 0);
    if (request->is_inline) return write_array(request, bytes, out);
    memcpy(out, bytes, request->length);
    return request->length;
}
