/*
 * session.h: what one client's connection has set up (database, protocol version, authentication, an open MULTI), and
 * what becomes of each of its requests. It runs at the node that the client is connected to and does no I/O, so what
 * travels to the leader is stateless: a request with its database and protocol version.
 *
 * A transaction is gathered here and travels as one block when its EXEC comes. Answers given before that (+OK, +QUEUED)
 * are counted, and as many of the backend's are swallowed; a client that pipelines the whole transaction gets all of
 * them from the backend. Texts are those of redis-server 7.0.
 *
 * For what a backend may refuse at queueing time by its own state (-OOM, -MISCONF, -NOREPLICAS) it is asked when a client
 * waits for the answer to one write of its transaction: a stand-in, a write that does nothing (ASK_WRITABLE), is run on the
 * shared connection, and its error is the client's. That is a read: it is not logged, and another leader may be asked
 * again. So the transaction itself stays here, and its EXEC outlives a leader, which it would not on a connection of the
 * client's own (R5, R14). Such a client pays the way to the backend that it has without a sidecar, too; a pipelined
 * transaction pays nothing. If the backend changes its mind before EXEC, it refuses the block, for a reason that the
 * client has not seen: shared.c gives it, as the backend does then.
 */
#ifndef MUSIDECAR_REDIS_SESSION_H
#define MUSIDECAR_REDIS_SESSION_H

#include "buffer.h"
#include "protocols/redis/commands.h"
#include "protocols/redis/resp.h"

#define SESSION_NAME_MAX 64u

struct session_context { /* the same for all clients of a node */
    const struct command_table *commands;
    const char *version; /* the backend's */
    const char *user;    /* as whom the sidecar is logged in there */
    uint32_t databases;
    bool password_needed;
    bool busy;                   /* the backend runs a script that does not end: -BUSY */
    bool stale_reads;            /* READONLY is taken: this node's own backend may answer */
    uint32_t followers;          /* how many other nodes hold what was answered, at least */
    uint64_t block_bytes_max;    /* a transaction may not be longer */
};

/* How a client's requests travel. What the backend must keep for it (a WATCH, a subscription), and what makes it wait
 * (BLPOP), needs a connection of the client's own to the leader's backend, and everything goes over that one then: nothing
 * is answered here, so that the backend's own order holds. It is left again when the backend keeps nothing for it. */
enum session_own {
    OWN_NONE = 0,
    OWN_COUNTED = 1, /* the backend answers each request once */
    OWN_RAW = 2      /* it says what it likes (subscribed, MONITOR): to the end, or to RESET */
};

/* CLIENT PAUSE and UNPAUSE, as the request's `pause`: one of these, and above it, shifted by PAUSE_KIND_BITS, milliseconds. */
enum pause_kind { PAUSE_NOTHING = 0, PAUSE_WRITES = 1, PAUSE_ALL = 2, PAUSE_ENDS = 3 };
#define PAUSE_KIND_BITS 2u
#define PAUSE_MS_MAX ((1u << (32 - PAUSE_KIND_BITS)) - 1) /* twelve days */

struct session {
    uint64_t client_id;
    const struct command_info *last; /* command; NULL: none that is known */
    uint32_t database;
    uint8_t protocol; /* 2 or 3 */
    bool authenticated;
    bool in_multi, multi_broken, multi_writes;
    const char *multi_refused; /* of the command table: the transaction is broken by this one, as its EXEC will say */
    int32_t multi_database;   /* SELECT inside the transaction: the database after it, else -1 */
    uint32_t multi_pause;     /* CLIENT PAUSE inside the transaction: see enum pause_kind */
    bool multi_secrets;       /* something inside the transaction whose answer is edited */
    uint32_t multi_commands;  /* MULTI itself included */
    uint32_t multi_answered;  /* answers already given for them */
    bool multi_asked;         /* the backend is being asked whether it would queue the last one */
    enum session_own own;
    bool replica;             /* the backend takes its connection for a replica's */
    bool own_multi, own_watch, own_stays; /* what the backend keeps for it */
    uint32_t own_queued;      /* in the open transaction there, so many commands */
    bool own_sets;            /* ... one of which is a setting's */
    bool readonly;            /* READONLY: reads may be stale */
    bool replicates;          /* RAW, and to the end */
    bool other_user;          /* the backend checks what it may do */
    bool login, login_before; /* credentials are on their way on the own connection; other_user if they are refused */
    bool reply_off, reply_skip, skip_next; /* CLIENT REPLY: no answers; not for this request; not for the next */
    bool quiet;               /* set by the caller: none of its requests is unanswered */
    struct buffer block;      /* the transaction so far, as it will travel */
    struct buffer deferred;   /* answers not given yet: the client had more to say already */
    char name[SESSION_NAME_MAX];
};

struct session_wait { uint64_t timeout_ms; uint32_t nodes, pad; }; /* timeout_ms 0: for ever */

