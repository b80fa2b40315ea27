/* answer.c: what the client is given, made of what was decided and of the backend's answer. */
#include "protocols/memcached/parts.h"

static const char TOO_LARGE[] = "SERVER_ERROR object too large for cache\r\n";

struct span { const uint8_t *bytes; size_t length; };

bool memcached_failed(const uint8_t *ack, size_t ack_length) { return starts_with(ack, ack_length, "SERVER_ERROR"); }

/* Without its end; *rest is what follows it. */
static struct span first_line(struct span text, struct span *rest) {
    if (text.length == 0) return *rest = text, text;
    const uint8_t *end = memmem(text.bytes, text.length, "\r\n", 2);
    size_t line = end == NULL ? text.length : (size_t)(end - text.bytes);
    size_t taken = end == NULL ? line : line + 2;
    *rest = (struct span){text.bytes + taken, text.length - taken};
    return (struct span){text.bytes, line};
}

/* Behind the n-th blank. */
static size_t field_start(struct span line, int n) {
    size_t at = 0;
    for (; at < line.length && n > 0; at++) n -= line.bytes[at] == ' ';
    return n > 0 ? line.length : at;
}

/* Digits at *at, and behind them. */
static bool number_at(struct span line, size_t *at, uint64_t *number) {
    size_t first = *at;
    *number = 0;
    for (; *at < line.length && line.bytes[*at] >= '0' && line.bytes[*at] <= '9'; ++*at) *number = *number * 10 + (uint64_t)(line.bytes[*at] - '0');
    return *at > first;
}

/* ---- CAS numbers become tokens ------------------------------------------------------------------------------------------------ */

static bool put_values(struct span text, uint64_t term, struct buffer *out) {
    struct span rest;
    for (struct span line = first_line(text, &rest); starts_with(line.bytes, line.length, "VALUE "); line = first_line(text, &rest)) {
        size_t size_at = field_start(line, 3), cas_at = field_start(line, 4);
        uint64_t size, cas;
        size_t at = cas_at;
        if (!number_at(line, &size_at, &size) || !number_at(line, &at, &cas) || size > rest.length || rest.length - size < 2) return false;
        buffer_append(out, line.bytes, cas_at);
        put_token(out, term, cas);
        put_line_end(out);
        buffer_append(out, rest.bytes, size + 2);
        text = (struct span){rest.bytes + size + 2, rest.length - size - 2};
    }
    buffer_append(out, text.bytes, text.length); /* END, or an error */
    return true;
}

/* The number behind a c flag: a token that begins with it, since an opaque and a key begin with their own letters. */
static bool meta_cas(struct span line, size_t *start, size_t *end, uint64_t *cas) {
    for (int field = 1;; field++) {
        size_t at = field_start(line, field);
        if (at >= line.length) return false;
        if (line.bytes[at] != 'c') continue;
        *start = *end = at + 1;
        return number_at(line, end, cas);
    }
}

static void put_meta(struct span text, uint64_t term, bool won, struct buffer *out) {
    struct span rest, line = first_line(text, &rest);
    size_t start = 0, end = 0;
    uint64_t cas;
    if (meta_cas(line, &start, &end, &cas)) {
        buffer_append(out, line.bytes, start);
        put_token(out, term, cas);
    } else {
        start = end = 0;
    }
    size_t left = line.length - end;
    bool taken = won && left >= 4 && memcmp(line.bytes + line.length - 4, " Z X", 4) == 0;
    buffer_append(out, line.bytes + end, taken ? left - 4 : left);
    if (taken) buffer_text(out, " X W");
    put_line_end(out);
    buffer_append(out, rest.bytes, rest.length);
}

static void put_me(struct span text, uint64_t term, struct buffer *out) {
    static const char MARK[] = " cas=";
    size_t n = sizeof MARK - 1, at = text.length < n ? 0 : text.length - n;
    while (at > 0 && memcmp(text.bytes + at, MARK, n) != 0) at--; /* the key may look like it */
    uint64_t cas;
    size_t end = at + n;
    if (at == 0 || !number_at(text, &end, &cas)) return buffer_append(out, text.bytes, text.length);
    buffer_append(out, text.bytes, at + n);
    put_token(out, term, cas);
    buffer_append(out, text.bytes + end, text.length - end);
}

/* ---- what was decided ------------------------------------------------------------------------------------------------------------ */

static bool put_reply(struct span reply, struct span ack, uint64_t term, bool hidden, struct buffer *out) {
    if (memcached_failed(ack.bytes, ack.length)) return buffer_append(out, ack.bytes, ack.length), true;
    if (starts_with(ack.bytes, ack.length, "ERROR") || starts_with(ack.bytes, ack.length, "CLIENT_ERROR")) return false;
    if (hidden) return true;
    struct span rest, first = first_line(reply, &rest);
    const uint8_t *place = first.length > 0 ? memchr(first.bytes, 0, first.length) : NULL;
    if (place == NULL) return buffer_append(out, reply.bytes, reply.length), true;
    struct span unused, line = first_line(ack, &unused);
    size_t at = (size_t)(place - reply.bytes), start, end;
    uint64_t cas;
    buffer_append(out, reply.bytes, at);
    put_token(out, term, meta_cas(line, &start, &end, &cas) ? cas : 0);
    buffer_append(out, place + 1, reply.length - at - 1);
    return true;
}

static bool is_meta(struct span ack) {
    static const char *const WORDS[] = {"HD", "VA", "EN", "NF", "NS", "EX"};
    for (size_t i = 0; i < sizeof WORDS / sizeof *WORDS; i++)
        if (begins_word(ack.bytes, ack.length, WORDS[i])) return true;
    return false;
}

bool memcached_answer(uint32_t style, const uint8_t *reply, size_t reply_length, const uint8_t *ack, size_t ack_length, uint64_t term,
                      struct buffer *out) {
    struct span text = {ack, ack_length};
    enum style kind = style & STYLE_KIND;
    bool failed = memcached_failed(ack, ack_length);
    if (style & STYLE_HIDE_ALL) return true;
    if (style & STYLE_HIDE_DONE && begins_word(ack, ack_length, "HD")) return true;
    if (style & STYLE_HIDE_MISS && begins_word(ack, ack_length, "EN")) return true;
    switch (kind) {
        case STYLE_VALUES_CAS:
            if (!failed && !starts_with(ack, ack_length, "VALUE ") && !starts_with(ack, ack_length, "END")) return false;
            return put_values(text, term, out);
        case STYLE_ME:
            if (!failed && !begins_word(ack, ack_length, "ME") && !begins_word(ack, ack_length, "EN")) return false;
            return put_me(text, term, out), true;
        case STYLE_REPLY: return put_reply((struct span){reply, reply_length}, text, term, style & STYLE_HIDE_REPLY, out);
        case STYLE_FLUSH:
            if (begins_word(ack, ack_length, "MN")) return buffer_text(out, "OK\r\n"), true;
            break;
        case STYLE_TOO_LARGE: return buffer_text(out, TOO_LARGE), true;
        case STYLE_META_CAS:
            if (!failed && !is_meta(text)) return false;
            if (!failed) return put_meta(text, term, style & STYLE_WON, out), true;
            break;
        default:
            if (style & STYLE_WON) return put_meta(text, term, true, out), true;
            break;
    }
    buffer_append(out, ack, ack_length);
    return true;
}
