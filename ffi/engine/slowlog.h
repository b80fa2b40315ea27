/*
 * slowlog.h: the leader's slow log, as it would be without a sidecar. The server's own log shows the sidecar's questions, and
 * of a client's request the connection that all share. So the entries are fetched (the server's own are asked for in front of
 * a client's SLOWLOG GET or LEN, and whenever enough was slow that they might be pushed out), the questions are left out,
 * and what remains is kept here, with the addresses of real clients.
 *
 * Whose an entry is follows from what was answered late: a request can only have been slow if nothing was answered for that
 * long, so only those are noted (one comparison an answer), with the first bytes that they began with. Entries and notes are in the
 * order of their connection. Where two clients might be meant, or none is known, the entry says "?:0", as Redis does
 * of a client whose address it cannot tell. A client's node is asked for its name at once: it may be gone when somebody looks.
 *
 * A slow log is one server's own: another leader has another, with what it applied as a follower.
 */
#ifndef MUSIDECAR_SLOWLOG_H
#define MUSIDECAR_SLOWLOG_H

#include "buffer.h"

#define SLOW_HEAD_BYTES 16u /* of a request, behind the number of its arguments */
#define SLOW_NEVER UINT64_MAX
#define SLOW_ALL_NS 1000000u /* where less is slow, the sidecar's own questions are, too, at times */

enum slow_way { SLOW_SHARED = 0, SLOW_ADMIN = 1, SLOW_OWN = 2, SLOW_WAYS = 3 }; /* the connection that it came by */

struct slow_client { char addr[64], name[64]; }; /* "": not known, or none */

struct slowlog {
    uint64_t late_ns;            /* an answer that was waited for this long may be to a slow request: half of what is slow, as it
                                    may be read late itself; SLOW_NEVER: none is */
    uint32_t late;               /* so many were since the entries were fetched */
    bool due;                    /* another is to be sent */
    uint64_t server_max;         /* the server's slowlog-max-len */
    uint64_t serial;             /* of notes */
    struct queue notes;          /* struct slow_note, in order, since the last fetch */
    struct buffer entries;       /* struct slow_entry and its bytes; the oldest first */
    uint64_t count;
    int64_t newest;              /* number of the newest entry that was fetched; -1: none */
};

#endif
