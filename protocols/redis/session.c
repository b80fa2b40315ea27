/* session.c: see session.h. */
#include "protocols/redis/session_clients.h"

#include <stdio.h>

#define TEXT_MAX 512

/* One line whatever the client's own bytes in it are: a line's end among them would be an answer to something else. */
static void reply_error(struct buffer *out, const char *text) {
    size_t length = strlen(text);
    buffer_text(out, "-");
    char *line = (char *)buffer_room(out, length);
    for (size_t i = 0; i < length; i++) line[i] = text[i] == '\r' || text[i] == '\n' ? ' ' : text[i];
    out->end += length;
    buffer_text(out, "\r\n");
}

static void reply_bulk(struct buffer *out, const void *bytes, size_t length) {
    char head[32];
    int n = snprintf(head, sizeof head, "$%zu\r\n", length);
    buffer_append(out, head, (size_t)n);
    buffer_append(out, bytes, length);
    buffer_text(out, "\r\n");
}

static void reply_integer(struct buffer *out, long long value) {
    char text[32];
    int n = snprintf(text, sizeof text, ":%lld\r\n", value);
    buffer_append(out, text, (size_t)n);
}

static void reply_null(const struct session *s, struct buffer *out) {
    buffer_text(out, s->protocol == 3 ? "_\r\n" : "$-1\r\n");
}

static struct session_decision answered(void) { return (struct session_decision){.verdict = SESSION_ANSWER}; }

static struct session_decision failed(struct buffer *answer, const char *text) {
    reply_error(answer, text);
    return answered();
}

void session_open(struct session *s, uint64_t client_id, const struct session_context *context) {
    *s = (struct session){.client_id = client_id,
                          .protocol = 2,
                          .authenticated = !context->password_needed,
                          .multi_database = -1,
                          .block = s->block,
                          .deferred = s->deferred};
    buffer_clear(&s->block);
    buffer_clear(&s->deferred);
}

void session_close(struct session *s) {
    buffer_free(&s->block);
    buffer_free(&s->deferred);
}

/* ---- connection state ------------------------------------------------------------------------------------------ */

static struct session_decision step_select(struct session *s, const struct session_context *context, struct word w,
                                           struct buffer *answer) {
    long long database;
    if (!word_number(w, &database)) return failed(answer, "ERR invalid DB index");
    if (database < 0 || database >= (long long)context->databases) return failed(answer, "ERR DB index is out of range");
    s->database = (uint32_t)database;
    buffer_text(answer, "+OK\r\n");
    return answered();
}

static void reply_hello(const struct session *s, const struct session_context *context, struct buffer *out) {
    buffer_text(out, s->protocol == 3 ? "%7\r\n" : "*14\r\n");
    reply_bulk(out, "server", 6);
    reply_bulk(out, "redis", 5);
    reply_bulk(out, "version", 7);
    reply_bulk(out, context->version, strlen(context->version));
    reply_bulk(out, "proto", 5);
    reply_integer(out, s->protocol);
    reply_bulk(out, "id", 2);
    reply_integer(out, (long long)s->client_id);
    reply_bulk(out, "mode", 4);
    reply_bulk(out, "standalone", 10);
    reply_bulk(out, "role", 4);
    reply_bulk(out, "master", 6);
    reply_bulk(out, "modules", 7);
    buffer_text(out, "*0\r\n");
}

static bool name_allowed(struct word w) {
    if (w.length >= SESSION_NAME_MAX) return false;
    for (size_t i = 0; i < w.length; i++)
        if (w.text[i] < '!' || w.text[i] > '~') return false;
    return true;
}

static void name_set(struct session *s, struct word w) {
    memcpy(s->name, w.text, w.length);
    s->name[w.length] = 0;
}

#define REFUSED_TEXT " is refused: musidecar decides which node leads and what its backend replicates"
#define BUSY_TEXT "BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE."
static const char *const NAME_TEXT = "ERR Client names cannot contain spaces, newlines or special characters.";

