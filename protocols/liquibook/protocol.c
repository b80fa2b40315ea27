/*
 * protocol.c: lines.h in the terms of ../protocol.h. What is logged of a write is its time and its line; liquibookd is given that
 * behind the request's number, which together are the stamp of PROTOCOL.md.
 */
#include "protocols/liquibook/protocol.h"

#include <stdio.h>

#include "protocols/liquibook/lines.h"

static void request(const struct protocol_limits *limits, const uint8_t *bytes, size_t length, struct protocol_request *r,
                    struct buffer *answer) {
    struct lines_request line = {.scanned = r->scanned};
    (void)limits;
    switch (lines_request_read(&line, bytes, length)) {
        case LINES_MORE: r->class = PROTOCOL_MORE; break;
        case LINES_READ: r->class = PROTOCOL_READ; break;
        case LINES_WRITE: r->class = PROTOCOL_WRITE; break;
        case LINES_BAD: r->class = PROTOCOL_ANSWER; break;
        case LINES_CLOSE: r->class = PROTOCOL_CLOSE; break;
    }
    r->length = line.length;
    r->wanted = 0;
    r->scanned = line.scanned;
    r->swallow = 0;
    r->key_hash = 0;
    r->all_keys = false;
    r->style = 0;
    r->why = NULL;
    if (line.text != NULL) buffer_text(answer, line.text);
}

static void decimal(uint64_t value, const char *before, struct buffer *out) {
    char text[32];
    buffer_append(out, text, (size_t)snprintf(text, sizeof text, "%s%llu ", before, (unsigned long long)value));
}

static void rewrite(const struct protocol_request *r, const uint8_t *bytes, uint64_t now_us, struct buffer *out) {
    if (r->class == PROTOCOL_WRITE) decimal(now_us, "", out);
    buffer_append(out, bytes, r->length);
}

static void stamp(uint64_t number, struct buffer *out) { decimal(number, "@", out); }

static size_t reply(struct protocol_reply *state, uint32_t answers, const uint8_t *bytes, size_t length, enum protocol_status *status) {
    struct lines_reply progress = {.matched = (uint32_t)state->state[0]};
    enum lines_status whole;
    (void)answers; /* each request has one */
    size_t used = lines_reply_read(&progress, bytes, length, &whole);
    state->state[0] = progress.matched;
    *status = whole == LINES_REPLY_WHOLE ? PROTOCOL_REPLY_WHOLE : PROTOCOL_REPLY_MORE;
    return used;
}

static bool answer(uint32_t style, const uint8_t *reply, size_t reply_length, const uint8_t *ack, size_t ack_length, uint64_t term,
                   struct buffer *out) {
    (void)style, (void)reply, (void)reply_length, (void)term;
    buffer_append(out, ack, ack_length);
    return true;
}

static bool failed(const uint8_t *ack, size_t ack_length) {
    (void)ack, (void)ack_length; /* what one node's liquibookd rejects, all do */
    return false;
}

const struct protocol liquibook_protocol = {
    .name = "liquibook",
    .ping = "PING\n",
    .full = "REJECT full too many connections\nEND\n",
    .request = request,
    .rewrite = rewrite,
    .stamp = stamp,
    .reply = reply,
    .answer = answer,
    .failed = failed,
};
