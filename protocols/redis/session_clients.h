/*
 * session_clients.h: which clients a CLIENT LIST, INFO or KILL is about. The node of its client sees that it is one that the
 * leader's engine is to answer (VIEW_CLIENTS), and the leader's engine reads it again (engine/census.c). What is wrong with
 * one, the backend has a text for.
 */
#ifndef MUSIDECAR_REDIS_SESSION_CLIENTS_H
#define MUSIDECAR_REDIS_SESSION_CLIENTS_H

#include <stdio.h>

#include "protocols/redis/session_word.h"

enum client_type { CLIENT_ANY = 0, CLIENT_NORMAL, CLIENT_PUBSUB, CLIENT_REPLICA, CLIENT_MASTER };

struct client_filter {
    bool kills, old;         /* CLIENT KILL; ... of an address, in the form of old */
    bool itself;             /* CLIENT INFO */
    bool skips_me;
    bool by_user;            /* the one that all are who have not logged in as another */
    bool ids;                /* one of those from argument 3 on */
    enum client_type type;
    struct word addr, laddr; /* text NULL: any */
    uint64_t id;             /* 0: any */
};

/* False: it is none of these, or not right. */
bool client_filter_read(const struct session_context *context, const struct resp_request *request, const uint8_t *bytes,
                        struct client_filter *f);
/* CLIENT ID: whoever asks for it may be one that another client's invalidations are to go to, so it has a connection of its
 * own from then on, which the backend knows. And what takes its place where the backend's answer cannot be edited: a script that says it. */
bool session_tells_id(const struct command_info *info, const struct resp_request *request, const uint8_t *bytes);
void session_append_id(const struct session *s, struct buffer *out);
/* Of an answer of an own connection's that names a client by the backend's number. */
enum session_view session_client_view(const struct command_info *info, const struct resp_request *request, const uint8_t *bytes);

#endif
