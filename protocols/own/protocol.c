/* protocol.c: frames.h in the terms of ../protocol.h. A frame is logged as it came, and its answer is passed on as it is. */
#include "protocols/own/protocol.h"

#include "protocols/own/frames.h"

static void request(const struct protocol_limits *limits, const uint8_t *bytes, size_t length, struct protocol_request *r,
                    struct buffer *answer) {
    struct frames_request frame;
    (void)limits, (void)answer;
    switch (frames_request_read(&frame, bytes, length)) {
        case FRAMES_MORE: r->class = PROTOCOL_MORE; break;
        case FRAMES_READ: r->class = PROTOCOL_READ; break;
        case FRAMES_WRITE: r->class = PROTOCOL_WRITE; break;
        case FRAMES_BAD: r->class = PROTOCOL_CLOSE; break;
    }
    r->length = frame.length;
    r->wanted = frame.wanted;
    r->scanned = 0;
    r->swallow = 0;
    r->key_hash = 0;
    r->all_keys = false;
    r->style = 0;
    r->why = frame.why;
}

static void rewrite(const struct protocol_request *r, const uint8_t *bytes, uint64_t now_us, struct buffer *out) {
    (void)now_us; /* time is the proposer's to put into a record */
    buffer_append(out, bytes, r->length);
}

static void stamp(uint64_t number, struct buffer *out) {
    uint8_t bytes[FRAMES_STAMP_BYTES];
    frames_stamp(number, bytes);
    buffer_append(out, bytes, sizeof bytes);
}

static size_t reply(struct protocol_reply *state, uint32_t answers, const uint8_t *bytes, size_t length, enum protocol_status *status) {
    struct frames_reply progress = {.seen = state->state[0], .length = state->state[1]};
    enum frames_status whole;
    (void)answers; /* each request has one */
    size_t used = frames_reply_read(&progress, bytes, length, &whole);
    state->state[0] = progress.seen;
    state->state[1] = progress.length;
    *status = whole == FRAMES_REPLY_WHOLE ? PROTOCOL_REPLY_WHOLE : whole == FRAMES_REPLY_BAD ? PROTOCOL_REPLY_BAD : PROTOCOL_REPLY_MORE;
    return used;
}

static bool answer(uint32_t style, const uint8_t *reply, size_t reply_length, const uint8_t *ack, size_t ack_length, uint64_t term,
                   struct buffer *out) {
    (void)style, (void)reply, (void)reply_length, (void)term;
    buffer_append(out, ack, ack_length);
    return true;
}

static bool failed(const uint8_t *ack, size_t ack_length) {
    (void)ack, (void)ack_length; /* a machine that fails answers nothing: its node leaves */
    return false;
}

const struct protocol own_protocol = {
    .name = "own",
    .ping = FRAMES_PING,
    .full = FRAMES_FULL,
    .request = request,
    .rewrite = rewrite,
    .stamp = stamp,
    .reply = reply,
    .answer = answer,
    .failed = failed,
};
