/* client.c: the node's own clients: their bytes in, framed and put through their session; their answers out. */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <sys/socket.h>
#include <unistd.h>

#include "engine/engine_state.h"

#define READ_BYTES (64u * 1024u)
#define KEEP_BYTES (64u * 1024u) /* buffers of idle clients that are larger go back */
#define ACCEPTS_A_TURN 64

struct client *client_find(struct engine *e, uint32_t slot, uint32_t generation) {
    if (slot >= e->clients_used) return NULL;
    struct client *c = &e->clients[slot];
    return c->in_use && c->generation == generation ? c : NULL;
}

static struct client *client_new(struct engine *e) {
    uint32_t slot;
    if (e->free_count > 0) slot = e->free_slots[--e->free_count];
    else if (e->clients_used < e->config.clients_max) slot = e->clients_used++;
    else return NULL;
    struct client *c = &e->clients[slot];
    uint32_t generation = c->generation + 1;
    struct buffer block = c->session.block, deferred = c->session.deferred;
    *c = (struct client){.slot = slot, .generation = generation, .in_use = true, .pending = c->pending,
                         .answer_bytes_mean = ANSWER_BYTES_FIRST,
                         .socket = {.source = {.kind = SOURCE_CLIENT, .fd = -1}}};
    c->session.block = block;
    c->session.deferred = deferred;
    if (c->pending.data == NULL) queue_init(&c->pending, sizeof(struct pending), 8);
    queue_clear(&c->pending);
    resp_request_reset(&c->request);
    return c;
}

static void address_text(const struct sockaddr_storage *address, char *out, size_t room) {
    char host[INET6_ADDRSTRLEN] = "";
    const struct sockaddr_in *four = (const struct sockaddr_in *)address;
    const struct sockaddr_in6 *six = (const struct sockaddr_in6 *)address;
    if (address->ss_family == AF_INET) {
        inet_ntop(AF_INET, &four->sin_addr, host, sizeof host);
        snprintf(out, room, "%s:%u", host, ntohs(four->sin_port));
    } else if (address->ss_family == AF_INET6) {
        inet_ntop(AF_INET6, &six->sin6_addr, host, sizeof host);
        snprintf(out, room, "[%s]:%u", host, ntohs(six->sin6_port));
    }
}

/* The addresses that it is connected by. */
void client_describe(const struct client *c, struct own_peer *peer) {
    peer->client = c->session.client_id;
    struct sockaddr_storage address;
    socklen_t length = sizeof address;
    if (getpeername(c->socket.source.fd, (struct sockaddr *)&address, &length) == 0) address_text(&address, peer->addr, sizeof peer->addr);
    length = sizeof address;
    if (getsockname(c->socket.source.fd, (struct sockaddr *)&address, &length) == 0) address_text(&address, peer->laddr, sizeof peer->laddr);
}

void client_accept(struct engine *e, struct source *listener) {
    for (int i = 0; i < ACCEPTS_A_TURN; i++) {
        int fd = accept4(listener->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC), one = 1;
        if (fd < 0) return;
        struct client *c = client_new(e);
        if (c == NULL) {
            const char *text = e->machine.protocol != NULL ? e->machine.protocol->full : "-ERR max number of clients reached\r\n";
            (void)!send(fd, text, strlen(text), MSG_NOSIGNAL);
            close(fd);
            continue;
        }
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        c->socket.source.fd = fd;
        c->since_us = c->heard_us = e->now_us;
        session_open(&c->session, e->next_client_id++ * e->nodes + e->self + 1, &e->context); /* as no other node gives it */
        source_watch(e, &c->socket.source, EPOLLIN);
        e->counters.clients++;
    }
}

