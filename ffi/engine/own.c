/* own.c: see own.h. */
#include <errno.h>
#include <linux/sockios.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include "engine/engine_state.h"
#include "engine/own_replica.h"
#include "engine/own_state.h"

#define WAITING_BYTES_MAX (64u << 20) /* requests that the backend does not take */
#define ARRIVED_BYTES_MAX (64u << 20) /* of all of them, until a ROLE is answered */
#define SELECT_0 ASK_SELECT "$1\r\n0\r\n"
#define UNREAD_US_MAX 1000000ull      /* order is no promise: a backend that reads nothing so long need not be waited for */

_Static_assert(sizeof((struct owns *)0)->slots / sizeof(struct own **) >= FABRIC_NODES_MAX, "a table for each node");

struct own_unread { struct destination to; uint64_t shared, since_us; bool fresh; };
struct own_staged {
    uint32_t node, slot, generation;
    uint64_t end, index, probe, shared;
    uint64_t behind; /* shared.expects: those in front of this one are answered first */
};

/* ---- the table ------------------------------------------------------------------------------------------------------ */

static struct own **place_of(struct engine *e, uint32_t node, uint32_t slot) {
    if (node >= e->nodes || slot >= e->config.clients_max) return NULL;
    if (e->owns.slots[node] == NULL) {
        e->owns.slots[node] = calloc(e->config.clients_max, sizeof(struct own *));
        CHECK(e->owns.slots[node] != NULL);
    }
    return &e->owns.slots[node][slot];
}

static struct own *own_find(const struct engine *e, uint32_t node, uint32_t slot, uint32_t generation) {
    if (node >= e->nodes || slot >= e->config.clients_max || e->owns.slots[node] == NULL) return NULL;
    struct own *own = e->owns.slots[node][slot];
    return own != NULL && own->to.generation == generation ? own : NULL;
}

const struct own_peer *own_peer_of(const struct engine *e, uint32_t node, uint32_t slot, uint32_t generation) {
    const struct own *own = own_find(e, node, slot, generation);
    return own != NULL ? &own->peer : NULL;
}

static void own_lend(struct engine *e, struct own *own) {
    if (!own->lent) e->owns.lent++;
    own->lent = true;
}

static void own_keep(struct engine *e, struct own *own) {
    if (own->lent) e->owns.lent--;
    own->lent = false;
}

static void own_free(struct engine *e, struct own *own) {
    source_close(e, &own->socket.source);
    if (own->paused) e->owns.paused--;
    if (own->replica != NULL) e->owns.replicas--;
    free(own->replica);
    own_keep(e, own);
    for (const struct own_expect *x = queue_front(&own->expects); x != NULL; x = queue_front(&own->expects)) {
        if (x->pause != PAUSE_NOTHING) client_pause_answered(e, x->pause, 0);
        queue_pop(&own->expects);
    }
    if (!own->orphan) *place_of(e, own->to.node, own->to.slot) = NULL;
    if (own->previous != NULL) own->previous->next = own->next;
    else e->owns.first = own->next;
    if (own->next != NULL) own->next->previous = own->previous;
    buffer_free(&own->socket.out);
    buffer_free(&own->edited);
    buffer_free(&own->rest);
    own_setting_free(&own->settings);
    queue_free(&own->expects);
    own->socket.source.kind = SOURCE_GONE; /* an event of this turn may still name it */
    own->next = e->owns.dead;
    e->owns.dead = own;
}

/* Its client has no use for it any more. What the backend was sent it may do all the same, until it has closed it, too. */
void own_leave(struct engine *e, struct own *own) {
    if (own->orphan || buffer_length(&own->settings.named) == 0) return own_free(e, own);
    *place_of(e, own->to.node, own->to.slot) = NULL;
    own->orphan = true;
    buffer_clear(&own->socket.out);
    own->appended = own->sendable = own->sent;
    shutdown(own->socket.source.fd, SHUT_WR);
    source_watch(e, &own->socket.source, EPOLLIN);
}

/* At the end of a turn: no event names them any more. */
void owns_bury(struct engine *e) {
    for (struct own *own = e->owns.dead, *next; own != NULL; own = next) {
        next = own->next;
        free(own);
    }
    e->owns.dead = NULL;
}

