/*
 * fuzz_resp.c: random mutations of good traffic through the RESP framing, the command table and its error texts.
 *
 *   gcc -std=c11 -D_GNU_SOURCE -Wall -Wextra -g -O1 -fsanitize=address,undefined -fno-sanitize-recover -I. -Iffi \
 *       tests/fuzz/fuzz_resp.c protocols/redis/{resp,resp_inline,resp_reply,commands}.c -o fuzz_resp
 *   ./fuzz_resp [iterations [seed]]
 *
 * Each round: some bytes, framed at once and in random parts, every part in a heap block of exactly its size, so that
 * ASan sees a read beyond it. Both must tell the same story. What is whole is walked, normalised, framed again, looked up
 * and, where it is no command, put into an error line.
 */
#include "protocols/redis/commands.h"

#include "check.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define BYTES_MAX 4096u
#define EVENTS_MAX 4096u
#define TABLE_SIZE 64u

static uint64_t random_state;

static uint32_t random_below(uint32_t n) { /* xorshift64* */
    random_state ^= random_state >> 12;
    random_state ^= random_state << 25;
    random_state ^= random_state >> 27;
    return (uint32_t)((random_state * 0x2545f4914f6cdd1du) >> 33) % n;
}

static const char *const SEEDS[] = {
    "*1\r\n$4\r\nPING\r\n", "*3\r\n$3\r\nSET\r\n$3\r\nkey\r\n$5\r\nvalue\r\n", "*2\r\n$6\r\nconfig\r\n$3\r\nget\r\n",
    "*0\r\n", "*-1\r\n", "PING\r\n", "SET k \"a\\x41\\n\"\r\n", "SET k 'it\\'s'\n", "\r\n", "*2\r\n$0\r\n\r\n$1\r\na\r\n",
    "*18\r\n$3\r\nDEL\r\n$1\r\n1\r\n$1\r\n2\r\n$1\r\n3\r\n$1\r\n4\r\n$1\r\n5\r\n$1\r\n6\r\n$1\r\n7\r\n$1\r\n8\r\n$1\r\n9\r\n$1\r\n"
    "a\r\n$1\r\nb\r\n$1\r\nc\r\n$1\r\nd\r\n$1\r\ne\r\n$1\r\nf\r\n$1\r\ng\r\n$1\r\nh\r\n",
    "*8\r\n$10\r\nXREADGROUP\r\n$5\r\nGROUP\r\n$1\r\ng\r\n$1\r\nc\r\n$5\r\nBLOCK\r\n$1\r\n0\r\n$7\r\nSTREAMS\r\n$1\r\ns\r\n",
    "+OK\r\n", "-ERR x\r\n", ":12\r\n", "$3\r\nabc\r\n", "$-1\r\n", "*2\r\n:1\r\n*1\r\n_\r\n", "%1\r\n+a\r\n#t\r\n",
    "|1\r\n+a\r\n+b\r\n>1\r\n,1.5\r\n", "=5\r\ntxt:a\r\n", "!3\r\nERR\r\n", "(123\r\n", "~1\r\n$0\r\n\r\n",
    "*2147483647\r\n", "$9223372036854775807\r\n", "*1\r\n$-5\r\n", "*999999999999999999\r\n%999999999999999999\r\n",
};
static const char *const NAMES[] = {"ping", "set", "get", "del", "config", "config|get", "xread", "xreadgroup", "client"};

static size_t make_input(uint8_t *bytes) {
    size_t length = 0;
    for (uint32_t pieces = 1 + random_below(8); pieces > 0; pieces--) {
        const char *seed = SEEDS[random_below(sizeof SEEDS / sizeof SEEDS[0])];
        size_t n = strlen(seed);
        if (length + n > BYTES_MAX / 2) break;
        memcpy(bytes + length, seed, n);
        length += n;
    }
    static const char SPECIAL[] = "\r\n\0*$0123459-'\" \\x%|>_+:";
    for (uint32_t changes = random_below(6); changes > 0 && length > 0; changes--) {
        uint32_t at = random_below((uint32_t)length);
        uint8_t byte = random_below(2) ? (uint8_t)SPECIAL[random_below(sizeof SPECIAL)] : (uint8_t)random_below(256);
        switch (random_below(4)) {
            case 0: bytes[at] = byte; break;
            case 1: memmove(bytes + at, bytes + at + 1, --length - at); break;
            case 2: length = at; break;
            default:
                memmove(bytes + at + 1, bytes + at, length++ - at);
                bytes[at] = byte;
        }
    }
    return length;
}

/* What framing tells, in order: ends of requests with their argument counts, or of replies with their types. */
struct story {
    size_t count;
    uint64_t events[EVENTS_MAX];
};

static void tell(struct story *story, uint64_t end, uint64_t what) {
    CHECK(story->count + 2 <= EVENTS_MAX);
    story->events[story->count++] = end;
    story->events[story->count++] = what;
}

static bool same_story(const struct story *a, const struct story *b) {
    return a->count == b->count && memcmp(a->events, b->events, a->count * sizeof a->events[0]) == 0;
}

static uint8_t *exact_copy(const uint8_t *bytes, size_t length) {
    uint8_t *copy = malloc(length > 0 ? length : 1);
    CHECK(copy != NULL);
    if (length > 0) memcpy(copy, bytes, length);
    return copy;
}

