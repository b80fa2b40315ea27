/* busy.c: see busy.h. */
#include "engine/engine_state.h"

/* Whether new requests are answered with -BUSY, here and at the nodes whose clients this one serves. */
void busy_set(struct engine *e, bool busy) {
    if (e->takeover == TAKE_IDLE || e->context.busy == busy) return;
    e->context.busy = busy;
    if (engine_leads(e) && !e->handover.waits) link_tell_busy(e); /* a hand-over that comes to nothing announces it */
}

/* ---- what is refused -------------------------------------------------------------------------------------------------- */

static bool starts(const struct busy *b, const char *text) {
    size_t n = strlen(text);
    return b->head_bytes >= n && memcmp(b->head, text, n) == 0;
}

void busy_head(struct busy *b, const uint8_t *bytes, size_t length) {
    size_t room = sizeof b->head - b->head_bytes, some = length < room ? length : room;
    memcpy(b->head + b->head_bytes, bytes, some);
    b->head_bytes += (uint32_t)some;
}

bool busy_begins(const uint8_t *bytes, size_t length) { return length > 6 && memcmp(bytes, "-BUSY ", 6) == 0; }

/* A transaction fails as a whole where any of it was refused. */
bool busy_refused(const struct busy *b, bool block) {
    static const char busy[] = " is busy running a "; /* a script's own error may begin with BUSY */
    return (starts(b, "-BUSY ") && memmem(b->head, b->head_bytes, busy, sizeof busy - 1) != NULL) || (block && starts(b, "-EXECABORT "));
}

/* The script may end in the middle of what was sent at once. */
bool busy_may_follow(struct busy *b, const struct expect *x, bool refused) {
    bool ours = x->kind == EXPECT_LOCAL || x->kind == EXPECT_SWALLOW || x->kind == EXPECT_ROLE;
    if (ours || refused || (x->block && x->replies > 1)) return true;
    b->ran = true;
    return !b->adrift || x->kind == EXPECT_DROP || x->kind >= EXPECT_AOF;
}

/* A SELECT, mostly. What is behind it was written in the belief that it is done. */
void busy_switched(struct engine *e, bool refused) {
    e->shared.busy.adrift = refused;
    if (refused) e->shared.database = -1;
}

void busy_role(struct engine *e, const struct expect *x) {
    struct shared *s = &e->shared;
    buffer_clear(&s->role);
    s->roles_in_flight--;
    s->busy.role_refused = s->unproven = true;
    busy_set(e, true);
    owns_deliver(e, x->arrivals, true);
    if (!s->busy.ran && s->busy.offset > 0) shared_gate(e, x, s->busy.offset);
}

bool busy_holds_role(const struct engine *e) {
    const struct expect *last = queue_length(&e->shared.expects) > 0 ? queue_back(&e->shared.expects) : NULL;
    bool waits = (last != NULL && last->kind != EXPECT_ROLE) || owns_refused(e);
    return e->context.busy && e->shared.busy.role_refused && !waits;
}

/* ---- who waits behind it ------------------------------------------------------------------------------------------------ */

static bool same_client(const struct destination *a, const struct destination *b) {
    return a->node == b->node && a->slot == b->slot && a->generation == b->generation;
}

/* Waits nothing else for its client's sake in front of it, nor an answer that is held back? */
static bool is_next(struct engine *e, uint64_t at) {
    struct shared *s = &e->shared;
    const struct expect *x = queue_at(&s->expects, at);
    for (uint64_t i = s->expects.head; i < at; i++) {
        const struct expect *before = queue_at(&s->expects, i);
        if ((before->kind == EXPECT_CLIENT || before->kind == EXPECT_LOCAL) && same_client(&before->to, &x->to)) return false;
    }
    struct client *client;
    struct buffer *out = shared_held_by(e, &x->to, &client);
    return out != NULL && (client == NULL ? !link_holds(e, &x->to) : client->releasable == buffer_length(out));
}

#define BUSY_LOOKS_MAX 1024u /* each looks at those in front of it */

/* They stand behind the script on this connection, where each of its own would have had this answer from the backend. What
 * the backend says to them in the end is dropped. Writes wait: they will be done. The first may be the script itself. */
void shared_busy(struct engine *e) {
    static const char busy[] = "-BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.\r\n";
    struct shared *s = &e->shared;
    bool first = true;
    uint64_t end = s->expects.tail - s->expects.head < BUSY_LOOKS_MAX ? s->expects.tail : s->expects.head + BUSY_LOOKS_MAX;
    for (uint64_t i = s->expects.head; i < end; i++) {
        struct expect *x = queue_at(&s->expects, i);
        if (x->kind != EXPECT_CLIENT) continue;
        bool behind = !first;
        first = false;
        if (!behind || !x->reads || !is_next(e, i)) continue;
        const struct destination to = x->to;
        x->kind = EXPECT_DROP;
        struct client *c = to.node == e->self ? client_find(e, to.slot, to.generation) : NULL;
        if (c != NULL) client_answer(e, c, busy, sizeof busy - 1);
        else if (to.node != e->self) link_answer(e, &to, busy, sizeof busy - 1);
    }
}

/* Who only reads is told at once, whatever others wait for. False: he waits for something himself. */
bool busy_answer(struct engine *e, const struct expect *x, const uint8_t *bytes, size_t length) {
    if (*bytes != '-' || x->kind != EXPECT_CLIENT || !x->reads || !is_next(e, e->shared.expects.head)) return false;
    struct client *c = x->to.node == e->self ? client_find(e, x->to.slot, x->to.generation) : NULL;
    if (c != NULL) client_answer(e, c, bytes, length);
    else link_answer(e, &x->to, bytes, length);
    return true;
}