static struct own *own_open(struct engine *e, const struct destination *to, bool as_default) {
    struct own **place = place_of(e, to->node, to->slot);
    if (place == NULL) return NULL;
    if (*place != NULL) own_leave(e, *place); /* a former client's */
    int fd = backend_connect(e);
    if (fd < 0) return NULL;
    struct own *own = calloc(1, sizeof *own);
    CHECK(own != NULL);
    own->socket.source = (struct source){.kind = SOURCE_OWN, .fd = fd};
    own->to = *to;
    own->number = ++e->owns.opened;
    own->fresh = true;
    queue_init(&own->expects, sizeof(struct own_expect), 8);
    own->whole = true;
    resp_reply_reset(&own->reply);
    uint32_t replies = as_default ? append_auth(e, &own->socket.out) : 0;
    if (as_default) buffer_text(&own->socket.out, ASK_ID);
    e->our_calls[OUR_CALLS_CLIENT_ID] += as_default;
    own->appended = buffer_length(&own->socket.out);
    if (replies > 0) *(struct own_expect *)queue_push(&own->expects) = (struct own_expect){.replies = replies, .swallow = replies};
    if (as_default) *(struct own_expect *)queue_push(&own->expects) = (struct own_expect){.replies = 1, .swallow = 1, .asks_id = true};
    const struct client *c = to->node == e->self ? client_find(e, to->slot, to->generation) : NULL;
    if (c != NULL) client_describe(c, &own->peer);
    own->next = e->owns.first;
    if (own->next != NULL) own->next->previous = own;
    e->owns.first = own;
    *place = own;
    source_watch(e, &own->socket.source, EPOLLIN);
    return own;
}

/* ---- order ------------------------------------------------------------------------------------------------------------
 *
 * Clients who do not wait for each other's answers have no order by right. But what one backend would do as it comes it is
 * given in that order: what is written first it need not read first, if it reads from several connections, and least of all
 * where it has to accept one first. So what was staged on the shared connection behind a request on an own one is written
 * once that one is read (a Unix socket tells), and so is what goes to an older connection behind a new one's first request. */

static bool is_read(const struct own *own) {
    int left = 0;
    return own->sent == own->sendable && (ioctl(own->socket.source.fd, SIOCOUTQ, &left) != 0 || left == 0);
}

/* Edge-triggered, a socket that is always writable tells when its other end has read. */
static void unread_add(struct engine *e, struct own *own, uint64_t shared) {
    if (e->config.backend_path[0] == 0) return;
    *(struct own_unread *)queue_push(&e->owns.unread) = (struct own_unread){own->to, shared, e->now_us, own->fresh};
    own->fresh = false;
    source_watch(e, &own->socket.source, own->socket.source.interest | EPOLLOUT | EPOLLET);
}

static void unread_step(struct engine *e) {
    struct owns *o = &e->owns;
    for (const struct own_unread *u = queue_front(&o->unread); u != NULL; u = queue_front(&o->unread)) {
        struct own *own = own_find(e, u->to.node, u->to.slot, u->to.generation);
        if (own != NULL && !is_read(own) && e->now_us - u->since_us < UNREAD_US_MAX) return;
        queue_pop(&o->unread);
        e->more = true;
        if (own == NULL) continue;
        uint32_t all = own->socket.source.interest & ~(uint32_t)EPOLLET;
        source_watch(e, &own->socket.source, own->sent < own->sendable ? all : all & ~(uint32_t)EPOLLOUT);
    }
}

/* Does nobody take what it says? Then it is not read from: the backend has limits of its own. */
static bool own_held_up(struct engine *e, const struct own *own) {
    if (own->settings.waits || buffer_length(&e->owns.arrived) > ARRIVED_BYTES_MAX) return true;
    if (own->replica != NULL && own->replica->untaken > own_replica_window(e->config.client_output_bytes_max)) return true;
    struct client *c = own->to.node == e->self ? client_find(e, own->to.slot, own->to.generation) : NULL;
    size_t waiting = c != NULL ? buffer_length(&c->socket.out) : own->to.node != e->self ? buffer_length(&e->links[own->to.node].socket.out) : 0;
    return waiting > e->config.client_output_bytes_max;
}