/* Shows the credentials to the backend as AUTH: a plain AUTH travels as it came, HELLO's are written anew. */
static struct session_decision verify(struct session *s, const uint8_t *bytes, size_t length, uint8_t protocol) {
    (void)s;
    return (struct session_decision){
        .verdict = SESSION_VERIFY, .bytes = bytes, .length = length, .replies = 1, .hello_protocol = protocol};
}

static bool word_is_default(struct word w) { return w.length == 7 && memcmp(w.text, "default", 7) == 0; }

/* Everybody's requests share a connection with the rights of one user: another one's are checked on one of its own. */
static struct session_decision step_auth(struct session *s, const struct command_info *info, const struct resp_request *request,
                                         const uint8_t *bytes) {
    if (request->argc == 3 && !word_is_default(word_at(request, bytes, 1))) return session_own_enter(s, info, request, bytes);
    return verify(s, bytes, request->length, 0);
}

static struct session_decision step_hello(struct session *s, const struct session_context *context,
                                          const struct command_info *info, const struct resp_request *request,
                                          const uint8_t *bytes, struct buffer *answer) {
    long long protocol = s->protocol;
    if (request->argc >= 2) {
        if (!word_number(word_at(request, bytes, 1), &protocol))
            return failed(answer, "ERR Protocol version is not an integer or out of range");
        if (protocol < 2 || protocol > 3) return failed(answer, "NOPROTO unsupported protocol version");
    }
    struct word user = {0}, password = {0}, name = {0};
    for (uint64_t i = 2; i < request->argc; i++) {
        struct word w = word_at(request, bytes, i);
        uint64_t left = request->argc - 1 - i;
        if (word_is(w, "auth") && left >= 2) {
            user = word_at(request, bytes, i + 1);
            password = word_at(request, bytes, i + 2);
            i += 2;
        } else if (word_is(w, "setname") && left >= 1) {
            name = word_at(request, bytes, i + 1);
            if (!name_allowed(name)) return failed(answer, NAME_TEXT);
            i += 1;
        } else {
            char text[TEXT_MAX];
            snprintf(text, sizeof text, "ERR Syntax error in HELLO option '%.*s'", (int)(w.length < 128 ? w.length : 128), w.text);
            return failed(answer, text);
        }
    }
    if (!s->authenticated && user.text == NULL)
        return failed(answer, "NOAUTH HELLO must be called with the client already authenticated, otherwise the HELLO <proto> "
                              "AUTH <user> <pass> option can be used to authenticate the client and select the RESP "
                              "protocol version at the same time");
    if (user.text != NULL && !word_is_default(user)) return session_own_enter(s, info, request, bytes);
    if (name.text != NULL) name_set(s, name);
    if (user.text != NULL) {
        buffer_clear(&s->block); /* no transaction is open: HELLO is not allowed in one */
        buffer_text(&s->block, "*3\r\n");
        reply_bulk(&s->block, "AUTH", 4);
        reply_bulk(&s->block, user.text, user.length);
        reply_bulk(&s->block, password.text, password.length);
        return verify(s, buffer_bytes(&s->block), buffer_length(&s->block), (uint8_t)protocol);
    }
    s->protocol = (uint8_t)protocol;
    reply_hello(s, context, answer);
    return answered();
}

void session_verified(struct session *s, const struct session_context *context, uint8_t hello_protocol,
                      struct buffer *answer) {
    s->authenticated = true;
    if (hello_protocol == 0) return;
    s->protocol = hello_protocol;
    reply_hello(s, context, answer);
}

static void multi_forget(struct session *s) {
    s->in_multi = s->multi_broken = s->multi_writes = false;
    s->multi_refused = NULL;
    s->multi_commands = s->multi_answered = 0;
    s->multi_database = -1;
    s->multi_pause = PAUSE_NOTHING;
    s->multi_secrets = false;
    s->multi_asked = false;
    buffer_clear(&s->block);
    buffer_trim(&s->block, 1 << 16);
    buffer_clear(&s->deferred);
}

static struct session_decision step_reset(struct session *s, const struct session_context *context,
                                          struct buffer *answer) {
    multi_forget(s);
    s->database = 0;
    s->protocol = 2;
    s->name[0] = 0;
    s->readonly = false;
    s->authenticated = !context->password_needed;
    buffer_text(answer, "+RESET\r\n");
    return answered();
}

