/* own_answer.c: connections of their own (own.h): what the backend says on one, and what its client is given of it. */
#include "engine/engine_state.h"
#include "engine/own_replica.h"
#include "engine/own_state.h"

#define PUSH_BYTES_MAX (512u << 10)   /* in one frame */

void own_arrive(struct engine *e, const struct own *own, const struct arrival *a, const void *bytes) {
    struct owns *o = &e->owns;
    if (own->orphan) return;
    struct arrival *last = queue_back(&o->arrivals);
    bool fresh = queue_length(&o->arrivals) > 0 && o->arrivals.tail - 1 >= o->sealed;
    bool goes_on = fresh && last->bytes + a->bytes <= PUSH_BYTES_MAX && last->kind == ARRIVAL_PUSH && a->kind == ARRIVAL_PUSH && last->to.node == own->to.node &&
                   last->to.slot == own->to.slot && last->to.generation == own->to.generation;
    if (goes_on) last->bytes += a->bytes;
    else *(struct arrival *)queue_push(&o->arrivals) = *a;
    buffer_append(&o->arrived, bytes, a->bytes);
    e->shared.unproven = true; /* a ROLE behind it */
}

void own_end(struct engine *e, struct own *own) {
    own_arrive(e, own, &(struct arrival){.to = own->to, .kind = ARRIVAL_END, .refused = true}, NULL);
    own_leave(e, own);
}

/* The backend has closed it. */
void own_broken(struct engine *e, struct own *own) {
    own_setting_lost(e, &own->settings);
    own_end(e, own);
}

/* CLIENT LIST or INFO that came on an own connection: of those that the backend knows. */
static void own_list(struct engine *e, struct own *asks, size_t added) {
    struct buffer peers = {0}, out = {0};
    for (const struct own *own = e->owns.first; own != NULL; own = own->next)
        if (own->peer.id != 0 && own->peer.addr[0] != 0) buffer_append(&peers, &own->peer, sizeof own->peer);
    if (client_list_edit((struct own_peer *)(void *)buffer_bytes(&peers), buffer_length(&peers) / sizeof(struct own_peer), asks->peer.id,
                         added, asks->unseen, buffer_bytes(&asks->edited), buffer_length(&asks->edited), &out)) {
        buffer_free(&asks->edited);
        asks->edited = out;
    }
    buffer_free(&peers);
}

/* Part of an answer which its client is not given as it is. */
static void own_edit(struct engine *e, struct own *own, const struct own_expect *x, struct arrival a, const uint8_t *bytes, bool done) {
    buffer_append(&own->edited, bytes, a.bytes);
    if (!done) return;
    if (x->verifies) { /* it tells of no data, and need not wait for any; this connection is somebody else's now, perhaps */
        link_answer(e, &a.to, buffer_bytes(&own->edited), buffer_length(&own->edited));
        buffer_clear(&own->edited);
        return own_leave(e, own);
    }
    if (x->asks_id) {
        own->peer.id = *buffer_bytes(&own->edited) == ':' ? strtoull((const char *)buffer_bytes(&own->edited) + 1, NULL, 10) : 0;
        buffer_clear(&own->edited);
        return;
    }
    if (x->lists) own_list(e, own, x->added);
    else if (x->view == VIEW_CLIENT_ID || x->view == VIEW_REDIRECTION) own_ids_edit(&own->peer, x->view, &own->edited);
    else if (x->view != VIEW_PLAIN) view_edit(e, x->view, x->view_count, &own->edited);
    else if (x->stands_in) stand_in_edit(&own->edited);
    if (x->sets != SETS_NOTHING && own_setting_answered(e, &own->settings, x->sets, x->named, buffer_bytes(&own->edited),
                                                        buffer_length(&own->edited), own->number)) {
        own->held = a;
        return;
    }
    a.bytes = buffer_length(&own->edited);
    a.type = *buffer_bytes(&own->edited);
    own_arrive(e, own, &a, buffer_bytes(&own->edited));
    buffer_clear(&own->edited);
    buffer_trim(&own->edited, 4096);
}

