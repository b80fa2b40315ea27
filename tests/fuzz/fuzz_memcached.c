/*
 * fuzz_memcached.c: what a client sends to a memcached, at once and in parts; what of it goes to the backend; what is decided about
 * an item of any kind; what the client is then given.
 *
 * The oracle of what goes to the backend is the parser itself: it must find whole commands there and nothing else, all but the last of them
 * unanswered, so that no byte of a value or a key can be a command. And a command that is logged is
 * the same when it is written again.
 */
#include "fuzz.h"

#include <stdio.h>

#include "protocols/memcached/memcached.h"

#define ITEM_BYTES_MAX 160u
#define NOW_S 1800000000u
#define TERM 3u

static struct edge edge;
static struct story stories[2];
static struct buffer text, out, again, command, reply, given;
static struct memcached_item item;
static bool exact;

static const struct protocol *const P = &memcached_protocol;

static struct protocol_limits limits(void) { return (struct protocol_limits){.item_bytes_max = ITEM_BYTES_MAX, .exact = exact}; }

static void read_request(struct protocol_request *r, size_t scanned, const uint8_t *bytes, size_t length) {
    const struct protocol_limits bounds = limits();
    r->scanned = scanned;
    buffer_clear(&text);
    P->request(&bounds, bytes, length, r, &text);
    if (r->class == PROTOCOL_MORE) {
        CHECK(r->scanned <= length && (r->wanted == 0 || r->wanted > length) && buffer_length(&text) == 0);
        return;
    }
    CHECK(r->length > 0 && r->length <= length && r->swallow <= (uint64_t)INT32_MAX + 2);
    CHECK(buffer_length(&text) == 0 || buffer_bytes(&text)[buffer_length(&text) - 1] == '\n');
}

/* ---- what the backend is given --------------------------------------------------------------------------------------------------- */

/* Whole commands, of which the last one alone is answered. `logged`: they change something, and are the same when written again. */
static void check_given(const struct buffer *commands, bool logged) {
    size_t at = 0, length = buffer_length(commands), limit = 0;
    CHECK(length > 0);
    while (at < length) {
        struct protocol_request r;
        const struct protocol_limits bounds = {.item_bytes_max = INT32_MAX, .exact = false};
        r.scanned = 0;
        buffer_clear(&text);
        P->request(&bounds, buffer_bytes(commands) + at, length - at, &r, &text);
        bool is_last = at + r.length == length, by_old_number = r.class == PROTOCOL_DECIDE;
        CHECK(r.class == PROTOCOL_READ || r.class == PROTOCOL_WRITE || r.class == PROTOCOL_LOCAL || r.class == PROTOCOL_STREAM || by_old_number);
        CHECK(r.swallow == 0 && (r.style & 8) == (is_last ? 0 : 8)); /* noreply */
        if (logged) CHECK(r.class == PROTOCOL_WRITE || by_old_number);
        buffer_clear(&again);
        if (logged && !by_old_number) {
            P->rewrite(&r, buffer_bytes(commands) + at, NOW_S * 1000000ull, &again);
            bool quiet = !is_last; /* written again it is answered */
            CHECK(quiet || (buffer_length(&again) == r.length && memcmp(buffer_bytes(&again), buffer_bytes(commands) + at, r.length) == 0));
        }
        at += r.length;
        CHECK(++limit <= 3);
    }
    CHECK(at == length);
}

/* ---- deciding --------------------------------------------------------------------------------------------------------------------- */

static void put(struct buffer *b, const char *format, unsigned long long number) {
    char line[64];
    buffer_append(b, line, (size_t)snprintf(line, sizeof line, format, number));
}

/* What a backend might say to a question. */
static void make_answer(struct buffer *b, struct input *in, uint32_t answers) {
    static const char *const VALUES[] = {"", "0", "9", "99 ", "18446744073709551615", "x", "\r\nflush_all\r\n", "END\r\n", "-1", " 7"};
    uint8_t choice = input_byte(in), marks = input_byte(in);
    buffer_clear(b);
    if (answers == 2) put(b, choice & 128 ? "EN\r\n" : "HD t%llu W\r\n", INT32_MAX - NOW_S + (choice >> 5 & 1));
    if ((choice & 15) == 15) return buffer_text(b, choice & 16 ? "EN kx\r\n" : "SERVER_ERROR out of memory\r\n");
    const char *value = VALUES[(choice & 15) % (sizeof VALUES / sizeof *VALUES)];
    put(b, "VA %llu", strlen(value));
    put(b, " f%llu", marks & 1 ? 4294967295u : 0);
    if (marks & 2) buffer_text(b, " t-1");
    else put(b, " t%llu", marks & 4 ? 10 : 100000);
    put(b, " c%llu kx", 1 + (marks >> 6));
    buffer_text(b, marks & 8 ? " b" : "");
    buffer_text(b, marks & 16 ? marks & 32 ? " Z X" : " X W" : marks & 32 ? " Z" : "");
    buffer_text(b, "\r\n");
    buffer_text(b, value);
    buffer_text(b, "\r\n");
}

