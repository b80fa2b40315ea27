/*
 * question.c: what the leader's backend is asked about a key, and what it says.
 *
 * An item's remaining time (t) counts by the backend's own clock, which ticks once a second, when it likes. Who would add it to another
 * clock might be a second late, and again with every further request of a key that keeps its expiry. So where an expiry is kept the
 * question begins with an item made for it, and gone behind it, that has a known absolute one: what remains of that is the clock.
 */
#include "protocols/memcached/parts.h"

#define CLOCK_KEY "\x01musidecar-clock-f3a91c7e"

static bool keeps_expiry(const struct parts *p) {
    switch ((enum verb)p->verb) {
        case VERB_APPEND:
        case VERB_PREPEND: return true; /* whatever is sent with it */
        case VERB_INCR:
        case VERB_DECR: return !p->has_exptime;
        case VERB_CAS: return p->stale;
        default: return false;
    }
}

/* What an mg asks for of the item's use, and whether it counts as one. */
static void put_use(struct buffer *out, const struct parts *p) {
    for (uint8_t i = 0; i < p->flag_count; i++) {
        const char flag[] = {' ', (char)p->flags[i].letter};
        if (memchr("hlu", flag[1], 3) != NULL) buffer_append(out, flag, sizeof flag);
    }
}

uint32_t memcached_question(const struct protocol_request *r, const uint8_t *bytes, struct buffer *out) {
    const struct parts *p = parts(r);
    bool clock = keeps_expiry(p);
    if (clock) {
        buffer_text(out, "mg " CLOCK_KEY " N");
        put_i64(out, ABSOLUTE_S_MAX);
        buffer_text(out, " t\r\ndelete " CLOCK_KEY " noreply\r\n");
    }
    buffer_text(out, "mg ");
    buffer_append(out, bytes + p->key_offset, p->key_length);
    if (p->binary) buffer_text(out, " b");
    if (p->verb == VERB_MG) put_use(out, p);
    else buffer_text(out, " u"); /* as the commands, it counts as no use of the item */
    buffer_text(out, " v f t c k\r\n");
    return clock ? 2 : 1;
}

struct scan { const uint8_t *bytes; size_t length; };

static bool take_line(struct scan *s, struct scan *line) {
    const uint8_t *end = memchr(s->bytes, '\n', s->length);
    if (end == NULL || end == s->bytes || end[-1] != '\r') return false;
    *line = (struct scan){s->bytes, (size_t)(end - s->bytes) - 1};
    s->length -= (size_t)(end - s->bytes) + 1;
    s->bytes = end + 1;
    return true;
}

static bool take_field(struct scan *line, struct token *field, const uint8_t **at) {
    uint32_t next = 0;
    if (!token_next(line->bytes, (uint32_t)line->length, &next, field)) return false;
    *at = line->bytes + field->offset;
    line->bytes += next;
    line->length -= next;
    return true;
}

/* "HD t<remaining> W" */
static bool read_clock(struct scan line, int64_t *clock_s) {
    uint64_t remaining;
    if (line.length < 6 || memcmp(line.bytes + line.length - 2, " W", 2) != 0) return false;
    if (!read_u64(line.bytes + 4, line.length - 6, &remaining) || remaining > ABSOLUTE_S_MAX) return false;
    *clock_s = (int64_t)ABSOLUTE_S_MAX - (int64_t)remaining;
    return true;
}

/* One flag of "VA <bytes> h.. l.. f.. t.. c.. k.. b Z X W". */
static bool read_flag(struct memcached_item *item, const uint8_t *text, size_t length, int64_t clock_s) {
    uint64_t number;
    switch (text[0]) {
        case 'f': return read_u32(text + 1, length - 1, &item->client_flags);
        case 'c': return item->cas_known = read_u64(text + 1, length - 1, &item->cas);
        case 't':
            if (is_text(text, length, "t-1")) return item->expires_s = 0, true;
            if (!read_u64(text + 1, length - 1, &number)) return false;
            item->expires_s = clock_s + (int64_t)(number < ABSOLUTE_S_MAX ? number : ABSOLUTE_S_MAX);
            return true;
        case 'h': return item->hit = is_text(text, length, "h1"), true;
        case 'l': return read_u32(text + 1, length - 1, &item->idle_s);
        case 'b': item->binary |= length == 1; return true;
        case 'Z': item->sent |= length == 1; return true;
        case 'X': item->stale |= length == 1; return true;
        case 'W': item->stolen |= length == 1; return true;
        default: return true;
    }
}

bool memcached_item(void *item, const uint8_t *answer, size_t length, uint64_t now_s) {
    struct memcached_item *it = item;
    struct buffer value = it->value;
    struct scan s = {answer, length}, line;
    int64_t clock_s = (int64_t)now_s;
    struct token field;
    const uint8_t *text;
    uint64_t bytes;
    buffer_clear(&value);
    *it = (struct memcached_item){.value = value};
    if (!take_line(&s, &line)) return false;
    if (starts_with(line.bytes, line.length, "HD t")) {
        it->failed = !read_clock(line, &clock_s);
        it->lag_s = (int64_t)now_s - clock_s;
        if (!take_line(&s, &line)) return false;
    } else if (s.length > 0 && !starts_with(line.bytes, line.length, "VA ")) {
        it->failed = true; /* no room for the clock */
        if (!take_line(&s, &line)) return false;
    }
    if (begins_word(line.bytes, line.length, "EN")) return s.length == 0; /* and the key */
    if (memcached_failed(line.bytes, line.length)) return it->failed = true, s.length == 0;
    if (!take_field(&line, &field, &text) || !is_text(text, field.length, "VA")) return false;
    if (!take_field(&line, &field, &text) || !read_u64(text, field.length, &bytes) || s.length != bytes + 2) return false;
    while (take_field(&line, &field, &text))
        if (!read_flag(it, text, field.length, clock_s)) return false;
    it->present = it->cas_known;
    it->sent |= it->stolen;
    buffer_append(&it->value, s.bytes, bytes);
    return it->present;
}

void memcached_item_free(void *item) { buffer_free(&((struct memcached_item *)item)->value); }
