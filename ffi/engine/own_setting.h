/*
 * own_setting.h: CONFIG SET and ACL changes on a client's own connection: in a transaction, or by another user than
 * everybody's. There the backend says whether they are done (for a transaction, EXEC's answer says it of each of its
 * commands), and the answer stays here until every node has them.
 *
 * What is logged is not the request but what the leader's backend has afterwards, asked on the admin connection, on which
 * everybody else's changes are made and in whose order they are logged. So it does not matter in which order the changes of
 * two connections were done, and one whose answer was lost is not lost itself: what it would have changed is looked at, too.
 */
#ifndef MUSIDECAR_OWN_SETTING_H
#define MUSIDECAR_OWN_SETTING_H

#include "buffer.h"

struct engine;
struct admin_expect;
struct session_decision;

struct own_settings { /* requests, each behind a struct named */
    struct buffer naming; /* of the transaction that is open */
    struct buffer named;  /* of those that are answered next, in order */
    bool waits;           /* an answer, for the log */
};

/* A request of an own connection. Returns the bytes in `named` that its answer tells of. */
uint32_t own_setting_staged(struct own_settings *s, const struct session_decision *d);
/* Such an answer. True: it waits, until own_settled() is called with the number. */
bool own_setting_answered(struct engine *e, struct own_settings *s, uint32_t sets, uint32_t named, const uint8_t *answer, size_t length,
                          uint64_t number);
/* No answer comes any more. */
void own_setting_lost(struct engine *e, struct own_settings *s);
void own_setting_free(struct own_settings *s);
/* What the backend has now. */
void own_setting_read(struct engine *e, const struct admin_expect *x, const uint8_t *text, size_t length);

#endif
