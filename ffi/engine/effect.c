/*
 * effect.c: the leader reads its backend's replication stream as a replica of it (R2, R8) and cuts it into EFFECT
 * records, at offsets that a ROLE on the shared connection returned and nowhere else.
 */
#include <errno.h>
#include <stdio.h>
#include <sys/socket.h>

#include "engine/engine_state.h"
#include "plant.h"

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
    psync_begin(&s->psync, append_auth(e, &s->socket.out) + 1, full);
    /* Told a name, Redis does not ask the kernel for the peer's at each ROLE: 1.4 us instead of 2.4. */
    append_command(&s->socket.out, 7, OUR_REPLCONF, "ip-address", "musidecar", "capa", "eof", "capa", "psync2");
    s->cut_offset = offset;
    source_watch(e, &s->socket.source, EPOLLIN);
    size_t written;
    return socket_flush(e, &s->socket, buffer_length(&s->socket.out), &written);
}

void stream_close(struct engine *e) {
    struct stream *s = &e->stream;
    source_close(e, &s->socket.source);
    buffer_clear(&s->socket.out);
    buffer_clear(&s->effects);
    buffer_trim(&s->effects, 16u << 20);
    s->psync.stage = PSYNC_CLOSED;
    e->cut.active = false;
}

/* Only now: Redis refuses a PSYNC behind which answers are still to be sent. */
static bool stream_psync(struct engine *e) {
    struct stream *s = &e->stream;
    char next[32];
    size_t written;
    snprintf(next, sizeof next, "%llu", (unsigned long long)(s->cut_offset + 1));
    append_command(&s->socket.out, 3, OUR_PSYNC, s->psync.wants_full ? "?" : e->feed.told_replid, s->psync.wants_full ? "-1" : next);
    return socket_flush(e, &s->socket, buffer_length(&s->socket.out), &written);
}

static void stream_ack(struct engine *e) {
    struct stream *s = &e->stream;
    char offset[32];
    size_t written;
    snprintf(offset, sizeof offset, "%llu", (unsigned long long)(s->cut_offset + buffer_length(&s->effects)));
    append_command(&s->socket.out, 3, OUR_REPLCONF, "ACK", offset);
    e->our_calls[OUR_CALLS_REPLCONF]++;
    s->acked_us = e->now_us;
    if (!socket_flush(e, &s->socket, buffer_length(&s->socket.out), &written)) backend_lost(e, "its replication stream broke");
}

void stream_tick(struct engine *e) {
    struct stream *s = &e->stream;
    if (s->psync.stage != PSYNC_LIVE) return;
    if (e->shared.roles_in_flight == 0) source_watch(e, &s->socket.source, s->socket.source.interest | (uint32_t)EPOLLIN);
    uint64_t every = e->now_us - s->live_since_us < ACK_SOON_FOR_US ? ACK_SOON_US : ACK_US;
    if (e->now_us - s->acked_us >= every) stream_ack(e);
}

static void stream_live(struct engine *e) {
    struct stream *s = &e->stream;
    bool continued = !s->psync.wants_full;
    if (!continued) s->cut_offset = s->psync.offset;
    if (s->psync.replid[0] == 0) memcpy(s->psync.replid, e->feed.told_replid, sizeof s->psync.replid);
    s->live_since_us = e->now_us;
    stream_ack(e);
    if (s->psync.stage == PSYNC_LIVE) takeover_attached(e, continued);
}

static bool stream_refused(struct engine *e) {
    const char *line = e->stream.psync.line;
    if (strncmp(line, "+FULLRESYNC", 11) == 0)
        engine_log(e, 40, "the backend asks for a full resync on re-attach: its history is not the log's");
    else engine_log(e, 40, "the backend refuses to be replicated from: %.120s", line);
    return false;
}

static bool stream_bytes(struct engine *e, const uint8_t *bytes, size_t length) {
    struct stream *s = &e->stream;
    while (length > 0 && s->psync.stage != PSYNC_CLOSED) {
        if (s->psync.stage == PSYNC_LIVE) {
            buffer_append(&s->effects, bytes, length);
            break;
        }
        enum psync_event event;
        size_t used = psync_feed(&s->psync, bytes, length, &event);
        bytes += used;
        length -= used;
        switch (event) {
            case PSYNC_MORE: break;
            case PSYNC_ASK:
                if (!stream_psync(e)) return false;
                break;
            case PSYNC_STREAMS: stream_live(e); break;
            case PSYNC_REFUSED: return stream_refused(e);
            case PSYNC_BAD: return false;
        }
    }
    return true;
}

