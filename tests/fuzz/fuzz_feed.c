/*
 * fuzz_feed.c: what the own backend asks the feed, framed under the feed's limits, at once and in parts.
 */
#include "fuzz.h"

#include <stdio.h>
#include <strings.h>

#include "protocols/redis/replconf.h"

static struct edge edge;
static struct story stories[2];

static bool inside(struct resp_argument a, size_t whole) { return (size_t)a.offset + a.length + 2 <= whole; }

/* The number that is read is the one that stands there. */
static void same_number(struct resp_argument a, const uint8_t *bytes, uint64_t value) {
    char text[32];
    int n = snprintf(text, sizeof text, "%llu", (unsigned long long)value);
    size_t zeros = 0;
    while (zeros + 1 < a.length && bytes[a.offset + zeros] == '0') zeros++;
    CHECK(a.length - zeros == (size_t)n && memcmp(bytes + a.offset + zeros, text, (size_t)n) == 0);
}

static void tell(struct story *story, const struct resp_request *request, const uint8_t *bytes) {
    struct replica_ask ask = replica_ask_read(request, bytes);
    story_tell(story, ask.asks);
    switch (ask.asks) {
        case ASKS_AUTH: {
            CHECK(inside(ask.password, request->length));
            struct resp_argument last = resp_request_argument(request, bytes, request->argc - 1);
            CHECK(ask.password.offset == last.offset && ask.password.length == last.length);
            story_bytes(story, bytes + ask.password.offset, ask.password.length);
            break;
        }
        case ASKS_PSYNC:
            CHECK(inside(ask.replid, request->length) && request->argc == 3);
            story_bytes(story, bytes + ask.replid.offset, ask.replid.length);
            story_tell(story, ask.offset);
            if (bytes[request->arguments[2].offset] != '-') same_number(request->arguments[2], bytes, ask.offset);
            break;
        case ASKS_ACK:
            same_number(request->arguments[2], bytes, ask.offset);
            story_tell(story, ask.offset);
            break;
        case ASKS_PING: CHECK(request->arguments[0].length == 4); break;
        case ASKS_REPLCONF: CHECK(request->argc >= 3); break;
        case ASKS_NOTHING_KNOWN: break;
    }
}

static void run(struct story *story, const uint8_t *bytes, size_t length, struct dice *dice) {
    struct resp_limits limits = {256, 1024, 64, true}; /* the feed's are larger, in the same order */
    struct resp_request request;
    resp_request_reset(&request);
    story->count = 0;
    size_t start = 0, end = dice == NULL ? length : 0;
    for (;;) {
        const uint8_t *at = edge_put(&edge, bytes + start, end - start);
        enum resp_status status = resp_request_feed(&request, at, end - start, &limits);
        if (status == RESP_BAD) {
            story_tell(story, UINT64_MAX);
            return;
        }
        if (status == RESP_MORE) {
            if (end == length) return;
            end += dice_part(dice, length - end);
            continue;
        }
        story_tell(story, start);
        if (status == RESP_DONE) tell(story, &request, at);
        start += request.length;
        resp_request_reset(&request);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size < 1 || size > FUZZ_BYTES_MAX) return 0;
    struct dice dice = {data[0] * 2u + 1u};
    run(&stories[0], data + 1, size - 1, NULL);
    run(&stories[1], data + 1, size - 1, &dice);
    story_compare(&stories[0], &stories[1]);
    return 0;
}
