/*
 * config_check.c: CONFIG SET of parameters that the sidecar keeps, because replication relies on them (R7, R8) or because they
 * are one node's own. To a client they are what Redis calls immutable; but the value that they have may be set again, as
 * programs do that write back what they have read. So the backend is asked first. What it does not know either, it refuses.
 *
 * Of a request that would change one of them the backend is shown all, and one parameter more whose value is wrong: as it sets
 * all or nothing, it says what else is wrong with the request, in its own words, and does nothing.
 */
#include <netinet/in.h>
#include <stdio.h>
#include <sys/socket.h>
#include <unistd.h>

#include "engine/engine_state.h"
#include "protocols/redis/session_word.h"

bool request_parse(const uint8_t *bytes, size_t length, struct resp_request *request) {
    const struct resp_limits limits = {UINT32_MAX, UINT32_MAX, 1 << 16, true};
    resp_request_reset(request);
    return resp_request_feed(request, bytes, length, &limits) == RESP_DONE && !request->is_inline && request->length == length;
}

static bool is_config_set(const struct resp_request *request, const uint8_t *bytes) {
    return request->argc >= 4 && word_is(word_at(request, bytes, 0), "config") && word_is(word_at(request, bytes, 1), "set");
}

void request_bulk(struct buffer *out, struct word w) {
    char head[32];
    buffer_append(out, head, (size_t)snprintf(head, sizeof head, "$%zu\r\n", w.length));
    buffer_append(out, w.text, w.length);
    buffer_text(out, "\r\n");
}

bool config_check_begin(struct engine *e, const struct destination *to, const uint8_t *bytes, size_t length) {
    struct resp_request request;
    if (e->admin.socket.source.fd < 0 || !request_parse(bytes, length, &request) || !is_config_set(&request, bytes) || session_config_allowed(&request, bytes)) return false;
    struct buffer ask = {0};
    char head[32];
    uint64_t kept = 0;
    for (uint64_t i = 2; i < request.argc; i += 2) kept += !session_config_settable(&request, bytes, i);
    buffer_append(&ask, head, (size_t)snprintf(head, sizeof head, "*%llu\r\n", (unsigned long long)kept + 2));
    buffer_text(&ask, "$6\r\n" OUR_CONFIG "\r\n$3\r\nGET\r\n");
    for (uint64_t i = 2; i < request.argc; i += 2)
        if (!session_config_settable(&request, bytes, i)) request_bulk(&ask, word_at(&request, bytes, i));
    buffer_append(&e->admin.checks, bytes, length);
    e->our_calls[OUR_CALLS_CONFIG_GET]++;
    admin_queue(e, (struct admin_expect){ADMIN_CHECK, *to, (uint32_t)length}, buffer_bytes(&ask), buffer_length(&ask));
    buffer_free(&ask);
    return true;
}

/* Has the parameter another value in CONFIG GET's answer? Not if it is not there. */
static bool differs(const struct resp_request *answer, const uint8_t *text, struct word name, struct word value) {
    for (uint64_t i = 0; i + 1 < answer->argc; i += 2) {
        struct word known = word_at(answer, text, i), has = word_at(answer, text, i + 1);
        if (known.length != name.length || strncasecmp(known.text, name.text, name.length) != 0) continue;
        return has.length != value.length || memcmp(has.text, value.text, value.length) != 0;
    }
    return false;
}

/* The request with what may be set in it alone: so it travels to the other nodes. Empty: nothing. */
static void append_settable(struct buffer *out, const struct resp_request *request, const uint8_t *bytes) {
    uint64_t words = 0;
    char head[32];
    for (uint64_t i = 2; i + 1 < request->argc; i += 2) words += 2 * session_config_settable(request, bytes, i);
    if (words == 0) return;
    buffer_append(out, head, (size_t)snprintf(head, sizeof head, "*%llu\r\n", (unsigned long long)words + 2));
    buffer_text(out, "$6\r\nCONFIG\r\n$3\r\nSET\r\n");
    for (uint64_t i = 2; i + 1 < request->argc; i += 2) {
        if (!session_config_settable(request, bytes, i)) continue;
        request_bulk(out, word_at(request, bytes, i));
        request_bulk(out, word_at(request, bytes, i + 1));
    }
}

static void take(struct buffer *checks, size_t length, struct buffer *out, struct resp_request *request) {
    buffer_append(out, buffer_bytes(checks), length);
    buffer_consume(checks, length);
    CHECK(request_parse(buffer_bytes(out), length, request));
}

