/* stale.c: see stale.h. */
#include <errno.h>
#include <stdio.h>
#include <sys/socket.h>

#include "engine/engine_state.h"

#define WAIT_US 10000ull      /* for a proof; then the leader answers */
#define ASK_AGAIN_US 20000ull /* a question that is not answered */
#define RENEWALS 4            /* a proof is renewed so often while it would do */
#define WAITING_BYTES_MAX (64u << 20)

struct stale_expect { uint32_t slot, generation; bool swallowed; };

void stale_init(struct engine *e) {
    struct stale *s = &e->stale;
    s->socket.source = (struct source){.kind = SOURCE_STALE, .fd = -1};
    queue_init(&s->expects, sizeof(struct stale_expect), 64);
}

void stale_free(struct engine *e) {
    struct stale *s = &e->stale;
    source_close(e, &s->socket.source);
    buffer_free(&s->socket.out);
    queue_free(&s->expects);
}

/* ---- how current it is ------------------------------------------------------------------------------------------------ */

/* Does the own backend hold what is committed, and nothing else, and count for the cluster? */
static bool is_sound(const struct engine *e) {
    return e->takeover == TAKE_IDLE && e->backend == BACKEND_FED && e->feed.streaming && replica_is_member(e->replica) &&
           replica_damage(e->replica) == REPLICA_SOUND;
}

/* False: there is nobody to be asked. */
static bool ask(struct engine *e) {
    struct stale *s = &e->stale;
    uint32_t leader = link_leader(e);
    if (leader == REPLICA_NOBODY || e->leader_silent_us != 0) return false;
    uint64_t term = e->links[leader].serving_term;
    if (s->asked_us != 0 && s->asked_term == term && (s->answered || e->now_us - s->asked_us < ASK_AGAIN_US)) return true;
    s->asked_us = e->now_us;
    s->asked_term = term;
    s->answered = false;
    link_send(e, leader, &(struct frame){.type = FRAME_FRESH_ASK, .sequence = ++s->number}, NULL);
    return true;
}

/* At the leader: the effects of all that was acknowledged are proposed by now. */
void stale_asked(struct engine *e, uint32_t peer, const struct frame *f) {
    uint64_t offset = e->stream.cut_offset;
    if (!engine_leads(e)) return; /* it will ask again */
    link_hold(e, peer, &(struct frame){.type = FRAME_FRESH, .length = sizeof offset, .sequence = f->sequence}, &offset);
    e->stale.told = true;
}

/* A proof is as good as what the follower has applied: it is told what is committed, and does not have to wait for a tick. */
void stale_tell(struct engine *e) {
    if (!e->stale.told) return;
    replica_flush_commit(e->replica);
    e->stale.told = queue_length(&e->shared.gates) > 0 || e->shared.roles_in_flight > 0;
}

void stale_answered(struct engine *e, uint32_t peer, const struct frame *f, const uint8_t *payload) {
    struct stale *s = &e->stale;
    if (s->asked_us == 0 || f->sequence != s->number || peer != link_leader(e)) return;
    memcpy(&s->wanted_offset, payload, sizeof s->wanted_offset);
    s->answered = true;
}

/* Is what was asked for applied? */
static void prove(struct engine *e) {
    struct stale *s = &e->stale;
    if (!s->answered || !is_sound(e) || e->log.effect_offset < s->wanted_offset) return;
    if (e->feed.acked_offset < s->wanted_offset) {
        if (e->feed.sent_offset < e->feed.end_offset) feed_flush(e);
        admin_ask_role(e);
        return;
    }
    s->proved_us = s->asked_us;
    s->asked_us = 0;
    s->answered = false;
    if (s->waited_for) clients_wake_all(e);
    s->waited_for = false;
}

/* ---- the connection ----------------------------------------------------------------------------------------------------- */

static void expect(struct stale *s, struct stale_expect x) { *(struct stale_expect *)queue_push(&s->expects) = x; }

static bool connect_once(struct engine *e) {
    struct stale *s = &e->stale;
    if (s->socket.source.fd >= 0) return true;
    int fd = backend_connect(e);
    if (fd < 0) return false;
    s->socket.source.fd = fd;
    s->database = 0;
    s->protocol = 2;
    resp_reply_reset(&s->reply);
    source_watch(e, &s->socket.source, EPOLLIN);
    uint32_t swallowed = append_auth(e, &s->socket.out);
    append_command(&s->socket.out, 3, "CLIENT", "NO-EVICT", "ON");
    append_command(&s->socket.out, 3, "CLIENT", "SETNAME", "musidecar-stale");
    for (uint32_t i = 0; i < swallowed + 2; i++) expect(s, (struct stale_expect){.swallowed = true});
    return true;
}

/* Who waits for it is put to the leader. */
void stale_close(struct engine *e) {
    struct stale *s = &e->stale;
    s->proved_us = s->asked_us = 0;
    s->answered = false;
    if (s->socket.source.fd < 0) return;
    source_close(e, &s->socket.source);
    buffer_clear(&s->socket.out);
    queue_clear(&s->expects);
    for (uint32_t i = 0; i < e->clients_used; i++) {
        struct client *c = &e->clients[i];
        if (!c->in_use || c->at_backend == 0) continue;
        c->at_backend = 0;
        forward_unsettle(e, c);
    }
}

