/*
 * fuzz_requests.c: what a client sends: framing, inline requests, the command table, its error texts, the session.
 *
 * Told at once and in parts the same requests come out, the same bytes travel, and the client gets one answer for each
 * request. A framed request is framed again from its array form, and its arguments walked.
 */
#include "fuzz.h"

#include "buffer.h"
#include "protocols/redis/session.h"

static const struct command_info COMMANDS[] = {
    {"ping", -1, WAY_READ, ACTION_NONE, false, true, false, false, QUEUE_PLAINLY, false},
    {"get", 2, WAY_READ, ACTION_NONE, false, true, false, false, QUEUE_PLAINLY, true},
    {"set", -3, WAY_WRITE, ACTION_NONE, false, true, false, false, QUEUE_IF_WRITABLE, false},
    {"del", -2, WAY_WRITE, ACTION_NONE, false, true, false, false, QUEUE_IF_WRITABLE, false},
    {"select", 2, WAY_SESSION, ACTION_SELECT, false, true, false, false, QUEUE_PLAINLY, false},
    {"hello", -1, WAY_SESSION, ACTION_HELLO, false, false, true, false, QUEUE_PLAINLY, false},
    {"auth", -2, WAY_SESSION, ACTION_AUTH, false, false, true, false, QUEUE_PLAINLY, false},
    {"multi", 1, WAY_SESSION, ACTION_MULTI, false, false, false, false, QUEUE_PLAINLY, false},
    {"exec", 1, WAY_SESSION, ACTION_EXEC, false, false, false, false, QUEUE_PLAINLY, false},
    {"discard", 1, WAY_SESSION, ACTION_DISCARD, false, false, false, false, QUEUE_PLAINLY, false},
    {"unwatch", 1, WAY_SESSION, ACTION_UNWATCH, false, true, false, false, QUEUE_PLAINLY, false},
    {"watch", -2, WAY_OWN, ACTION_WATCH, false, false, false, false, QUEUE_PLAINLY, false},
    {"quit", -1, WAY_SESSION, ACTION_QUIT, false, false, true, false, QUEUE_PLAINLY, false},
    {"reset", 1, WAY_SESSION, ACTION_RESET, false, false, true, false, QUEUE_PLAINLY, false},
    {"wait", 3, WAY_SESSION, ACTION_WAIT, false, true, false, false, QUEUE_PLAINLY, false},
    {"client", -2, WAY_SESSION, ACTION_CLIENT, false, false, false, false, QUEUE_PLAINLY, false},
    {"client|getname", 2, WAY_SESSION, ACTION_CLIENT, false, false, false, false, QUEUE_PLAINLY, false},
    {"client|setname", 3, WAY_SESSION, ACTION_CLIENT, false, false, false, false, QUEUE_PLAINLY, false},
    {"client|id", 2, WAY_SESSION, ACTION_CLIENT, false, false, false, false, QUEUE_PLAINLY, false},
    {"client|reply", 3, WAY_SESSION, ACTION_CLIENT, false, false, false, false, QUEUE_PLAINLY, false},
    {"client|kill", -3, WAY_SESSION, ACTION_CLIENT, false, false, false, false, QUEUE_PLAINLY, false},
    {"readonly", 1, WAY_SESSION, ACTION_READONLY, false, false, false, false, QUEUE_PLAINLY, false},
    {"asking", 1, WAY_SESSION, ACTION_ASKING, false, false, false, false, QUEUE_PLAINLY, false},
    {"eval", -3, WAY_WRITE, ACTION_EVAL, false, true, false, false, QUEUE_IF_WRITABLE, false},
    {"eval_ro", -3, WAY_READ, ACTION_EVAL, false, true, false, false, QUEUE_PLAINLY, false},
    {"evalsha", -3, WAY_WRITE, ACTION_NONE, false, true, false, false, QUEUE_IF_WRITABLE, false},
    {"script", -2, WAY_WRITE, ACTION_NONE, true, true, false, false, QUEUE_IF_WRITABLE, false},
    {"script|load", 3, WAY_WRITE, ACTION_SCRIPT_LOAD, false, true, false, false, QUEUE_IF_WRITABLE, false},
    {"script|flush", -2, WAY_WRITE, ACTION_SCRIPT_FLUSH, false, true, false, false, QUEUE_IF_WRITABLE, false},
    {"script|kill", 2, WAY_ADMIN, ACTION_NONE, false, false, false, false, QUEUE_PLAINLY, false},
    {"config", -2, WAY_READ, ACTION_NONE, true, true, false, false, QUEUE_PLAINLY, false},
    {"config|get", -3, WAY_READ, ACTION_NONE, false, true, false, false, QUEUE_PLAINLY, false},
    {"config|set", -4, WAY_ADMIN, ACTION_CONFIG_SET, false, false, false, false, QUEUE_PLAINLY, false},
    {"xread", -4, WAY_READ, ACTION_IF_BLOCK, false, true, false, false, QUEUE_PLAINLY, false},
    {"xreadgroup", -7, WAY_WRITE, ACTION_IF_BLOCK, false, true, false, false, QUEUE_IF_WRITABLE, false},
    {"blpop", -3, WAY_OWN, ACTION_NONE, false, true, false, true, QUEUE_PLAINLY, false},
    {"subscribe", -2, WAY_OWN, ACTION_RAW, false, false, false, false, QUEUE_PLAINLY, false},
    {"monitor", 1, WAY_OWN, ACTION_RAW, false, false, false, false, QUEUE_NEVER, false},
    {"debug", -2, WAY_READ, ACTION_DEBUG, false, true, false, false, QUEUE_PLAINLY, false},
    {"replicaof", 3, WAY_REFUSE, ACTION_NONE, false, false, false, false, QUEUE_PLAINLY, false},
    {"info", -1, WAY_READ, ACTION_INFO, false, true, false, false, QUEUE_PLAINLY, false},
    {"post", -1, WAY_REFUSE, ACTION_CLOSE, false, false, true, false, QUEUE_PLAINLY, false},
};

