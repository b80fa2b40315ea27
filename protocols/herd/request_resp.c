/* request_resp.c: RESP requests; see request.h. They are framed anew each time, from their bytes alone. */
#include "protocols/herd/request.h"

#include <stdio.h>
#include <strings.h>

#include "protocols/herd/value.h"
#include "protocols/herd/wire.h"
#include "protocols/redis/resp.h"

#define REQUEST_BYTES_MAX (1u << 20)

static const struct resp_limits LIMITS = {.bulk_bytes_max = REQUEST_BYTES_MAX, .request_bytes_max = REQUEST_BYTES_MAX,
                                          .inline_bytes_max = 64u << 10, .authenticated = true};

struct text { const uint8_t *at; size_t length; };

struct command {
    const struct resp_request *request;
    const uint8_t *bytes;
    struct protocol_request *r;
    struct buffer *answer;
};

static struct text argument(const struct command *c, uint64_t i) {
    struct resp_argument a = resp_request_argument(c->request, c->bytes, i);
    return (struct text){c->bytes + a.offset, a.length};
}

static bool is(struct text t, const char *word) { return t.length == strlen(word) && strncasecmp((const char *)t.at, word, t.length) == 0; }

static void say(const struct command *c, const char *text) {
    c->r->class = PROTOCOL_ANSWER;
    buffer_text(c->answer, text);
}

static void say_bulk(const struct command *c, struct text t) {
    char head[32];
    c->r->class = PROTOCOL_ANSWER;
    buffer_append(c->answer, head, (size_t)snprintf(head, sizeof head, "$%zu\r\n", t.length));
    buffer_append(c->answer, t.at, t.length);
    buffer_text(c->answer, "\r\n");
}

static void wrong_number(const struct command *c) {
    struct text name = argument(c, 0);
    char text[160];
    snprintf(text, sizeof text, "-ERR wrong number of arguments for '%.*s' command\r\n", (int)(name.length < 64 ? name.length : 64), (const char *)name.at);
    say(c, text);
}

/* ---- what is asked of HERD -------------------------------------------------------------------------------------------------- */

/* Arguments 1 to `last` are keys. */
static bool keys_fit(const struct command *c, uint64_t last) {
    if (last > WIRE_ITEMS_MAX) return say(c, "-ERR more than 1024 keys\r\n"), false;
    struct resp_argument key = resp_request_argument(c->request, c->bytes, 1);
    for (uint64_t i = 1; key.length <= WIRE_KEY_BYTES_MAX && i < last; i++) key = resp_request_next(c->request, c->bytes, key);
    if (key.length <= WIRE_KEY_BYTES_MAX) return true;
    say(c, "-ERR a key is longer than 250 bytes\r\n");
    return false;
}

static void keyed(const struct command *c, enum protocol_class class, enum herd_style style) {
    if (!keys_fit(c, c->request->argc - 1)) return;
    c->r->class = class;
    c->r->style = style;
}

static void get(const struct command *c) {
    if (c->request->argc != 2) return wrong_number(c);
    keyed(c, PROTOCOL_READ, HERD_STYLE_GET);
}
static void mget(const struct command *c) { keyed(c, PROTOCOL_READ, HERD_STYLE_MGET); }
static void exists(const struct command *c) { keyed(c, PROTOCOL_READ, HERD_STYLE_EXISTS); }
static void del(const struct command *c) { keyed(c, PROTOCOL_WRITE, HERD_STYLE_DEL); }

static void set(const struct command *c) {
    if (c->request->argc < 3) return wrong_number(c);
    if (!keys_fit(c, 1)) return;
    if (c->request->argc > 3) return say(c, "-ERR HERD keeps no expiry and knows no conditions: SET takes a key and a value\r\n");
    if (argument(c, 2).length > HERD_DATA_BYTES_MAX) return say(c, "-ERR the value is too long: HERD keeps values of up to 33 bytes\r\n");
    c->r->class = PROTOCOL_WRITE;
    c->r->style = HERD_STYLE_SET;
}

/* ---- what is answered here -------------------------------------------------------------------------------------------------- */

static void ping(const struct command *c) {
    if (c->request->argc > 2) return wrong_number(c);
    if (c->request->argc == 2) return say_bulk(c, argument(c, 1));
    say(c, "+PONG\r\n");
}

static void echo(const struct command *c) {
    if (c->request->argc != 2) return wrong_number(c);
    say_bulk(c, argument(c, 1));
}

static void select_database(const struct command *c) {
    if (c->request->argc != 2) return wrong_number(c);
    say(c, is(argument(c, 1), "0") ? "+OK\r\n" : "-ERR DB index is out of range\r\n");
}

static void hello(const struct command *c) {
    if (c->request->argc > 1 && !is(argument(c, 1), "2")) return say(c, "-NOPROTO unsupported protocol version\r\n");
    if (c->request->argc > 2) return say(c, "-ERR HELLO: there is no password to be given, and no name\r\n");
    say(c, "*14\r\n$6\r\nserver\r\n$4\r\nherd\r\n$7\r\nversion\r\n$5\r\n0.0.0\r\n$5\r\nproto\r\n:2\r\n$2\r\nid\r\n:0\r\n$4\r\nmode\r\n$10\r\nstandalone\r\n"
           "$4\r\nrole\r\n$6\r\nmaster\r\n$7\r\nmodules\r\n*0\r\n");
}