/* In order with everybody's requests: what was taken before it is done before it. */
static struct session_decision step_pause(struct session *s, const struct resp_request *request, const uint8_t *bytes) {
    buffer_clear(&s->block); /* no transaction is open */
    uint32_t pause = session_pause_append(request, bytes, &s->block);
    return (struct session_decision){.verdict = SESSION_SUBMIT, .bytes = buffer_bytes(&s->block), .length = buffer_length(&s->block),
                                     .replies = 1, .database_after = -1, .pause = pause};
}

static struct session_decision step_client(struct session *s, const struct session_context *context, const struct command_info *info,
                                           const struct resp_request *request, const uint8_t *bytes, struct buffer *answer) {
    struct word sub = word_at(request, bytes, 1);
    const struct command_info *known;
    enum command_verdict verdict = command_lookup_sub(context->commands, info, request, bytes, &known);
    if (verdict != COMMAND_OK) {
        char line[TEXT_MAX];
        buffer_append(answer, line, command_error(verdict, known, request, bytes, line, sizeof line));
        return answered();
    }
    if (word_is(sub, "getname") && request->argc == 2) {
        if (s->name[0]) reply_bulk(answer, s->name, strlen(s->name));
        else reply_null(s, answer);
    } else if (word_is(sub, "setname") && request->argc == 3) {
        struct word name = word_at(request, bytes, 2);
        if (!name_allowed(name)) return failed(answer, NAME_TEXT);
        name_set(s, name);
        buffer_text(answer, "+OK\r\n");
    } else if (word_is(sub, "setinfo") || word_is(sub, "no-touch")) { /* of Redis 7.2; libraries send them to everybody */
        buffer_text(answer, "+OK\r\n");
    } else if (session_pauses(info, request, bytes)) {
        return step_pause(s, request, bytes);
    } else {
        return session_own_enter(s, info, request, bytes);
    }
    return answered();
}

/* ---- transactions ---------------------------------------------------------------------------------------------- */

static struct session_decision multi_answer(struct session *s, bool more, struct buffer *answer, const char *line) {
    if (!more && buffer_length(&s->deferred) == 0) {
        buffer_text(answer, line);
        s->multi_answered = s->multi_commands;
        return answered();
    }
    buffer_text(&s->deferred, line);
    if (!more) {
        session_pause(s, answer);
        return answered();
    }
    return (struct session_decision){.verdict = SESSION_NOTHING};
}

bool session_pause(struct session *s, struct buffer *answer) {
    if (buffer_length(&s->deferred) == 0) return false;
    buffer_append(answer, buffer_bytes(&s->deferred), buffer_length(&s->deferred));
    buffer_clear(&s->deferred);
    s->multi_answered = s->multi_commands;
    return true;
}

static struct session_decision multi_fail(struct session *s, bool more, struct buffer *answer, const char *line) {
    s->multi_broken = true;
    buffer_clear(&s->block);
    return multi_answer(s, more, answer, line);
}

/* Would the backend queue it now? */
static struct session_decision multi_ask(struct session *s) {
    static const char asked[] = ASK_WRITABLE;
    s->multi_asked = true;
    s->multi_answered = s->multi_commands;
    return (struct session_decision){.verdict = SESSION_SUBMIT,
                                     .bytes = (const uint8_t *)asked,
                                     .length = sizeof asked - 1,
                                     .replies = 1,
                                     .stands_in = true,
                                     .database_after = -1};
}

bool session_refuses_to_queue(const uint8_t *line, size_t length) {
    static const char *const errors[] = {"-OOM ", "-MISCONF ", "-NOREPLICAS ", "-READONLY ", "-BUSY ", "-LOADING "};
    for (size_t i = 0; i < sizeof errors / sizeof errors[0]; i++)
        if (length > strlen(errors[i]) && memcmp(line, errors[i], strlen(errors[i])) == 0) return true;
    return false;
}

void session_asked_answered(struct session *s, bool refused) {
    s->multi_asked = false;
    if (!refused) return;
    s->multi_broken = true;
    buffer_clear(&s->block);
}