void client_close(struct engine *e, struct client *c) {
    if (!c->in_use) return;
    source_close(e, &c->socket.source);
    if (c->verify != NULL) {
        source_close(e, &c->verify->source);
        buffer_free(&c->verify->out);
        free(c->verify);
        c->verify = NULL;
    }
    machine_local_close(e, c);
    buffer_free(&c->in);
    buffer_free(&c->socket.out);
    buffer_free(&c->local);
    buffer_free(&c->unanswered);
    buffer_free(&c->session.block);
    buffer_free(&c->session.deferred);
    if (c->has_own || c->outstanding > 0) own_tell(e, c, true); /* the leader may have lent it one */
    c->in_use = false;
    c->generation++;
    e->counters.clients--;
    *(uint32_t *)queue_push(&e->dead) = c->slot;
}

void client_want_flush(struct engine *e, struct client *c) {
    if (c->queued_flush) return;
    c->queued_flush = true;
    *(uint32_t *)queue_push(&e->flush) = c->slot;
}

void client_want_ready(struct engine *e, struct client *c) {
    if (c->queued_ready) return;
    c->queued_ready = true;
    *(uint32_t *)queue_push(&e->ready) = c->slot;
}

static void answer_now(struct engine *e, struct client *c, const void *bytes, size_t length) {
    buffer_append(&c->socket.out, bytes, length);
    c->releasable += length;
    client_want_flush(e, c);
}

/* The answer to the only request that is under way. */
void client_answer(struct engine *e, struct client *c, const void *bytes, size_t length) {
    answer_now(e, c, bytes, length);
    client_answered(e, c, -1, *(const uint8_t *)bytes);
    client_want_ready(e, c);
}

/* An answer that this node gives itself: behind those that are still to come. */
void client_answer_local(struct engine *e, struct client *c, struct buffer *answer) {
    size_t length = buffer_length(answer);
    if (length == 0) return;
    if (c->outstanding == 0 && c->releasable == buffer_length(&c->socket.out)) {
        answer_now(e, c, buffer_bytes(answer), length);
    } else if (queue_length(&c->pending) > 0) {
        *(struct pending *)queue_push(&c->pending) =
            (struct pending){.local = true, .local_bytes = (uint32_t)length, .database_after = -1};
        buffer_append(&c->local, buffer_bytes(answer), length);
        c->outstanding++;
    } else {
        c->outstanding++;
        turn_local(e, (struct destination){e->self, c->slot, c->generation, 0, 0}, buffer_bytes(answer), length);
    }
    buffer_clear(answer);
}

/* One answer is complete (its bytes are appended). Local answers behind a forwarded one follow at once. */
void client_answered(struct engine *e, struct client *c, int32_t database_after, uint8_t reply_type) {
    CHECK(c->outstanding > 0);
    c->outstanding--;
    c->asking = 0;
    if (c->at_backend == 0) c->answered_us = e->now_us;
    c->answer_bytes_mean = (c->answer_bytes_mean * 7 + c->answer_bytes) / 8;
    c->answer_bytes = 0;
    if (database_after >= 0 && (reply_type == '*' || reply_type == '~')) c->session.database = (uint32_t)database_after;
    for (struct pending *p = queue_front(&c->pending); p != NULL && p->local; p = queue_front(&c->pending)) {
        answer_now(e, c, buffer_bytes(&c->local), p->local_bytes);
        buffer_consume(&c->local, p->local_bytes);
        queue_pop(&c->pending);
        c->outstanding--;
    }
    if (c->session.login) session_login_answered(&c->session, reply_type == '-');
    if (c->session.multi_asked) session_asked_answered(&c->session, reply_type == '-');
    if (c->outstanding == 0 && !c->has_decision && session_own_done(&c->session)) c->session.own = OWN_NONE;
    if (c->barrier && c->outstanding == 0 && c->verify == NULL) c->barrier = false;
    if (!c->barrier && (c->throttled || buffer_length(&c->in) > 0 || c->has_decision)) client_want_ready(e, c);
}

/* ---- requests ---------------------------------------------------------------------------------------------------- */