/* Part of an answer. False: nobody had asked. */
static bool answer_part(struct engine *e, const uint8_t *bytes, size_t length, bool done) {
    struct stale *s = &e->stale;
    const struct stale_expect *x = queue_front(&s->expects);
    if (x == NULL || s->reply.is_push || (x->swallowed && s->reply.type == '-')) return false;
    struct client *c = x->swallowed ? NULL : client_find(e, x->slot, x->generation);
    if (c != NULL) {
        buffer_append(&c->socket.out, bytes, length);
        c->releasable += length;
        c->answer_bytes += length;
        client_want_flush(e, c);
    }
    if (!done) return true;
    queue_pop(&s->expects);
    if (c == NULL) return true;
    forward_answered(e, c, s->reply.type);
    c->at_backend--;
    e->counters.local_reads++;
    return true;
}

void stale_event(struct engine *e, uint32_t events) {
    struct stale *s = &e->stale;
    if (events & EPOLLOUT) stale_send(e);
    if (!(events & (EPOLLIN | EPOLLHUP | EPOLLERR)) || s->socket.source.fd < 0) return;
    ssize_t n = recv(s->socket.source.fd, e->scratch, SCRATCH_BYTES, 0);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
    const uint8_t *bytes = e->scratch;
    bool right = n > 0;
    for (size_t left = n > 0 ? (size_t)n : 0; left > 0 && right;) {
        enum resp_status status;
        size_t used = resp_reply_feed(&s->reply, bytes, left, &status);
        right = status != RESP_BAD && answer_part(e, bytes, used, status == RESP_DONE);
        if (status == RESP_DONE) resp_reply_reset(&s->reply);
        bytes += used;
        left -= used;
    }
    if (right) return;
    engine_log(e, 30, "the backend closed the connection for local reads");
    stale_close(e);
}

void stale_send(struct engine *e) {
    struct stale *s = &e->stale;
    size_t written;
    if (s->socket.source.fd < 0 || buffer_length(&s->socket.out) == 0) return;
    if (!socket_flush(e, &s->socket, buffer_length(&s->socket.out), &written)) {
        stale_close(e);
        return;
    }
    buffer_trim(&s->socket.out, 4u << 20);
}

static void append_request(struct stale *s, const struct client *c, const struct session_decision *d) {
    char number[16];
    if (s->protocol != c->session.protocol) {
        append_command(&s->socket.out, 2, "HELLO", c->session.protocol == 3 ? "3" : "2");
        expect(s, (struct stale_expect){.swallowed = true});
        s->protocol = c->session.protocol;
    }
    if (s->database != (int32_t)c->session.database) {
        snprintf(number, sizeof number, "%u", c->session.database);
        append_command(&s->socket.out, 2, "SELECT", number);
        expect(s, (struct stale_expect){.swallowed = true});
        s->database = (int32_t)c->session.database;
    }
    buffer_append(&s->socket.out, d->bytes, d->length);
    expect(s, (struct stale_expect){.slot = c->slot, .generation = c->generation});
}

/* ---- reads -------------------------------------------------------------------------------------------------------------- */

enum stale_way stale_read(struct engine *e, struct client *c, const struct session_decision *d) {
    struct stale *s = &e->stale;
    uint64_t bound_us = e->config.stale_us;
    bool behind = c->outstanding > 0 && c->at_backend == 0; /* what the leader is to answer */
    if (!d->may_be_stale || bound_us == 0 || behind || !is_sound(e)) return STALE_NO;
    if (buffer_length(&s->socket.out) > WAITING_BYTES_MAX || !forward_may_keep(c, d)) return STALE_NO;
    uint64_t needed_us = e->now_us > bound_us ? e->now_us - bound_us : 0;
    if (c->answered_us > needed_us) needed_us = c->answered_us;
    if (s->proved_us == 0 || s->proved_us < needed_us) {
        bool patient = c->waiting_since_us == 0 || e->now_us - c->waiting_since_us < WAIT_US;
        if (!patient || !ask(e)) return STALE_NO;
        s->waited_for = true;
        return STALE_WAITS;
    }
    if (e->now_us - s->proved_us > bound_us / RENEWALS) ask(e); /* in time for those that come */
    if (!connect_once(e)) return STALE_NO;
    forward_keep(e, c, d);
    c->sent_term = 0;
    c->at_backend++;
    append_request(s, c, d);
    return STALE_TAKEN;
}

/* Each turn. */
void stale_step(struct engine *e) {
    prove(e);
    stale_send(e);
}

/* Each tick: who has waited for long goes to the leader. */
void stale_tick(struct engine *e) {
    if (!e->stale.waited_for) return;
    e->stale.waited_for = false; /* who goes on waiting says so again */
    clients_wake_all(e);
}
