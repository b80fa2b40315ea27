/* request.c: memcached text requests, and how requests are logged; see request.h. */
#include "protocols/herd/request.h"

#include "protocols/herd/value.h"
#include "protocols/herd/wire.h"
#include "protocols/memcached/parts.h"

#define ITEM_BYTES_MAX (1u << 20) /* a longer value is passed over without being kept */

static const char TOO_LONG[] = "SERVER_ERROR object too large for cache: HERD keeps values of up to 33 bytes\r\n";
static_assert(HERD_DATA_BYTES_MAX == 33, "as it is said");

/* ---- as it is logged ----------------------------------------------------------------------------------------------------- */

size_t herd_wire_begin(struct buffer *out) {
    size_t began = buffer_length(out);
    buffer_append(out, &(struct wire_head){0}, sizeof(struct wire_head));
    return began;
}

void herd_wire_key(struct buffer *out, const uint8_t *key, size_t length) {
    uint8_t short_length = (uint8_t)length;
    CHECK(length <= WIRE_KEY_BYTES_MAX);
    buffer_append(out, &short_length, 1);
    buffer_append(out, key, length);
}

void herd_wire_put(struct buffer *out, uint32_t flags, const uint8_t *key, size_t key_length, const uint8_t *data, size_t length) {
    size_t began = herd_wire_begin(out);
    CHECK(length <= HERD_DATA_BYTES_MAX);
    buffer_append(out, &flags, sizeof flags);
    herd_wire_key(out, key, key_length);
    buffer_append(out, data, length);
    herd_wire_end(out, began, WIRE_PUT, 1);
}

void herd_wire_end(struct buffer *out, size_t began, uint8_t kind, uint32_t items) {
    struct wire_head head = {.kind = kind, .items = (uint16_t)items, .bytes = (uint32_t)(buffer_length(out) - began - sizeof head)};
    memcpy(buffer_bytes(out) + began, &head, sizeof head);
}

static void rewrite_get(const struct parts *p, const uint8_t *bytes, struct buffer *out) {
    size_t began = herd_wire_begin(out);
    uint32_t at = p->key_offset, keys = 0;
    for (struct token token; token_next(bytes, p->line_length, &at, &token); keys++) herd_wire_key(out, bytes + token.offset, token.length);
    herd_wire_end(out, began, WIRE_GET, keys);
}

void herd_rewrite(const struct protocol_request *r, const uint8_t *bytes, uint64_t now_us, struct buffer *out) {
    (void)now_us;
    if (bytes[0] == '*') return herd_resp_rewrite(r, bytes, out);
    const struct parts *p = parts(r);
    const uint8_t *key = bytes + p->key_offset;
    size_t began;
    switch ((enum herd_style)(r->style & HERD_STYLE_KIND)) {
        case HERD_STYLE_TEXT_GET: return rewrite_get(p, bytes, out);
        case HERD_STYLE_TEXT_SET: return herd_wire_put(out, p->client_flags, key, p->key_length, bytes + p->value_offset, p->value_length);
        default:
            began = herd_wire_begin(out);
            herd_wire_key(out, key, p->key_length);
            return herd_wire_end(out, began, WIRE_DELETE, 1);
    }
}

/* ---- what it is ------------------------------------------------------------------------------------------------------------ */

/* It is whole, and its place in the stream is known: the next one goes on behind it. */
static void say(struct protocol_request *r, struct buffer *answer, const char *text) {
    r->class = PROTOCOL_ANSWER;
    buffer_clear(answer);
    if (!parts(r)->quiet) buffer_text(answer, text);
}

static void get(struct protocol_request *r, const uint8_t *bytes, struct buffer *answer) {
    const struct parts *p = parts(r);
    uint32_t at = p->key_offset, keys = 0;
    for (struct token token; token_next(bytes, p->line_length, &at, &token);) keys++;
    if (keys > WIRE_ITEMS_MAX) return say(r, answer, "CLIENT_ERROR more than 1024 keys\r\n");
    r->class = PROTOCOL_READ;
    r->style = HERD_STYLE_TEXT_GET;
}

static void set(struct protocol_request *r, struct buffer *answer) {
    const struct parts *p = parts(r);
    if (p->too_large || p->value_length > HERD_DATA_BYTES_MAX) return say(r, answer, TOO_LONG);
    if (p->exptime != 0) return say(r, answer, "SERVER_ERROR HERD keeps no expiry: exptime has to be 0\r\n");
    r->class = PROTOCOL_WRITE;
    r->style = HERD_STYLE_TEXT_SET | (p->quiet ? HERD_STYLE_NO_REPLY : 0);
}

static void text_request(const struct protocol_limits *limits, const uint8_t *bytes, size_t length, struct protocol_request *r,
                         struct buffer *answer) {
    const struct protocol_limits plain = {.item_bytes_max = ITEM_BYTES_MAX, .exact = limits->exact};
    memcached_request(&plain, bytes, length, r, answer);
    const struct parts *p = parts(r);
    switch (r->class) {
        case PROTOCOL_MORE:
        case PROTOCOL_NOTHING:
        case PROTOCOL_ANSWER:
        case PROTOCOL_CLOSE: return;
        default: break;
    }
    r->all_keys = false;
    if (p->verb == VERB_GET) return get(r, bytes, answer);
    if (p->verb == VERB_SET && !p->meta) return set(r, answer);
    if (p->verb == VERB_DELETE) {
        r->class = PROTOCOL_WRITE;
        r->style = HERD_STYLE_TEXT_DELETE | (p->quiet ? HERD_STYLE_NO_REPLY : 0);
        return;
    }
    if (p->verb == VERB_LINE && starts_with(bytes, length, "version")) return say(r, answer, "VERSION 1.6.18-herd\r\n");
    say(r, answer, "SERVER_ERROR HERD knows get, set and delete\r\n");
}

void herd_request(const struct protocol_limits *limits, const uint8_t *bytes, size_t length, struct protocol_request *r,
                  struct buffer *answer) {
    if (length > 0 && bytes[0] == '*') herd_resp_request(bytes, length, r, answer);
    else text_request(limits, bytes, length, r, answer);
}
