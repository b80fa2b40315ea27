/*
 * session_own.c: what becomes of the requests of a client that has a connection of its own to the leader's backend, and
 * which requests no backend may see, on whatever connection. See session.h.
 *
 * A request that is refused here still gets its answer in order, and makes an open transaction fail, because the backend
 * is asked in its place for a command that does not exist.
 */
#include "protocols/redis/session_clients.h"

#include <stdio.h>

static void append_bulk(struct buffer *out, const void *bytes, size_t length) {
    char head[32];
    buffer_append(out, head, (size_t)snprintf(head, sizeof head, "$%zu\r\n", length));
    buffer_append(out, bytes, length);
    buffer_text(out, "\r\n");
}

/* ---- what no backend may see -------------------------------------------------------------------------------------- */

static bool word_in(struct word w, const char *const *names) {
    for (; *names != NULL; names++)
        if (word_is(w, *names)) return true;
    return false;
}

static bool word_equals(struct word w, const char *text) { return w.length == strlen(text) && memcmp(w.text, text, w.length) == 0; }

/* DEBUG, as far as it changes neither data nor what the sidecar relies on; the server itself allows it or not. */
static const char *const DEBUG_ALLOWED[] = {
    "help", "log", "sleep", "object", "digest", "digest-value", "protocol", "set-active-expire", "quicklist-packed-threshold",
    "listpack", "ziplist", "quicklist", "sdslen", "htstats", "htstats-key", "stringmatch-len", "structsize", "error",
    "replybuffer", "pause-cron", "set-disable-deny-scripts", "client-enforce-reply-list", "dict-resizing", "leak", "jmap", NULL};

static bool debug_refused(const struct command_info *info, const struct resp_request *request, const uint8_t *bytes) {
    if (request->argc < 2 || session_loads(info, request, bytes) != LOADS_NOTHING) return false;
    return !word_in(word_at(request, bytes, 1), DEBUG_ALLOWED);
}

/* By type, by the user that they are logged in as, or by the address of a Unix socket, which all share, the sidecar's own
 * connections are meant, too. What is no filter the backend itself refuses. */
static bool kill_refused(const struct session_context *context, const struct resp_request *request, const uint8_t *bytes) {
    static const char *const filters[] = {"id", "type", "addr", "laddr", "user", "skipme", NULL};
    static const char *const types[] = {"normal", "master", "replica", "slave", NULL};
    if (request->argc == 3) {
        struct word address = word_at(request, bytes, 2);
        return memchr(address.text, '/', address.length) != NULL;
    }
    if (request->argc < 3 || request->argc % 2 != 0) return false;
    for (uint64_t i = 2; i < request->argc; i += 2) {
        struct word name = word_at(request, bytes, i), value = word_at(request, bytes, i + 1);
        if (!word_in(name, filters) || word_is(name, "id")) return false;
        if (word_is(name, "type") && !word_in(value, types)) return false; /* pubsub: the sidecar has none */
        if (word_is(name, "skipme") && !word_is(value, "yes") && !word_is(value, "no")) return false;
        if (word_is(name, "user") && !word_equals(value, "default") && !word_equals(value, context->user)) return false;
        if (word_is(name, "addr") && memchr(value.text, '/', value.length) == NULL) return false;
    }
    return true;
}

bool session_refuses(const struct session_context *context, const struct command_info *info, const struct resp_request *request,
                     const uint8_t *bytes) {
    if (info->way == WAY_REFUSE) return true;
    if (info->action == ACTION_DEBUG) return debug_refused(info, request, bytes);
    if (info->action == ACTION_SYNC) return request->argc > 3; /* PSYNC ... FAILOVER */
    if (info->action != ACTION_CLIENT || request->argc < 2) return false;
    struct word sub = word_at(request, bytes, 1);
    return word_is(sub, "kill") && kill_refused(context, request, bytes);
}

bool session_kills_replicas(const struct command_info *info, const struct resp_request *request, const uint8_t *bytes) {
    static const char *const types[] = {"replica", "slave", NULL};
    if (info->action != ACTION_CLIENT || request->argc != 4 || !word_is(word_at(request, bytes, 1), "kill")) return false;
    return word_is(word_at(request, bytes, 2), "type") && word_in(word_at(request, bytes, 3), types);
}

