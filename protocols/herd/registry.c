/* registry.c: see registry.h. */
#include "protocols/herd/registry.h"

#include <assert.h>
#include <stdio.h>

#define LINE_BYTES_MAX 512u
#define VALUE_BYTES_MAX 1024u
#define READY "hrd_ready"

static_assert(sizeof(struct herd_record) == 224, "a record is HERD's struct hrd_qp_attr");

void herd_record_write(struct herd_record *out, const struct herd_record *of, const char *name) {
    *out = *of;
    memset(out->name, 0, sizeof out->name);
    snprintf(out->name, sizeof out->name, "%s", name);
}

void herd_registry_start(struct herd_registry *r, int32_t lid, uint32_t conn_qpn, uint32_t dgram_qpn, uint32_t workers) {
    memset(r, 0, sizeof *r);
    r->own_conn = (struct herd_record){.lid = lid, .qpn = (int32_t)conn_qpn};
    r->own_dgram = (struct herd_record){.lid = lid, .qpn = (int32_t)dgram_qpn};
    r->workers = workers;
}

static void trouble(struct herd_registry *r, const char *text) {
    if (r->trouble[0] == 0) snprintf(r->trouble, sizeof r->trouble, "%s", text);
}

struct word { const char *at; size_t length; };

static bool is(struct word w, const char *text) { return w.length == strlen(text) && memcmp(w.at, text, w.length) == 0; }

static struct word next_word(const char *line, size_t length, size_t *at) {
    while (*at < length && line[*at] == ' ') ++*at;
    size_t first = *at;
    while (*at < length && line[*at] != ' ') ++*at;
    return (struct word){line + first, *at - first};
}

static bool number(struct word w, uint32_t most, uint32_t *value) {
    uint64_t sum = 0;
    if (w.length == 0 || w.length > 9) return false;
    for (size_t i = 0; i < w.length; i++) {
        if (w.at[i] < '0' || w.at[i] > '9') return false;
        sum = sum * 10 + (uint64_t)(w.at[i] - '0');
    }
    *value = (uint32_t)sum;
    return sum <= most;
}

/* <prefix><number>. */
static bool numbered(struct word name, const char *prefix, uint32_t *value) {
    size_t n = strlen(prefix);
    if (name.length <= n || memcmp(name.at, prefix, n) != 0) return false;
    return number((struct word){name.at + n, name.length - n}, HERD_CLIENTS_MAX - 1, value);
}

static bool starts(struct word name, const char *prefix) {
    return name.length >= strlen(prefix) && memcmp(name.at, prefix, strlen(prefix)) == 0;
}

static void set(struct herd_registry *r, struct word name, const uint8_t *value, size_t length) {
    uint32_t i;
    if (numbered(name, "master-0-", &i) && length == sizeof r->masters[i]) {
        if (r->clients > 0 || r->set[i]) return trouble(r, "another HERD has begun by itself");
        memcpy(&r->masters[i], value, length);
        r->set[i] = true;
        r->published++;
    } else if (numbered(name, HERD_READY_PREFIX "master-0-", &i)) {
        if (i >= r->clients || r->ready[i] || length != strlen(READY) || memcmp(value, READY, length) != 0)
            return trouble(r, "its master is ready for a client that there is not");
        r->ready[i] = true;
        r->connected++;
    } else if (starts(name, "client-")) {
        trouble(r, "another client has come to it, and HERD would mix up their requests");
    } else if (starts(name, "master-") || starts(name, HERD_READY_PREFIX)) {
        trouble(r, "its --num-server-ports is not 1");
    }
}

/* The records of all clients before the first one that was not set. */
static void count_clients(struct herd_registry *r) {
    if (r->clients > 0) return;
    while (r->clients < HERD_CLIENTS_MAX && r->set[r->clients]) r->clients++;
    if (r->clients != r->published) trouble(r, "its master has published the queue pairs of some clients only");
}