static struct session_decision step_exec(struct session *s, const struct session_context *context, const uint8_t *bytes,
                                         size_t length, struct buffer *answer) {
    if (context->busy) {
        session_pause(s, answer);
        multi_forget(s);
        return failed(answer, "EXECABORT Transaction discarded because of: " BUSY_TEXT);
    }
    if (s->multi_refused != NULL) {
        char text[TEXT_MAX];
        snprintf(text, sizeof text, "EXECABORT Transaction discarded because of: %s" REFUSED_TEXT, s->multi_refused);
        session_pause(s, answer);
        multi_forget(s);
        return failed(answer, text);
    }
    if (s->multi_broken) {
        session_pause(s, answer);
        multi_forget(s);
        return failed(answer, "EXECABORT Transaction discarded because of previous errors.");
    }
    buffer_append(&s->block, bytes, length);
    buffer_clear(&s->deferred); /* the backend's own answers take their place */
    struct session_decision d = {.verdict = SESSION_SUBMIT,
                                 .bytes = buffer_bytes(&s->block),
                                 .length = buffer_length(&s->block),
                                 .writes = s->multi_writes,
                                 .replies = s->multi_commands + 1,
                                 .swallow = s->multi_answered,
                                 .database_after = s->multi_database,
                                 .loses_database = s->multi_database >= 0,
                                 .pause = s->multi_pause,
                                 .view = s->multi_secrets ? VIEW_SECRETS : VIEW_PLAIN};
    s->multi_secrets = false;
    s->in_multi = s->multi_writes = false; /* the block stays in its place until the next transaction */
    s->multi_commands = s->multi_answered = 0;
    s->multi_pause = PAUSE_NOTHING;
    s->multi_database = -1;
    return d;
}

static void multi_append(struct session *s, const struct session_context *context, const struct command_info *info,
                         const struct resp_request *request, const uint8_t *bytes) {
    if (session_tells_id(info, request, bytes)) session_append_id(s, &s->block);
    else if (!session_append_wait(context, info, request, bytes, &s->block)) buffer_append(&s->block, bytes, request->length);
}

static bool multi_select(struct session *s, const struct session_context *context, struct word w) {
    long long database;
    if (!word_number(w, &database) || database < 0 || database >= (long long)context->databases) return false;
    s->multi_database = (int32_t)database;
    return true;
}

/* Redis queues it, and would do it at EXEC: so it is at EXEC that it is refused. */
static struct session_decision multi_refuse(struct session *s, const struct command_info *info, bool more, struct buffer *answer) {
    if (!s->multi_broken) s->multi_refused = info->name;
    s->multi_broken = true;
    buffer_clear(&s->block);
    return multi_answer(s, more, answer, "+QUEUED\r\n");
}

