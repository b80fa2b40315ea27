/* memcached.c: what the engine is given of it. */
#include "protocols/memcached/memcached.h"

#include <stdio.h>

void memcached_status(const char *name, uint64_t value, struct buffer *out) {
    char line[128];
    if (name == NULL) buffer_text(out, "END\r\n");
    else buffer_append(out, line, (size_t)snprintf(line, sizeof line, "STAT %.90s %llu\r\n", name, (unsigned long long)value));
}

static void rewrite(const struct protocol_request *r, const uint8_t *bytes, uint64_t now_us, struct buffer *out) {
    memcached_rewrite(r, bytes, now_us / 1000000u, out);
}

const struct protocol memcached_protocol = {
    .name = "memcached",
    .ping = "mn\r\n",
    .full = "ERROR Too many open connections\r\n",
    .item_bytes = sizeof(struct memcached_item),
    .request = memcached_request,
    .rewrite = rewrite,
    .delays = memcached_delays,
    .due = memcached_flush,
    .question = memcached_question,
    .item = memcached_item,
    .item_free = memcached_item_free,
    .decide = memcached_decide,
    .reply = memcached_reply,
    .answer = memcached_answer,
    .failed = memcached_failed,
    .status = memcached_status,
};