static struct command_table *table;
static struct edge edge, array_edge, line_edge;
static struct buffer answer, travelled[2], normal;
static struct session session;
static struct story stories[2];

struct client { /* one pass over the input */
    struct session_context context;
    struct resp_limits limits;
    bool accepts; /* the backend accepts credentials */
    struct story *story;
    struct buffer *travelled;
    uint64_t asked, answered;
    bool closed, silently;
};

static struct command_table *make_table(void) {
    struct command_table *made = command_table_new(sizeof COMMANDS / sizeof COMMANDS[0]);
    for (size_t i = 0; i < sizeof COMMANDS / sizeof COMMANDS[0]; i++) CHECK(command_table_add(made, &COMMANDS[i]) == 0);
    return made;
}

/* Whole answers, and nothing else. */
static uint64_t count_answers(const struct buffer *bytes) {
    struct resp_reply reply;
    uint64_t count = 0;
    resp_reply_reset(&reply);
    for (size_t at = 0; at < buffer_length(bytes); count++) {
        enum resp_status status;
        at += resp_reply_feed(&reply, buffer_bytes(bytes) + at, buffer_length(bytes) - at, &status);
        CHECK(status == RESP_DONE);
        resp_reply_reset(&reply);
    }
    return count;
}

static uint64_t count_requests(const uint8_t *bytes, size_t length) {
    struct resp_limits limits = {UINT32_MAX, UINT32_MAX, 1 << 16, true};
    struct resp_request request;
    uint64_t count = 0;
    for (size_t at = 0; at < length; count++) {
        resp_request_reset(&request);
        CHECK(resp_request_feed(&request, bytes + at, length - at, &limits) == RESP_DONE && !request.is_inline);
        at += request.length;
    }
    return count;
}

static void use_request(const struct resp_request *request, const uint8_t *array, size_t size, uint32_t room) {
    struct resp_argument walked = resp_request_argument(request, array, 0);
    for (uint64_t i = 0; i < request->argc; i++) {
        if (i > 0) walked = resp_request_next(request, array, walked);
        if (i < 20) {
            struct resp_argument found = resp_request_argument(request, array, i);
            CHECK(found.offset == walked.offset && found.length == walked.length);
        }
        CHECK((size_t)walked.offset + walked.length + 2 <= size);
    }
    const struct command_info *info = NULL;
    enum command_verdict verdict = command_lookup(table, request, array, &info);
    command_blocks(request, array);
    if (verdict == COMMAND_OK) {
        CHECK(info != NULL);
        command_lookup_sub(table, info, request, array, &info);
        return;
    }
    char *line = (char *)line_edge.bytes + FUZZ_BYTES_MAX - room;
    size_t n = command_error(verdict, info, request, array, line, room);
    CHECK(n >= 2 && n <= room && memcmp(line + n - 2, "\r\n", 2) == 0);
    CHECK(memchr(line, '\n', n) == line + n - 1);
}

static void use_decision(struct client *c, const struct session_decision *d) {
    uint64_t answers = count_answers(&answer);
    c->answered += answers;
    if (d->close) {
        c->closed = true;
        c->silently = answers == 0; /* "POST" */
    }
    if (d->verdict == SESSION_NOTHING || d->verdict == SESSION_ANSWER) return;
    CHECK(d->verdict != SESSION_WAIT); /* everything is answered at once here */
    CHECK(d->length > 0);
    if (d->waits) { /* WAIT: for the leader's engine */
        CHECK(d->verdict == SESSION_ADMIN && d->length == sizeof(struct session_wait) && d->replies == 1);
        buffer_append(c->travelled, d->bytes, d->length);
        c->answered++;
        if (session_own_done(&session)) session.own = OWN_NONE;
        return;
    }
    uint64_t requests = count_requests(d->bytes, d->length);
    if (d->verdict == SESSION_OWN) { /* of an open transaction some may be unanswered; the last may have any number of answers */
        CHECK(session.own != OWN_NONE && d->swallow <= d->replies && d->swallow < requests);
    } else {
        CHECK(d->replies >= 1 && d->swallow < d->replies && requests == d->replies);
    }
    CHECK(d->stands_in == session.multi_asked);
    if (session.multi_asked) { /* how often depends on the pieces that the input comes in */
        CHECK(session.in_multi && !d->writes && d->verdict == SESSION_SUBMIT && d->replies == 1 && d->swallow == 0);
        c->answered++;
        session_asked_answered(&session, false);
        return;
    }
    CHECK(d->script == NULL || (d->script >= d->bytes && d->script + d->script_length + 2 <= d->bytes + d->length));
    CHECK(d->database_after < (int32_t)c->context.databases && (d->verdict == SESSION_SUBMIT || d->verdict == SESSION_OWN || d->replies == 1));
    buffer_append(c->travelled, d->bytes, d->length);
    if (d->verdict == SESSION_VERIFY && c->accepts) {
        buffer_clear(&answer);
        session_verified(&session, &c->context, d->hello_protocol, &answer);
        c->answered += d->hello_protocol == 0 ? 1 : count_answers(&answer);
        return;
    }
    if (d->database_after >= 0) session.database = (uint32_t)d->database_after;
    c->answered += requests - d->swallow;
    if (session.login) session_login_answered(&session, !c->accepts);
    if (session_own_done(&session)) session.own = OWN_NONE;
}