/* ---- CLIENT PAUSE ------------------------------------------------------------------------------------------------- */

bool session_pauses(const struct command_info *info, const struct resp_request *request, const uint8_t *bytes) {
    if (info->action != ACTION_CLIENT || request->argc < 2) return false;
    struct word sub = word_at(request, bytes, 1);
    return (word_is(sub, "pause") && (request->argc == 3 || request->argc == 4)) || (word_is(sub, "unpause") && request->argc == 2);
}

uint32_t session_pause_append(const struct resp_request *request, const uint8_t *bytes, struct buffer *out) {
    if (request->argc == 2) {
        buffer_text(out, "*2\r\n$6\r\nCLIENT\r\n$7\r\nUNPAUSE\r\n");
        return PAUSE_ENDS;
    }
    struct word mode = request->argc == 4 ? word_at(request, bytes, 3) : (struct word){"all", 3};
    long long ms = 0;
    bool all = word_is(mode, "all"), known = all || word_is(mode, "write"), number = word_number(word_at(request, bytes, 2), &ms);
    char text[16] = "x"; /* what is wrong is wrong in the way that the backend has a text for */
    if (number && ms < 0) snprintf(text, sizeof text, "-1");
    else if (number) snprintf(text, sizeof text, "%u", ms < 1 ? 1 : ms < PAUSE_MS_MAX ? (uint32_t)ms : PAUSE_MS_MAX);
    buffer_text(out, "*4\r\n$6\r\nCLIENT\r\n$5\r\nPAUSE\r\n");
    append_bulk(out, text, strlen(text));
    append_bulk(out, known ? "WRITE" : "x", known ? 5 : 1);
    if (!known || !number || ms < 0) return PAUSE_NOTHING;
    return (all ? PAUSE_ALL : PAUSE_WRITES) | (ms < 1 ? 1 : ms < PAUSE_MS_MAX ? (uint32_t)ms : PAUSE_MS_MAX) << PAUSE_KIND_BITS;
}

uint32_t session_pause_join(uint32_t first, uint32_t second) {
    const uint32_t kinds = (1u << PAUSE_KIND_BITS) - 1;
    bool pauses = first != PAUSE_NOTHING && first != PAUSE_ENDS, both = pauses && second != PAUSE_NOTHING && second != PAUSE_ENDS;
    if (!both) return second == PAUSE_NOTHING ? first : second;
    uint32_t kind = (first & kinds) > (second & kinds) ? first & kinds : second & kinds;
    return kind | ((first | kinds) > (second | kinds) ? first & ~kinds : second & ~kinds);
}

/* Parameters that CONFIG SET may change: what the sidecar itself relies on is not among them (R7). */
static const char *const CONFIG_ALLOWED[] = {
    "acllog-max-len", "aof-load-truncated", "aof-rewrite-incremental-fsync", "aof-timestamp-enabled", "aof-use-rdb-preamble",
    "appendfsync", "appendonly", "auto-aof-rewrite-min-size", "auto-aof-rewrite-percentage", "no-appendfsync-on-rewrite",
    "active-defrag-cycle-max", "active-defrag-cycle-min", "active-defrag-ignore-bytes",
    "active-defrag-max-scan-fields", "active-defrag-threshold-lower", "active-defrag-threshold-upper", "active-expire-effort",
    "activedefrag", "activerehashing", "busy-reply-threshold", "close-on-replica-write", "crash-log-enabled",
    "crash-memcheck-enabled", "dynamic-hz", "hash-max-listpack-entries", "hash-max-listpack-value", "hash-max-ziplist-entries",
    "hash-max-ziplist-value", "hll-sparse-max-bytes", "hz", "jemalloc-bg-thread", "key-load-delay", "latency-monitor-threshold",
    "latency-tracking", "latency-tracking-info-percentiles", "lazyfree-lazy-eviction", "lazyfree-lazy-expire",
    "lazyfree-lazy-server-del", "lazyfree-lazy-user-del", "lazyfree-lazy-user-flush", "lfu-decay-time", "lfu-log-factor",
    "list-compress-depth", "list-max-listpack-size", "list-max-ziplist-size", "loglevel", "lua-time-limit", "masterauth", "masteruser", "maxmemory",
    "maxmemory-eviction-tenacity", "maxmemory-policy", "maxmemory-samples", "notify-keyspace-events", "proto-max-bulk-len",
    "rdb-key-save-delay", "rdb-save-incremental-fsync", "rdbchecksum", "rdbcompression", "repl-backlog-size", "repl-diskless-sync", "sanitize-dump-payload", "save",
    "set-max-intset-entries", "set-max-listpack-entries", "set-max-listpack-value", "slowlog-log-slower-than",
    "slowlog-max-len", "stop-writes-on-bgsave-error", "stream-node-max-bytes", "stream-node-max-entries",
    "tracking-table-max-keys", "zset-max-listpack-entries", "zset-max-listpack-value", "zset-max-ziplist-entries",
    "zset-max-ziplist-value", NULL};

