/*
 * fuzz_psync.c: what a Redis says to its replica before the stream runs, at once and in parts; and where the mark that
 * ends a diskless RDB is, looked for in all of it.
 */
#include "fuzz.h"

#include "protocols/redis/psync.h"

static struct edge edge;
static struct story stories[2];

static void tell(struct story *story, const struct psync *p, size_t at, enum psync_event event) {
    story_tell(story, at);
    story_tell(story, (uint64_t)event << 8 | (uint64_t)p->stage);
    if (event == PSYNC_STREAMS) {
        CHECK(p->stage == PSYNC_LIVE && (p->replid[0] == 0 || strlen(p->replid) == REPLID_BYTES));
        CHECK(p->offset <= INT64_MAX && (p->replid[0] != 0 || !p->wants_full));
        story_tell(story, p->offset);
        story_bytes(story, (const uint8_t *)p->replid, sizeof p->replid);
    }
    if (event == PSYNC_REFUSED) story_bytes(story, (const uint8_t *)p->line, strlen(p->line));
}

/* The RDB ends with the first mark behind its head line, and there only. */
static void marked(const struct psync *p, const uint8_t *bytes, size_t end) {
    char line_start[6 + REPLID_BYTES] = "\n$EOF:";
    memcpy(line_start + 6, p->mark, REPLID_BYTES);
    CHECK(end >= REPLID_BYTES && memcmp(bytes + end - REPLID_BYTES, p->mark, REPLID_BYTES) == 0);
    const uint8_t *head = memmem(bytes, end, line_start, sizeof line_start);
    while (head != NULL && memchr("\r\n", head[sizeof line_start], 3) == NULL)
        head = memmem(head + 1, (size_t)(bytes + end - head) - 1, line_start, sizeof line_start);
    CHECK(head != NULL);
    const uint8_t *line = memchr(head + 1, '\n', (size_t)(bytes + end - head) - 1);
    CHECK(line != NULL && memmem(line, (size_t)(bytes + end - line) - 1, p->mark, REPLID_BYTES) == NULL);
}

static void run(struct story *story, uint8_t choice, const uint8_t *bytes, size_t length, struct dice *dice) {
    struct psync p;
    memset(&p, 0xa5, sizeof p); /* nothing is taken over from before */
    psync_begin(&p, 1 + (choice >> 1) % 3, choice & 1);
    story->count = 0;
    for (size_t start = 0; start < length;) {
        size_t part = dice == NULL ? length - start : dice_part(dice, length - start);
        const uint8_t *at = edge_put(&edge, bytes + start, part);
        for (size_t done = 0; done < part;) {
            enum psync_event event;
            enum psync_stage before = p.stage;
            size_t used = psync_feed(&p, at + done, part - done, &event);
            CHECK(used <= part - done && (used > 0 || event != PSYNC_MORE));
            done += used;
            if (event == PSYNC_MORE) CHECK(done == part);
            else tell(story, &p, start + done, event);
            if (event == PSYNC_STREAMS && before == PSYNC_RDB_MARK) marked(&p, bytes, start + done);
            if (event > PSYNC_ASK) return;
        }
        start += part;
    }
    story_tell(story, p.stage);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size < 3 || size > FUZZ_BYTES_MAX) return 0;
    struct dice dice = {data[1] * 2u + 1u};
    run(&stories[0], data[0], data + 2, size - 2, NULL);
    run(&stories[1], data[0], data + 2, size - 2, &dice);
    story_compare(&stories[0], &stories[1]);
    return 0;
}
