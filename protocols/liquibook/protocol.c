/*
 * protocol.c: lines.h in the terms of ../protocol.h. What is logged of a write is its time and its line; liquibookd is given that
 * behind the request's number, which together are the stamp of PROTOCOL.md. A request about an order that there is is asked for
 * first (CHECK), so that one that changes nothing is answered and not logged.
 */
#include "protocols/liquibook/protocol.h"

#include <stdio.h>
#include <string.h>

#include "protocols/liquibook/lines.h"

static void request(const struct protocol_limits *limits, const uint8_t *bytes, size_t length, struct protocol_request *r,
                    struct buffer *answer) {
    struct lines_request line = {.scanned = r->scanned};
    switch (lines_request_read(&line, bytes, length, limits->names)) {
        case LINES_MORE: r->class = PROTOCOL_MORE; break;
        case LINES_READ: r->class = PROTOCOL_READ; break;
        case LINES_WRITE: r->class = PROTOCOL_WRITE; break;
        case LINES_DECIDE: r->class = PROTOCOL_DECIDE; break;
        case LINES_BAD: r->class = PROTOCOL_ANSWER; break;
        case LINES_CLOSE: r->class = PROTOCOL_CLOSE; break;
    }
    r->length = line.length;
    r->wanted = 0;
    r->scanned = line.scanned;
    r->swallow = 0;
    r->key_hash = line.hash;
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

/* ---- what may change nothing ----------------------------------------------------------------------------------------- */

/* What liquibookd would say to one request. A key is a trader's id, so hardly ever do two ask for one: who comes second is logged as
 * it stands, and rejected by all nodes if that changes nothing. */
struct verdict { bool is_fresh, is_clear; struct buffer reply; };

static uint32_t question(const struct protocol_request *r, const uint8_t *bytes, struct buffer *out) {
    buffer_text(out, "CHECK ");
    buffer_append(out, bytes, r->length);
    return 1;
}

static bool item(void *of, const uint8_t *answer, size_t length, uint64_t now_s) {
    static const char CLEAR[] = "CLEAR\nEND\n";
    struct verdict *verdict = of;
    (void)now_s;
    verdict->is_fresh = true;
    verdict->is_clear = length == sizeof CLEAR - 1 && memcmp(answer, CLEAR, length) == 0;
    buffer_clear(&verdict->reply);
    if (!verdict->is_clear) buffer_append(&verdict->reply, answer, length);
    return length > 0;
}

static void item_free(void *of) { buffer_free(&((struct verdict *)of)->reply); }

static bool decide(const struct protocol_request *r, const uint8_t *bytes, void *of, uint64_t term, uint64_t now_s, struct buffer *command,
                   struct buffer *reply, uint32_t *style) {
    struct verdict *verdict = of;
    bool changes = !verdict->is_fresh || verdict->is_clear;
    (void)term, (void)now_s;
    *style = 0;
    verdict->is_fresh = false;
    if (!changes) {
        buffer_append(reply, buffer_bytes(&verdict->reply), buffer_length(&verdict->reply));
        return false;
    }
    decimal(r->now_us, "", command);
    buffer_append(command, bytes, r->length);
    return true;
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
    (void)style, (void)term;
    if (ack_length > 0) buffer_append(out, ack, ack_length);
    else buffer_append(out, reply, reply_length); /* it was not logged */
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
    .takes_its_time = true,
    .item_bytes = sizeof(struct verdict),
    .request = request,
    .rewrite = rewrite,
    .stamp = stamp,
    .question = question,
    .item = item,
    .item_free = item_free,
    .decide = decide,
    .reply = reply,
    .answer = answer,
    .failed = failed,
};