/* ... and those that it may change within bounds. Redis asks its replicas to be patient for repl-timeout. */
static const struct bounded { const char *name; long long least, most; } CONFIG_BOUNDED[] = {
    {"repl-diskless-sync-delay", 0, 0}, {"repl-ping-replica-period", 1, 3600}, {"repl-ping-slave-period", 1, 3600}};

static bool within_bounds(struct word name, struct word text) {
    long long value;
    for (size_t i = 0; i < sizeof CONFIG_BOUNDED / sizeof *CONFIG_BOUNDED; i++)
        if (word_is(name, CONFIG_BOUNDED[i].name))
            return word_number(text, &value) && value >= CONFIG_BOUNDED[i].least && value <= CONFIG_BOUNDED[i].most;
    return false;
}

bool session_config_settable(const struct resp_request *request, const uint8_t *bytes, uint64_t i) {
    struct word name = word_at(request, bytes, i);
    return word_in(name, CONFIG_ALLOWED) || (i + 1 < request->argc && within_bounds(name, word_at(request, bytes, i + 1)));
}

bool session_config_allowed(const struct resp_request *request, const uint8_t *bytes) {
    for (uint64_t i = 2; i < request->argc; i += 2)
        if (!session_config_settable(request, bytes, i)) return false;
    return true;
}

bool session_travels(const struct command_info *info) { return info->action == ACTION_CONFIG_SET || info->action == ACTION_ACL_CHANGE; }

bool session_sets(const struct command_info *info, const struct resp_request *request, const uint8_t *bytes) {
    return info->action == ACTION_ACL_CHANGE || (info->action == ACTION_CONFIG_SET && session_config_allowed(request, bytes));
}

const char *session_config_name(uint32_t i) { return i < sizeof CONFIG_ALLOWED / sizeof *CONFIG_ALLOWED ? CONFIG_ALLOWED[i] : NULL; }

const char *session_debug_name(uint32_t i) { return i < sizeof DEBUG_ALLOWED / sizeof *DEBUG_ALLOWED ? DEBUG_ALLOWED[i] : NULL; }

bool session_client_needs_own(const struct resp_request *request, const uint8_t *bytes) {
    static const char *const here[] = {"getname", "setname", "setinfo", "no-touch", NULL};
    return request->argc >= 2 && !word_in(word_at(request, bytes, 1), here);
}

/* ---- what the backend keeps for the client ------------------------------------------------------------------------- */

/* Subscriptions: what comes then is not counted. One who has none yet is answered once for each that it gives up. */
static bool is_raw(const struct session *s, const struct command_info *info) {
    return info->action == ACTION_RAW && (s->own_multi || s->in_multi || strstr(info->name, "unsubscribe") == NULL);
}

/* Credentials: who the client is from now on the backend knows alone. */
static bool is_login(const struct command_info *info, const struct resp_request *request, const uint8_t *bytes) {
    if (info->action == ACTION_AUTH) return true;
    for (uint64_t i = 2; info->action == ACTION_HELLO && i < request->argc; i++)
        if (word_is(word_at(request, bytes, i), "auth")) return true;
    return false;
}

