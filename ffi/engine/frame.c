/* frame.c: see frame.h. */
#include "engine/frame.h"

#include "engine/census.h"
#include "engine/origin.h"
#include "engine/own.h"
#include "engine/slowlog.h"
#include "protocols/redis/session.h"

#include <string.h>

#define REPLY_BYTES_MAX (1u << 20) /* an answer comes in parts of what was read at once */

static bool request_right(const struct frame *f, const struct frame_limits *limits) {
    if (f->length == 0 || f->length > limits->request_bytes_max || f->database >= limits->databases) return false;
    if ((f->flags & FRAME_STANDS_IN) && f->replies != 1) return false;
    if (f->loads > LOADS_LAST || f->view >= VIEWS || f->replies == 0 || f->swallow >= f->replies || f->slot >= ORIGIN_SLOTS_MAX) return false;
    return f->script_offset <= f->length && f->script_length <= f->length - f->script_offset;
}

static bool own_right(const struct frame *f, const struct frame_limits *limits) {
    if (f->length == 0 || f->length > limits->request_bytes_max || f->swallow > f->replies || f->view >= VIEWS) return false;
    return f->script_offset <= f->length && f->script_length <= f->length - f->script_offset;
}

static bool head_right(const struct frame *f, const struct frame_limits *limits) {
    switch ((enum frame_type)f->type) {
        case FRAME_REQUEST: return request_right(f, limits);
        case FRAME_OWN_REQUEST: return own_right(f, limits);
        case FRAME_OWN_PUSH:
        case FRAME_REPLY: return f->length <= REPLY_BYTES_MAX;
        case FRAME_SERVING:
        case FRAME_NOT_SERVING:
        case FRAME_JOIN:
        case FRAME_UNKNOWN:
        case FRAME_OWN_END:
        case FRAME_OWN_EOF:
        case FRAME_WHO:
        case FRAME_CLIENTS_ASK:
        case FRAME_CLIENT_KILL:
        case FRAME_CLIENT_COUNT:
        case FRAME_OWN_GONE:
        case FRAME_OWN_TAKEN:
        case FRAME_SNAPSHOT_ASK:
        case FRAME_HOLD:
        case FRAME_HELD:
        case FRAME_CATCH_UP:
        case FRAME_FRESH_ASK:
        case FRAME_CAUGHT_UP: return f->length == 0;
        case FRAME_FRESH: return f->length == sizeof(uint64_t);
        case FRAME_OWN_PEER: return f->length == sizeof(struct own_peer);
        case FRAME_WHO_IS: return f->length == sizeof(struct slow_client);
        case FRAME_CLIENTS: return f->length <= CENSUS_BYTES_MAX;
        case FRAME_SNAPSHOT: return true;
    }
    return false;
}

enum frame_status frame_read(const uint8_t *bytes, size_t length, const struct frame_limits *limits, struct frame *frame,
                             size_t *whole) {
    *whole = 0;
    if (length < sizeof *frame) return FRAME_MORE;
    memcpy(frame, bytes, sizeof *frame);
    if (!head_right(frame, limits)) return FRAME_BAD;
    *whole = sizeof *frame + frame->length;
    return length < *whole ? FRAME_MORE : FRAME_WHOLE;
}
