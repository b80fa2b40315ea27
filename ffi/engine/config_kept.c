/* config_kept.c: see config_kept.h. */
#include "engine/config_kept.h"

#include <stdio.h>

#include "engine/engine_state.h"
#include "protocols/redis/session_word.h"

enum kept { KEPT_NOT = 0, KEPT_PASSWORD, KEPT_USER, KEPT_BACKLOG, KEPT_SLOWLOG };

static enum kept kept_of(struct word name) {
    if (word_is(name, "masterauth")) return KEPT_PASSWORD;
    if (word_is(name, "masteruser")) return KEPT_USER;
    if (word_is(name, "slowlog-max-len")) return KEPT_SLOWLOG;
    return word_is(name, "repl-backlog-size") ? KEPT_BACKLOG : KEPT_NOT;
}

/* A size as Redis reads it, "10mb" for instance. */
static bool size_read(struct word w, uint64_t *bytes) {
    static const struct { const char *name; uint64_t bytes; } units[] = {
        {"", 1}, {"b", 1}, {"k", 1000}, {"kb", 1 << 10}, {"m", 1000 * 1000}, {"mb", 1 << 20}, {"g", 1000ull * 1000 * 1000}, {"gb", 1 << 30}};
    size_t digits = 0;
    uint64_t value = 0;
    for (; digits < w.length && digits < 15 && w.text[digits] >= '0' && w.text[digits] <= '9'; digits++)
        value = value * 10 + (uint64_t)(w.text[digits] - '0');
    struct word unit = {w.text + digits, w.length - digits};
    for (size_t i = 0; digits > 0 && i < sizeof units / sizeof *units; i++) {
        if (!word_is(unit, units[i].name) || value > INT64_MAX / units[i].bytes) continue;
        *bytes = value * units[i].bytes;
        return true;
    }
    return false;
}

/* CONFIG SET? */
static bool parse(const uint8_t *bytes, size_t length, struct resp_request *request) {
    const struct resp_limits limits = {UINT32_MAX, UINT32_MAX, 1 << 16, true};
    resp_request_reset(request);
    if (resp_request_feed(request, bytes, length, &limits) != RESP_DONE || request->is_inline || request->length != length) return false;
    return request->argc >= 4 && word_is(word_at(request, bytes, 0), "config") && word_is(word_at(request, bytes, 1), "set");
}

/* The server's value in the place of a client's. What is wrong stays: the server says so. */
static struct word translated(const struct engine *e, enum kept kept, struct word value, char *text, size_t room) {
    uint64_t bytes;
    long long number;
    switch (kept) {
        case KEPT_PASSWORD: return (struct word){e->config.feed_token, strlen(e->config.feed_token)};
        case KEPT_USER: return (struct word){"", 0};
        case KEPT_BACKLOG:
            if (!size_read(value, &bytes) || bytes == 0 || bytes >= BACKLOG_BYTES_MIN) return value;
            return (struct word){text, (size_t)snprintf(text, room, "%u", BACKLOG_BYTES_MIN)};
        case KEPT_SLOWLOG:
            if (!word_number(value, &number) || number < 0 || number >= SLOWLOG_ENTRIES_MIN) return value;
            return (struct word){text, (size_t)snprintf(text, room, "%u", SLOWLOG_ENTRIES_MIN)};
        case KEPT_NOT: break;
    }
    return value;
}

bool config_kept_translate(const struct engine *e, const uint8_t *bytes, size_t length, struct buffer *out) {
    struct resp_request request;
    char text[32];
    bool kept = false;
    if (!parse(bytes, length, &request)) return false;
    for (uint64_t i = 2; i + 1 < request.argc; i += 2) kept = kept || kept_of(word_at(&request, bytes, i)) != KEPT_NOT;
    if (!kept) return false;
    buffer_append(out, text, (size_t)snprintf(text, sizeof text, "*%llu\r\n", (unsigned long long)request.argc));
    for (uint64_t i = 0; i < request.argc; i++) {
        enum kept of = i >= 3 && i % 2 == 1 ? kept_of(word_at(&request, bytes, i - 1)) : KEPT_NOT;
        request_bulk(out, translated(e, of, word_at(&request, bytes, i), text, sizeof text));
    }
    return true;
}

/* As it was set last; false: it was not. They are logged one by one. */
static bool logged(const struct engine *e, struct word name, struct buffer *out) {
    const uint8_t *at = buffer_bytes(&e->log.settings);
    for (size_t left = buffer_length(&e->log.settings); left > 0;) {
        uint32_t length;
        struct resp_request request;
        memcpy(&length, at, sizeof length);
        const uint8_t *bytes = at + sizeof length;
        at += sizeof length + length;
        left -= sizeof length + length;
        if (!parse(bytes, length, &request)) continue;
        struct word other = word_at(&request, bytes, 2), value = word_at(&request, bytes, 3);
        if (other.length != name.length || strncasecmp(other.text, name.text, name.length) != 0) continue;
        buffer_append(out, value.text, value.length);
        return true;
    }
    return false;
}

bool config_kept_knows(const char *name, size_t length) { return kept_of((struct word){name, length}) != KEPT_NOT; }

bool config_kept_value(const struct engine *e, const char *name, size_t length, struct buffer *out) {
    enum kept kept = kept_of((struct word){name, length});
    uint64_t bytes;
    char text[32];
    buffer_clear(out);
    if (kept == KEPT_NOT) return false;
    bool set = logged(e, (struct word){name, length}, out);
    if (kept == KEPT_SLOWLOG) return set;
    if (kept != KEPT_BACKLOG) return true; /* nobody's is none */
    if (!set || !size_read((struct word){(const char *)buffer_bytes(out), buffer_length(out)}, &bytes)) return false;
    buffer_clear(out);
    buffer_append(out, text, (size_t)snprintf(text, sizeof text, "%llu", (unsigned long long)bytes));
    return true;
}