void own_event(struct engine *e, struct source *source, uint32_t events) {
    struct own *own = (struct own *)(void *)source;
    if (source->fd < 0) return;
    if (events & EPOLLOUT) {
        own_send(e, own);
        unread_step(e);
    }
    if (source->kind != SOURCE_OWN || !(events & (EPOLLIN | EPOLLHUP | EPOLLERR))) return;
    ssize_t n = recv(source->fd, e->scratch, SCRATCH_BYTES, 0);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (n <= 0 || !own_bytes(e, own, e->scratch, (size_t)n)) {
        own_broken(e, own);
        return;
    }
    if (own->sync_at > 0 && own->replica == NULL) own_send(e, own); /* the last answer before it may have come */
    if (source->kind == SOURCE_GONE || !own_held_up(e, own)) return;
    own->paused = true;
    e->owns.paused++;
    source_watch(e, source, source->interest & ~(uint32_t)EPOLLIN);
}

/* Lent, all of it is passed on, and nobody is paused any more. */
static void owns_take_back(struct engine *e) {
    for (struct own *own = e->owns.first, *next; own != NULL; own = next) {
        next = own->next;
        if (own->lent && queue_length(&own->expects) == 0) own_free(e, own);
    }
}

static void own_goes_on(struct engine *e, struct own *own) {
    if (!own->paused || own_held_up(e, own)) return;
    own->paused = false;
    e->owns.paused--;
    source_watch(e, &own->socket.source, own->socket.source.interest | (uint32_t)EPOLLIN);
}

void own_settled(struct engine *e, uint64_t number) {
    struct own *own = e->owns.first;
    while (own != NULL && own->number != number) own = own->next;
    if (own == NULL) return;
    struct arrival a = own->held;
    struct buffer rest = own->rest;
    own->rest = (struct buffer){0};
    own->settings.waits = false;
    a.bytes = buffer_length(&own->edited);
    own_arrive(e, own, &a, buffer_bytes(&own->edited));
    buffer_clear(&own->edited);
    if (own_bytes(e, own, buffer_bytes(&rest), buffer_length(&rest))) own_goes_on(e, own);
    else own_broken(e, own);
    buffer_free(&rest);
}

/* The backend keeps for a replica what it does not take, without a limit (R8): here is one. */
static void replicas_watch(struct engine *e) {
    if (e->owns.replicas == 0 || e->now_us - e->owns.looked_us < OWN_REPLICA_LOOK_US) return;
    e->owns.looked_us = e->now_us;
    for (struct own *own = e->owns.first, *next; own != NULL; own = next) {
        next = own->next;
        if (own->replica == NULL) continue;
        if (!own_replica_lags(own->replica, own->paused, e->now_us, e->config.replica_timeout_us, stream_position(e))) continue;
        engine_log(e, 30, "a client that replicates from the leader takes too little: it is closed");
        own_end(e, own);
    }
}

void owns_tick(struct engine *e) {
    if (e->owns.lent > 0 && !client_pause_on(e) && queue_length(&e->owns.arrivals) == 0) owns_take_back(e);
    replicas_watch(e);
    for (struct own *own = e->owns.paused > 0 ? e->owns.first : NULL; own != NULL; own = own->next) own_goes_on(e, own);
}

/* A ROLE is on its way: what arrived before it is bounded by its answer. */
uint64_t owns_seal(struct engine *e) {
    e->owns.sealed = e->owns.arrivals.tail;
    return e->owns.sealed;
}

bool owns_refused(const struct engine *e) {
    const struct arrival *first = queue_length(&e->owns.arrivals) > 0 ? queue_front(&e->owns.arrivals) : NULL;
    return first != NULL && first->refused;
}

