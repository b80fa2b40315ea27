/*
 * effect.c: the leader reads its backend's replication stream as a replica of it (R2, R8) and cuts it into EFFECT
 * records, at offsets that a ROLE on the shared connection returned and nowhere else.
 */
#include <errno.h>
#include <stdio.h>
#include <sys/socket.h>

#include "engine/engine_state.h"

#define ACK_SOON_US 10000ull       /* repeated this often until the stream surely runs (a diskless RDB's trap) */
#define ACK_SOON_FOR_US 2000000ull
#define ACK_US 1000000ull
#define CUT_BYTES_A_TURN (1u << 20)

static const struct record_origin NO_ORIGIN = {0, 0, 0};

bool stream_open(struct engine *e, bool full, uint64_t offset) {
    struct stream *s = &e->stream;
    stream_close(e);
    int fd = backend_connect(e);
    if (fd < 0) return false;
    s->socket.source.fd = fd;
    s->stage = STREAM_LINES;
    s->wants_full = full;
    s->lines_left = append_auth(e, &s->socket.out) + 1;
    append_command(&s->socket.out, 5, "REPLCONF", "capa", "eof", "capa", "psync2");
    s->cut_offset = offset;
    source_watch(e, &s->socket.source, EPOLLIN);
    size_t written;
    return socket_flush(e, &s->socket, buffer_length(&s->socket.out), &written);
}

void stream_close(struct engine *e) {
    struct stream *s = &e->stream;
    source_close(e, &s->socket.source);
    buffer_clear(&s->socket.out);
    buffer_clear(&s->line);
    buffer_clear(&s->effects);
    buffer_trim(&s->effects, 16u << 20);
    s->stage = STREAM_CLOSED;
    e->cut.active = false;
}

/* Only now: Redis refuses a PSYNC behind which answers are still to be sent. */
static bool stream_psync(struct engine *e) {
    struct stream *s = &e->stream;
    char next[32];
    size_t written;
    snprintf(next, sizeof next, "%llu", (unsigned long long)(s->cut_offset + 1));
    append_command(&s->socket.out, 3, "PSYNC", s->wants_full ? "?" : e->feed.told_replid, s->wants_full ? "-1" : next);
    return socket_flush(e, &s->socket, buffer_length(&s->socket.out), &written);
}

static void stream_ack(struct engine *e) {
    struct stream *s = &e->stream;
    char offset[32];
    size_t written;
    snprintf(offset, sizeof offset, "%llu", (unsigned long long)(s->cut_offset + buffer_length(&s->effects)));
    append_command(&s->socket.out, 3, "REPLCONF", "ACK", offset);
    s->acked_us = e->now_us;
    if (!socket_flush(e, &s->socket, buffer_length(&s->socket.out), &written)) backend_lost(e, "its replication stream broke");
}

void stream_tick(struct engine *e) {
    struct stream *s = &e->stream;
    if (s->stage != STREAM_LIVE) return;
    uint64_t every = e->now_us - s->live_since_us < ACK_SOON_FOR_US ? ACK_SOON_US : ACK_US;
    if (e->now_us - s->acked_us >= every) stream_ack(e);
}

static void stream_live(struct engine *e, bool continued) {
    struct stream *s = &e->stream;
    s->stage = STREAM_LIVE;
    s->live_since_us = e->now_us;
    buffer_clear(&s->line);
    stream_ack(e);
    if (s->stage == STREAM_LIVE) takeover_attached(e, continued);
}

/* "+FULLRESYNC <replid> <offset>" or "+CONTINUE[ <replid>]". */
static bool stream_answer(struct engine *e, const char *line) {
    struct stream *s = &e->stream;
    unsigned long long offset;
    if (sscanf(line, "+FULLRESYNC %40s %llu", s->replid, &offset) == 2) {
        if (!s->wants_full) {
            engine_log(e, 40, "the backend asks for a full resync on re-attach: its history is not the log's");
            return false;
        }
        s->cut_offset = offset;
        s->stage = STREAM_RDB_HEAD;
        return true;
    }
    if (strncmp(line, "+CONTINUE", 9) == 0 && !s->wants_full) {
        if (sscanf(line, "+CONTINUE %40s", s->replid) != 1) memcpy(s->replid, e->feed.told_replid, sizeof s->replid);
        stream_live(e, true);
        return true;
    }
    engine_log(e, 40, "the backend refuses to be replicated from: %.120s", line);
    return false;
}

