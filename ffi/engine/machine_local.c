/*
 * machine_local.c: what a client of a machine asks about, or of, the node that it is connected to: one question, answered
 * on a connection made for it, or a stream that goes on until one side closes. Nothing of it is logged, and nothing that
 * changes data comes here.
 */
#include "engine/engine_state.h"

#include <errno.h>
#include <sys/socket.h>

#define UNREAD_BYTES_MAX (4u << 20) /* of a stream that its client does not take: it is not read on */

void machine_local_close(struct engine *e, struct client *c) {
    struct local *l = c->local_backend;
    if (l == NULL) return;
    c->local_backend = NULL;
    source_close(e, &l->socket->source);
    buffer_free(&l->socket->out);
    buffer_free(&l->answer);
    free(l->socket);
    free(l);
}

bool machine_ask_local(struct engine *e, struct client *c, const struct protocol_request *q, const uint8_t *bytes) {
    int fd = e->backend == BACKEND_DOWN ? -1 : backend_connect(e);
    if (fd < 0) { /* there is no such server now */
        c->leaving = true;
        return true;
    }
    struct local *l = calloc(1, sizeof *l);
    CHECK(l != NULL);
    l->socket = calloc(1, sizeof *l->socket);
    CHECK(l->socket != NULL);
    l->socket->source = (struct source){.kind = SOURCE_LOCAL, .fd = fd};
    l->style = q->style;
    l->streams = q->class == PROTOCOL_STREAM;
    c->local_backend = l;
    c->barrier = true; /* and nothing else: a change of leaders does not concern it */
    e->machine.protocol->rewrite(q, bytes, machine_now_us(), &l->socket->out);
    source_watch(e, &l->socket->source, EPOLLIN);
    size_t written;
    socket_flush(e, l->socket, buffer_length(&l->socket->out), &written);
    return true;
}

static void ended(struct engine *e, struct client *c) {
    machine_local_close(e, c);
    c->leaving = true;
    c->barrier = false;
    client_want_flush(e, c);
}

static void answer_bytes(struct engine *e, struct client *c, const uint8_t *bytes, size_t length) {
    struct local *l = c->local_backend;
    const struct protocol *p = e->machine.protocol;
    while (length > 0) {
        enum protocol_status status;
        size_t used = p->reply(&l->state, 1, bytes, length, &status);
        if (status == PROTOCOL_REPLY_BAD) return ended(e, c);
        buffer_append(&l->answer, bytes, used);
        bytes += used;
        length -= used;
        if (status != PROTOCOL_REPLY_WHOLE) continue;
        buffer_clear(&e->answer);
        p->answer(l->style, NULL, 0, buffer_bytes(&l->answer), buffer_length(&l->answer), e->term, &e->answer);
        machine_local_close(e, c);
        c->barrier = false;
        client_answer_local(e, c, &e->answer);
        client_want_ready(e, c);
        return;
    }
}

void machine_local_event(struct engine *e, struct client *c) {
    struct local *l = c->local_backend;
    uint8_t chunk[16384];
    size_t written;
    if (buffer_length(&l->socket->out) > 0 && !socket_flush(e, l->socket, buffer_length(&l->socket->out), &written)) return ended(e, c);
    if (buffer_length(&c->socket.out) > UNREAD_BYTES_MAX) return source_watch(e, &l->socket->source, 0);
    ssize_t n = recv(l->socket->source.fd, chunk, sizeof chunk, 0);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (n <= 0) return ended(e, c);
    if (!l->streams) return answer_bytes(e, c, chunk, (size_t)n);
    buffer_append(&c->socket.out, chunk, (size_t)n);
    c->releasable += (size_t)n;
    client_want_flush(e, c);
}
