/*
 * client_pause.c: CLIENT PAUSE and UNPAUSE, of all clients of all nodes. The leader's backend pauses writes itself, so that
 * what it counts, expires and lets pass is as it would be; it must only never be given one on the shared connection then,
 * which everybody waits for (R7). So PAUSE travels there in order, writing only, behind all writes that were taken before
 * it. What comes behind it and might be paused goes onto a connection that is lent to its client (own.c), where the backend
 * makes it wait or not, and a client that goes is noticed. To pause everything, those connections are not written to.
 *
 * Taking a request for paused that is not costs time and is no mistake: so that begins when PAUSE is sent, and ends when
 * UNPAUSE is answered or when an UNPAUSE of the sidecar's own, at its end, stands on the shared connection.
 *
 * What runs on a lent connection is conditional (R5), and in the log beforehand as no new request, so that a later leader
 * closes its client instead of running it again. The pause is its leader's: it ends with it, by a hand-over, too.
 */
#include "engine/engine_state.h"

/* Sets an end to it that everything staged from now on is behind. */
static void end(struct engine *e) {
    struct client_pause *p = &e->client_pause;
    static const char unpause[] = "*2\r\n$6\r\nCLIENT\r\n$7\r\nUNPAUSE\r\n";
    const struct expect expect = {.kind = EXPECT_DROP, .replies = 1, .database_after = -1};
    p->until_us = 0;
    p->all = false;
    e->more = true;
    if (e->shared.socket.source.fd < 0) return;
    turn_forward(e, e->shared.database < 0 ? 0 : (uint32_t)e->shared.database, e->shared.protocol, unpause, sizeof unpause - 1, &expect);
}

bool client_pause_takes(const struct engine *e, const struct request *r) {
    if (e->owns.lent > 0 && own_lent(e, &r->from)) return true; /* behind what it waits for */
    return e->client_pause.all || (client_pause_on(e) && (r->decision->writes || r->decision->stands_in));
}

void client_pause_sent(struct engine *e, uint32_t pause) {
    if (pause != PAUSE_ENDS) e->client_pause.unanswered++;
}

void client_pause_answered(struct engine *e, uint32_t pause, uint8_t reply_type) {
    struct client_pause *p = &e->client_pause;
    uint32_t kind = pause & ((1u << PAUSE_KIND_BITS) - 1);
    bool done = reply_type == '+' || reply_type == '*';
    if (kind != PAUSE_ENDS) p->unanswered--;
    if (!done) return;
    if (kind == PAUSE_ENDS) {
        p->until_us = 0;
        p->all = false;
        e->more = true;
        return;
    }
    uint64_t until_us = clock_ns() / 1000 + (uint64_t)(pause >> PAUSE_KIND_BITS) * 1000;
    if (until_us > p->until_us) p->until_us = until_us;
    if (kind == PAUSE_ALL && !p->all) {
        p->all = true;
        p->held_from = e->owns.staged.tail;
    }
}

bool client_pause_holds(const struct engine *e, uint64_t staged) { return e->client_pause.all && staged >= e->client_pause.held_from; }

/* Who is paused would be waited for in a hand-over. */
void client_pause_tick(struct engine *e) {
    const struct client_pause *p = &e->client_pause;
    if (p->until_us != 0 && (e->now_us >= p->until_us || e->handover.waits) && !e->big.active) end(e);
}
