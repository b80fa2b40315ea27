/*
 * load.c: DEBUG RELOAD and DEBUG LOADAOF. What they load was written from the very data that it takes the place of, so the
 * followers, who load nothing, hold the same still. That is not taken for granted: behind the load, on the same connection,
 * the backend is asked what became of it, and the ROLE that lets its answer go comes after that. A load that failed half
 * way, or that left keys out because their time was up (a leader's RDB is loaded without them, and nobody is told), has left
 * other data than the log's: nothing that ran on it is ever committed, another node leads, and this backend is filled anew.
 *
 * A file that may hold anything (NOSAVE, an AOF that is not kept up: the backend is asked before) is written into the stream
 * behind the load, every key and the functions; until that is done there is no ROLE, so no part of it counts, and nothing
 * else goes onto the shared connection. DEBUG POPULATE, of which the stream would say nothing, is done by a script's SETNXs.
 */
#include <stdio.h>

#include "engine/engine_state.h"
#include "protocols/redis/session_word.h"

static const char INFO[] = ASK_PERSISTENCE;

static void load_ask(struct engine *e, enum expect_kind kind, const struct destination *to, enum session_loads loads) {
    struct shared *s = &e->shared;
    const struct expect x = {.kind = (uint8_t)kind, .loads = (uint8_t)loads, .replies = 1, .database_after = -1, .to = *to, .since_ns = e->now_ns};
    turn_forward(e, s->database >= 0 ? (uint32_t)s->database : 0, s->protocol, INFO, sizeof INFO - 1, &x);
}

static void load_do(struct engine *e, const struct destination *to, enum session_loads loads, const void *bytes, size_t length) {
    struct shared *s = &e->shared;
    const struct expect x = {.kind = EXPECT_LOAD, .loads = (uint8_t)loads, .replies = 1, .database_after = -1, .to = *to, .since_ns = e->now_ns};
    turn_forward(e, s->database >= 0 ? (uint32_t)s->database : 0, s->protocol, bytes, length, &x);
    load_ask(e, EXPECT_LOADED, to, loads);
}

/* ---- a file of whatever data ----------------------------------------------------------------------------------------- */

/* Every key anew, as RESTOREs, behind a FLUSHALL. */
static const char WRITE_OUT[] =
    "local held = {} for db = 0, tonumber(ARGV[1]) - 1 do redis.call('SELECT', db) "
    "for _, key in ipairs(redis.call('KEYS', '*')) do local dump = redis.call('DUMP', key) "
    "if dump then held[#held + 1] = {db, key, redis.call('PEXPIRETIME', key), dump} end end end "
    "redis.call('FLUSHALL') for _, one in ipairs(held) do redis.call('SELECT', one[1]) "
    "redis.call('RESTORE', one[2], one[3] < 0 and 0 or one[3], one[4], 'ABSTTL') end return redis.status_reply('OK')";

static void load_write(struct engine *e, const void *bytes, size_t length, enum expect_kind kind, bool last) {
    struct shared *s = &e->shared;
    const struct expect x = {.kind = (uint8_t)kind, .reads = last, .replies = 1, .database_after = -1, .since_ns = e->now_ns};
    turn_forward(e, s->database >= 0 ? (uint32_t)s->database : 0, s->protocol, bytes, length, &x);
}

static void load_file(struct engine *e, const struct destination *to, const void *bytes, size_t length) {
    struct shared *s = &e->shared;
    const struct expect x = {.kind = EXPECT_LOAD, .loads = LOADS_FILE, .replies = 1, .database_after = -1, .to = *to, .since_ns = e->now_ns};
    struct buffer write = {0};
    char databases[16];
    snprintf(databases, sizeof databases, "%u", e->config.databases);
    append_command(&write, 4, OUR_EVAL, WRITE_OUT, "0", databases);
    turn_forward(e, s->database >= 0 ? (uint32_t)s->database : 0, s->protocol, bytes, length, &x);
    load_write(e, buffer_bytes(&write), buffer_length(&write), EXPECT_WRITTEN, false);
    load_write(e, ASK_FUNCTIONS, sizeof ASK_FUNCTIONS - 1, EXPECT_FUNCTIONS, false);
    s->writes_out = true;
    buffer_free(&write);
}