/* How many answers a request has that would have `otherwise`: CLIENT REPLY, outside MULTI, decides about itself. */
static uint32_t count_answers(struct session *s, const struct command_info *info, const struct resp_request *request,
                              const uint8_t *bytes, uint32_t otherwise) {
    if (info->action == ACTION_RESET) return !s->reply_skip; /* it ends REPLY OFF, and is answered */
    if (info->action == ACTION_RAW && otherwise > 0) /* pushes of RESP3 are not counted */
        return s->protocol == 3 ? 0 : request->argc > 1 ? (uint32_t)request->argc - 1 : 1;
    if (s->own_multi || info->action != ACTION_CLIENT || request->argc != 3 || !word_is(word_at(request, bytes, 1), "reply"))
        return otherwise;
    struct word how = word_at(request, bytes, 2);
    if (word_is(how, "on")) {
        uint32_t answers = !s->reply_skip;
        s->reply_off = false;
        return answers;
    }
    if (word_is(how, "off")) s->reply_off = true;
    else if (!word_is(how, "skip")) return otherwise;
    else if (!s->reply_off) s->skip_next = true;
    return 0;
}

static void note_name(struct session *s, struct word w) {
    if (w.length >= SESSION_NAME_MAX) return;
    memcpy(s->name, w.text, w.length);
    s->name[w.length] = 0;
}

static void note_hello(struct session *s, const struct resp_request *request, const uint8_t *bytes) {
    long long protocol;
    if (request->argc < 2 || !word_number(word_at(request, bytes, 1), &protocol) || protocol < 2 || protocol > 3) return;
    s->protocol = (uint8_t)protocol;
    s->own_stays = true; /* whether its options were right the backend knows alone */
}

static void note_select(struct session *s, const struct session_context *context, struct word w) {
    long long database;
    if (!word_number(w, &database) || database < 0 || database >= (long long)context->databases) return;
    if (s->own_multi) s->multi_database = (int32_t)database;
    else s->database = (uint32_t)database;
}

static void note_client(struct session *s, const struct resp_request *request, const uint8_t *bytes) {
    if (request->argc < 2) return;
    struct word sub = word_at(request, bytes, 1);
    if (word_is(sub, "setname") && request->argc == 3) note_name(s, word_at(request, bytes, 2));
    if (!word_is(sub, "getname") && !word_is(sub, "setname")) s->own_stays = true;
}

/* Until it is answered: as if it had succeeded. */
static void note_login(struct session *s) {
    s->login = s->own != OWN_RAW && !s->own_multi;
    s->login_before = s->other_user || !s->authenticated;
    s->own_stays = s->other_user = s->authenticated = true;
}

void session_login_answered(struct session *s, bool refused) {
    if (refused) s->other_user = s->login_before;
    s->login = false;
}

static void transaction_begins(struct session *s) {
    s->own_queued = 0;
    s->own_sets = s->multi_secrets = false;
    s->multi_database = -1;
    s->multi_pause = PAUSE_NOTHING;
}

static void transaction_ends(struct session *s) {
    s->own_multi = s->own_watch = s->own_sets = s->multi_secrets = false;
    s->own_queued = 0;
    s->multi_database = -1;
    s->multi_pause = PAUSE_NOTHING;
}

static void note(struct session *s, const struct session_context *context, const struct command_info *info,
                 const struct resp_request *request, const uint8_t *bytes) {
    switch ((enum command_action)info->action) {
        case ACTION_MULTI:
            if (!s->own_multi) transaction_begins(s);
            s->own_multi = true;
            break;
        case ACTION_EXEC:
        case ACTION_DISCARD: transaction_ends(s); break;
        case ACTION_WATCH:
            if (!s->own_multi) s->own_watch = true;
            break;
        case ACTION_UNWATCH:
            if (!s->own_multi) s->own_watch = false;
            break;
        case ACTION_SELECT:
            if (request->argc == 2 && context != NULL) note_select(s, context, word_at(request, bytes, 1));
            break;
        case ACTION_HELLO: note_hello(s, request, bytes); break;
        case ACTION_CLIENT: note_client(s, request, bytes); break;
        case ACTION_REPLCONF: s->own_stays = true; break;
        case ACTION_RESET:
            transaction_ends(s);
            s->own_stays = s->reply_off = s->reply_skip = false;
            if (s->other_user && context != NULL && !context->password_needed) s->other_user = false;
            s->database = 0;
            s->protocol = 2;
            s->name[0] = 0;
            s->readonly = false;
            if (context != NULL && context->password_needed) s->own_stays = s->other_user = true; /* who is logged in the backend knows */
            break;
        default: break;
    }
}

