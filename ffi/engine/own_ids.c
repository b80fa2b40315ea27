/*
 * own_ids.c: numbers of clients (census.h) in what passes over their own connections. A client is known to others by the
 * number that its node gave it, to the backend by the backend's own.
 */
#include <stdio.h>

#include "engine/own_state.h"
#include "engine/view_reply.h"
#include "protocols/redis/session_word.h"

#define NOBODY_S "9223372036854775807" /* no client of the backend's has it */

/* The backend's number of a client; 0: of none. */
static uint64_t backend_id(const struct engine *e, struct word w) {
    long long client;
    if (!word_number(w, &client) || client <= 0) return 0;
    for (const struct own *own = e->owns.first; own != NULL; own = own->next)
        if (own->peer.client == (uint64_t)client) return own->peer.id;
    return 0;
}

static bool is_id(const struct resp_request *request, const uint8_t *bytes, uint64_t i) {
    struct word sub = word_at(request, bytes, 1), before = word_at(request, bytes, i - 1);
    if (word_is(sub, "unblock")) return i == 2;
    if (word_is(sub, "tracking")) return i > 3 && word_is(before, "redirect");
    if (word_is(sub, "kill")) return i > 2 && i % 2 == 1 && word_is(before, "id");
    return word_is(sub, "list") && i > 2 && word_is(word_at(request, bytes, 2), "id");
}

bool own_ids_translate(const struct engine *e, struct own *own, const uint8_t *bytes, size_t length, struct buffer *out) {
    static const char client[] = "\r\n$6\r\nclient\r\n";
    struct resp_request request;
    const uint8_t *line = memchr(bytes, '\r', length < 16 ? length : 16);
    if (line == NULL || (size_t)(bytes + length - line) < sizeof client - 1 || strncasecmp((const char *)line, client, sizeof client - 1) != 0) return false;
    if (!request_parse(bytes, length, &request) || request.argc < 3 || request.argc > 64) return false;
    char text[32];
    buffer_append(out, text, (size_t)snprintf(text, sizeof text, "*%llu\r\n", (unsigned long long)request.argc));
    for (uint64_t i = 0; i < request.argc; i++) {
        struct word w = word_at(&request, bytes, i);
        long long number;
        if (i > 1 && is_id(&request, bytes, i) && word_number(w, &number) && number > 0) {
            uint64_t id = backend_id(e, w);
            int n = snprintf(text, sizeof text, "%llu", (unsigned long long)id);
            if (word_is(word_at(&request, bytes, 1), "tracking") && id != 0) {
                own->peer.goes_to = id;
                own->peer.goes_to_client = (uint64_t)number;
            }
            w = id != 0 ? (struct word){text, (size_t)n} : (struct word){NOBODY_S, sizeof NOBODY_S - 1};
        }
        request_bulk(out, w);
    }
    return true;
}

static void append_integer(struct buffer *out, uint64_t value) {
    char text[32];
    buffer_append(out, text, (size_t)snprintf(text, sizeof text, ":%llu\r\n", (unsigned long long)value));
}

/* A number alone, or the one behind its name. */
void own_ids_edit(const struct own_peer *peer, enum session_view view, struct buffer *answer) {
    const char *name = view == VIEW_CLIENT_ID ? "id" : "redirect";
    struct reply reply = {buffer_bytes(answer), buffer_bytes(answer) + buffer_length(answer)};
    struct reply_item item;
    struct buffer out = {0};
    bool next = buffer_length(answer) > 0 && *buffer_bytes(answer) == ':';
    while (reply_next(&reply, &item)) {
        bool told = next && item.type == ':' && item.number > 0;
        bool redirected = told && view == VIEW_REDIRECTION && (uint64_t)item.number == peer->goes_to;
        if (redirected) append_integer(&out, peer->goes_to_client);
        else if (told && view == VIEW_CLIENT_ID && peer->client != 0) append_integer(&out, peer->client);
        else buffer_append(&out, item.at, item.whole);
        next = item.is_bulk && item.length == strlen(name) && memcmp(item.text, name, item.length) == 0;
    }
    buffer_append(&out, reply.at, (size_t)(reply.end - reply.at));
    buffer_free(answer);
    *answer = out;
}
