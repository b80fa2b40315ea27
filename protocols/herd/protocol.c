/* protocol.c: see protocol.h. A logged request says outright what its keys hold afterwards, so that nothing needs a stamp. */
#include "protocols/herd/protocol.h"

#include <stdio.h>

#include "protocols/herd/request.h"
#include "protocols/herd/value.h"
#include "protocols/herd/wire.h"

/* ---- answers of the gate ----------------------------------------------------------------------------------------------------- */

struct progress { uint64_t gathered, head, left; };

static size_t reply(struct protocol_reply *state, uint32_t answers, const uint8_t *bytes, size_t length, enum protocol_status *status) {
    struct progress *p = (struct progress *)(void *)state->state;
    size_t at = 0;
    (void)answers; /* each request has one */
    *status = PROTOCOL_REPLY_MORE;
    while (at < length && p->gathered < sizeof(struct wire_head)) {
        memcpy((uint8_t *)&p->head + p->gathered, bytes + at, 1);
        at++;
        if (++p->gathered < sizeof(struct wire_head)) continue;
        struct wire_head head;
        memcpy(&head, &p->head, sizeof head);
        p->left = head.bytes;
        if (head.zero != 0 || head.bytes > WIRE_ANSWER_BYTES_MAX || head.items > WIRE_ITEMS_MAX) {
            *status = PROTOCOL_REPLY_BAD;
            return at;
        }
    }
    if (p->gathered < sizeof(struct wire_head)) return at;
    size_t part = p->left < length - at ? (size_t)p->left : length - at;
    p->left -= part;
    if (p->left == 0) *status = PROTOCOL_REPLY_WHOLE;
    return at + part;
}

/* The next item of an answer to WIRE_GET: false at the end, and at what is none. */
static bool next_found(const uint8_t *bytes, size_t length, size_t *at, struct wire_found *found) {
    if (length - *at < sizeof *found) return false;
    memcpy(found, bytes + *at, sizeof *found);
    if (found->key_length > WIRE_KEY_BYTES_MAX || found->data_length > HERD_DATA_BYTES_MAX) return false;
    if (length - *at - sizeof *found < (size_t)found->key_length + found->data_length) return false;
    *at += sizeof *found + found->key_length + found->data_length;
    return true;
}

static void put_line(struct buffer *out, const char *format, uint64_t a, uint64_t b) {
    char line[64];
    buffer_append(out, line, (size_t)snprintf(line, sizeof line, format, (unsigned long long)a, (unsigned long long)b));
}

static void put_text_value(struct buffer *out, const struct wire_found *found, const uint8_t *end) {
    const uint8_t *data = end - found->data_length, *key = data - found->key_length;
    if (!found->found) return;
    buffer_text(out, "VALUE ");
    buffer_append(out, key, found->key_length);
    put_line(out, " %llu %llu\r\n", found->flags, found->data_length);
    buffer_append(out, data, found->data_length);
    buffer_text(out, "\r\n");
}

static void put_bulk(struct buffer *out, const struct wire_found *found, const uint8_t *end) {
    if (!found->found) return buffer_text(out, "$-1\r\n");
    put_line(out, "$%llu\r\n", found->data_length, 0);
    buffer_append(out, end - found->data_length, found->data_length);
    buffer_text(out, "\r\n");
}

static bool put_found(enum herd_style style, const struct wire_head *head, const uint8_t *bytes, struct buffer *out) {
    struct wire_found found;
    uint64_t count = 0, items = 0;
    size_t at = 0;
    if (style == HERD_STYLE_MGET) put_line(out, "*%llu\r\n", head->items, 0);
    for (; next_found(bytes, head->bytes, &at, &found); items++) {
        if (style == HERD_STYLE_TEXT_GET) put_text_value(out, &found, bytes + at);
        else if (style == HERD_STYLE_EXISTS) count += found.found != 0;
        else put_bulk(out, &found, bytes + at);
    }
    if (at != head->bytes || items != head->items) return false;
    if (style == HERD_STYLE_TEXT_GET) buffer_text(out, "END\r\n");
    if (style == HERD_STYLE_EXISTS) put_line(out, ":%llu\r\n", count, 0);
    return true;
}

static bool put_deleted(enum herd_style style, const struct wire_head *head, const uint8_t *bytes, struct buffer *out) {
    uint64_t count = 0;
    if (head->bytes != head->items || head->items == 0) return false;
    for (uint32_t i = 0; i < head->items; i++) count += bytes[i] != 0;
    if (style == HERD_STYLE_DEL) put_line(out, ":%llu\r\n", count, 0);
    else buffer_text(out, count > 0 ? "DELETED\r\n" : "NOT_FOUND\r\n");
    return true;
}

static bool answer(uint32_t style, const uint8_t *reply, size_t reply_length, const uint8_t *ack, size_t ack_length, uint64_t term,
                   struct buffer *out) {
    struct wire_head head;
    enum herd_style kind = style & HERD_STYLE_KIND;
    size_t before = buffer_length(out);
    bool good;
    (void)reply, (void)reply_length, (void)term;
    if (ack_length < sizeof head) return false;
    memcpy(&head, ack, sizeof head);
    ack += sizeof head;
    if (head.bytes != ack_length - sizeof head) return false;
    switch (kind) {
        case HERD_STYLE_TEXT_SET:
        case HERD_STYLE_SET:
            good = head.kind == WIRE_PUT && head.bytes == 0;
            buffer_text(out, kind == HERD_STYLE_SET ? "+OK\r\n" : "STORED\r\n");
            break;
        case HERD_STYLE_TEXT_DELETE:
        case HERD_STYLE_DEL: good = head.kind == WIRE_DELETE && put_deleted(kind, &head, ack, out); break;
        case HERD_STYLE_TEXT_GET:
        case HERD_STYLE_GET:
        case HERD_STYLE_MGET:
        case HERD_STYLE_EXISTS: good = head.kind == WIRE_GET && put_found(kind, &head, ack, out); break;
        default: good = false; break;
    }
    if (!good || style & HERD_STYLE_NO_REPLY) out->end = out->start + before;
    return good;
}

static bool failed(const uint8_t *ack, size_t ack_length) {
    (void)ack, (void)ack_length; /* HERD says of nothing that it was not done; a gate that is in doubt ends */
    return false;
}

const struct protocol herd_protocol = {
    .name = "herd",
    .ping = "P",
    .full = "SERVER_ERROR too many open connections\r\n",
    .request = herd_request,
    .rewrite = herd_rewrite,
    .reply = reply,
    .answer = answer,
    .failed = failed,
};