/* That ROLE is answered: it goes on to whom it is for, behind that ROLE's gate. Refused, what was refused before it goes on. */
void owns_deliver(struct engine *e, uint64_t until, bool refused) {
    struct owns *o = &e->owns;
    for (; o->arrivals.head < until; queue_pop(&o->arrivals)) {
        const struct arrival *a = queue_front(&o->arrivals);
        if (refused && !a->refused) break;
        shared_pass_on(e, &a->to, a->kind, a->type, a->database_after, buffer_bytes(&o->arrived), a->bytes);
        buffer_consume(&o->arrived, a->bytes);
    }
    buffer_trim(&o->arrived, 4u << 20);
}

/* ---- requests ------------------------------------------------------------------------------------------------------- */

void own_send(struct engine *e, struct own *own) {
    size_t written;
    uint64_t until = own->sendable;
    bool waits = own->sync_at > 0 && own->replica == NULL && queue_length(&own->expects) > 0;
    if (waits && until > own->sync_at) until = own->sync_at; /* the backend refuses it in front of answers that it owes */
    if (!socket_flush(e, &own->socket, until - own->sent, &written)) {
        own_broken(e, own);
        return;
    }
    own->sent += written;
    if (own->sync_at > 0 && own->replica == NULL && own->sent > own->sync_at) {
        own->replica = own_replica_new(e->now_us, stream_position(e));
        e->owns.replicas++;
    }
    buffer_trim(&own->socket.out, 1u << 20);
    if (own->ends && own->sent == own->appended) shutdown(own->socket.source.fd, SHUT_WR);
}

/* Once a turn: one probe for all that was staged, and what is proved leaves. */
void owns_step(struct engine *e) {
    struct owns *o = &e->owns;
    if (o->unprobed) {
        uint64_t probe = replica_probe(e->replica);
        if (probe != 0) {
            for (uint64_t i = o->staged.head; i < o->staged.tail; i++) {
                struct own_staged *s = queue_at(&o->staged, i);
                if (s->probe == 0) s->probe = probe;
            }
            o->unprobed = false;
            e->counters.probes++;
            e->more = true; /* one that is done at once wakes nobody */
        }
    }
    uint64_t commit = replica_commit(e->replica), probed = replica_probed(e->replica);
    unread_step(e);
    for (struct own_staged *s = queue_front(&o->staged); s != NULL; s = queue_front(&o->staged)) {
        if (s->probe == 0 || s->probe > probed || s->index > commit || s->behind > e->shared.expects.head) break;
        if (client_pause_holds(e, o->staged.head)) break;
        const struct own_unread *last = queue_length(&o->unread) > 0 ? queue_back(&o->unread) : NULL;
        struct own *own = own_find(e, s->node, s->slot, s->generation);
        if (own != NULL && last != NULL && last->fresh && !own->fresh) break;
        if (e->shared.sent < s->shared && !e->context.busy) { /* a script in front of it may need to be killed by this one */
            shared_send(e);
            if (e->shared.socket.source.fd < 0 || e->shared.sent < s->shared) break;
        }
        const struct own_staged now = *s;
        queue_pop(&o->staged);
        if (own == NULL) continue;
        own->sendable = now.end;
        own_send(e, own);
        if (own->socket.source.fd >= 0) unread_add(e, own, now.shared);
    }
}

/* What was staged on the shared connection after the oldest request that waits here, or is not read yet, stays behind it. */
uint64_t owns_shared_limit(const struct engine *e) {
    const struct own_unread *u = queue_front(&e->owns.unread);
    const struct own_staged *s = queue_front(&e->owns.staged);
    if (u != NULL) return u->shared;
    return s == NULL || client_pause_holds(e, e->owns.staged.head) ? UINT64_MAX : s->shared;
}

static void own_append(struct engine *e, struct own *own, const struct session_decision *d) {
    struct buffer translated = {0};
    bool sets = d->sets == SETS_NOW || d->sets >= SETS_QUEUED;
    if ((sets && config_kept_translate(e, d->bytes + d->added, d->length - d->added, &translated)) ||
        own_ids_translate(e, own, d->bytes + d->added, d->length - d->added, &translated)) {
        buffer_append(&own->socket.out, d->bytes, d->added);
        buffer_append(&own->socket.out, buffer_bytes(&translated), buffer_length(&translated));
        own->appended += d->added + buffer_length(&translated);
    } else {
        buffer_append(&own->socket.out, d->bytes, d->length);
        own->appended += d->length;
    }
    buffer_free(&translated);
}