/* A command inside MULTI ... EXEC. */
static struct session_decision step_queue(struct session *s, const struct session_context *context,
                                          const struct command_info *info, const struct resp_request *request,
                                          const uint8_t *bytes, bool more, struct buffer *answer) {
    switch ((enum command_action)info->action) {
        case ACTION_EXEC: return step_exec(s, context, bytes, request->length, answer);
        case ACTION_DISCARD:
            session_pause(s, answer);
            multi_forget(s);
            buffer_text(answer, "+OK\r\n");
            return answered();
        case ACTION_RESET: session_pause(s, answer); return step_reset(s, context, answer);
        default: break;
    }
    s->multi_commands++;
    if (context->busy && info->action != ACTION_MULTI) return multi_fail(s, more, answer, "-" BUSY_TEXT "\r\n");
    if (info->action == ACTION_MULTI) {
        s->multi_commands--;
        session_pause(s, answer);
        return failed(answer, "ERR MULTI calls can not be nested");
    }
    if (info->action == ACTION_SYNC || info->action == ACTION_REPLCONF)
        return multi_fail(s, more, answer, "-ERR Command not allowed inside a transaction\r\n");
    if (strcmp(info->name, "watch") == 0) {
        s->multi_commands--;
        session_pause(s, answer);
        return failed(answer, "ERR WATCH inside MULTI is not allowed");
    }
    if (info->queueing == QUEUE_NEVER) return multi_fail(s, more, answer, "-ERR Command not allowed inside a transaction\r\n");
    bool tells_id = session_tells_id(info, request, bytes);
    bool carried = tells_id || info->way == WAY_READ || info->way == WAY_WRITE || info->blocking || info->action == ACTION_WAIT ||
                   info->action == ACTION_IF_BLOCK || info->action == ACTION_UNWATCH;
    if (info->action == ACTION_SELECT) {
        carried = multi_select(s, context, word_at(request, bytes, 1));
        if (!carried) return multi_fail(s, more, answer, "-ERR DB index is out of range\r\n");
    }
    if (session_pauses(info, request, bytes)) {
        if (!s->multi_broken) s->multi_pause = session_pause_join(s->multi_pause, session_pause_append(request, bytes, &s->block));
        return multi_answer(s, more, answer, "+QUEUED\r\n");
    }
    bool admin = info->way == WAY_ADMIN && (!session_travels(info) || session_sets(info, request, bytes));
    bool on_own = info->way == WAY_OWN || info->way == WAY_SESSION || admin || (info->way != WAY_REFUSE && carried);
    bool travels = carried && (info->in_multi || tells_id);
    if (!travels && on_own && !session_refuses(context, info, request, bytes)) {
        s->multi_commands--;
        if (!s->multi_broken) return session_own_enter(s, info, request, bytes);
        s->multi_commands++;
        return multi_answer(s, more, answer, "+QUEUED\r\n");
    }
    if (info->way == WAY_REFUSE) return multi_refuse(s, info, more, answer);
    bool loads = session_loads(info, request, bytes) != LOADS_NOTHING; /* the whole transaction would have to be judged */
    if (!travels || loads || session_refuses(context, info, request, bytes)) {
        char line[TEXT_MAX];
        snprintf(line, sizeof line, "-ERR %s is not supported inside a transaction through musidecar\r\n", info->name);
        return multi_fail(s, more, answer, line);
    }
    if (buffer_length(&s->block) + request->length > context->block_bytes_max)
        return multi_fail(s, more, answer, "-ERR transaction too large\r\n");
    bool asks = info->queueing == QUEUE_IF_WRITABLE && !more && buffer_length(&s->deferred) == 0 && !s->multi_broken;
    if (asks && !s->quiet) {
        s->multi_commands--;
        return (struct session_decision){.verdict = SESSION_WAIT};
    }
    if (info->way != WAY_READ && info->action != ACTION_SELECT && info->action != ACTION_WAIT && !tells_id) s->multi_writes = true;
    if (info->action == ACTION_VIEW || info->action == ACTION_INFO) s->multi_secrets = true;
    if (s->multi_broken) return multi_answer(s, more, answer, "+QUEUED\r\n");
    multi_append(s, context, info, request, bytes);
    if (asks) return multi_ask(s);
    return multi_answer(s, more, answer, "+QUEUED\r\n");
}

static struct session_decision step_multi(struct session *s, const struct resp_request *request, const uint8_t *bytes,
                                          bool more, struct buffer *answer) {
    multi_forget(s);
    s->in_multi = true;
    s->multi_commands = 1;
    buffer_append(&s->block, bytes, request->length);
    return multi_answer(s, more, answer, "+OK\r\n");
}

/* ---- the request ----------------------------------------------------------------------------------------------- */

static struct session_decision submit(const struct resp_request *request, const uint8_t *bytes, bool writes) {
    return (struct session_decision){.verdict = SESSION_SUBMIT,
                                     .bytes = bytes,
                                     .length = request->length,
                                     .writes = writes,
                                     .replies = 1,
                                     .database_after = -1};
}

static struct session_decision travel(const struct command_info *info, const struct resp_request *request,
                                      const uint8_t *bytes) {
    struct session_decision d = submit(request, bytes, info->way != WAY_READ);
    uint64_t body = info->action == ACTION_EVAL ? 1 : info->action == ACTION_SCRIPT_LOAD ? 2 : 0;
    if (body > 0 && request->argc > body) {
        struct word w = word_at(request, bytes, body);
        d.script = (const uint8_t *)w.text;
        d.script_length = w.length;
        d.writes = true; /* the body must be in the log before an EVALSHA can name it */
    }
    d.flushes_scripts = info->action == ACTION_SCRIPT_FLUSH;
    if (info->action == ACTION_VIEW || info->action == ACTION_INFO) {
        d.view = session_view(info);
        d.view_count = session_view_count(request, bytes);
    }
    return d;
}

