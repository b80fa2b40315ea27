/*
 * fuzz_own.c: frames of musidecar.api and their replies, fed at once and in parts, and against a plain reading of what a
 * proposal's body must be.
 */
#include "fuzz.h"

#include "protocols/own/frames.h"

static struct edge edge;
static struct story stories[2];

static uint32_t word(const uint8_t *at) { return at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 | (uint32_t)at[3] << 24; }

/* What a server is given: it must be able to take it apart. */
static void check_whole(const uint8_t *frame, size_t length, enum frames_class class) {
    if (frame[0] == '.') {
        CHECK(length == 1 && class == FRAMES_READ);
        return;
    }
    CHECK(length >= FRAMES_HEAD_BYTES && length <= FRAMES_BYTES_MAX && word(frame + 4) == length);
    CHECK(class == (frame[0] == 'R' ? FRAMES_READ : FRAMES_WRITE));
    if (frame[0] != 'P') {
        CHECK(length == FRAMES_HEAD_BYTES && (frame[0] == 'O' || frame[0] == 'C' || frame[0] == 'R'));
        return;
    }
    uint64_t sum = FRAMES_HEAD_BYTES + 4, count = word(frame + FRAMES_HEAD_BYTES);
    for (uint64_t i = 0; i < count; i++) {
        CHECK(FRAMES_HEAD_BYTES + 4 + (i + 1) * 4 <= length);
        sum += 4 + (uint64_t)word(frame + FRAMES_HEAD_BYTES + 4 + i * 4);
    }
    CHECK(sum == length);
}

/* One request after the other; what has not been consumed is given again, with more behind it. */
static void requests(struct story *story, const uint8_t *bytes, size_t length, struct dice *dice) {
    size_t start = 0, known = 0, wanted = 0;
    story->count = 0;
    while (known < length || dice == NULL) {
        known = dice == NULL ? length : known + dice_part(dice, length - known);
        while (start < known) {
            struct frames_request request;
            enum frames_class class = frames_request_read(&request, edge_put(&edge, bytes + start, known - start), known - start);
            CHECK(class == request.class && (request.why != NULL) == (class == FRAMES_BAD));
            if (class == FRAMES_MORE) { /* and it was right to wait for what it wanted */
                CHECK(request.wanted > known - start && request.wanted >= wanted && request.wanted <= FRAMES_BYTES_MAX);
                wanted = request.wanted;
                break;
            }
            CHECK(known - start >= wanted || class == FRAMES_BAD);
            wanted = 0;
            if (class == FRAMES_BAD) return story_tell(story, class);
            CHECK(request.length > 0 && request.length <= known - start);
            check_whole(bytes + start, request.length, class);
            story_tell(story, class | (uint64_t)request.length << 8);
            start += request.length;
        }
        if (dice == NULL) break;
    }
    story_tell(story, start);
}

static void replies(struct story *story, const uint8_t *bytes, size_t length, struct dice *dice) {
    struct frames_reply reply = {0};
    size_t begun = 0;
    story->count = 0;
    for (size_t start = 0; start < length;) {
        size_t n = dice == NULL ? length - start : dice_part(dice, length - start);
        enum frames_status status;
        size_t taken = frames_reply_read(&reply, edge_put(&edge, bytes + start, n), n, &status);
        CHECK(taken <= n && (taken > 0 || status == FRAMES_REPLY_BAD) && (status != FRAMES_REPLY_MORE || taken == n));
        start += taken;
        if (status == FRAMES_REPLY_BAD) return story_tell(story, UINT64_MAX);
        if (status == FRAMES_REPLY_MORE) continue;
        bool single = bytes[begun] == '.' || bytes[begun] == '!';
        CHECK(start - begun == (single ? 1 : word(bytes + begun + 4)) && reply.seen == 0 && reply.length == 0);
        story_tell(story, start);
        begun = start;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size < 2 || size > FUZZ_BYTES_MAX) return 0;
    struct dice dice = {data[0] * 2u + 1u};
    story_twice(requests, stories, data + 1, size - 1, &dice);
    story_twice(replies, stories, data + 1, size - 1, &dice);
    uint8_t stamp[FRAMES_STAMP_BYTES];
    frames_stamp(size, stamp);
    CHECK(stamp[0] == 'S' && word(stamp + 8) == size && word(stamp + 4) == 0 && word(stamp + 12) == 0);
    return 0;
}