static void client(const struct command *c) {
    if (c->request->argc < 2) return wrong_number(c);
    struct text what = argument(c, 1);
    if (is(what, "SETINFO") || is(what, "SETNAME")) return say(c, "+OK\r\n");
    if (is(what, "GETNAME")) return say(c, "$-1\r\n");
    if (is(what, "ID")) return say(c, ":0\r\n");
    say(c, "-ERR CLIENT: with HERD there are SETINFO, SETNAME, GETNAME and ID\r\n");
}

static void command(const struct command *c) {
    say(c, c->request->argc > 1 && is(argument(c, 1), "COUNT") ? ":0\r\n" : "*0\r\n"); /* it has no table of them to give */
}

static void info(const struct command *c) {
    static const char TEXT[] = "# Server\r\nserver:herd\r\nredis_version:0.0.0\r\nredis_mode:standalone\r\n";
    say_bulk(c, (struct text){(const uint8_t *)TEXT, sizeof TEXT - 1});
}

static void quit(const struct command *c) {
    say(c, "+OK\r\n");
    c->r->class = PROTOCOL_CLOSE;
}

static void unknown(const struct command *c) {
    struct text name = argument(c, 0);
    char text[200], shown[65];
    size_t n = name.length < sizeof shown - 1 ? name.length : sizeof shown - 1;
    for (size_t i = 0; i < n; i++) shown[i] = name.at[i] > ' ' && name.at[i] < 0x7f ? (char)name.at[i] : '?';
    shown[n] = 0;
    snprintf(text, sizeof text, "-ERR unknown command '%s': HERD knows GET, MGET, SET, DEL, EXISTS\r\n", shown);
    say(c, text);
}

static const struct { const char *name; uint64_t least; void (*take)(const struct command *c); } COMMANDS[] = {
    {"GET", 2, get}, {"SET", 3, set}, {"DEL", 2, del}, {"UNLINK", 2, del}, {"MGET", 2, mget}, {"EXISTS", 2, exists}, {"PING", 1, ping},
    {"ECHO", 2, echo}, {"SELECT", 2, select_database}, {"HELLO", 1, hello}, {"CLIENT", 2, client}, {"COMMAND", 1, command},
    {"INFO", 1, info}, {"QUIT", 1, quit}};

static void take(const struct command *c) {
    struct text name = argument(c, 0);
    for (size_t i = 0; i < sizeof COMMANDS / sizeof *COMMANDS; i++) {
        if (!is(name, COMMANDS[i].name)) continue;
        return c->request->argc < COMMANDS[i].least ? wrong_number(c) : COMMANDS[i].take(c);
    }
    unknown(c);
}

static void bad(const struct resp_request *request, struct protocol_request *r, struct buffer *answer) {
    char text[160];
    r->class = PROTOCOL_CLOSE;
    r->why = "it sent what is no RESP request, or one of more than a megabyte";
    const char *error = request->error[0] != 0 ? request->error : "Protocol error: too big a request";
    buffer_append(answer, text, (size_t)snprintf(text, sizeof text, "-ERR %.120s\r\n", error));
}

void herd_resp_request(const uint8_t *bytes, size_t length, struct protocol_request *r, struct buffer *answer) {
    struct resp_request request;
    resp_request_reset(&request);
    r->length = length;
    r->wanted = 0;
    r->swallow = 0;
    r->key_hash = 0;
    r->all_keys = false;
    r->style = 0;
    r->why = NULL;
    switch (resp_request_feed(&request, bytes, length, &LIMITS)) {
        case RESP_MORE: r->class = PROTOCOL_MORE; return;
        case RESP_EMPTY: r->class = PROTOCOL_NOTHING; break;
        case RESP_BAD: return bad(&request, r, answer);
        case RESP_DONE: take(&(struct command){&request, bytes, r, answer}); break;
    }
    r->length = request.length;
}

/* ---- as it is logged --------------------------------------------------------------------------------------------------------- */

void herd_resp_rewrite(const struct protocol_request *r, const uint8_t *bytes, struct buffer *out) {
    struct resp_request request;
    resp_request_reset(&request);
    CHECK(resp_request_feed(&request, bytes, r->length, &LIMITS) == RESP_DONE);
    struct resp_argument key = resp_request_argument(&request, bytes, 1);
    if (r->style == HERD_STYLE_SET) {
        struct resp_argument value = resp_request_next(&request, bytes, key);
        return herd_wire_put(out, 0, bytes + key.offset, key.length, bytes + value.offset, value.length);
    }
    size_t began = herd_wire_begin(out);
    for (uint64_t i = 1; i < request.argc; i++) {
        herd_wire_key(out, bytes + key.offset, key.length);
        if (i + 1 < request.argc) key = resp_request_next(&request, bytes, key);
    }
    herd_wire_end(out, began, r->style == HERD_STYLE_DEL ? WIRE_DELETE : WIRE_GET, (uint32_t)(request.argc - 1));
}