/* ---- replicas ------------------------------------------------------------------------------------------------------- */

/* Nothing of the session is set up in front of it: the backend refuses to be replicated from on a connection on which
 * answers are still to be sent, and a replica's needs none of it. */
static struct session_decision sync_begin(struct session *s, const struct resp_request *request, const uint8_t *bytes) {
    s->own = OWN_RAW;
    s->replicates = true;
    s->replica = s->own_stays = true;
    return (struct session_decision){.verdict = SESSION_OWN, .bytes = bytes, .length = request->length, .writes = true,
                                     .database_after = -1, .as_default = s->authenticated, .syncs = true};
}

bool session_acknowledges(const struct command_info *info, const struct resp_request *request, const uint8_t *bytes) {
    static const char *const options[] = {"ack", "getack", NULL};
    for (uint64_t i = 1; info->action == ACTION_REPLCONF && i + 1 < request->argc; i += 2)
        if (word_in(word_at(request, bytes, i), options)) return true;
    return false;
}

/* ---- the way in ----------------------------------------------------------------------------------------------------- */

/* What makes a connection that may be new, or of an earlier time, this session's. Returns how many answers it brings. */
static uint32_t append_state(const struct session *s, struct buffer *out) {
    char number[16];
    if (!s->authenticated) return 0; /* nothing could be set up yet */
    buffer_text(out, s->protocol == 3 ? ASK_HELLO_3 : ASK_HELLO_2);
    buffer_text(out, ASK_SELECT);
    append_bulk(out, number, (size_t)snprintf(number, sizeof number, "%u", s->database));
    if (s->name[0] == 0) return 2;
    buffer_text(out, "*3\r\n$6\r\n" OUR_CLIENT "\r\n$7\r\nSETNAME\r\n");
    append_bulk(out, s->name, strlen(s->name));
    return 3;
}

static bool lists_clients(const struct command_info *info, const struct resp_request *request, const uint8_t *bytes) {
    if (info->action != ACTION_CLIENT || request->argc < 2) return false;
    return word_is(word_at(request, bytes, 1), "list") || word_is(word_at(request, bytes, 1), "info");
}

static uint32_t queue_setting(struct session *s) {
    uint32_t sets = SETS_QUEUED + 2 * s->own_queued + (s->own_sets ? 0 : SETS_FIRST);
    s->own_sets = true;
    return sets;
}