/* What stands in front of a request makes a connection its client's. */
static void own_count(struct engine *e, const struct session_decision *d) {
    e->our_calls[OUR_CALLS_HELLO]++;
    e->our_calls[OUR_CALLS_SELECT]++;
    e->our_calls[OUR_CALLS_CLIENT_SETNAME] += memmem(d->bytes, d->added, OUR_CLIENT, strlen(OUR_CLIENT)) != NULL;
}

static bool own_stage(struct engine *e, const struct destination *to, const struct session_decision *d, bool lent) {
    struct own *own = own_find(e, to->node, to->slot, to->generation);
    if (d->script != NULL || d->flushes_scripts) {
        if (e->big.active) return e->stalled = true, false;
        if (!script_log(e, d)) return false;
    }
    size_t added = d->added;
    bool enters = added > 0 && (own != NULL || memmem(d->bytes, added, SELECT_0, sizeof SELECT_0 - 1) == NULL); /* a new one is there already */
    if (own == NULL && (own = own_open(e, to, d->as_default)) != NULL) added += buffer_length(&own->socket.out);
    bool takes = own != NULL && buffer_length(&own->socket.out) + d->length <= WAITING_BYTES_MAX + e->config.client_input_bytes_max;
    if (!takes) {
        if (own != NULL) own_end(e, own);
        else own_arrive(e, &(struct own){.to = *to}, &(struct arrival){.to = *to, .kind = ARRIVAL_END}, NULL);
        return true;
    }
    own->to.session = to->session;
    if (lent) own_lend(e, own);
    else own_keep(e, own);
    if (d->added > 0) own_count(e, d);
    if (d->syncs && own->replica == NULL) own->sync_at = own->appended > 0 ? own->appended : 1;
    own_append(e, own, d);
    uint32_t named = own_setting_staged(&own->settings, d);
    if (d->replies > 0)
        *(struct own_expect *)queue_push(&own->expects) =
            (struct own_expect){to->sequence, d->replies, d->swallow, d->database_after, d->pause, (uint32_t)added, d->stands_in, d->lists, d->resets, false, d->verifies, enters ? 2 : 0, (uint8_t)d->view,
                                d->sets < SETS_QUEUED ? (uint8_t)d->sets : SETS_NOTHING, d->view_count, named, {0}, 0, e->now_ns};
    if (d->replies > 0) {
        struct own_expect *x = queue_back(&own->expects);
        slow_head(d->bytes + d->added, d->length - d->added, x->head, &x->behind);
    }
    bool in_order = lent || d->pause != PAUSE_NOTHING;
    *(struct own_staged *)queue_push(&e->owns.staged) =
        (struct own_staged){to->node, to->slot, to->generation, own->appended, e->admin_index, 0, e->shared.appended,
                            in_order ? e->shared.expects.tail : 0};
    e->owns.unprobed = true;
    if (d->pause != PAUSE_NOTHING) client_pause_sent(e, d->pause);
    return true;
}

bool own_submit(struct engine *e, const struct destination *to, const struct session_decision *d) { return own_stage(e, to, d, false); }

/* ---- lent to a paused client ------------------------------------------------------------------------------------------ */

bool own_borrow(struct engine *e, const struct request *r) {
    if (r->decision->writes && r->life != 0 && !own_origin_log(e, r)) return false;
    char head[96], number[16];
    int digits = snprintf(number, sizeof number, "%u", r->database);
    int n = snprintf(head, sizeof head, "%s" ASK_SELECT "$%d\r\n%s\r\n", r->protocol == 3 ? ASK_HELLO_3 : ASK_HELLO_2, digits, number);
    struct buffer bytes = {0};
    buffer_append(&bytes, head, (size_t)n);
    buffer_append(&bytes, r->decision->bytes, r->decision->length);
    struct session_decision d = *r->decision;
    d.bytes = buffer_bytes(&bytes);
    d.length = buffer_length(&bytes);
    d.replies += 2;
    d.swallow += 2;
    d.as_default = true;
    d.added = (uint32_t)n;
    bool taken = own_stage(e, &r->from, &d, true);
    buffer_free(&bytes);
    struct client *c = taken && r->from.node == e->self ? client_find(e, r->from.slot, r->from.generation) : NULL;
    if (c != NULL) c->has_own = c->barrier = true; /* nothing of it goes on meanwhile */
    return taken;
}

