/*
 * fuzz_lines.c: requests and replies of the exchange's line protocol, fed at once and in parts, and against a plain
 * reading of where lines end.
 */
#include "fuzz.h"

#include "protocols/liquibook/lines.h"

static struct edge edge;
static struct story stories[2];

/* One request after the other; what has not been consumed is given again, with more behind it. */
static void requests(struct story *story, const uint8_t *bytes, size_t length, struct dice *dice) {
    struct lines_request request = {0};
    size_t start = 0, known = 0;
    story->count = 0;
    while (known < length || dice == NULL) {
        known = dice == NULL ? length : known + dice_part(dice, length - known);
        while (start < known) {
            uint8_t *part = edge_put(&edge, bytes + start, known - start);
            enum lines_class class = lines_request_read(&request, part, known - start, "\nAAPL\nS\n");
            if (class == LINES_MORE) break;
            CHECK(request.length > 0 && request.length <= known - start && request.length <= LINES_BYTES_MAX);
            CHECK((request.text != NULL) == (class == LINES_BAD || class == LINES_CLOSE));
            story_tell(story, class | (uint64_t)request.length << 8);
            story_bytes(story, (const uint8_t *)request.text, request.text == NULL ? 0 : strlen(request.text));
            if (class == LINES_CLOSE) return;
            CHECK(bytes[start + request.length - 1] == '\n');
            CHECK(memchr(bytes + start, '\n', request.length - 1) == NULL);
            start += request.length;
            request.scanned = 0;
        }
        if (dice == NULL) break;
    }
    CHECK(length - start < LINES_BYTES_MAX && (start == length || memchr(bytes + start, '\n', length - start) == NULL));
}

static void replies(struct story *story, const uint8_t *bytes, size_t length, struct dice *dice) {
    struct lines_reply reply = {0};
    story->count = 0;
    for (size_t start = 0; start < length;) {
        size_t n = dice == NULL ? length - start : dice_part(dice, length - start);
        enum lines_status status;
        size_t taken = lines_reply_read(&reply, edge_put(&edge, bytes + start, n), n, &status);
        CHECK(taken > 0 && taken <= n && (status == LINES_REPLY_WHOLE || taken == n));
        start += taken;
        if (status == LINES_REPLY_WHOLE) story_tell(story, start);
    }
}

/* Every line that is END ends one, and nothing else does. */
static void plain(const struct story *story, const uint8_t *bytes, size_t length) {
    size_t found = 0;
    for (size_t at = 0; at + 4 <= length; at++) {
        if (memcmp(bytes + at, "END\n", 4) != 0 || (at > 0 && bytes[at - 1] != '\n')) continue;
        CHECK(found < story->count && story->events[found] == at + 4);
        found++;
    }
    CHECK(found == story->count);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size < 2 || size > FUZZ_BYTES_MAX) return 0;
    struct dice dice = {data[0] * 2u + 1u};
    story_twice(requests, stories, data + 1, size - 1, &dice);
    story_twice(replies, stories, data + 1, size - 1, &dice);
    plain(&stories[0], data + 1, size - 1);
    return 0;
}
