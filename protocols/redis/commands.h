/*
 * commands.h: what to do with each command. The table is filled at start from the backend's own COMMAND reply and a
 * short reviewed list of overrides (commands.py); here it is only looked up.
 */
#ifndef MUSIDECAR_REDIS_COMMANDS_H
#define MUSIDECAR_REDIS_COMMANDS_H

#include <stdbool.h>
#include <stdint.h>
#include "protocols/redis/resp.h"

/* How a command travels (design.md section 7, design-redis.md R4). */
enum command_way {
    WAY_READ = 1,    /* shared connection, not logged */
    WAY_WRITE = 2,   /* logged, then shared connection */
    WAY_SESSION = 3, /* answered or prepared by the session layer: see enum command_action */
    WAY_ADMIN = 4,   /* runs on the admin connection (SCRIPT KILL, FUNCTION KILL) */
    WAY_OWN = 5,     /* on the client's own connection: blocks, or the backend keeps state for it */
    WAY_REFUSE = 6   /* refused for good: would take the backend out of the cluster's hands */
};

enum command_action {
    ACTION_NONE = 0, ACTION_SELECT, ACTION_HELLO, ACTION_AUTH, ACTION_MULTI, ACTION_EXEC, ACTION_DISCARD, ACTION_UNWATCH,
    ACTION_QUIT, ACTION_RESET, ACTION_WAIT, ACTION_CLIENT, ACTION_READONLY /* and READWRITE */, ACTION_ASKING,
    ACTION_EVAL,          /* WAY_WRITE or WAY_READ (_RO) whose argument 1 is a script body */
    ACTION_SCRIPT_LOAD,   /* WAY_WRITE, and the body travels in an ADMIN record */
    ACTION_SCRIPT_FLUSH,
    ACTION_IF_BLOCK,      /* XREAD, XREADGROUP: WAY_OWN outside MULTI if command_blocks() */
    ACTION_CONFIG_SET,    /* WAY_ADMIN: allow-list of parameters; logged, and done on every node */
    ACTION_ACL_CHANGE,    /* WAY_ADMIN: the same */
    ACTION_WATCH,
    ACTION_RAW,           /* WAY_OWN, and the backend's answers are not counted from then on: subscriptions, MONITOR */
    ACTION_DEBUG,         /* WAY_READ, what changes no data */
    ACTION_VIEW,          /* to the backend, and the answer is edited: see enum session_view */
    ACTION_INFO,          /* the same */
    ACTION_SYNC,          /* SYNC, PSYNC: the own connection becomes a replica's */
    ACTION_REPLCONF,      /* what a replica says of itself in front of it, and behind it how far it is */
    ACTION_CLOSE          /* WAY_REFUSE without a word: "POST" and "Host:" come from a browser that was tricked */
};

/* What the server looks at before it queues a command in a transaction, besides its name, its arguments' number and rights. */
enum command_queueing {
    QUEUE_PLAINLY = 0,     /* for want of memory (-OOM) it may be refused all the same */
    QUEUE_IF_WRITABLE = 1, /* and by -READONLY, -NOREPLICAS, -MISCONF */
    QUEUE_NEVER = 2        /* not allowed inside a transaction */
};

struct command_info {
    char name[32];       /* lower case, "config|set" for sub-commands */
    int32_t arity;       /* as COMMAND gives it: negative = at least */
    uint8_t way;         /* enum command_way */
    uint8_t action;      /* enum command_action */
    bool is_container;   /* has sub-commands: look up again with argument 1 */
    bool in_multi;       /* may be queued in a transaction that travels on the shared connection */
    bool no_auth;        /* allowed before AUTH */
    bool blocking;       /* blocks outside MULTI, whatever its arguments (so not XREAD: ACTION_IF_BLOCK) */
    uint8_t queueing;    /* enum command_queueing */
    bool may_be_stale;   /* a replica answers it as its master did a moment ago */
};

struct command_table;
struct command_table *command_table_new(uint32_t capacity);
void command_table_free(struct command_table *t);
/* 0, or -1 when full or the name is too long. Adding a name again replaces it. */
int command_table_add(struct command_table *t, const struct command_info *info);

enum command_verdict { COMMAND_OK = 0, COMMAND_UNKNOWN = 1, COMMAND_UNKNOWN_SUB = 2, COMMAND_ARITY = 3 };
/* Looks a request up by its first arguments (case-insensitive; sub-command where there is one). *info is set on OK and
 * ARITY. */
enum command_verdict command_lookup(const struct command_table *t, const struct resp_request *request,
                                    const uint8_t *bytes, const struct command_info **info);
/* The same for the sub-command of a command that is not looked up as a container (CLIENT): `container` is what
 * command_lookup() gave. With a single argument: COMMAND_OK and the container itself. */
enum command_verdict command_lookup_sub(const struct command_table *t, const struct command_info *container,
                                        const struct resp_request *request, const uint8_t *bytes,
                                        const struct command_info **info);
/* XREAD, XREADGROUP: is a BLOCK option given? Reads the options as Redis does, O(length of the options). */
bool command_blocks(const struct resp_request *request, const uint8_t *bytes);
/* Redis's own error line for a verdict other than OK, e.g.
 *   -ERR unknown command 'foo', with args beginning with: 'a' 'b' \r\n
 *   -ERR wrong number of arguments for 'get' command\r\n
 *   -ERR unknown subcommand 'foo'. Try CONFIG HELP.\r\n      (7.0.15's texts, its truncation rules included)
 *   -EXECABORT Transaction discarded because of: wrong number of arguments for 'exec' command\r\n
 * Returns its length (at most `room`). */
size_t command_error(enum command_verdict verdict, const struct command_info *info, const struct resp_request *request,
                     const uint8_t *bytes, char *out, size_t room);

#endif