/* Takes one line from the bytes; returns its length with CRLF, 0 when it is not whole. */
static size_t take_line(struct stream *s, const uint8_t *bytes, size_t length, char *line, size_t room) {
    const uint8_t *end = memchr(bytes, '\n', length);
    size_t n = end == NULL ? length : (size_t)(end - bytes) + 1;
    buffer_append(&s->line, bytes, n);
    if (end == NULL) return 0;
    size_t held = buffer_length(&s->line);
    size_t kept = held < room ? held : room - 1;
    memcpy(line, buffer_bytes(&s->line), kept);
    line[kept] = 0;
    line[strcspn(line, "\r\n")] = 0;
    buffer_clear(&s->line);
    return n;
}

static bool stream_line(struct engine *e, const char *line) {
    struct stream *s = &e->stream;
    if (line[0] == 0) return true; /* a newline is Redis saying "still there" */
    if (s->stage == STREAM_LINES) {
        if (s->lines_left == 0) return stream_answer(e, line);
        s->lines_left--;
        return line[0] == '+' && (s->lines_left > 0 || stream_psync(e));
    }
    if (strncmp(line, "$EOF:", 5) == 0 && strlen(line) == 5 + REPLID_BYTES) {
        memcpy(s->mark, line + 5, REPLID_BYTES);
        s->stage = STREAM_RDB_MARK;
        return true;
    }
    unsigned long long bytes;
    if (sscanf(line, "$%llu", &bytes) != 1) return false;
    s->rdb_left = bytes;
    s->stage = STREAM_RDB_LENGTH;
    return true;
}

/* Looks for the mark that ends a diskless RDB; the last bytes are kept in `line` so that it may come in parts. */
static size_t skip_to_mark(struct engine *e, const uint8_t *bytes, size_t length) {
    struct stream *s = &e->stream;
    size_t held = buffer_length(&s->line);
    buffer_append(&s->line, bytes, length);
    const uint8_t *found = memmem(buffer_bytes(&s->line), buffer_length(&s->line), s->mark, REPLID_BYTES);
    if (found != NULL) {
        size_t used = (size_t)(found - buffer_bytes(&s->line)) + REPLID_BYTES - held;
        stream_live(e, false);
        return used;
    }
    size_t all = buffer_length(&s->line);
    if (all > REPLID_BYTES) buffer_consume(&s->line, all - REPLID_BYTES);
    return length;
}

static bool stream_bytes(struct engine *e, const uint8_t *bytes, size_t length) {
    struct stream *s = &e->stream;
    while (length > 0) {
        size_t used = length;
        char line[256];
        switch (s->stage) {
            case STREAM_CLOSED: return true;
            case STREAM_LINES:
            case STREAM_RDB_HEAD:
                used = take_line(s, bytes, length, line, sizeof line);
                if (used == 0) return true;
                if (!stream_line(e, line)) return false;
                break;
            case STREAM_RDB_LENGTH:
                if (s->rdb_left < used) used = (size_t)s->rdb_left;
                s->rdb_left -= used;
                if (s->rdb_left == 0) stream_live(e, false);
                break;
            case STREAM_RDB_MARK: used = skip_to_mark(e, bytes, length); break;
            case STREAM_LIVE: buffer_append(&s->effects, bytes, length); break;
        }
        bytes += used;
        length -= used;
    }
    return true;
}

/* Reads what is there; false when nothing was. */
bool stream_read(struct engine *e) {
    struct stream *s = &e->stream;
    if (s->socket.source.fd < 0) return false;
    if (s->stage == STREAM_LIVE) { /* straight to its place */
        uint8_t *room = buffer_room(&s->effects, SCRATCH_BYTES);
        ssize_t n = recv(s->socket.source.fd, room, SCRATCH_BYTES, 0);
        if (n < 0 && (errno == EAGAIN || errno == EINTR)) return false;
        if (n <= 0) return backend_lost(e, "its replication stream closed"), false;
        s->effects.end += (size_t)n;
        return true;
    }
    ssize_t n = recv(s->socket.source.fd, e->scratch, SCRATCH_BYTES, 0);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return false;
    if (n <= 0) return backend_lost(e, "its replication stream closed"), false;
    if (!stream_bytes(e, e->scratch, (size_t)n)) backend_lost(e, "its replication stream is not one");
    return true;
}