/* FUNCTION DUMP's answer is an argument as it stands. */
static void load_functions(struct engine *e, const struct buffer *dump) {
    struct buffer write = {0};
    if (*buffer_bytes(dump) != '$') {
        e->shared.changed = true;
        return;
    }
    buffer_text(&write, "*4\r\n$8\r\nFuNCTION\r\n$7\r\nRESTORE\r\n");
    buffer_append(&write, buffer_bytes(dump), buffer_length(dump));
    buffer_text(&write, "$5\r\nFLUSH\r\n");
    load_write(e, buffer_bytes(&write), buffer_length(&write), EXPECT_WRITTEN, true);
    buffer_free(&write);
}

/* ---- DEBUG POPULATE --------------------------------------------------------------------------------------------------- */

/* As the server makes them, those that are there already excepted. */
static const char POPULATE[] =
    "local size = tonumber(ARGV[4]) local prefix = string.match(ARGV[3], '^[^%z]*') for i = tonumber(ARGV[1]), tonumber(ARGV[2]) do "
    "local n = string.format('%.0f', i) local value = 'value:' .. n if size > 0 then "
    "value = string.sub(value, 1, size) .. string.rep(string.char(0), size - #value) end "
    "redis.call('SETNX', string.sub(prefix .. ':' .. n, 1, 127), value) end return redis.status_reply('OK')";
#define POPULATE_KEYS 10000ll /* at once ... */
#define POPULATE_BYTES (64ll << 20)
#define POPULATE_TIMES_MAX 100000ll

/* Would the server? It looks at all but how many, of which it is told 0. */
static void populate_ask(struct engine *e, const struct request *r) {
    struct resp_request request;
    struct buffer ask = {0};
    const struct session_decision *d = r->decision;
    const uint32_t length = (uint32_t)d->length;
    char head[16];
    if (!request_parse(d->bytes, d->length, &request)) return;
    buffer_append(&ask, head, (size_t)snprintf(head, sizeof head, "*%u\r\n", (uint32_t)request.argc));
    for (uint64_t i = 0; i < request.argc; i++) request_bulk(&ask, i == 2 ? (struct word){"0", 1} : word_at(&request, d->bytes, i));
    buffer_append(&e->shared.populate, &length, sizeof length);
    buffer_append(&e->shared.populate, d->bytes, d->length);
    const struct expect x = {.kind = EXPECT_POPULATE, .replies = 1, .database_after = -1, .to = r->from, .covered = r->database, .since_ns = e->now_ns};
    turn_forward(e, r->database, r->protocol, buffer_bytes(&ask), buffer_length(&ask), &x);
    buffer_free(&ask);
}

static void populate_do(struct engine *e, const struct expect *asked, const uint8_t *bytes, size_t length) {
    struct resp_request request;
    long long keys = 0, size = 0, number = 0;
    CHECK(request_parse(bytes, length, &request) && word_number(word_at(&request, bytes, 2), &keys));
    if (request.argc == 5) word_number(word_at(&request, bytes, 4), &size);
    long long at_once = size < POPULATE_BYTES / POPULATE_KEYS ? POPULATE_KEYS : size < POPULATE_BYTES ? POPULATE_BYTES / size : 1;
    if (keys / at_once >= POPULATE_TIMES_MAX) keys = at_once * POPULATE_TIMES_MAX;
    struct buffer out = {0};
    struct expect x = {.kind = EXPECT_CLIENT, .database_after = -1, .to = asked->to, .since_ns = e->now_ns};
    do {
        char first[24], last[24], bytes_each[24];
        snprintf(first, sizeof first, "%lld", number);
        snprintf(last, sizeof last, "%lld", (number + at_once < keys ? number + at_once : keys) - 1);
        snprintf(bytes_each, sizeof bytes_each, "%lld", size);
        buffer_text(&out, "*7\r\n");
        const char *const words[] = {OUR_EVAL, POPULATE, "0", first, last};
        for (size_t i = 0; i < sizeof words / sizeof *words; i++) request_bulk(&out, (struct word){words[i], strlen(words[i])});
        request_bulk(&out, request.argc > 3 ? word_at(&request, bytes, 3) : (struct word){"key", 3});
        request_bulk(&out, (struct word){bytes_each, strlen(bytes_each)});
        x.replies++;
        number += at_once;
    } while (number < keys);
    x.swallow = x.replies - 1;
    turn_forward(e, (uint32_t)asked->covered, e->shared.protocol, buffer_bytes(&out), buffer_length(&out), &x);
    buffer_free(&out);
}

static void load_answer(struct engine *e, const struct destination *to, const void *bytes, size_t length);

