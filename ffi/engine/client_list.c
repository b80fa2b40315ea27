/*
 * client_list.c: what CLIENT LIST and CLIENT INFO of the leader's backend say, as it would be without a sidecar: its own
 * connections are left out, and a client that has one of its own is shown with the addresses that it is connected by,
 * without the flag of the Unix socket in between and without what the sidecar has sent in front of its request.
 */
#include <stdio.h>

#include "engine/client_list.h"

bool field_find(struct field line, const char *name, struct field *out) {
    const char *end = line.text + line.length, *at = line.text;
    size_t length = strlen(name);
    while (at < end) {
        const char *stop = memchr(at, ' ', (size_t)(end - at));
        if (stop == NULL) stop = end;
        if ((size_t)(stop - at) > length && memcmp(at, name, length) == 0 && at[length] == '=') {
            *out = (struct field){at + length + 1, (size_t)(stop - at) - length - 1};
            return true;
        }
        at = stop + 1;
    }
    return false;
}

uint64_t field_number(struct field f) {
    uint64_t value = 0;
    for (size_t i = 0; i < f.length && i < 19 && f.text[i] >= '0' && f.text[i] <= '9'; i++) value = value * 10 + (uint64_t)(f.text[i] - '0');
    return value;
}

static bool field_is(struct field f, const char *text) { return f.length == strlen(text) && memcmp(f.text, text, f.length) == 0; }

static bool is_ours(struct field line) {
    struct field name, flags;
    if (!field_find(line, "name", &name) || !field_find(line, "flags", &flags)) return false;
    if (memchr(flags.text, 'S', flags.length) != NULL) return true; /* there is no other replica than the sidecar */
    return field_is(name, "musidecar-shared") || field_is(name, "musidecar-admin");
}

void field_replace(struct buffer *out, struct field *line, const char *name, const char *value, size_t length) {
    struct field f;
    if (!field_find(*line, name, &f)) return;
    buffer_append(out, line->text, (size_t)(f.text - line->text));
    buffer_append(out, value, length);
    line->length -= (size_t)(f.text + f.length - line->text);
    line->text = f.text + f.length;
}

/* The number there, less what the sidecar put there. */
static void replace_less(struct buffer *out, struct field *line, const char *name, size_t less) {
    struct field f;
    char text[32];
    if (less == 0 || !field_find(*line, name, &f) || field_number(f) < less) return;
    int n = snprintf(text, sizeof text, "%llu", (unsigned long long)(field_number(f) - less));
    field_replace(out, line, name, text, (size_t)n);
}

void list_flags(struct field flags, char *out, size_t room) {
    size_t n = 0;
    for (size_t i = 0; i < flags.length && n + 2 < room; i++)
        if (flags.text[i] != 'U') out[n++] = flags.text[i];
    if (n == 0) out[n++] = 'N';
    out[n] = 0;
}

/* Fields come in the order in which the backend writes them. */
static void append_line(struct buffer *out, struct field line, const struct own_peer *peer, size_t added, size_t unseen) {
    struct field flags;
    char text[32];
    if (peer != NULL) {
        if (peer->client != 0) field_replace(out, &line, "id", text, (size_t)snprintf(text, sizeof text, "%llu", (unsigned long long)peer->client));
        field_replace(out, &line, "addr", peer->addr, strlen(peer->addr));
        field_replace(out, &line, "laddr", peer->laddr, strlen(peer->laddr));
        if (field_find(line, "flags", &flags)) {
            list_flags(flags, text, sizeof text);
            field_replace(out, &line, "flags", text, strlen(text));
        }
        replace_less(out, &line, "qbuf", added);
        replace_less(out, &line, "obl", unseen);
    }
    buffer_append(out, line.text, line.length);
}

static int by_id(const void *a, const void *b) {
    uint64_t x = ((const struct own_peer *)a)->id, y = ((const struct own_peer *)b)->id;
    return (x > y) - (x < y);
}

/* The text behind the head of a bulk or verbatim string. */
bool list_body(const uint8_t *reply, size_t length, struct field *body, size_t *tag) {
    if (length < 5 || (reply[0] != '$' && reply[0] != '=')) return false;
    const uint8_t *line = memchr(reply, '\n', length);
    if (line == NULL || reply[1] == '-') return false;
    *tag = reply[0] == '=' ? 4 : 0; /* "txt:" */
    size_t head = (size_t)(line - reply) + 1;
    if (length < head + *tag + 2) return false;
    *body = (struct field){(const char *)line + 1 + *tag, length - head - *tag - 2};
    return true;
}

struct field list_next(struct field *body) {
    const char *stop = memchr(body->text, '\n', body->length);
    struct field line = {body->text, stop == NULL ? body->length : (size_t)(stop - body->text) + 1};
    body->text += line.length;
    body->length -= line.length;
    return line;
}

bool client_list_edit(struct own_peer *peers, size_t count, uint64_t asks, size_t added, size_t unseen, const uint8_t *reply,
                      size_t length, struct buffer *out) {
    struct field body;
    size_t tag;
    if (!list_body(reply, length, &body, &tag)) return false;
    struct buffer lines = {0};
    qsort(peers, count, sizeof *peers, by_id);
    while (body.length > 0) {
        struct field line = list_next(&body), id;
        struct own_peer key = {.id = field_find(line, "id", &id) ? field_number(id) : 0};
        const struct own_peer *peer = count > 0 ? bsearch(&key, peers, count, sizeof key, by_id) : NULL;
        bool own = key.id == asks;
        if (peer != NULL || !is_ours(line)) append_line(&lines, line, peer, own ? added : 0, own ? unseen : 0);
    }
    char head[40];
    int n = snprintf(head, sizeof head, "%c%zu\r\n%.*s", reply[0], buffer_length(&lines) + tag, (int)tag, "txt:");
    buffer_append(out, head, (size_t)n);
    buffer_append(out, buffer_bytes(&lines), buffer_length(&lines));
    buffer_text(out, "\r\n");
    buffer_free(&lines);
    return true;
}