static void use_request(const struct command_table *table, const struct resp_request *request, const uint8_t *bytes,
                        const struct resp_limits *limits) {
    size_t size = resp_request_normalised_bytes(request, bytes);
    uint8_t *array = malloc(size);
    CHECK(array != NULL && resp_request_normalise(request, bytes, array) == size);
    struct resp_limits wide = *limits;
    wide.authenticated = true;
    struct resp_request again;
    resp_request_reset(&again);
    CHECK(resp_request_feed(&again, array, size, &wide) == RESP_DONE);
    CHECK(again.length == size && again.argc == request->argc && !again.is_inline);
    struct resp_argument walked = resp_request_argument(&again, array, 0);
    for (uint64_t i = 0; i < again.argc; i++) {
        if (i > 0) walked = resp_request_next(&again, array, walked);
        struct resp_argument found = resp_request_argument(&again, array, i);
        CHECK(found.offset == walked.offset && found.length == walked.length);
        CHECK((size_t)found.offset + found.length + 2 <= size);
    }
    const struct command_info *info = NULL;
    enum command_verdict verdict = command_lookup(table, &again, array, &info);
    command_blocks(&again, array);
    size_t room = 2 + random_below(600);
    char *line = malloc(room);
    CHECK(line != NULL);
    if (verdict != COMMAND_OK) {
        size_t n = command_error(verdict, info, &again, array, line, room);
        CHECK(n >= 2 && n <= room && memcmp(line + n - 2, "\r\n", 2) == 0);
        CHECK(memchr(line, '\n', n) == line + n - 1);
    } else {
        CHECK(info != NULL);
        command_lookup_sub(table, info, &again, array, &info);
    }
    free(line);
    free(array);
}

static void frame_requests(const struct command_table *table, const uint8_t *bytes, size_t length, bool in_parts,
                           const struct resp_limits *limits, struct story *story) {
    struct resp_request request;
    resp_request_reset(&request);
    size_t start = 0, end = in_parts ? 0 : length;
    for (;;) {
        uint8_t *part = exact_copy(bytes + start, end - start);
        enum resp_status status = resp_request_feed(&request, part, end - start, limits);
        if (status == RESP_DONE) use_request(table, &request, part, limits);
        free(part);
        if (status == RESP_BAD) {
            CHECK(request.error != NULL);
            tell(story, start, (uint64_t)-1);
            return;
        }
        if (status == RESP_MORE) {
            if (end == length) return;
            end += 1 + random_below((uint32_t)(length - end));
            continue;
        }
        CHECK(request.length > 0 && request.length <= end - start);
        start += request.length;
        tell(story, start, status == RESP_EMPTY ? 0 : request.argc);
        resp_request_reset(&request);
    }
}

static void frame_replies(const uint8_t *bytes, size_t length, bool in_parts, struct story *story) {
    struct resp_reply reply;
    resp_reply_reset(&reply);
    size_t start = 0;
    while (start < length) {
        size_t n = in_parts ? 1 + random_below((uint32_t)(length - start)) : length - start;
        uint8_t *part = exact_copy(bytes + start, n);
        enum resp_status status;
        size_t taken = resp_reply_feed(&reply, part, n, &status);
        free(part);
        CHECK(taken <= n && (taken > 0 || status == RESP_BAD));
        start += taken;
        if (status == RESP_BAD) {
            tell(story, 0, (uint64_t)-1);
            return;
        }
        if (status == RESP_MORE) {
            CHECK(taken == n);
            continue;
        }
        tell(story, start, reply.type | (uint64_t)reply.is_push << 8 | (uint64_t)reply.is_null << 9);
        resp_reply_reset(&reply);
    }
}

static struct command_table *make_table(void) {
    struct command_table *table = command_table_new(TABLE_SIZE);
    for (size_t i = 0; i < sizeof NAMES / sizeof NAMES[0]; i++) {
        struct command_info info = {.arity = -2, .way = WAY_READ};
        snprintf(info.name, sizeof info.name, "%s", NAMES[i]);
        info.is_container = strcmp(NAMES[i], "config") == 0;
        CHECK(command_table_add(table, &info) == 0);
    }
    return table;
}

int main(int argc, char **argv) {
    uint64_t iterations = argc > 1 ? strtoull(argv[1], NULL, 10) : 200000;
    uint64_t seed = argc > 2 ? strtoull(argv[2], NULL, 10) : 1;
    static uint8_t bytes[BYTES_MAX];
    static struct story whole, parts;
    struct command_table *table = make_table();
    uint64_t requests = 0, replies = 0;
    for (uint64_t i = 0; i < iterations; i++) {
        random_state = (seed + i + 1) * 0x9e3779b97f4a7c15u; /* so that a round can be repeated alone */
        size_t length = make_input(bytes);
        struct resp_limits limits = {.bulk_bytes_max = random_below(2) ? UINT64_MAX / 2 : 512,
                                     .request_bytes_max = random_below(2) ? UINT64_MAX : 64 + random_below(1024),
                                     .inline_bytes_max = random_below(2) ? 65536 : 16 + random_below(64),
                                     .authenticated = random_below(2)};
        whole.count = parts.count = 0;
        frame_requests(table, bytes, length, false, &limits, &whole);
        frame_requests(table, bytes, length, true, &limits, &parts);
        if (!same_story(&whole, &parts)) {
            fprintf(stderr, "requests differ: ./fuzz_resp 1 %llu\n", (unsigned long long)(seed + i));
            return 1;
        }
        requests += whole.count;
        whole.count = parts.count = 0;
        frame_replies(bytes, length, false, &whole);
        frame_replies(bytes, length, true, &parts);
        if (!same_story(&whole, &parts)) {
            fprintf(stderr, "replies differ: ./fuzz_resp 1 %llu\n", (unsigned long long)(seed + i));
            return 1;
        }
        replies += whole.count;
    }
    command_table_free(table);
    printf("%llu rounds, %llu request and %llu reply events: the same in parts as at once\n",
           (unsigned long long)iterations, (unsigned long long)requests / 2, (unsigned long long)replies / 2);
    return 0;
}