struct session_decision session_own_enter(struct session *s, const struct command_info *info, const struct resp_request *request,
                                          const uint8_t *bytes) {
    if (!s->quiet) return (struct session_decision){.verdict = SESSION_WAIT};
    if (info->action == ACTION_SYNC) return sync_begin(s, request, bytes);
    bool raw = is_raw(s, info), as_default = s->authenticated;
    buffer_clear(&s->deferred); /* the backend's own answers take the place of what was in it */
    uint32_t swallow = append_state(s, &s->deferred), replies = swallow + 1;
    s->own_multi = s->in_multi;
    s->own_sets = false;
    s->own_queued = s->in_multi ? s->multi_commands - 1 : 0; /* without MULTI itself */
    if (s->in_multi) {
        buffer_append(&s->deferred, buffer_bytes(&s->block), buffer_length(&s->block));
        replies += s->multi_commands;
        swallow += s->multi_answered;
    }
    buffer_append(&s->deferred, bytes, request->length);
    struct buffer swapped = s->block;
    s->block = s->deferred;
    s->deferred = swapped;
    buffer_clear(&s->deferred);
    s->in_multi = s->multi_broken = s->multi_writes = false;
    s->multi_commands = s->multi_answered = 0;
    s->own = raw ? OWN_RAW : OWN_COUNTED;
    s->own_watch = s->own_stays = s->reply_off = s->reply_skip = s->skip_next = false;
    s->other_user = false;
    if (is_login(info, request, bytes)) note_login(s);
    if (!raw && !s->own_multi) replies = swallow + count_answers(s, info, request, bytes, 1);
    s->reply_skip = s->skip_next;
    s->skip_next = false;
    uint32_t sets = s->own_multi && session_sets(info, request, bytes) ? queue_setting(s) : SETS_NOTHING;
    if (s->own_multi) s->own_queued++;
    note(s, NULL, info, request, bytes);
    return (struct session_decision){.verdict = SESSION_OWN,
                                     .sets = sets,
                                     .bytes = buffer_bytes(&s->block),
                                     .length = buffer_length(&s->block),
                                     .writes = true,
                                     .replies = raw ? swallow : replies,
                                     .swallow = swallow,
                                     .database_after = -1,
                                     .view = raw || s->own_multi ? VIEW_PLAIN : session_client_view(info, request, bytes),
                                     .lists = !s->own_multi && replies == swallow + 1 && lists_clients(info, request, bytes),
                                     .added = (uint32_t)(buffer_length(&s->block) - request->length),
                                     .as_default = as_default};
}

/* ---- on it ---------------------------------------------------------------------------------------------------------- */

static struct session_decision own(const struct session *s, const uint8_t *bytes, size_t length) {
    return (struct session_decision){.verdict = SESSION_OWN, .bytes = bytes, .length = length, .writes = true,
                                     .replies = s->own == OWN_COUNTED && !s->reply_off && !s->reply_skip, .database_after = -1, .as_default = s->authenticated};
}

/* In the place of one that the backend may not see: a command that it does not know. */
static struct session_decision refused(struct session *s, const struct command_info *info) {
    static const char why[] = " is refused: musidecar decides which node leads and what its backend replicates";
    buffer_clear(&s->block);
    char name[sizeof info->name + sizeof why];
    int n = snprintf(name, sizeof name, "%s%s", info->name, why);
    buffer_text(&s->block, "*1\r\n");
    append_bulk(&s->block, name, (size_t)n);
    return own(s, buffer_bytes(&s->block), buffer_length(&s->block));
}

bool session_append_wait(const struct session_context *context, const struct command_info *info, const struct resp_request *request,
                         const uint8_t *bytes, struct buffer *out) {
    char script[32];
    long long nodes, timeout_ms;
    if (info->action != ACTION_WAIT || !word_number(word_at(request, bytes, 1), &nodes)) return false;
    if (!word_number(word_at(request, bytes, 2), &timeout_ms) || timeout_ms < 0) return false;
    int n = snprintf(script, sizeof script, "return %u", context->followers);
    buffer_text(out, "*3\r\n$4\r\n" OUR_EVAL "\r\n");
    append_bulk(out, script, (size_t)n);
    append_bulk(out, "0", 1);
    return true;
}

static struct session_decision own_wait(struct session *s, const struct session_context *context, const struct command_info *info,
                                        const struct resp_request *request, const uint8_t *bytes) {
    long long nodes;
    bool more = word_number(word_at(request, bytes, 1), &nodes) && nodes > (long long)context->followers;
    bool waits = more && s->own == OWN_COUNTED && !s->own_multi && !s->reply_off && !s->reply_skip;
    buffer_clear(&s->block);
    if (!session_append_wait(context, info, request, bytes, &s->block)) return own(s, bytes, request->length);
    return waits ? session_step_wait(s, context, request, bytes, NULL) : own(s, buffer_bytes(&s->block), buffer_length(&s->block));
}