bool own_lent(const struct engine *e, const struct destination *to) {
    const struct own *own = own_find(e, to->node, to->slot, to->generation);
    return own != NULL && own->lent && (queue_length(&own->expects) > 0 || queue_length(&e->owns.arrivals) > 0);
}

/* ---- their ends --------------------------------------------------------------------------------------------------------- */

/* A client that is a replica took these bytes. */
void own_taken(struct engine *e, const struct destination *to, uint64_t bytes) {
    struct own *own = own_find(e, to->node, to->slot, to->generation);
    if (own == NULL || own->replica == NULL) return;
    own_replica_took(own->replica, bytes, e->now_us);
    own_goes_on(e, own);
}

/* The client says no more. */
void own_eof(struct engine *e, const struct destination *to) {
    struct own *own = own_find(e, to->node, to->slot, to->generation);
    if (own == NULL) return;
    own->ends = true;
    if (e->client_pause.all && own->sendable < own->appended) own_end(e, own); /* what is held back is not done any more */
    else own_send(e, own);
}

void own_close(struct engine *e, const struct destination *to) {
    waits_close(e, to);
    struct own *own = own_find(e, to->node, to->slot, to->generation);
    if (own != NULL) own_leave(e, own);
}

/* The clients of that node, or of all, are told that it is over. */
void owns_end(struct engine *e, uint32_t node) {
    for (struct own *own = e->owns.first, *next; own != NULL; own = next) {
        next = own->next;
        if (!own->orphan && (node == REPLICA_NOBODY || own->to.node == node)) own_end(e, own);
    }
}

/* They and who asked are told behind the next ROLE. */
void owns_kill_replicas(struct engine *e, const struct destination *to) {
    uint32_t count = 0;
    for (struct own *own = e->owns.first, *next; own != NULL; own = next) {
        next = own->next;
        if (own->replica == NULL) continue;
        own_end(e, own);
        count++;
    }
    char text[16];
    struct arrival a = {.to = *to, .bytes = (size_t)snprintf(text, sizeof text, ":%u\r\n", count), .kind = ARRIVAL_LAST, .type = ':', .database_after = -1};
    own_arrive(e, &(struct own){.to = *to}, &a, text);
}

/* This node does not lead any more; nobody is told through here. */
void owns_drop(struct engine *e) {
    while (e->owns.first != NULL) own_free(e, e->owns.first);
    queue_clear(&e->owns.staged);
    queue_clear(&e->owns.unread);
    queue_clear(&e->owns.arrivals);
    buffer_free(&e->owns.arrived);
    e->owns.unprobed = false;
    e->owns.sealed = 0;
}

void owns_init(struct engine *e) {
    queue_init(&e->owns.staged, sizeof(struct own_staged), 16);
    queue_init(&e->owns.unread, sizeof(struct own_unread), 16);
    queue_init(&e->owns.arrivals, sizeof(struct arrival), 16);
}

void owns_free(struct engine *e) {
    owns_drop(e);
    owns_bury(e);
    queue_free(&e->owns.staged);
    queue_free(&e->owns.unread);
    queue_free(&e->owns.arrivals);
    for (uint32_t i = 0; i < e->nodes; i++) free(e->owns.slots[i]);
}

/* What another node says is judged: a client is shown it. */
void own_describe(struct engine *e, const struct destination *to, const uint8_t *payload) {
    struct own *own = own_find(e, to->node, to->slot, to->generation);
    if (own == NULL) return;
    const struct own_peer before = own->peer;
    memcpy(&own->peer, payload, sizeof own->peer);
    own->peer.id = before.id;
    own->peer.goes_to = before.goes_to;
    own->peer.goes_to_client = before.goes_to_client;
    own->peer.addr[sizeof own->peer.addr - 1] = own->peer.laddr[sizeof own->peer.laddr - 1] = 0;
}