static bool window_full(const struct engine *e, const struct client *c) {
    if (buffer_length(&c->socket.out) > e->config.client_output_bytes_max) return true;
    uint64_t window = WINDOW_ANSWER_BYTES / (c->answer_bytes_mean + 1);
    if (window < WINDOW_REQUESTS_MIN) window = WINDOW_REQUESTS_MIN;
    return c->outstanding >= (window < WINDOW_REQUESTS_MAX ? window : WINDOW_REQUESTS_MAX);
}

static bool verify_start(struct engine *e, struct client *c, const struct session_decision *d) {
    int fd = backend_connect(e);
    if (fd < 0) return false;
    struct socket *s = calloc(1, sizeof *s);
    CHECK(s != NULL);
    s->source = (struct source){.kind = SOURCE_VERIFY, .fd = fd};
    c->verify = s;
    c->barrier = true;
    buffer_append(&s->out, d->bytes, d->length);
    source_watch(e, &s->source, EPOLLIN);
    size_t written;
    socket_flush(e, s, buffer_length(&s->out), &written);
    return true;
}

struct client *client_of_verify(struct engine *e, struct source *s) {
    for (uint32_t i = 0; i < e->clients_used; i++)
        if (e->clients[i].in_use && e->clients[i].verify != NULL && &e->clients[i].verify->source == s) return &e->clients[i];
    return NULL;
}

struct client *client_of_local(struct engine *e, struct source *s) {
    for (uint32_t i = 0; i < e->clients_used; i++)
        if (e->clients[i].in_use && e->clients[i].local_backend != NULL && &e->clients[i].local_backend->socket->source == s) return &e->clients[i];
    return NULL;
}

/* What its credentials are answered, in e->answer. */
void client_verified(struct engine *e, struct client *c, const void *line, size_t length) {
    bool right = *(const uint8_t *)line == '+';
    buffer_clear(&e->answer);
    if (right) session_verified(&c->session, &e->context, c->verify_hello, &e->answer);
    if (!right || c->verify_hello == 0) buffer_append(&e->answer, line, length);
}

void client_verify_event(struct engine *e, struct client *c) {
    char line[512];
    ssize_t n = recv(c->verify->source.fd, line, sizeof line, 0);
    if (n < 0 && errno == EAGAIN) return;
    source_close(e, &c->verify->source);
    buffer_free(&c->verify->out);
    free(c->verify);
    c->verify = NULL;
    c->barrier = false;
    if (n <= 0) {
        client_close(e, c);
        return;
    }
    client_verified(e, c, line, (size_t)n);
    client_answer_local(e, c, &e->answer);
    client_want_ready(e, c);
}

static void client_wait(struct engine *e, struct client *c) {
    if (c->waiting_since_us == 0) c->waiting_since_us = e->now_us;
}

/* At a follower: to its own backend, or to the leader. */
static bool client_send(struct engine *e, struct client *c, const struct session_decision *d) {
    switch (stale_read(e, c, d)) {
        case STALE_TAKEN: return true;
        case STALE_WAITS: return client_wait(e, c), false;
        case STALE_NO: break;
    }
    if (c->at_backend > 0) return c->barrier = true, false; /* first they are answered */
    if (!forward(e, c, d)) return client_wait(e, c), false;
    return true;
}

/* False: it has to wait (no leader, no room, ...). */
bool client_submit(struct engine *e, struct client *c, const struct session_decision *d) {
    if (e->handover.waits) return client_wait(e, c), false;
    if (d->verdict == SESSION_OWN) {
        if (!own_request(e, c, d)) return client_wait(e, c), false;
    } else if (engine_leads(e)) {
        if (queue_length(&c->pending) > 0) return false;
        struct request r = {.from = {e->self, c->slot, c->generation, ++c->sequence, 0},
                            .database = (uint16_t)c->session.database,
                            .protocol = c->session.protocol,
                            .decision = d};
        if (!turn_take(e, &r, &c->in)) return client_want_ready(e, c), false;
    } else if (!client_send(e, c, d)) {
        return false;
    }
    c->waiting_since_us = 0;
    if (d->replies > d->swallow) c->outstanding++;
    if (d->database_after >= 0 || c->session.login || c->session.multi_asked || d->loads != LOADS_NOTHING) c->barrier = true;
    e->counters.requests++;
    if (d->writes) e->counters.writes++;
    else e->counters.reads++;
    return true;
}