enum session_verdict {
    SESSION_NOTHING = 0, /* nothing to do now */
    SESSION_ANSWER = 1,  /* the answer was appended; close afterwards if `close` */
    SESSION_SUBMIT = 2,  /* the request travels: see the fields below */
    SESSION_VERIFY = 3,  /* credentials, to be shown to the backend on a connection of its own: `bytes` is the AUTH */
    SESSION_ADMIN = 4,   /* runs on the admin connection */
    SESSION_OWN = 5,     /* travels on the client's own connection */
    SESSION_WAIT = 6     /* nothing was done: once it is quiet, this request again */
};

/* On an own connection, a request that changes what every node's backend must have (CONFIG SET, ACL SETUSER ...): the
 * backend's answer tells the leader's engine whether it was done. In a transaction EXEC's answer does, element by element. */
enum session_sets {
    SETS_NOTHING = 0,
    SETS_NOW = 1,    /* its own answer tells */
    SETS_EXEC = 2,   /* this is the EXEC of a transaction with such requests */
    SETS_QUEUED = 4  /* + 2 n: the n-th command of a transaction, from 0 ... */
};
#define SETS_FIRST 1u /* ... and the first of these requests in it */

/* What a request puts in the place of the backend's data. */
enum session_loads { LOADS_NOTHING = 0, LOADS_RDB = 1 /* what it saves first */, LOADS_AOF = 2,
                     LOADS_FILE = 3 /* whatever is on the leader's disk */, LOADS_POPULATE = 4 /* DEBUG POPULATE */, LOADS_LAST = LOADS_POPULATE };

/* An answer that its client is not given as it is (view.c). */
enum session_view {
    VIEW_PLAIN = 0,
    VIEW_CONFIG = 1,   /* CONFIG GET: values of the sidecar's */
    VIEW_SECRETS = 2,  /* of a transaction: somewhere in it there may be one of these */
    VIEW_INFO = 3,
    VIEW_ROLE = 4,
    VIEW_RESETSTAT = 5,
    VIEW_SLOWLOG_GET = 6,    /* so many of them: view_count, -1 all */
    VIEW_SLOWLOG_LEN = 7,
    VIEW_SLOWLOG_RESET = 8,
    VIEW_HISTOGRAM = 9,
    VIEW_KILL_REPLICAS = 10, /* ADMIN: the leader's engine answers it: it knows which of them are clients' */
    VIEW_CLIENTS = 11,       /* ADMIN: the leader's engine answers it: of the clients of all nodes (session_clients.h) */
    VIEW_CLIENT_ID = 12,     /* OWN: the backend's number of the client ... */
    VIEW_REDIRECTION = 13    /* ... and of the one that invalidations go to */
};
#define VIEWS 14u

struct session_decision {
    enum session_verdict verdict;
    bool close;
    /* SUBMIT, ADMIN, VERIFY, OWN */
    const uint8_t *bytes;
    size_t length;
    bool writes;                /* to be logged */
    bool may_be_stale;          /* SUBMIT: its client is content with what a follower's backend says, which can say it */
    uint32_t replies, swallow;  /* the backend answers `replies` times, the first `swallow` are not for the client */
    bool stands_in;             /* the answer is +QUEUED, unless it is one of session_refuses_to_queue() */
    int32_t database_after;     /* >= 0: if the last reply is an array, the session is in this database */
    bool loses_database;        /* the shared connection may be in another database afterwards */
    const uint8_t *script;      /* body of a script that EVALSHA may name later, or NULL */
    size_t script_length;
    bool flushes_scripts;
    bool waits;                 /* ADMIN: a struct session_wait, for the leader's engine */
    bool travels;               /* ADMIN: where it is done it is logged, and done on every node */
    enum session_loads loads;   /* SUBMIT: its outcome is looked at before anything behind it counts */
    enum session_view view;     /* SUBMIT, OWN */
    int32_t view_count;
    bool syncs;                 /* OWN: what the backend says from here on is its data, and then its stream */
    bool as_default;            /* OWN: a new connection logs in as everybody's does */
    bool resets;                /* OWN: answers are counted again from the one that is +RESET on */
    bool verifies;              /* OWN: credentials, on a connection that is good for nothing else */
    bool lists;                 /* OWN: CLIENT LIST or INFO, whose answer shows the sidecar's connections ... */
    uint32_t added;             /* ... and, with it or `sets`, bytes in front of the request that its client has not sent */
    uint32_t sets;              /* OWN: see enum session_sets */
    uint32_t pause;             /* once it is done clients are paused, or not any more: see enum pause_kind */
    /* VERIFY by HELLO: what to set once verified */
    uint8_t hello_protocol;     /* 0: plain AUTH */
};

void session_open(struct session *s, uint64_t client_id, const struct session_context *context);
void session_close(struct session *s);

/* One whole request in array form at `bytes`; `more` says that the client has sent more behind it. Local answers are
 * appended to `answer`. */
struct session_decision session_step(struct session *s, const struct session_context *context,
                                     const struct resp_request *request, const uint8_t *bytes, bool more,
                                     struct buffer *answer);
