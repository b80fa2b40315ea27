/*
 * fuzz_replies.c: what a backend answers, fed at once and in parts, and against a plain reading of the same bytes.
 */
#include "fuzz.h"

#include "protocols/redis/resp.h"

#define DEPTH_MAX 500u

static struct edge edge;
static struct story stories[2];

/* ---- where a reply ends, read the simple way: all of it is there, level by level --------------------------------- */

struct plain { const uint8_t *bytes; size_t length, at; bool deep; };

static bool one_of(uint8_t c, const char *set) { return c != 0 && strchr(set, c) != NULL; }

static bool plain_number(const uint8_t *line, size_t length, uint64_t *value) {
    if (length == 0 || length > 18) return false;
    *value = 0;
    for (size_t i = 0; i < length; i++) {
        if (line[i] < '0' || line[i] > '9') return false;
        *value = *value * 10 + line[i] - '0';
    }
    return true;
}

static bool plain_integer(const uint8_t *line, size_t length) {
    size_t sign = length > 0 && one_of(line[0], "+-");
    for (size_t i = sign; i < length; i++)
        if (line[i] < '0' || line[i] > '9') return false;
    return length > sign && length <= 20;
}

static bool plain_element(struct plain *p, uint32_t depth);

static bool plain_rest(struct plain *p, uint8_t type, const uint8_t *line, size_t length, uint32_t depth) {
    uint64_t n;
    if (one_of(type, "$*") && length == 2 && memcmp(line, "-1", 2) == 0) return true;
    if (!one_of(type, "$!=*~>%|") || !plain_number(line, length, &n)) return false;
    if (one_of(type, "$!=")) {
        if (p->length - p->at < 2 || n > p->length - p->at - 2) return false;
        p->at += n + 2;
        return memcmp(p->bytes + p->at - 2, "\r\n", 2) == 0;
    }
    if (one_of(type, "%|")) n *= 2;
    if (type == '|') n++;
    for (uint64_t i = 0; i < n; i++)
        if (!plain_element(p, depth + 1)) return false;
    return true;
}

/* Consumes one whole element; false when it is not whole or not right. */
static bool plain_element(struct plain *p, uint32_t depth) {
    if (depth > DEPTH_MAX) p->deep = true;
    if (p->at == p->length || p->deep) return false;
    uint8_t type = p->bytes[p->at];
    const uint8_t *line = p->bytes + p->at + 1;
    size_t length = 0, left = p->length - p->at - 1;
    while (length + 1 < left && !(line[length] == '\r' && line[length + 1] == '\n')) length++;
    if (length + 1 >= left) return false;
    p->at += length + 3;
    if (one_of(type, "+-,(")) return true;
    if (type == '_') return length == 0;
    if (type == '#') return length == 1 && one_of(line[0], "tf");
    if (type == ':') return plain_integer(line, length);
    return plain_rest(p, type, line, length, depth);
}

/* ---- the real one ------------------------------------------------------------------------------------------------- */

static void run(struct story *story, const uint8_t *bytes, size_t length, struct dice *dice) {
    struct resp_reply reply;
    resp_reply_reset(&reply);
    story->count = 0;
    for (size_t start = 0; start < length;) {
        size_t n = dice == NULL ? length - start : dice_part(dice, length - start);
        uint8_t *part = edge_put(&edge, bytes + start, n);
        enum resp_status status;
        size_t taken = resp_reply_feed(&reply, part, n, &status);
        CHECK(taken <= n && (taken > 0 || status == RESP_BAD));
        start += taken;
        if (status == RESP_BAD) {
            story_tell(story, UINT64_MAX);
            return;
        }
        if (status == RESP_MORE) {
            CHECK(taken == n);
            continue;
        }
        story_tell(story, start);
        story_tell(story, reply.type | (uint64_t)reply.is_push << 8 | (uint64_t)reply.is_null << 9);
        resp_reply_reset(&reply);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size < 2 || size > FUZZ_BYTES_MAX) return 0;
    struct dice dice = {data[0] * 2u + 1u};
    run(&stories[0], data + 1, size - 1, NULL);
    run(&stories[1], data + 1, size - 1, &dice);
    story_compare(&stories[0], &stories[1]);
    struct plain plain = {data + 1, size - 1, 0, false};
    for (size_t i = 0; i + 1 < stories[0].count; i += 2) {
        bool whole = plain_element(&plain, 0);
        if (plain.deep) return 0;
        CHECK(whole && plain.at == stories[0].events[i]);
    }
    CHECK(!plain_element(&plain, 0)); /* nor does the plain one find more */
    return 0;
}