#define WRONG "hz" /* has no value "x" */

/* The request with what is wrong behind it; false: it sets that itself. */
static bool append_wrong(struct buffer *out, const struct resp_request *request, const uint8_t *bytes) {
    char head[32];
    buffer_append(out, head, (size_t)snprintf(head, sizeof head, "*%llu\r\n", (unsigned long long)request->argc + 2));
    for (uint64_t i = 0; i < request->argc; i++) {
        if (i % 2 == 0 && word_is(word_at(request, bytes, i), WRONG)) return false;
        request_bulk(out, word_at(request, bytes, i));
    }
    request_bulk(out, (struct word){WRONG, strlen(WRONG)});
    request_bulk(out, (struct word){"x", 1});
    return true;
}

/* Could a server on this host listen there? */
static bool port_free(long long port) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), one = 1;
    if (fd < 0) return true;
    const struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    bool free = bind(fd, (const struct sockaddr *)&address, sizeof address) == 0;
    close(fd);
    return free;
}

/* A port that is taken no server could be given: that is what is wrong with it then. */
static void append_refusal(struct buffer *out, struct word name, struct word value) {
    char line[256];
    long long port;
    bool taken = word_is(name, "port") && word_number(value, &port) && port > 0 && port <= UINT16_MAX && !port_free(port);
    int n = snprintf(line, sizeof line, "-ERR CONFIG SET failed (possibly related to argument '%.*s') - %s\r\n",
                     (int)(name.length < 64 ? name.length : 64), name.text,
                     taken ? "Unable to listen on this port. Check server logs." : "can't set immutable config: musidecar keeps it");
    buffer_append(out, line, (size_t)n);
}

/* What CONFIG GET says of the parameters that are kept. */
void config_check_end(struct engine *e, const struct admin_expect *x, const uint8_t *text, size_t length) {
    struct resp_request request, answer;
    struct buffer held = {0}, more = {0}, refusal = {0};
    take(&e->admin.checks, x->setting_bytes, &held, &request);
    const uint8_t *bytes = buffer_bytes(&held);
    bool known = length > 4 && text[0] == '*' && request_parse(text, length, &answer); /* "*0": none of them is a parameter */
    uint64_t differing = 0;
    for (uint64_t i = 2; known && differing == 0 && i + 1 < request.argc; i += 2)
        if (!session_config_settable(&request, bytes, i) && differs(&answer, text, word_at(&request, bytes, i), word_at(&request, bytes, i + 1)))
            differing = i;
    if (differing != 0) append_refusal(&refusal, word_at(&request, bytes, differing), word_at(&request, bytes, differing + 1));
    if (text[0] == '-') {
        admin_answer_client(e, &x->to, text, length);
    } else if (differing == 0) {
        append_settable(&more, &request, bytes);
        buffer_append(&e->admin.settings, buffer_bytes(&more), buffer_length(&more));
        uint32_t logged = (uint32_t)buffer_length(&more);
        buffer_clear(&more);
        if (!config_kept_translate(e, bytes, buffer_length(&held), &more)) buffer_append(&more, bytes, buffer_length(&held));
        admin_queue(e, (struct admin_expect){ADMIN_CLIENT, x->to, logged}, buffer_bytes(&more), buffer_length(&more));
    } else if (!append_wrong(&more, &request, bytes)) {
        admin_answer_client(e, &x->to, buffer_bytes(&refusal), buffer_length(&refusal));
    } else {
        buffer_append(&e->admin.checks, buffer_bytes(&refusal), buffer_length(&refusal));
        admin_queue(e, (struct admin_expect){ADMIN_WRONG, x->to, (uint32_t)buffer_length(&refusal)}, buffer_bytes(&more), buffer_length(&more));
    }
    buffer_free(&refusal);
    buffer_free(&more);
    buffer_free(&held);
}

/* What it says of the request with something wrong in it. */
void config_wrong_end(struct engine *e, const struct admin_expect *x, const uint8_t *text, size_t length) {
    static const char ours[] = "argument '" WRONG "'";
    if (memmem(text, length, ours, sizeof ours - 1) == NULL) admin_answer_client(e, &x->to, text, length);
    else admin_answer_client(e, &x->to, buffer_bytes(&e->admin.checks), x->setting_bytes);
    buffer_consume(&e->admin.checks, x->setting_bytes);
}