enum step { STEP_ON, STEP_WAIT, STEP_CLOSED };

/* Its place is the session's, where it may stand already. */
static void client_keep(struct client *c, const struct session_decision *d) {
    struct buffer *block = &c->session.block;
    c->decision = *d;
    c->has_decision = true;
    if (d->bytes == buffer_bytes(block)) return;
    buffer_clear(block);
    buffer_append(block, d->bytes, d->length);
    c->decision.bytes = buffer_bytes(block);
    if (d->script != NULL) c->decision.script = c->decision.bytes + (d->script - d->bytes);
}

static enum step client_decide(struct engine *e, struct client *c, const struct session_decision *d, bool is_block) {
    switch (d->verdict) {
        case SESSION_SUBMIT:
            if (client_submit(e, c, d)) return STEP_ON;
            if (!is_block) return STEP_WAIT;
            c->decision = *d; /* the transaction is gathered already: its place is the session's */
            c->has_decision = true;
            return STEP_WAIT;
        case SESSION_OWN:
            if (client_submit(e, c, d)) return STEP_ON;
            client_keep(c, d);
            return STEP_WAIT;
        case SESSION_WAIT: return STEP_WAIT;
        case SESSION_VERIFY:
            if (c->outstanding > 0) return STEP_WAIT;
            c->verify_hello = d->hello_protocol;
            if (own_verify(e, c, d) || verify_start(e, c, d)) return STEP_ON;
            client_close(e, c);
            return STEP_CLOSED;
        case SESSION_ADMIN:
            if (c->outstanding > 0) return STEP_WAIT;
            if (e->handover.waits) return client_wait(e, c), STEP_WAIT;
            if (d->view == VIEW_CLIENTS) c->asking = (uint32_t)d->length;
            if (engine_leads(e) && d->waits) waits_begin(e, &(struct destination){e->self, c->slot, c->generation, 0, 0}, d->bytes, d->length);
            else if (engine_leads(e) && d->view == VIEW_CLIENTS)
                census_begin(e, &(struct destination){e->self, c->slot, c->generation, 0, 0}, d->bytes, d->length, c->session.protocol);
            else if (engine_leads(e) && d->view == VIEW_KILL_REPLICAS) owns_kill_replicas(e, &(struct destination){e->self, c->slot, c->generation, 0, 0});
            else if (engine_leads(e)) admin_send_for(e, (struct destination){e->self, c->slot, c->generation, 0, 0}, d->bytes, d->length, d->travels);
            else if (!forward(e, c, d)) return client_wait(e, c), STEP_WAIT;
            c->outstanding++;
            c->barrier = true;
            return STEP_ON;
        default:
            client_answer_local(e, c, &e->answer);
            if (d->close) c->leaving = true;
            return STEP_ON;
    }
}

/* One framed request. *consumed: its bytes are done with. */
static enum step client_request(struct engine *e, struct client *c, const uint8_t *bytes, size_t length, bool *consumed) {
    struct resp_request *request = &c->request, normal;
    size_t whole = request->length;
    if (request->is_inline) {
        buffer_clear(&e->normal);
        uint8_t *room = buffer_room(&e->normal, resp_request_normalised_bytes(request, bytes));
        e->normal.end += resp_request_normalise(request, bytes, room);
        struct resp_limits limits = {UINT32_MAX, UINT32_MAX, 1 << 16, true}; /* an inline request was held to its own limit */
        resp_request_reset(&normal);
        CHECK(resp_request_feed(&normal, room, buffer_length(&e->normal), &limits) == RESP_DONE);
        request = &normal;
        bytes = room;
    }
    buffer_clear(&e->answer);
    bool was_multi = c->session.in_multi;
    c->session.quiet = c->outstanding == 0;
    struct session_decision d = session_step(&c->session, &e->context, request, bytes, length > whole, &e->answer);
    if (d.verdict == SESSION_NOTHING) {
        *consumed = true;
        return STEP_ON;
    }
    bool is_block = was_multi && d.verdict == SESSION_SUBMIT;
    enum step step = client_decide(e, c, &d, is_block);
    *consumed = step == STEP_ON || is_block || d.verdict == SESSION_OWN;
    return step;
}

