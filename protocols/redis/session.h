/*
 * session.h: what one client's connection has set up (database, protocol version, authentication, an open MULTI), and
 * what becomes of each of its requests. It runs at the node that the client is connected to and does no I/O, so what
 * travels to the leader is stateless: a request with its database and protocol version.
 *
 * A transaction is gathered here and travels as one block when its EXEC comes. Answers given before that (+OK, +QUEUED)
 * are counted, and as many of the backend's are swallowed; a client that pipelines the whole transaction gets all of
 * them from the backend. Texts are those of redis-server 7.0.
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
    uint32_t databases;
    bool password_needed;
    bool busy;                   /* the backend runs a script that does not end: -BUSY */
    uint32_t followers;          /* how many other nodes confirm every write, for WAIT */
    uint64_t block_bytes_max;    /* a transaction may not be longer */
};

struct session {
    uint64_t client_id;
    uint32_t database;
    uint8_t protocol; /* 2 or 3 */
    bool authenticated;
    bool in_multi, multi_broken, multi_writes;
    int32_t multi_database;   /* SELECT inside the transaction: the database after it, else -1 */
    uint32_t multi_commands;  /* MULTI itself included */
    uint32_t multi_answered;  /* answers already given for them */
    struct buffer block;      /* the transaction so far, as it will travel */
    struct buffer deferred;   /* answers not given yet: the client had more to say already */
    char name[SESSION_NAME_MAX];
    char peer[64];            /* "127.0.0.1:51234", for CLIENT INFO */
};

enum session_verdict {
    SESSION_NOTHING = 0, /* nothing to do now */
    SESSION_ANSWER = 1,  /* the answer was appended; close afterwards if `close` */
    SESSION_SUBMIT = 2,  /* the request travels: see the fields below */
    SESSION_VERIFY = 3,  /* credentials, to be shown to the backend on a connection of its own: `bytes` is the AUTH */
    SESSION_ADMIN = 4    /* runs on the admin connection */
};

struct session_decision {
    enum session_verdict verdict;
    bool close;
    /* SUBMIT, ADMIN, VERIFY */
    const uint8_t *bytes;
    size_t length;
    bool writes;                /* to be logged */
    uint32_t replies, swallow;  /* the backend answers `replies` times, the first `swallow` are not for the client */
    int32_t database_after;     /* >= 0: if the last reply is an array, the session is in this database */
    bool loses_database;        /* the shared connection may be in another database afterwards */
    const uint8_t *script;      /* body of a script that EVALSHA may name later, or NULL */
    size_t script_length;
    bool flushes_scripts;
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
/* The client has nothing more to say for now: gives the deferred answers of an open transaction. */
bool session_pause(struct session *s, struct buffer *answer);
/* After VERIFY: the backend accepted the credentials. Appends what HELLO answers (or nothing for AUTH: the backend's own
 * +OK is passed on). */
void session_verified(struct session *s, const struct session_context *context, uint8_t hello_protocol,
                      struct buffer *answer);

#endif
