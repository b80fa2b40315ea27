/*
 * busy.h: the backend runs a script that does not end. It answers all but a few commands -BUSY then, the sidecar's own
 * questions among them, whosever script it is.
 *
 * On the shared connection whoever stands behind the script waits. A script on a connection of its own is in nobody's way:
 * what comes on the shared one is refused, the ROLE behind it as well. What was refused has no effects, so the offset of the
 * ROLE before covers it, and its answers leave. Where anything else was answered since then, all of it is held until the
 * script has ended and a ROLE is answered.
 */
#ifndef MUSIDECAR_ENGINE_BUSY_H
#define MUSIDECAR_ENGINE_BUSY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define BUSY_HEAD_BYTES 64u

struct engine;
struct shared;
struct expect;

struct busy { /* of the shared connection */
    char head[BUSY_HEAD_BYTES]; /* the reply coming in, if it is an error: how it begins */
    uint32_t head_bytes;
    bool ran;           /* something may have been done since the last ROLE that was answered ... */
    uint64_t offset;    /* ... with this; 0: there was none yet */
    bool role_refused;  /* one was sent since then, and refused */
    bool adrift;        /* a SELECT was refused: what is behind it is meant for another database */
    bool load_refused;  /* the last request of load.c was */
};

void busy_head(struct busy *b, const uint8_t *bytes, size_t length); /* of an error that is coming in */
bool busy_begins(const uint8_t *bytes, size_t length); /* is it one of those? */
bool busy_refused(const struct busy *b, bool block); /* was what is answered not done, because of a script? block: a transaction */
bool busy_may_follow(struct busy *b, const struct expect *x, bool refused); /* false: it was done, in the wrong database perhaps */
void busy_switched(struct engine *e, bool refused);       /* the sidecar's own request on the shared connection is answered */
void busy_role(struct engine *e, const struct expect *x); /* ROLE is refused */
bool busy_holds_role(const struct engine *e);             /* it would be refused again, and nobody waits for it */
void busy_set(struct engine *e, bool busy);
bool busy_answer(struct engine *e, const struct expect *x, const uint8_t *bytes, size_t length); /* a refusal */
void shared_busy(struct engine *e); /* a script does not end: who only reads need not wait for it */

#endif