static void client_pause(struct engine *e, struct client *c) {
    buffer_clear(&e->answer);
    if (session_pause(&c->session, &e->answer)) client_answer_local(e, c, &e->answer);
}

static void client_bad(struct engine *e, struct client *c) {
    c->leaving = true;
    if (c->request.error[0] == 0) return; /* Redis closes without a word, too */
    buffer_clear(&e->answer);
    buffer_text(&e->answer, "-ERR ");
    buffer_text(&e->answer, c->request.error);
    buffer_text(&e->answer, "\r\n");
    client_answer_local(e, c, &e->answer);
}

bool client_may_go_on(struct engine *e, struct client *c) {
    if (!c->in_use || c->unsettled || c->barrier || c->leaving) return false;
    if (c->has_decision) {
        if (!client_submit(e, c, &c->decision)) return false;
        c->has_decision = false;
        if (c->barrier) return false;
    }
    c->throttled = window_full(e, c);
    return !c->throttled;
}

/* Takes whole requests from the bytes; returns how many bytes are done with. */
static size_t client_process(struct engine *e, struct client *c, const uint8_t *bytes, size_t length) {
    if (e->machine.protocol != NULL) return machine_process(e, c, bytes, length);
    struct resp_limits limits = {e->config.bulk_bytes_max, e->config.client_input_bytes_max, 1 << 16, c->session.authenticated};
    size_t done = 0;
    while (client_may_go_on(e, c)) {
        if (done == length) {
            client_pause(e, c);
            break;
        }
        enum resp_status status = resp_request_feed(&c->request, bytes + done, length - done, &limits);
        if (status == RESP_MORE) {
            client_pause(e, c);
            break;
        }
        if (status == RESP_BAD) {
            client_bad(e, c);
            return length;
        }
        bool consumed = true;
        enum step step = STEP_ON;
        size_t whole = c->request.length;
        const uint8_t *before = c->in.data;
        if (status == RESP_DONE) step = client_request(e, c, bytes + done, length - done, &consumed);
        if (step == STEP_CLOSED) return length;
        if (c->in.data != before) { /* a large request took the buffer over and left what is behind it */
            resp_request_reset(&c->request);
            client_want_ready(e, c);
            return 0;
        }
        if (consumed) {
            done += whole;
            resp_request_reset(&c->request);
        }
        if (step == STEP_WAIT) break;
        limits.authenticated = c->session.authenticated;
    }
    return done;
}

static void client_interest(struct engine *e, struct client *c) {
    if (!c->in_use) return;
    bool read_on = !c->ended && !c->leaving && !c->throttled && !c->has_decision && c->waiting_since_us == 0 &&
                   ((!c->queued_ready && !c->barrier) || buffer_length(&c->in) < READ_BYTES);
    uint32_t interest = (c->socket.source.interest & EPOLLOUT) | (read_on ? (uint32_t)EPOLLIN : 0u);
    source_watch(e, &c->socket.source, interest);
}