/* Between RESET and its answer: what comes answers nothing in particular, so far. */
static void own_reset(struct engine *e, struct own *own, const uint8_t *bytes, size_t length, bool done) {
    static const char reset[] = "+RESET\r\n";
    struct arrival a = {.to = own->to, .bytes = length, .kind = ARRIVAL_PUSH, .type = own->reply.type, .database_after = -1};
    if (own->reply.type != '+') return own_arrive(e, own, &a, bytes);
    buffer_append(&own->edited, bytes, length);
    if (!done) return;
    a.bytes = buffer_length(&own->edited);
    bytes = buffer_bytes(&own->edited);
    if (a.bytes == sizeof reset - 1 && memcmp(bytes, reset, a.bytes) == 0) {
        a.kind = ARRIVAL_LAST;
        a.to.sequence = ((struct own_expect *)queue_front(&own->expects))->sequence;
        queue_pop(&own->expects);
    }
    if (a.kind == ARRIVAL_LAST || !ask_is_seen(bytes, a.bytes)) own_arrive(e, own, &a, bytes);
    buffer_clear(&own->edited);
}

static bool is_edited(const struct own_expect *x) {
    return x->stands_in || x->lists || x->sets != SETS_NOTHING || (x->view != VIEW_PLAIN && x->replies == 1);
}

static bool is_refusal(const struct own *own, const uint8_t *bytes, size_t length) {
    return own->reply.type == '-' && (busy_begins(bytes, length) || (length > 11 && memcmp(bytes, "-EXECABORT ", 11) == 0));
}

/* False: what comes would be done, or was, in a database that its client does not mean. */
static bool own_may_say(struct own *own, struct own_expect *x, bool refused, bool done) {
    if (x->swallow == 0) return !own->adrift || refused;
    if (!done || x->enters == 0 || --x->enters > 0) return true;
    own->adrift = own->reply.type == '-';
    return !own->adrift || x->replies > x->swallow; /* else nothing of what comes is counted */
}

bool own_bytes(struct engine *e, struct own *own, const uint8_t *bytes, size_t length) {
    if (own->replica != NULL) {
        struct arrival a = {.to = own->to, .bytes = length, .kind = ARRIVAL_PUSH, .database_after = -1};
        own_arrive(e, own, &a, bytes);
        own_replica_passed(own->replica, bytes, length, length < SCRATCH_BYTES, stream_position(e));
        return true;
    }
    while (length > 0) {
        if (own->settings.waits) return buffer_append(&own->rest, bytes, length), true;
        struct own_expect *x = queue_front(&own->expects);
        enum resp_status status;
        size_t used = resp_reply_feed(&own->reply, bytes, length, &status);
        if (status == RESP_BAD) return false;
        bool done = status == RESP_DONE, counted = x != NULL && !own->reply.is_push;
        struct arrival a = {.to = own->to, .bytes = used, .kind = ARRIVAL_PUSH, .type = own->reply.type, .database_after = -1};
        if (counted && x->swallow == 0) {
            a.kind = done && x->replies == 1 ? ARRIVAL_LAST : ARRIVAL_PART;
            a.to.sequence = x->sequence;
            a.database_after = x->database_after;
        }
        bool refused = is_refusal(own, bytes, used);
        if (counted && used > 0 && !own_may_say(own, x, refused, done)) return false;
        a.refused = refused && a.kind == ARRIVAL_LAST;
        bool resets = counted && x->resets;
        counted = counted && !resets;
        bool shown = counted ? x->swallow == 0 : !(done && own->whole && ask_is_seen(bytes, used));
        if (resets) own_reset(e, own, bytes, used, done);
        else if (counted && (x->asks_id || x->verifies || (shown && is_edited(x)))) own_edit(e, own, x, a, bytes, done);
        else if (shown) own_arrive(e, own, &a, bytes);
        if (own->socket.source.kind == SOURCE_GONE) return true;
        own->whole = done;
        own->unseen = !shown ? own->unseen + used : done ? 0 : own->unseen;
        if (done && counted) {
            if (x->swallow > 0) x->swallow--;
            if (--x->replies == 0) {
                bool late = x->since_ns > 0 && e->now_ns - x->since_ns >= e->slowlog.late_ns;
                if (late) slowlog_note(e, SLOW_OWN, &own->to, x->head, x->behind, false, own->peer.addr);
                if (x->pause != PAUSE_NOTHING) client_pause_answered(e, x->pause, own->reply.is_null ? '-' : own->reply.type);
                queue_pop(&own->expects);
            }
        }
        if (done) resp_reply_reset(&own->reply);
        bytes += used;
        length -= used;
    }
    return true;
}