/* While a ROLE is on its way its answer says when to read: woken by the stream, which Redis writes first, the loop would
 * sleep once more for each batch. */
void stream_watch(struct engine *e) {
    struct stream *s = &e->stream;
    if (s->psync.stage != PSYNC_LIVE || s->socket.source.fd < 0) return;
    uint32_t base = s->socket.source.interest & (uint32_t)EPOLLOUT;
    if (queue_length(&e->shared.gates) > 0) source_watch(e, &s->socket.source, base | EPOLLIN);
    else if (e->shared.roles_in_flight > 0) source_watch(e, &s->socket.source, base);
}

uint64_t stream_position(const struct engine *e) { return e->stream.cut_offset + buffer_length(&e->stream.effects); }

/* Reads what is there; false when nothing was. */
bool stream_read(struct engine *e) {
    struct stream *s = &e->stream;
    if (s->socket.source.fd < 0) return false;
    if (s->psync.stage == PSYNC_LIVE) { /* straight to its place */
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
        if (g->offset > reached && !planted(PLANT_CUT_WITHOUT_ROLE)) break;
        if (g->cut) continue;
        last = g;
        gates = i + 1;
    }
    if (last == NULL) return false;
    uint64_t end = planted(PLANT_CUT_WITHOUT_ROLE) ? reached : last->offset;
    e->cut = (struct cut){.active = true, .end = end, .covered = last->covered, .gates = gates, .kept = last->kept};
    return true;
}

/* False: this node does not lead any more, and no gate may open. */
static bool cut_done(struct engine *e, bool wrote) {
    struct shared *s = &e->shared;
    uint64_t probe = 0;
    if (!wrote && !planted(PLANT_READ_UNPROBED)) { /* a committed EFFECT is a probe itself */
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

/* Copies the bytes from `at` on of head, stream and kept answers, as if they stood in a row. */
static void cut_copy(struct engine *e, const struct effect_head *head, uint64_t at, uint8_t *to, size_t length) {
    const struct { const void *bytes; uint64_t length; } parts[] = {
        {head, sizeof *head}, {buffer_bytes(&e->stream.effects), head->end - head->start}, {buffer_bytes(&e->shared.kept), head->replies}};
    for (size_t i = 0; i < sizeof parts / sizeof *parts && length > 0; i++) {
        if (at >= parts[i].length) {
            at -= parts[i].length;
            continue;
        }
        size_t some = parts[i].length - at < length ? (size_t)(parts[i].length - at) : length;
        memcpy(to, (const uint8_t *)parts[i].bytes + at, some);
        to += some;
        length -= some;
        at = 0;
    }
}

/* Proposes the pieces of the EFFECT being cut; false when the ring has no room. */
static bool cut_propose(struct engine *e) {
    struct stream *s = &e->stream;
    struct cut *cut = &e->cut;
    uint32_t most = e->config.replica.piece_bytes_max;
    const struct effect_head head = {e->log.epoch, s->cut_offset, cut->end, cut->covered, cut->kept - e->shared.kept_cut};
    uint64_t total = sizeof head + head.end - head.start + head.replies;
    for (uint64_t turn = 0; cut->proposed < total; turn += most) {
        if (turn >= CUT_BYTES_A_TURN) return e->more = true, false;
        uint32_t length = (uint32_t)(total - cut->proposed < most ? total - cut->proposed : most);
        uint8_t *payload = replica_reserve(e->replica, RECORD_EFFECT, length);
        if (payload == NULL) return e->stalled = true, false;
        cut_copy(e, &head, cut->proposed, payload, length);
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
    buffer_consume(&e->shared.kept, head.replies);
    e->shared.kept_cut = cut->kept;
    s->cut_offset = cut->end;
    e->covered_index = cut->covered;
    return true;
}

void effects_cut(struct engine *e) {
    struct stream *s = &e->stream;
    if (s->psync.stage != PSYNC_LIVE || e->takeover < TAKE_RERUN || e->handover.stage == HANDOVER_YIELD) return;
    CHECK(e->batch == NULL);
    while (e->cut.active || cut_choose(e)) {
        /* COMMANDs that had no effect are covered as well: once they are answered nobody may run them again. */
        bool writes = e->cut.end > s->cut_offset || e->cut.covered > e->covered_index;
        if (writes && !cut_propose(e)) return;
        if (!cut_done(e, writes)) return;
    }
    /* Effects that no batch of ours caused (expiry, the backend's own PINGs) get a ROLE of their own (R2). */
    if (buffer_length(&s->effects) > 0 && e->shared.roles_in_flight == 0) e->shared.unproven = true;
}