static struct session_decision own_admin(struct session *s, const struct command_info *info, const struct resp_request *request,
                                         const uint8_t *bytes) {
    if (!session_travels(info)) return own(s, bytes, request->length); /* SCRIPT KILL: nobody's script is in front of it here */
    bool here = s->own_multi || s->other_user; /* its answer tells whether it was done: there must be one */
    if (s->own != OWN_COUNTED || s->reply_off || s->reply_skip || (here && !session_sets(info, request, bytes))) return refused(s, info);
    if (here) {
        struct session_decision d = own(s, bytes, request->length);
        d.sets = s->own_multi ? queue_setting(s) : SETS_NOW;
        return d;
    }
    if (!s->quiet) return (struct session_decision){.verdict = SESSION_WAIT};
    return (struct session_decision){.verdict = SESSION_ADMIN, .bytes = bytes, .length = request->length, .replies = 1,
                                     .travels = true, .database_after = -1};
}

/* What its answer says must be known: whether it was done. */
static struct session_decision own_pause(struct session *s, const struct command_info *info, const struct resp_request *request,
                                         const uint8_t *bytes) {
    if (s->own != OWN_COUNTED || s->reply_off || s->reply_skip) return refused(s, info);
    buffer_clear(&s->block);
    uint32_t pause = session_pause_append(request, bytes, &s->block);
    struct session_decision d = own(s, buffer_bytes(&s->block), buffer_length(&s->block));
    if (s->own_multi) s->multi_pause = session_pause_join(s->multi_pause, pause);
    else d.pause = pause;
    return d;
}

/* What a replica says, and who would be one. */
static struct session_decision own_replica(struct session *s, const struct command_info *info, const struct resp_request *request,
                                           const uint8_t *bytes) {
    if (s->replica) return own(s, bytes, request->length);
    if (info->action == ACTION_REPLCONF) {
        if (s->own_multi) return refused(s, info);
        if (!session_acknowledges(info, request, bytes)) {
            s->own_stays = true;
            return own(s, bytes, request->length);
        }
        if (request->argc > 3) return refused(s, info);
        return (struct session_decision){.verdict = SESSION_NOTHING}; /* who is no replica yet is not answered */
    }
    if (s->own_multi) return own(s, bytes, request->length); /* the backend's own error */
    if (s->own != OWN_COUNTED) return refused(s, info);
    if (!s->quiet) return (struct session_decision){.verdict = SESSION_WAIT};
    return sync_begin(s, request, bytes);
}

/* Its outcome is judged on the shared connection (load.h). */
static struct session_decision own_load(struct session *s, const struct command_info *info, const struct resp_request *request,
                                        const uint8_t *bytes, enum session_loads loads) {
    if (s->own != OWN_COUNTED || s->own_multi || s->other_user || s->reply_off || s->reply_skip) return refused(s, info);
    if (!s->quiet) return (struct session_decision){.verdict = SESSION_WAIT};
    return (struct session_decision){.verdict = SESSION_SUBMIT, .bytes = bytes, .length = request->length, .replies = 1,
                                     .database_after = -1, .loads = loads};
}

/* One whose answers were not counted gets +RESET, and is as it was when it connected. */
static void own_reset(struct session *s, struct session_decision *d) {
    s->own = OWN_COUNTED;
    d->resets = true;
    d->replies = 1;
}