static void decide(const struct protocol_request *r, const uint8_t *bytes, struct input *in) {
    buffer_clear(&out);
    uint32_t answers = P->question(r, bytes, &out);
    CHECK(answers == 1 || answers == 2);
    make_answer(&given, in, answers);
    struct protocol_reply state = {{0}};
    enum protocol_status status;
    CHECK(P->reply(&state, answers, buffer_bytes(&given), buffer_length(&given), &status) == buffer_length(&given));
    CHECK(status == PROTOCOL_REPLY_WHOLE);
    CHECK(P->item(&item, buffer_bytes(&given), buffer_length(&given), NOW_S));
    for (int i = 0; i < 3; i++) { /* from what the backend said, then from what that came to */
        uint32_t style = 0;
        buffer_clear(&command);
        buffer_clear(&reply);
        bool writes = P->decide(r, bytes, &item, TERM, NOW_S + (unsigned)i, &command, &reply, &style);
        CHECK(writes == (buffer_length(&command) > 0));
        if (writes) check_given(&command, true);
        buffer_clear(&given);
        const char *ack = !writes ? "" : input_byte(in) & 1 ? "HD c77\r\n" : "SERVER_ERROR out of memory storing object\r\n";
        if (!P->answer(style, buffer_bytes(&reply), buffer_length(&reply), (const uint8_t *)ack, strlen(ack), TERM, &given)) CHECK(writes);
        size_t said = buffer_length(&given);
        if (said == 0) continue;
        state = (struct protocol_reply){{0}};
        CHECK(P->reply(&state, 1, buffer_bytes(&given), said, &status) == said && status == PROTOCOL_REPLY_WHOLE);
    }
}

static void use(struct story *story, const struct protocol_request *r, const uint8_t *bytes, struct input *in) {
    buffer_clear(&out);
    if (r->class == PROTOCOL_DECIDE) {
        decide(r, bytes, in);
    } else if (r->class == PROTOCOL_READ || r->class == PROTOCOL_WRITE || r->class == PROTOCOL_LOCAL || r->class == PROTOCOL_STREAM) {
        P->rewrite(r, bytes, NOW_S * 1000000ull, &out);
        CHECK(buffer_length(&out) > 0);
        if (r->class == PROTOCOL_READ || r->class == PROTOCOL_WRITE) check_given(&out, r->class == PROTOCOL_WRITE);
    }
    story_bytes(story, buffer_bytes(&out), buffer_length(&out));
}

/* ---- at once, and in parts -------------------------------------------------------------------------------------------------------- */

static void run(struct story *story, const uint8_t *bytes, size_t length, struct dice *dice, struct input choices) {
    size_t start = 0, end = 0, scanned = 0;
    uint64_t swallow = 0;
    story->count = 0;
    while (start < length) {
        if (end < length && (end <= start || dice != NULL)) end += dice == NULL ? length - end : dice_part(dice, length - end);
        size_t gone = swallow < end - start ? (size_t)swallow : end - start;
        start += gone;
        swallow -= gone;
        if (start == end) {
            if (end == length) break;
            continue;
        }
        struct protocol_request r;
        const uint8_t *part = edge_put(&edge, bytes + start, end - start);
        read_request(&r, scanned, part, end - start);
        if (r.class == PROTOCOL_MORE) {
            if (end == length) break;
            scanned = r.scanned;
            continue;
        }
        scanned = 0;
        story_tell(story, (uint64_t)r.class << 56 | (uint64_t)r.style << 32 | start);
        story_tell(story, r.swallow);
        if (r.class == PROTOCOL_CLOSE) return; /* how much of an endless line there is may differ */
        story_tell(story, r.length);
        story_bytes(story, buffer_bytes(&text), buffer_length(&text));
        use(story, &r, part, &choices);
        start += r.length;
        swallow = r.swallow;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size < 2 || size > FUZZ_BYTES_MAX) return 0;
    struct input in = {data, size};
    struct dice dice = {input_byte(&in) * 2u + 1u};
    exact = input_byte(&in) & 1;
    size_t choices = 16;
    const uint8_t *chosen = input_take(&in, &choices);
    run(&stories[0], in.bytes, in.left, NULL, (struct input){chosen, choices});
    run(&stories[1], in.bytes, in.left, &dice, (struct input){chosen, choices});
    story_compare(&stories[0], &stories[1]);
    return 0;
}