static const struct herd_record *get(struct herd_registry *r, struct word name, struct herd_record *scratch) {
    char text[sizeof scratch->name];
    uint32_t i;
    snprintf(text, sizeof text, "%.*s", (int)name.length, name.at);
    if (numbered(name, "client-conn-", &i) && r->published > 0) {
        count_clients(r);
        if (i >= r->clients) return NULL;
        return herd_record_write(scratch, &r->own_conn, text), scratch;
    }
    if (numbered(name, "client-dgram-", &i) && r->clients > 0 && i < r->clients) {
        if (i == 0 && ++r->asked_first > r->workers) trouble(r, "it has more workers than are configured (workers)");
        if (i + 1 == r->clients) r->met++;
        return herd_record_write(scratch, &r->own_dgram, text), scratch;
    }
    if (numbered(name, "master-0-", &i) && r->set[i]) return &r->masters[i];
    return NULL;
}

static void say_value(struct buffer *out, struct word name, const void *value, size_t length) {
    char line[64];
    buffer_text(out, "VALUE ");
    buffer_append(out, name.at, name.length);
    buffer_append(out, line, (size_t)snprintf(line, sizeof line, " 0 %zu\r\n", length));
    buffer_append(out, value, length);
    buffer_text(out, "\r\n");
}

static void do_get(struct herd_registry *r, const char *line, size_t length, size_t at, struct buffer *out) {
    for (struct word name = next_word(line, length, &at); name.length > 0; name = next_word(line, length, &at)) {
        struct herd_record scratch;
        uint32_t i;
        const struct herd_record *found = name.length < sizeof scratch.name ? get(r, name, &scratch) : NULL;
        if (found != NULL) say_value(out, name, found, sizeof *found);
        else if (numbered(name, HERD_READY_PREFIX "master-0-", &i) && r->ready[i]) say_value(out, name, READY, strlen(READY));
    }
    buffer_text(out, "END\r\n");
}

/* Bytes of a whole `set`, or 0: not whole yet, or *good is false. */
static size_t do_set(struct herd_registry *r, const uint8_t *bytes, size_t line, size_t length, size_t at, struct buffer *out, bool *good) {
    const char *text = (const char *)bytes;
    size_t end = line > 0 && bytes[line - 1] == '\r' ? line - 1 : line;
    struct word name = next_word(text, end, &at), flags = next_word(text, end, &at), expiry = next_word(text, end, &at);
    uint32_t value, unused;
    *good = name.length > 0 && number(flags, UINT32_MAX, &unused) && number(expiry, UINT32_MAX, &unused) &&
            number(next_word(text, end, &at), VALUE_BYTES_MAX, &value);
    if (!*good || length - line - 1 < (size_t)value + 2) return 0;
    const uint8_t *start = bytes + line + 1;
    *good = memcmp(start + value, "\r\n", 2) == 0;
    if (!*good) return 0;
    set(r, name, start, value);
    buffer_text(out, "STORED\r\n");
    return line + 1 + value + 2;
}

size_t herd_registry_feed(struct herd_registry *r, const uint8_t *bytes, size_t length, struct buffer *out, bool *good) {
    size_t done = 0;
    *good = true;
    while (done < length) {
        const uint8_t *from = bytes + done, *newline = memchr(from, '\n', length - done);
        size_t line = newline != NULL ? (size_t)(newline - from) : length - done, at = 0;
        if (line > LINE_BYTES_MAX) return *good = false, done;
        if (newline == NULL) return done;
        size_t end = line > 0 && from[line - 1] == '\r' ? line - 1 : line;
        struct word verb = next_word((const char *)from, end, &at);
        if (is(verb, "set")) {
            size_t used = do_set(r, from, line, length - done, at, out, good);
            if (used == 0) return done;
            done += used;
            continue;
        }
        if (is(verb, "get") || is(verb, "gets")) do_get(r, (const char *)from, end, at, out);
        else if (is(verb, "version")) buffer_text(out, "VERSION 1.6.18\r\n");
        else if (is(verb, "quit")) return *good = false, done;
        else buffer_text(out, "ERROR\r\n");
        done += line + 1;
    }
    return done;
}
