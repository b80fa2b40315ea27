/* frames.c: see frames.h. A body is checked here, before it is logged: a machine is given nothing that its server could not take apart. */
#include "protocols/own/frames.h"

#include <endian.h>
#include <stdbool.h>
#include <string.h>

#define COUNT_BYTES 4u
#define REPLY_LENGTH_AT 4u

static uint32_t word(const uint8_t *at) {
    uint32_t value;
    memcpy(&value, at, sizeof value);
    return le32toh(value);
}

static enum frames_class bad(struct frames_request *request, const char *why) {
    request->why = why;
    return request->class = FRAMES_BAD;
}

static enum frames_class more(struct frames_request *request, size_t wanted) {
    request->wanted = wanted;
    return request->class = FRAMES_MORE;
}

/* The lengths in it add up to it, exactly. */
static bool body_adds_up(const uint8_t *body, size_t length) {
    if (length < COUNT_BYTES) return false;
    uint64_t count = word(body), left = length - COUNT_BYTES;
    if (count > left / COUNT_BYTES) return false;
    left -= count * COUNT_BYTES;
    for (uint64_t i = 0; i < count; i++) {
        uint32_t record = word(body + COUNT_BYTES + i * COUNT_BYTES);
        if (record > left) return false;
        left -= record;
    }
    return left == 0;
}

enum frames_class frames_request_read(struct frames_request *request, const uint8_t *bytes, size_t length) {
    *request = (struct frames_request){.class = FRAMES_MORE};
    if (length == 0) return more(request, 1);
    if (bytes[0] == FRAMES_PING[0]) return request->length = 1, request->class = FRAMES_READ;
    if (bytes[0] != 'O' && bytes[0] != 'P' && bytes[0] != 'C' && bytes[0] != 'R') return bad(request, "not a frame of musidecar.api");
    if (length < FRAMES_HEAD_BYTES) return more(request, FRAMES_HEAD_BYTES);
    uint32_t whole = word(bytes + REPLY_LENGTH_AT);
    if (bytes[1] != 0 || bytes[2] != 0 || bytes[3] != 0) return bad(request, "a frame of a later musidecar.api");
    if (whole < FRAMES_HEAD_BYTES || whole > FRAMES_BYTES_MAX) return bad(request, "a frame's length is not 32 bytes to 16 MiB");
    if (bytes[0] != 'P' && whole != FRAMES_HEAD_BYTES) return bad(request, "a frame with a body that has none");
    if (length < whole) return more(request, whole);
    if (bytes[0] == 'P' && !body_adds_up(bytes + FRAMES_HEAD_BYTES, whole - FRAMES_HEAD_BYTES)) return bad(request, "the lengths in a proposal do not add up");
    request->length = whole;
    return request->class = bytes[0] == 'R' ? FRAMES_READ : FRAMES_WRITE;
}

void frames_stamp(uint64_t number, uint8_t out[FRAMES_STAMP_BYTES]) {
    uint64_t value = htole64(number);
    memset(out, 0, FRAMES_STAMP_BYTES);
    out[0] = 'S';
    memcpy(out + 8, &value, sizeof value);
}

size_t frames_reply_read(struct frames_reply *reply, const uint8_t *bytes, size_t length, enum frames_status *status) {
    size_t at = 0;
    *status = FRAMES_REPLY_MORE;
    for (; reply->seen < FRAMES_REPLY_HEAD_BYTES && at < length; at++, reply->seen++) {
        if (reply->seen == 0 && (bytes[at] == FRAMES_PING[0] || bytes[at] == FRAMES_FULL[0])) {
            *status = FRAMES_REPLY_WHOLE;
            return at + 1;
        }
        if (reply->seen < REPLY_LENGTH_AT || reply->seen >= REPLY_LENGTH_AT + 4) continue;
        reply->length |= (uint64_t)bytes[at] << (reply->seen - REPLY_LENGTH_AT) * 8;
    }
    if (reply->seen < FRAMES_REPLY_HEAD_BYTES) return at;
    if (reply->length < FRAMES_REPLY_HEAD_BYTES || reply->length > FRAMES_REPLY_BYTES_MAX) return *status = FRAMES_REPLY_BAD, at;
    uint64_t left = reply->length - reply->seen, take = length - at < left ? length - at : left;
    reply->seen += take;
    at += (size_t)take;
    if (reply->seen < reply->length) return at;
    *reply = (struct frames_reply){0};
    *status = FRAMES_REPLY_WHOLE;
    return at;
}