static struct session_decision step(struct session *s, const struct session_context *context, const struct command_info *info,
                                    const struct resp_request *request, const uint8_t *bytes) {
    if (info == NULL) return own(s, bytes, request->length);
    bool plainly = s->own == OWN_COUNTED && !s->own_multi && !s->other_user && !s->reply_off && !s->reply_skip && s->authenticated;
    if (plainly && session_kills_replicas(info, request, bytes))
        return (struct session_decision){.verdict = s->quiet ? SESSION_ADMIN : SESSION_WAIT, .bytes = bytes, .length = request->length,
                                         .replies = 1, .database_after = -1, .view = VIEW_KILL_REPLICAS};
    if (plainly && info->action == ACTION_CLIENT && client_filter_read(context, request, bytes, &(struct client_filter){0}))
        return (struct session_decision){.verdict = s->quiet ? SESSION_ADMIN : SESSION_WAIT, .bytes = bytes, .length = request->length,
                                         .replies = 1, .database_after = -1, .view = VIEW_CLIENTS};
    if (session_refuses(context, info, request, bytes)) return refused(s, info);
    if (session_tells_id(info, request, bytes) && (s->own == OWN_RAW || s->own_multi)) {
        buffer_clear(&s->block);
        session_append_id(s, &s->block);
        return own(s, buffer_bytes(&s->block), buffer_length(&s->block));
    }
    if (info->way == WAY_ADMIN) return own_admin(s, info, request, bytes);
    if (session_pauses(info, request, bytes)) return own_pause(s, info, request, bytes);
    if (info->action == ACTION_SYNC || info->action == ACTION_REPLCONF) return own_replica(s, info, request, bytes);
    enum session_loads loads = session_loads(info, request, bytes);
    if (loads != LOADS_NOTHING) return own_load(s, info, request, bytes, loads);
    if (info->action == ACTION_WAIT) return own_wait(s, context, info, request, bytes);
    struct session_decision viewed;
    if (session_own_view(s, info, request, bytes, &viewed)) return viewed;
    bool raw = is_raw(s, info), login = is_login(info, request, bytes);
    if (s->own == OWN_COUNTED && (raw || login) && !s->quiet) return (struct session_decision){.verdict = SESSION_WAIT};
    if (raw) s->own = OWN_RAW;
    if (login) note_login(s);
    if (s->own == OWN_RAW && info->action == ACTION_VIEW && session_view(info) == VIEW_CONFIG) return refused(s, info); /* its answer cannot be told from what else comes */
    struct session_decision d = own(s, bytes, request->length);
    if (info->action == ACTION_VIEW && s->own_multi) s->multi_secrets = true;
    else if (info->action == ACTION_VIEW || info->action == ACTION_INFO) d.view = session_view(info), d.view_count = session_view_count(request, bytes);
    else if (s->own == OWN_COUNTED && !s->own_multi) d.view = session_client_view(info, request, bytes);
    if (info->action == ACTION_EXEC && s->multi_secrets) d.view = VIEW_SECRETS;
    uint32_t answers = count_answers(s, info, request, bytes, d.replies);
    if (s->own == OWN_COUNTED) d.replies = answers;
    else if (info->action == ACTION_RESET && !s->replicates && !s->reply_skip) own_reset(s, &d);
    d.lists = d.replies == 1 && !s->own_multi && lists_clients(info, request, bytes);
    if (info->action == ACTION_EXEC) d.database_after = s->multi_database;
    if (info->action == ACTION_EXEC && d.replies > 0) d.pause = s->multi_pause;
    if (info->action == ACTION_EXEC && d.replies > 0 && s->own_sets) d.sets = SETS_EXEC;
    note(s, context, info, request, bytes);
    uint64_t body = info->action == ACTION_EVAL ? 1 : info->action == ACTION_SCRIPT_LOAD ? 2 : 0;
    if (body > 0 && request->argc > body && !s->other_user) { /* another user's may be refused: not to be logged */
        struct word w = word_at(request, bytes, body);
        d.script = (const uint8_t *)w.text;
        d.script_length = w.length;
    }
    d.flushes_scripts = info->action == ACTION_SCRIPT_FLUSH && !s->other_user;
    return d;
}

/* Inside MULTI, too. */
static bool is_done_at_once(const struct command_info *info) {
    static const uint8_t actions[] = {ACTION_MULTI, ACTION_EXEC, ACTION_DISCARD, ACTION_WATCH, ACTION_RESET, ACTION_QUIT};
    return memchr(actions, info->action, sizeof actions) != NULL;
}

struct session_decision session_own_step(struct session *s, const struct session_context *context, const struct command_info *info,
                                         const struct resp_request *request, const uint8_t *bytes) {
    bool queues = s->own_multi && info != NULL && !is_done_at_once(info);
    struct session_decision d = step(s, context, info, request, bytes);
    if (d.verdict == SESSION_WAIT) return d;
    if (queues) s->own_queued++;
    s->reply_skip = s->skip_next; /* it is for the next request */
    s->skip_next = false;
    return d;
}