/* Every request on the own connection is answered: may the client leave it? */
static inline bool session_own_done(const struct session *s) {
    return s->own == OWN_COUNTED && !s->own_multi && !s->own_watch && !s->own_stays;
}
/* The client has nothing more to say for now: gives the deferred answers of an open transaction. */
bool session_pause(struct session *s, struct buffer *answer);
/* An error that concerns every write. */
bool session_refuses_to_queue(const uint8_t *line, size_t length);
/* The answer to SUBMIT while `multi_asked`. */
void session_asked_answered(struct session *s, bool refused);
/* After VERIFY: the backend accepted the credentials. Appends what HELLO answers (or nothing for AUTH: the backend's own
 * +OK is passed on). */
void session_verified(struct session *s, const struct session_context *context, uint8_t hello_protocol,
                      struct buffer *answer);

/* ---- session_own.c ---- */

/* Puts the client onto a connection of its own, an open transaction with it; this request is the first there. */
struct session_decision session_own_enter(struct session *s, const struct command_info *info, const struct resp_request *request,
                                          const uint8_t *bytes);
/* WAIT, outside a transaction. */
struct session_decision session_step_wait(struct session *s, const struct session_context *context,
                                          const struct resp_request *request, const uint8_t *bytes, struct buffer *answer);
/* In the place of a WAIT that must not wait: a script that says what holds in any case, as the backend would count the
 * sidecar. False: it is none, or one that the backend itself refuses. */
bool session_append_wait(const struct session_context *context, const struct command_info *info, const struct resp_request *request,
                         const uint8_t *bytes, struct buffer *out);
/* A request of a client that has one. info: NULL if the command is not known. */
struct session_decision session_own_step(struct session *s, const struct session_context *context, const struct command_info *info,
                                         const struct resp_request *request, const uint8_t *bytes);
/* REPLCONF that only a replica may say, and which is not answered. */
bool session_acknowledges(const struct command_info *info, const struct resp_request *request, const uint8_t *bytes);
/* The answer to credentials that went over the own connection (`login`); nothing else goes there meanwhile. */
void session_login_answered(struct session *s, bool refused);
/* Only a connection of its own can answer this CLIENT ... */
bool session_client_needs_own(const struct resp_request *request, const uint8_t *bytes);
/* The backend must not see this DEBUG, CLIENT KILL ... although it might do it. */
bool session_refuses(const struct session_context *context, const struct command_info *info, const struct resp_request *request,
                     const uint8_t *bytes);
/* CLIENT KILL TYPE replica: the sidecar is one at the backend, so the engine ends the clients' that are (own.c). */
bool session_kills_replicas(const struct command_info *info, const struct resp_request *request, const uint8_t *bytes);
/* CLIENT PAUSE or UNPAUSE? Then it travels as session_pause_append() writes it: native, a pause of everything would hold up
 * the shared connection (R7), so the backend is asked to pause writes at most. Returns what the engine is to make of it, or
 * PAUSE_NOTHING where the backend's answer is an error. */
bool session_pauses(const struct command_info *info, const struct resp_request *request, const uint8_t *bytes);
uint32_t session_pause_append(const struct resp_request *request, const uint8_t *bytes, struct buffer *out);
/* Two of one transaction as one. */
uint32_t session_pause_join(uint32_t first, uint32_t second);
/* CONFIG SET of what is not kept, ACL SETUSER ...: what is done at the leader is done on every node. */
bool session_travels(const struct command_info *info);
bool session_sets(const struct command_info *info, const struct resp_request *request, const uint8_t *bytes);
/* CONFIG SET of nothing but what may differ between clusters, and not between nodes. */
bool session_config_allowed(const struct resp_request *request, const uint8_t *bytes);
/* ... its argument i, with the value behind it. */
bool session_config_settable(const struct resp_request *request, const uint8_t *bytes, uint64_t i);
/* The i-th parameter that CONFIG SET may change, the i-th DEBUG that passes; NULL behind the last. */
const char *session_config_name(uint32_t i);
const char *session_debug_name(uint32_t i);

/* ---- session_view.c ---- */

/* Of ACTION_VIEW and ACTION_INFO. */
enum session_view session_view(const struct command_info *info);
int32_t session_view_count(const struct resp_request *request, const uint8_t *bytes);
/* A request whose answer is edited, from a client with a connection of its own: where nothing stands against it it travels
 * as everybody's does, in front of nothing. False: it goes over the own connection. */
bool session_own_view(struct session *s, const struct command_info *info, const struct resp_request *request, const uint8_t *bytes,
                      struct session_decision *d);

/* ---- session_load.c ---- */

/* DEBUG RELOAD and LOADAOF, where the data stays what it is. */
enum session_loads session_loads(const struct command_info *info, const struct resp_request *request, const uint8_t *bytes);
/* DEBUG RELOAD NOFLUSH: what it loads is there already, and that ends the server if it is a key. */
bool session_loads_twice(const struct command_info *info, const struct resp_request *request, const uint8_t *bytes);

#endif
