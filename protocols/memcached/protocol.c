/* protocol.c: memcached.h in the terms of ../protocol.h. */
#include "protocols/memcached/protocol.h"

#include <stdio.h>

#include "protocols/memcached/memcached.h"

_Static_assert(sizeof(struct memcached_request) <= sizeof(((struct protocol_request *)0)->parsed), "no room for a parsed request");
_Static_assert(sizeof(struct memcached_reply) <= sizeof(struct protocol_reply), "no room for an answer's progress");

static enum protocol_class class_of(const struct memcached_request *parsed) {
    switch ((enum memcached_class)parsed->class) {
        case MEMCACHED_MORE: return PROTOCOL_MORE;
        case MEMCACHED_READ: return PROTOCOL_READ;
        case MEMCACHED_WRITE: return PROTOCOL_WRITE;
        case MEMCACHED_DECIDE: return PROTOCOL_DECIDE;
        case MEMCACHED_ANSWER: return PROTOCOL_ANSWER;
        case MEMCACHED_LOCAL: return PROTOCOL_LOCAL;
        case MEMCACHED_STATS: return PROTOCOL_STATUS;
        case MEMCACHED_STREAM: return PROTOCOL_STREAM;
        case MEMCACHED_CLOSE: return PROTOCOL_CLOSE;
        case MEMCACHED_NOTHING: break;
    }
    return PROTOCOL_NOTHING;
}

static void request(const struct protocol_limits *limits, const uint8_t *bytes, size_t length, struct protocol_request *r,
                    struct buffer *answer) {
    struct memcached_request *parsed = (struct memcached_request *)(void *)r->parsed;
    const struct memcached_limits own = {.item_bytes_max = (uint32_t)limits->item_bytes_max, .exact = limits->exact};
    memcached_request_reset(parsed);
    parsed->scanned = r->scanned;
    r->class = memcached_request_read(parsed, &own, bytes, length) == MEMCACHED_MORE ? PROTOCOL_MORE : class_of(parsed);
    r->length = parsed->length;
    r->wanted = parsed->wanted;
    r->scanned = parsed->scanned;
    r->swallow = parsed->swallow;
    r->key_hash = parsed->key_hash;
    r->all_keys = parsed->all_keys;
    r->style = parsed->style;
    r->why = parsed->why;
    if (r->class == PROTOCOL_ANSWER || r->class == PROTOCOL_CLOSE) buffer_text(answer, parsed->text);
}

static const struct memcached_request *parsed_of(const struct protocol_request *r) {
    return (const struct memcached_request *)(const void *)r->parsed;
}

static void rewrite(const struct protocol_request *r, const uint8_t *bytes, uint64_t now_s, struct buffer *out) {
    memcached_rewrite(parsed_of(r), bytes, (int64_t)now_s, out);
}

static uint32_t question(const struct protocol_request *r, const uint8_t *bytes, struct buffer *out) {
    uint32_t answers;
    memcached_question(parsed_of(r), bytes, out, &answers);
    return answers;
}

static bool item(void *item, const uint8_t *answer, size_t length, uint64_t now_s) {
    return memcached_item_read(item, answer, length, (int64_t)now_s);
}

static void item_free(void *item) { memcached_item_free(item); }

static bool decide(const struct protocol_request *r, const uint8_t *bytes, void *item, uint64_t term, uint64_t now_s,
                   struct buffer *command, struct buffer *reply, uint32_t *style) {
    return memcached_decide(parsed_of(r), bytes, item, (uint16_t)term, (int64_t)now_s, command, reply, style) == MEMCACHED_WRITE;
}

static size_t reply(struct protocol_reply *state, uint32_t answers, const uint8_t *bytes, size_t length, enum protocol_status *status) {
    struct memcached_reply *progress = (struct memcached_reply *)(void *)state->state;
    int whole;
    if (progress->answers == 0) memcached_reply_reset(progress, answers);
    size_t used = memcached_reply_read(progress, bytes, length, &whole);
    *status = (enum protocol_status)whole;
    return used;
}

static bool answer(uint32_t style, const uint8_t *reply, size_t reply_length, const uint8_t *ack, size_t ack_length, uint64_t term,
                   struct buffer *out) {
    return memcached_answer(style, reply, reply_length, ack, ack_length, (uint16_t)term, out);
}

static void status(const char *name, uint64_t value, struct buffer *out) {
    char line[96];
    if (name == NULL) buffer_text(out, "END\r\n");
    else buffer_append(out, line, (size_t)snprintf(line, sizeof line, "STAT %s %llu\r\n", name, (unsigned long long)value));
}

const struct protocol memcached_protocol = {
    .name = "memcached",
    .ping = "mn\r\n",
    .full = "SERVER_ERROR too many open connections\r\n",
    .item_bytes = sizeof(struct memcached_item),
    .request = request,
    .rewrite = rewrite,
    .question = question,
    .item = item,
    .item_free = item_free,
    .decide = decide,
    .reply = reply,
    .answer = answer,
    .failed = memcached_failed,
    .status = status,
};