static void client_settle(struct engine *e, struct client *c) {
    if (!c->in_use) return;
    if (c->ended && c->local_backend != NULL && c->local_backend->streams) return client_close(e, c);
    bool idle = c->outstanding == 0 && buffer_length(&c->socket.out) == 0 && !c->queued_flush;
    bool nothing_more = c->leaving || (c->ended && (buffer_length(&c->in) == 0 || !c->queued_ready) && c->waiting_since_us == 0 &&
                                       !c->barrier && !c->has_decision);
    bool waits = c->session.own != OWN_NONE || c->outstanding > 0; /* perhaps because it is paused */
    if (c->ended && !c->leaving && waits && !c->eof_told && (buffer_length(&c->in) == 0 || c->barrier) && !c->has_decision) {
        c->eof_told = true; /* a blocked client that goes must not be given anything */
        own_tell(e, c, false);
    }
    if (idle && nothing_more) {
        client_close(e, c);
        return;
    }
    client_interest(e, c);
}

static void client_read(struct engine *e, struct client *c) {
    bool direct = buffer_length(&c->in) == 0;
    size_t room = direct ? SCRATCH_BYTES : READ_BYTES;
    if (!direct && c->request.bulk_left > room) room = (size_t)c->request.bulk_left + 2;
    uint8_t *into = direct ? e->scratch : buffer_room(&c->in, room);
    ssize_t n = recv(c->socket.source.fd, into, room < SCRATCH_BYTES ? room : SCRATCH_BYTES, 0);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (n < 0) {
        client_close(e, c);
        return;
    }
    if (n == 0) c->ended = true;
    c->heard_us = e->now_us;
    if (n > 0 && direct) {
        size_t done = client_process(e, c, e->scratch, (size_t)n);
        if (c->in_use && done < (size_t)n) buffer_append(&c->in, e->scratch + done, (size_t)n - done);
    } else if (n > 0) {
        c->in.end += (size_t)n;
        size_t done = client_process(e, c, buffer_bytes(&c->in), buffer_length(&c->in));
        if (c->in_use && done > 0) buffer_consume(&c->in, done);
        buffer_trim(&c->in, KEEP_BYTES);
    }
}

void client_event(struct engine *e, struct client *c, uint32_t events) {
    if (!c->in_use) return;
    if (events & EPOLLOUT) client_want_flush(e, c);
    if (events & EPOLLIN) client_read(e, c);
    else if (events & (EPOLLHUP | EPOLLERR)) client_close(e, c);
    client_settle(e, c);
}

void client_flush(struct engine *e, struct client *c) {
    size_t written;
    if (!c->in_use) return;
    if (!socket_flush(e, &c->socket, c->releasable, &written)) {
        client_close(e, c);
        return;
    }
    c->releasable -= written;
    if (written > 0) buffer_trim(&c->socket.out, ANSWER_LARGE_BYTES);
    if (written > 0 && c->session.replica) own_took(e, c, written);
    if (c->throttled && !window_full(e, c)) client_want_ready(e, c);
    client_settle(e, c);
}

void clients_ready(struct engine *e) {
    for (uint64_t n = queue_length(&e->ready); n > 0; n--) {
        struct client *c = &e->clients[*(uint32_t *)queue_front(&e->ready)];
        queue_pop(&e->ready);
        c->queued_ready = false;
        if (!c->in_use) continue;
        if (c->unsettled && !forward_again(e, c)) {
            client_settle(e, c);
            continue;
        }
        size_t done = client_process(e, c, buffer_bytes(&c->in), buffer_length(&c->in));
        if (c->in_use && done > 0) buffer_consume(&c->in, done);
        buffer_trim(&c->in, KEEP_BYTES);
        client_settle(e, c);
    }
}

/* ---- leader changes ------------------------------------------------------------------------------------------------ */

void clients_wake_all(struct engine *e) {
    for (uint32_t i = 0; i < e->clients_used; i++)
        if (e->clients[i].in_use && e->clients[i].waiting_since_us > 0) client_want_ready(e, &e->clients[i]);
}

void clients_expire(struct engine *e) {
    for (uint32_t i = 0; i < e->clients_used; i++) {
        struct client *c = &e->clients[i];
        if (c->in_use && c->waiting_since_us > 0 && e->now_us - c->waiting_since_us > e->config.wait_timeout_us)
            client_close(e, c);
    }
}
