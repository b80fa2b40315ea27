/*
 * fuzz_memcached_replies.c: what a memcached answers, fed at once and in parts, and against a plain reading of the same bytes; and what a
 * client is given of any of it.
 */
#include "fuzz.h"

#include "protocols/memcached/memcached.h"

static struct edge edge;
static struct story stories[2];
static struct buffer out;
static struct memcached_item item;

/* ---- read the simple way: all of it is there ------------------------------------------------------------------------------------- */

struct plain { const uint8_t *bytes; size_t length, at; };

static bool ends(uint8_t c) { return c == ' ' || c == '\r' || c == '\n'; }

static bool word_is(const uint8_t *line, size_t length, const char *word) {
    size_t n = strlen(word);
    return length >= n && memcmp(line, word, n) == 0 && (length == n || ends(line[n]));
}

/* The n-th word of a line, a number. */
static bool number(const uint8_t *line, size_t length, int n, uint64_t *value) {
    size_t at = 0, digits = 0;
    for (; at < length && n > 0; at++) n -= line[at] == ' ';
    for (*value = 0; at < length && line[at] >= '0' && line[at] <= '9'; at++, digits++) *value = *value * 10 + line[at] - '0';
    return n == 0 && digits > 0 && digits <= 10 && (at == length || ends(line[at])) && *value <= INT32_MAX;
}

/* A line, and the value behind it. 0: not whole, or none. */
static int plain_line(struct plain *p, bool *goes_on, const char **list) {
    static const char *const LISTS[] = {"VALUE", "STAT", "ITEM", "PREFIX"};
    const uint8_t *line = p->bytes + p->at, *end = memmem(line, p->length - p->at, "\r\n", 2);
    uint64_t size;
    if (end == NULL) return 0;
    size_t length = (size_t)(end - line);
    p->at += length + 2;
    *goes_on = false;
    if (!(line[0] >= 'A' && line[0] <= 'Z') && !(line[0] >= '0' && line[0] <= '9')) return 0;
    for (size_t i = 0; i < sizeof LISTS / sizeof *LISTS; i++) *goes_on |= word_is(line, length, LISTS[i]);
    if (*list != NULL && !(*goes_on && (word_is(line, length, "VALUE") == (strcmp(*list, "VALUE") == 0))) && !word_is(line, length, "END"))
        return 0;
    if (*goes_on) *list = word_is(line, length, "VALUE") ? "VALUE" : "STAT";
    bool single = word_is(line, length, "VA");
    if (!single && !word_is(line, length, "VALUE")) return 1;
    if (!number(line, length, single ? 1 : 3, &size) || p->length - p->at < size + 2) return 0;
    p->at += size + 2;
    return 1;
}

static bool plain_answer(struct plain *p) {
    const char *list = NULL;
    for (bool goes_on = true; goes_on;)
        if (p->at == p->length || !plain_line(p, &goes_on, &list)) return false;
    return true;
}

/* ---- the real one ------------------------------------------------------------------------------------------------------------------ */

static void run(struct story *story, uint32_t answers, const uint8_t *bytes, size_t length, struct dice *dice) {
    struct protocol_reply state = {{0}};
    story->count = 0;
    for (size_t start = 0; start < length;) {
        size_t n = dice == NULL ? length - start : dice_part(dice, length - start);
        uint8_t *part = edge_put(&edge, bytes + start, n);
        enum protocol_status status;
        size_t taken = memcached_reply(&state, answers, part, n, &status);
        CHECK(taken <= n && (taken > 0 || status == PROTOCOL_REPLY_BAD));
        start += taken;
        if (status == PROTOCOL_REPLY_MORE) {
            CHECK(taken == n);
            continue;
        }
        if (status == PROTOCOL_REPLY_BAD) return story_tell(story, UINT64_MAX);
        story_tell(story, start);
        state = (struct protocol_reply){{0}};
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size < 3 || size > FUZZ_BYTES_MAX) return 0;
    struct dice dice = {data[0] * 2u + 1u};
    uint32_t answers = 1 + data[1] % 2, style = data[2];
    const uint8_t *bytes = data + 3;
    size_t length = size - 3;
    run(&stories[0], answers, bytes, length, NULL);
    run(&stories[1], answers, bytes, length, &dice);
    story_compare(&stories[0], &stories[1]);
    struct plain plain = {bytes, length, 0};
    size_t start = 0;
    for (size_t i = 0; i < stories[0].count && stories[0].events[i] != UINT64_MAX; i++) {
        for (uint32_t k = 0; k < answers; k++) CHECK(plain_answer(&plain));
        CHECK(plain.at == stories[0].events[i]);
        size_t whole = plain.at - start;
        const uint8_t *ack = edge_put(&edge, bytes + start, whole);
        buffer_clear(&out);
        (void)memcached_failed(ack, whole);
        if (memcached_answer(style, NULL, 0, ack, whole, 5, &out) && buffer_length(&out) > 0) {
            enum protocol_status status; /* whoever reads it finds an answer, too */
            struct protocol_reply state = {{0}};
            size_t taken = memcached_reply(&state, (style & 7) < 4 ? answers : 1, buffer_bytes(&out), buffer_length(&out), &status);
            CHECK((style & 7) >= 4 || (status != PROTOCOL_REPLY_BAD && taken == buffer_length(&out)));
        }
        (void)memcached_item(&item, ack, whole, 1800000000);
        start = plain.at;
    }
    return 0;
}