static void step(struct client *c, const struct resp_request *framed, const uint8_t *bytes, bool more) {
    struct resp_request request;
    size_t size = resp_request_normalised_bytes(framed, bytes);
    uint8_t *array = array_edge.bytes;
    if (size <= FUZZ_BYTES_MAX) {
        array += FUZZ_BYTES_MAX - size;
    } else { /* an inline argument grows by its head */
        buffer_clear(&normal);
        array = buffer_room(&normal, size);
    }
    CHECK(resp_request_normalise(framed, bytes, array) == size);
    struct resp_limits wide = {UINT32_MAX, UINT32_MAX, 1 << 16, true};
    resp_request_reset(&request);
    CHECK(resp_request_feed(&request, array, size, &wide) == RESP_DONE);
    CHECK(request.length == size && request.argc == framed->argc && !request.is_inline);
    CHECK(framed->is_inline || memcmp(array, bytes, size) == 0);
    use_request(&request, array, size, 2 + (uint32_t)(size * 7 % 600));
    buffer_clear(&answer);
    c->asked++;
    session.quiet = true;
    struct session_decision d = session_step(&session, &c->context, &request, array, more, &answer);
    use_decision(c, &d);
    c->limits.authenticated = session.authenticated;
}

static void pause_session(struct client *c) {
    buffer_clear(&answer);
    session_pause(&session, &answer);
    c->answered += count_answers(&answer);
}

static void run(struct client *c, const uint8_t *bytes, size_t length, struct dice *dice) {
    struct resp_request request;
    resp_request_reset(&request);
    session_open(&session, 7, &c->context);
    buffer_clear(c->travelled);
    c->story->count = 0;
    size_t start = 0, end = dice == NULL ? length : 0;
    while (!c->closed) {
        uint8_t *part = edge_put(&edge, bytes + start, end - start);
        enum resp_status status = resp_request_feed(&request, part, end - start, &c->limits);
        if (status == RESP_BAD) {
            CHECK(request.error != NULL);
            story_bytes(c->story, (const uint8_t *)request.error, strlen(request.error));
            break;
        }
        if (status == RESP_MORE) {
            pause_session(c);
            if (end == length) break;
            end += dice_part(dice, length - end);
            continue;
        }
        size_t whole = request.length;
        CHECK(whole > 0 && whole <= end - start);
        start += whole;
        story_tell(c->story, start);
        story_tell(c->story, status == RESP_EMPTY ? 0 : request.argc);
        if (status == RESP_DONE) step(c, &request, part, end > start);
        resp_request_reset(&request);
    }
    if (!c->closed) pause_session(c);
    CHECK(c->silently ? c->answered < c->asked : c->answered == c->asked);
    story_tell(c->story, session.database | (uint64_t)session.protocol << 32 | (uint64_t)session.in_multi << 40);
    story_bytes(c->story, buffer_bytes(c->travelled), buffer_length(c->travelled));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size < 2 || size - 2 > FUZZ_BYTES_MAX) return 0;
    if (table == NULL) table = make_table();
    uint8_t choice = data[0];
    struct dice dice = {data[1] * 2u + 1u};
    for (int i = 0; i < 2; i++) {
        struct client c = {.story = &stories[i], .travelled = &travelled[i], .accepts = choice & 32};
        c.context = (struct session_context){.commands = table, .version = "7.0.15", .user = "", .databases = 16,
                                             .password_needed = choice & 1, .busy = choice & 2, .followers = 2,
                                             .block_bytes_max = choice & 4 ? 64 : 1 << 20};
        c.limits = (struct resp_limits){.bulk_bytes_max = choice & 8 ? 100 : UINT64_MAX / 2,
                                        .request_bytes_max = choice & 8 ? 200 : UINT64_MAX,
                                        .inline_bytes_max = choice & 16 ? 24 : 65536,
                                        .authenticated = !(choice & 1)};
        run(&c, data + 2, size - 2, i == 0 ? NULL : &dice);
    }
    story_compare(&stories[0], &stories[1]);
    return 0;
}