static struct session_decision step_refused(const struct command_info *info, struct buffer *answer) {
    char text[TEXT_MAX];
    snprintf(text, sizeof text, "ERR %s" REFUSED_TEXT, info->name);
    return failed(answer, text);
}

static struct session_decision step_debug(const struct session *s, const struct session_context *context, const struct command_info *info,
                                          const struct resp_request *request, const uint8_t *bytes, struct buffer *answer) {
    if (session_loads_twice(info, request, bytes))
        return failed(answer, "ERR Error trying to load the RDB dump: all of it is there already (NOFLUSH without MERGE)");
    if (session_refuses(context, info, request, bytes)) return step_refused(info, answer);
    enum session_loads loads = session_loads(info, request, bytes);
    if (loads != LOADS_NOTHING && !s->quiet) return (struct session_decision){.verdict = SESSION_WAIT};
    struct session_decision d = travel(info, request, bytes);
    d.loads = loads;
    return d;
}

static struct session_decision step_admin(const struct command_info *info, const struct resp_request *request, const uint8_t *bytes) {
    struct session_decision d = submit(request, bytes, false);
    d.verdict = SESSION_ADMIN;
    d.travels = session_travels(info);
    return d;
}

struct session_decision session_step_wait(struct session *s, const struct session_context *context,
                                          const struct resp_request *request, const uint8_t *bytes, struct buffer *answer) {
    long long nodes, timeout_ms;
    if (!word_number(word_at(request, bytes, 1), &nodes)) return failed(answer, "ERR value is not an integer or out of range");
    if (!word_number(word_at(request, bytes, 2), &timeout_ms)) return failed(answer, "ERR timeout is not an integer or out of range");
    if (timeout_ms < 0) return failed(answer, "ERR timeout is negative");
    if (nodes <= (long long)context->followers) { /* when this is answered, what was asked before it is in so many logs */
        reply_integer(answer, context->followers);
        return answered();
    }
    if (!s->quiet) return (struct session_decision){.verdict = SESSION_WAIT};
    struct session_wait wait = {(uint64_t)timeout_ms, nodes > UINT32_MAX ? UINT32_MAX : (uint32_t)nodes, 0};
    buffer_clear(&s->block); /* no transaction is open */
    buffer_append(&s->block, &wait, sizeof wait);
    return (struct session_decision){.verdict = SESSION_ADMIN, .bytes = buffer_bytes(&s->block), .length = sizeof wait, .replies = 1,
                                     .waits = true, .database_after = -1};
}

static struct session_decision step_state(struct session *s, const struct session_context *context,
                                          const struct command_info *info, const struct resp_request *request,
                                          const uint8_t *bytes, bool more, struct buffer *answer) {
    struct session_decision d;
    switch ((enum command_action)info->action) {
        case ACTION_SELECT: return step_select(s, context, word_at(request, bytes, 1), answer);
        case ACTION_HELLO: return step_hello(s, context, info, request, bytes, answer);
        case ACTION_AUTH: return step_auth(s, info, request, bytes);
        case ACTION_MULTI: return step_multi(s, request, bytes, more, answer);
        case ACTION_EXEC: return failed(answer, "ERR EXEC without MULTI");
        case ACTION_DISCARD: return failed(answer, "ERR DISCARD without MULTI");
        case ACTION_UNWATCH: buffer_text(answer, "+OK\r\n"); return answered();
        case ACTION_QUIT:
            session_pause(s, answer); /* of an open transaction: first what was asked before */
            buffer_text(answer, "+OK\r\n");
            d = answered();
            d.close = true;
            return d;
        case ACTION_RESET: return step_reset(s, context, answer);
        case ACTION_WAIT: return session_step_wait(s, context, request, bytes, answer);
        case ACTION_CLIENT:
            if (session_kills_replicas(info, request, bytes)) {
                d = submit(request, bytes, false);
                d.verdict = SESSION_ADMIN;
                d.view = VIEW_KILL_REPLICAS;
                return d;
            }
            if (client_filter_read(context, request, bytes, &(struct client_filter){0})) {
                if (context->busy) return failed(answer, BUSY_TEXT);
                d = submit(request, bytes, false);
                d.verdict = SESSION_ADMIN;
                d.view = VIEW_CLIENTS;
                return d;
            }
            if (session_refuses(context, info, request, bytes)) return step_refused(info, answer);
            if (context->busy && session_pauses(info, request, bytes)) return failed(answer, BUSY_TEXT);
            return step_client(s, context, info, request, bytes, answer);
        case ACTION_READONLY:
            if (!context->stale_reads) break;
            s->readonly = strcmp(info->name, "readonly") == 0;
            buffer_text(answer, "+OK\r\n");
            return answered();
        default: break;
    }
    return submit(request, bytes, false); /* READONLY, ASKING: the backend's own error */
}