/* The server's answer to that. */
static void populate_asked(struct engine *e, const struct expect *x, const struct buffer *said) {
    struct buffer *requests = &e->shared.populate;
    uint32_t length;
    memcpy(&length, buffer_bytes(requests), sizeof length);
    if (*buffer_bytes(said) == '+') populate_do(e, x, buffer_bytes(requests) + sizeof length, length);
    else load_answer(e, &x->to, buffer_bytes(said), buffer_length(said));
    buffer_consume(requests, sizeof length + length);
}

void load_submit(struct engine *e, const struct request *r) {
    const struct session_decision *d = r->decision;
    if (d->loads == LOADS_AOF) load_ask(e, EXPECT_AOF, &r->from, LOADS_AOF);
    else if (d->loads == LOADS_POPULATE) populate_ask(e, r);
    else if (d->loads == LOADS_FILE) load_file(e, &r->from, d->bytes, d->length);
    else load_do(e, &r->from, d->loads, d->bytes, d->length);
}

/* Does INFO say so? Its lines are "name:value". */
static bool says(const struct buffer *info, const char *name, const char *value) {
    char line[64];
    int length = snprintf(line, sizeof line, "\n%s:%s\r", name, value);
    return memmem(buffer_bytes(info), buffer_length(info), line, (size_t)length) != NULL;
}

/* On, begun, and written to: then it holds everything. */
static bool aof_holds_all(const struct buffer *info) {
    return says(info, "aof_enabled", "1") && says(info, "aof_rewrite_in_progress", "0") && says(info, "aof_rewrite_scheduled", "0") &&
           says(info, "aof_last_bgrewrite_status", "ok") && says(info, "aof_last_write_status", "ok");
}

/* Off, but it was written once: then it holds something. */
static bool aof_holds_some(const struct buffer *info) {
    return says(info, "aof_enabled", "0") && !says(info, "aof_rewrites", "0") && says(info, "aof_rewrite_in_progress", "0") &&
           says(info, "aof_rewrite_scheduled", "0") && says(info, "aof_last_bgrewrite_status", "ok");
}

static void load_answer(struct engine *e, const struct destination *to, const void *bytes, size_t length) {
    struct client *c = to->node == e->self ? client_find(e, to->slot, to->generation) : NULL;
    if (c != NULL) client_answer(e, c, bytes, length);
    else if (to->node != e->self) link_answer(e, to, bytes, length);
}

static void load_aof(struct engine *e, const struct destination *to) {
    static const char load[] = "*2\r\n$5\r\nDEBUG\r\n$7\r\nLOADAOF\r\n";
    static const char why[] = "-ERR DEBUG LOADAOF is refused: the AOF does not hold everything now (see INFO persistence)\r\n";
    if (!e->big.active && aof_holds_all(&e->shared.info)) return load_do(e, to, LOADS_AOF, load, sizeof load - 1);
    if (!e->big.active && aof_holds_some(&e->shared.info)) return load_file(e, to, load, sizeof load - 1);
    load_answer(e, to, why, sizeof why - 1);
}

/* An answer to one of these is whole, in shared.info. */
void load_replied(struct engine *e, const struct expect *x) {
    static const char failed[] = "-ERR Error trying to load";
    struct shared *s = &e->shared;
    const struct buffer *info = &s->info;
    bool refused = busy_begins(buffer_bytes(info), buffer_length(info)), nothing = refused && s->busy.load_refused;
    switch ((enum expect_kind)x->kind) {
        case EXPECT_LOAD:
            s->busy.load_refused = refused;
            if (buffer_length(info) >= sizeof failed && memcmp(buffer_bytes(info), failed, sizeof failed - 1) == 0) s->changed = true;
            break;
        case EXPECT_LOADED:
            if (!nothing && (!says(info, "rdb_last_load_keys_expired", "0") || (x->loads == LOADS_AOF && !aof_holds_all(info)))) s->changed = true;
            break;
        case EXPECT_AOF: load_aof(e, &x->to); break;
        case EXPECT_FUNCTIONS:
            if (!nothing) load_functions(e, info);
            else s->writes_out = false, e->more = true;
            break;
        case EXPECT_WRITTEN:
            if (*buffer_bytes(info) != '+' && !nothing) s->changed = true;
            if (x->reads) s->writes_out = false;
            e->more = true;
            break;
        case EXPECT_POPULATE: populate_asked(e, x, info); break;
        default: break;
    }
}