void stream_event(struct engine *e, uint32_t events) {
    size_t written;
    if (events & EPOLLOUT) socket_flush(e, &e->stream.socket, buffer_length(&e->stream.socket.out), &written);
    if (events & (EPOLLIN | EPOLLHUP | EPOLLERR)) stream_read(e);
}

/* ---- cutting ------------------------------------------------------------------------------------------------------- */

/* Chooses how far the next EFFECT goes: to the last gate whose offset the stream has reached. */
static bool cut_choose(struct engine *e) {
    struct shared *s = &e->shared;
    uint64_t reached = e->stream.cut_offset + buffer_length(&e->stream.effects), gates = 0;
    struct gate *last = NULL;
    for (uint64_t i = s->gates.head; i < s->gates.tail; i++) {
        struct gate *g = queue_at(&s->gates, i);
        if (g->offset > reached) break;
        if (g->cut) continue;
        last = g;
        gates = i + 1;
    }
    if (last == NULL) return false;
    e->cut = (struct cut){.active = true, .end = last->offset, .covered = last->covered, .gates = gates};
    return true;
}

/* False: this node does not lead any more, and no gate may open. */
static bool cut_done(struct engine *e, bool wrote) {
    struct shared *s = &e->shared;
    uint64_t probe = 0;
    if (!wrote) { /* a committed EFFECT is a probe itself */
        probe = replica_probe(e->replica);
        if (probe == 0) return false;
        e->counters.probes++;
    }
    for (uint64_t i = s->gates.head; i < e->cut.gates; i++) {
        struct gate *g = queue_at(&s->gates, i);
        if (g->cut) continue;
        g->cut = true;
        g->effect_index = e->effect_index;
        g->probe = probe;
    }
    e->cut.active = false;
    return true;
}

/* Proposes the pieces of the EFFECT being cut; false when the ring has no room. */
static bool cut_propose(struct engine *e) {
    struct stream *s = &e->stream;
    struct cut *cut = &e->cut;
    uint32_t most = e->config.replica.piece_bytes_max;
    uint64_t total = sizeof(struct effect_head) + cut->end - s->cut_offset;
    for (uint64_t turn = 0; cut->proposed < total; turn += most) {
        if (turn >= CUT_BYTES_A_TURN) return e->more = true, false;
        uint32_t length = (uint32_t)(total - cut->proposed < most ? total - cut->proposed : most);
        uint8_t *payload = replica_reserve(e->replica, RECORD_EFFECT, length);
        if (payload == NULL) return e->stalled = true, false;
        uint32_t head = 0;
        if (cut->proposed == 0) {
            struct effect_head h = {e->log.epoch, s->cut_offset, cut->end, cut->covered};
            memcpy(payload, &h, sizeof h);
            head = sizeof h;
        }
        size_t from = cut->proposed == 0 ? 0 : cut->proposed - sizeof(struct effect_head);
        memcpy(payload + head, buffer_bytes(&s->effects) + from, length - head);
        bool last = cut->proposed + length == total;
        int64_t index = replica_propose_reserved(e->replica, RECORD_EFFECT, last ? 0 : RECORD_MORE, NO_ORIGIN, length);
        if (index <= 0) return false;
        cut->proposed += length;
        e->effect_index = (uint64_t)index;
    }
    e->counters.effects++;
    e->counters.effect_bytes += cut->end - s->cut_offset;
    buffer_consume(&s->effects, cut->end - s->cut_offset);
    buffer_trim(&s->effects, 16u << 20);
    s->cut_offset = cut->end;
    return true;
}

void effects_cut(struct engine *e) {
    struct stream *s = &e->stream;
    if (s->stage != STREAM_LIVE || e->takeover < TAKE_RERUN) return;
    CHECK(e->batch == NULL);
    while (e->cut.active || cut_choose(e)) {
        bool writes = e->cut.end > s->cut_offset;
        if (writes && !cut_propose(e)) return;
        if (!cut_done(e, writes)) return;
    }
    /* Effects that no batch of ours caused (expiry, the backend's own PINGs) get a ROLE of their own (R2). */
    if (buffer_length(&s->effects) > 0 && e->shared.roles_in_flight == 0) e->shared.unproven = true;
}