static void note_last(struct session *s, const struct session_context *context, const struct command_info *info,
                      const struct resp_request *request, const uint8_t *bytes) {
    const struct command_info *known;
    s->last = info;
    if (info == NULL || info->action != ACTION_CLIENT || request->argc < 2) return;
    if (command_lookup_sub(context->commands, info, request, bytes, &known) == COMMAND_OK) s->last = known;
}

struct session_decision session_step(struct session *s, const struct session_context *context,
                                     const struct resp_request *request, const uint8_t *bytes, bool more,
                                     struct buffer *answer) {
    struct session_decision d;
    const struct command_info *info = NULL;
    enum command_verdict verdict = command_lookup(context->commands, request, bytes, &info);
    note_last(s, context, verdict == COMMAND_OK ? info : NULL, request, bytes);
    if (s->own != OWN_NONE) return session_own_step(s, context, verdict == COMMAND_OK ? info : NULL, request, bytes);
    if (verdict != COMMAND_OK) {
        char line[TEXT_MAX];
        size_t n = command_error(verdict, info, request, bytes, line, sizeof line - 1);
        line[n] = 0;
        if (!s->in_multi) {
            buffer_append(answer, line, n);
            return answered();
        }
        bool exec = info != NULL && info->action == ACTION_EXEC;
        if (exec) { /* with arguments: it is refused, and the transaction with it */
            session_pause(s, answer);
            multi_forget(s);
            buffer_append(answer, line, n);
            return answered();
        }
        s->multi_commands++;
        return multi_fail(s, more, answer, line);
    }
    if (info->action == ACTION_CLOSE) return (struct session_decision){.verdict = SESSION_ANSWER, .close = true};
    if (!s->authenticated && !info->no_auth) return failed(answer, "NOAUTH Authentication required.");
    if (s->in_multi && info->action != ACTION_QUIT)
        return step_queue(s, context, info, request, bytes, more, answer);
    switch ((enum command_way)info->way) {
        case WAY_SESSION: return step_state(s, context, info, request, bytes, more, answer);
        case WAY_ADMIN: return step_admin(info, request, bytes);
        case WAY_REFUSE: return step_refused(info, answer);
        case WAY_OWN:
            if (session_refuses(context, info, request, bytes)) return step_refused(info, answer);
            if (!session_acknowledges(info, request, bytes)) return session_own_enter(s, info, request, bytes);
            if (request->argc > 3) return step_refused(info, answer);
            return (struct session_decision){.verdict = SESSION_NOTHING}; /* it is no replica: it is not answered */
        default: break;
    }
    if (context->busy && strcmp(info->name, "function|stats") == 0) { /* tells what runs, and for how long */
        d = submit(request, bytes, false);
        d.verdict = SESSION_ADMIN;
        return d;
    }
    if (context->busy)
        return failed(answer, BUSY_TEXT);
    if (info->action == ACTION_IF_BLOCK && command_blocks(request, bytes)) return session_own_enter(s, info, request, bytes);
    if (info->action == ACTION_DEBUG) return step_debug(s, context, info, request, bytes, answer);
    d = travel(info, request, bytes);
    d.may_be_stale = s->readonly && info->may_be_stale;
    return d;
}
