/* session_clients.c: CLIENT LIST, INFO and KILL, as far as they are about the clients of all nodes. See session.h. */
#include "protocols/redis/session_clients.h"

static bool read_type(struct word w, enum client_type *type) {
    static const struct { const char *name; enum client_type type; } types[] = {
        {"normal", CLIENT_NORMAL}, {"pubsub", CLIENT_PUBSUB}, {"replica", CLIENT_REPLICA}, {"slave", CLIENT_REPLICA}, {"master", CLIENT_MASTER}};
    for (size_t i = 0; i < sizeof types / sizeof *types; i++)
        if (word_is(w, types[i].name)) return *type = types[i].type, true;
    return false;
}

static bool read_id(struct word w, uint64_t *id) {
    long long number;
    if (!word_number(w, &number) || number <= 0) return false;
    *id = (uint64_t)number;
    return true;
}

static bool read_list(const struct resp_request *request, const uint8_t *bytes, struct client_filter *f) {
    uint64_t id;
    if (request->argc == 2) return true;
    struct word how = word_at(request, bytes, 2);
    if (word_is(how, "type")) return request->argc == 4 && read_type(word_at(request, bytes, 3), &f->type);
    if (!word_is(how, "id") || request->argc < 4) return false;
    for (uint64_t i = 3; i < request->argc; i++)
        if (!read_id(word_at(request, bytes, i), &id)) return false;
    return f->ids = true;
}

/* By the user: another user's clients have connections of their own, and the backend knows whether there is such a user. */
static bool read_kill(const struct session_context *context, const struct resp_request *request, const uint8_t *bytes,
                      struct client_filter *f) {
    f->kills = true;
    if (request->argc == 3) {
        f->addr = word_at(request, bytes, 2);
        return f->old = true;
    }
    if (request->argc < 3 || request->argc % 2 != 0) return false;
    f->skips_me = true;
    for (uint64_t i = 2; i < request->argc; i += 2) {
        struct word name = word_at(request, bytes, i), value = word_at(request, bytes, i + 1);
        bool ours = value.length == 7 && memcmp(value.text, "default", 7) == 0;
        ours = ours || (value.length == strlen(context->user) && memcmp(value.text, context->user, value.length) == 0);
        if (word_is(name, "addr")) f->addr = value;
        else if (word_is(name, "laddr")) f->laddr = value;
        else if (word_is(name, "skipme") && (word_is(value, "yes") || word_is(value, "no"))) f->skips_me = word_is(value, "yes");
        else if (word_is(name, "user") && ours) f->by_user = true;
        else if (word_is(name, "type") && read_type(value, &f->type)) continue;
        else if (!word_is(name, "id") || !read_id(value, &f->id)) return false;
    }
    return true;
}

bool client_filter_read(const struct session_context *context, const struct resp_request *request, const uint8_t *bytes,
                        struct client_filter *f) {
    *f = (struct client_filter){.kills = false};
    if (request->argc < 2 || !word_is(word_at(request, bytes, 0), "client")) return false;
    struct word sub = word_at(request, bytes, 1);
    if (word_is(sub, "list")) return read_list(request, bytes, f);
    if (word_is(sub, "kill")) return read_kill(context, request, bytes, f);
    return f->itself = word_is(sub, "info") && request->argc == 2;
}

bool session_tells_id(const struct command_info *info, const struct resp_request *request, const uint8_t *bytes) {
    return info->action == ACTION_CLIENT && request->argc == 2 && word_is(word_at(request, bytes, 1), "id");
}

void session_append_id(const struct session *s, struct buffer *out) {
    char script[48], text[96];
    int length = snprintf(script, sizeof script, "return %llu", (unsigned long long)s->client_id);
    int n = snprintf(text, sizeof text, "*3\r\n$4\r\n" OUR_EVAL "\r\n$%d\r\n%s\r\n$1\r\n0\r\n", length, script);
    buffer_append(out, text, (size_t)n);
}

enum session_view session_client_view(const struct command_info *info, const struct resp_request *request, const uint8_t *bytes) {
    static const struct { const char *name; enum session_view view; } views[] = {
        {"id", VIEW_CLIENT_ID}, {"getredir", VIEW_REDIRECTION}, {"trackinginfo", VIEW_REDIRECTION}};
    if (info->action == ACTION_HELLO) return VIEW_CLIENT_ID;
    for (size_t i = 0; info->action == ACTION_CLIENT && request->argc == 2 && i < sizeof views / sizeof *views; i++)
        if (word_is(word_at(request, bytes, 1), views[i].name)) return views[i].view;
    return VIEW_PLAIN;
}
