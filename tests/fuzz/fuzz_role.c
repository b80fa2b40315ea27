/*
 * fuzz_role.c: the answer to ROLE, which says where an EFFECT ends. What is read from it is what it says: written again
 * in Redis's own way, those are the bytes; and whatever is taken for one is one whole answer.
 */
#include "fuzz.h"

#include <stdio.h>

#include "protocols/redis/resp.h"
#include "protocols/redis/role.h"

#define MASTER_BYTES 17u /* in front of the offset */

static struct edge edge;
static char again[FUZZ_BYTES_MAX + 128];

/* Where the one answer that begins at `bytes` ends; 0: it is none. */
static size_t answer_end(const uint8_t *bytes, size_t length) {
    struct resp_reply reply;
    enum resp_status status;
    resp_reply_reset(&reply);
    size_t n = resp_reply_feed(&reply, bytes, length, &status);
    return status == RESP_DONE ? n : 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size > FUZZ_BYTES_MAX) return 0;
    const uint8_t *bytes = edge_put(&edge, data, size);
    struct redis_role role;
    size_t whole = answer_end(bytes, size);
    bool read = redis_role_read(bytes, size, &role);
    if (read && role.is_master) {
        int n = snprintf(again, sizeof again, "*3\r\n$6\r\nmaster\r\n:%llu", (unsigned long long)role.offset);
        const uint8_t *end = memchr(bytes + MASTER_BYTES, '\r', size - MASTER_BYTES); /* leading zeros are its own affair */
        CHECK(end != NULL && (bytes[MASTER_BYTES] == '0' || memcmp(bytes, again, (size_t)n) == 0));
        CHECK(bytes[MASTER_BYTES] == '0' || bytes + n == end);
    }
    if (read && !role.is_master) CHECK(whole == 0 || whole == size);
    if (read && !role.is_master && role.is_connected) CHECK(memmem(bytes, size, "9\r\nconnected\r\n", 14) != NULL);
    if (read) CHECK(role.offset <= INT64_MAX);

    /* What Redis writes is read, whatever the words in it are. */
    struct input in = {data, size};
    uint64_t offset = input_word(&in) >> 1, port = input_byte(&in);
    static const char *const states[] = {"connected", "connect", "sync", "connecting", "handshake", "none"};
    const char *state = states[input_below(&in, 6)];
    size_t host = input_below(&in, 64);
    const uint8_t *name = input_take(&in, &host);
    int n = snprintf(again, sizeof again, "*5\r\n$5\r\nslave\r\n$%zu\r\n", host);
    memcpy(again + n, name, host);
    n += (int)host;
    n += snprintf(again + n, sizeof again - (size_t)n, "\r\n:%llu\r\n$%zu\r\n%s\r\n:%llu\r\n", (unsigned long long)port,
                  strlen(state), state, (unsigned long long)offset);
    bytes = edge_put(&edge, (const uint8_t *)again, (size_t)n);
    CHECK(redis_role_read(bytes, (size_t)n, &role) && !role.is_master && role.offset == offset);
    CHECK(role.is_connected == (strcmp(state, "connected") == 0));
    return 0;
}
