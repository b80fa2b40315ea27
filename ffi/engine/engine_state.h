/*
 * engine_state.h: what the files of the engine share. One thread, one loop; see engine.h for the outside.
 *
 *   client.c    clients: reading, framing, session, answers          link.c      the other nodes' engines, forwarding
 *   turn.c      requests -> COMMAND records -> shared connection      apply.c     committed records, on every node
 *   shared.c    the shared connection's replies, gates                effect.c    effect stream -> EFFECT records
 *   feed.c      playing master to the own backend (followers)         takeover.c  from elected to serving, and back
 *   admin.c     the admin connection, health                          socket.c    non-blocking sockets
 *   member.c    a new life of a node becomes a member                 forward.c   requests of a follower's clients
 *   origin.c    what became of them, by the log                   pause.c     automatic fail-over paused and resumed
 *   handover.c  leadership handed over by plan                    own.c       clients with a connection of their own
 *   client_pause.c  CLIENT PAUSE                                 config_check.c  CONFIG SET of what the sidecar keeps
 *   claim.c     what the backend holds from before this life      load.c      DEBUG RELOAD and LOADAOF
 *   own_replica.c  ... that replicate from the leader             client_list.c  CLIENT LIST without the sidecar
 *   own_setting.c  CONFIG SET and ACL changes there               own_client.c   ... at the client's node
 *   own_answer.c   what the backend says there
 *   wait.c      WAIT                                              engine.c    the object and its loop
 *   view.c      answers that are edited                           config_kept.c  values of the sidecar's, and the clients'
 *   machine*.c  backends that do not reveal their effects (machine.h)
 *   stale.c     reads that a follower's own backend answers
 *   census.c    the clients of all nodes                          own_ids.c   clients' numbers there
 *   slowlog.c   the slow log without the sidecar                  busy.c      a script that does not end
 *   control.c   what passes to and from the control plane
 */
#ifndef MUSIDECAR_ENGINE_STATE_H
#define MUSIDECAR_ENGINE_STATE_H

#include <pthread.h>
#include <stdatomic.h>
#include <sys/epoll.h>
#include <time.h>

#include "buffer.h"
#include "engine/busy.h"
#include "engine/census.h"
#include "engine/claim.h"
#include "engine/engine.h"
#include "engine/frame.h"
#include "engine/handover.h"
#include "engine/histogram.h"
#include "engine/log_state.h"
#include "engine/machine.h"
#include "engine/own.h"
#include "engine/own_setting.h"
#include "engine/payload.h"
#include "engine/shared.h"
#include "engine/slowlog.h"
#include "engine/source.h"
#include "engine/stale.h"
#include "engine/wait.h"
#include "prompt.h"
#include "protocols/redis/ask.h"
#include "protocols/redis/psync.h"
#include "protocols/redis/resp.h"
#include "protocols/redis/session.h"

#define SCRATCH_BYTES (256u * 1024u)
#define WINDOW_REQUESTS_MAX 1024u      /* forwarded requests of one client that wait for their answers ... */
#define WINDOW_REQUESTS_MIN 8u
#define WINDOW_ANSWER_BYTES (8u << 20) /* ... fewer where its answers were large */
#define ANSWER_BYTES_FIRST (64u << 10) /* as large as answers are taken for before one has come */
#define ANSWER_LARGE_BYTES (1u << 20)


struct pending { /* a forwarded request of a follower's client, or a local answer behind one */
    uint64_t sequence;
    uint32_t local_bytes;
    uint32_t kept;  /* bytes of its frame in client.unanswered; 0: too large */
    bool local;
    int32_t database_after;
};

struct client {
    struct socket socket;
    uint32_t slot, generation;
    bool in_use, leaving /* once flushed */, ended /* sent EOF */, queued_ready, queued_flush, throttled, barrier;
    bool has_decision;
    struct local *local_backend; /* a connection to this node's backend; machine_local.c */
    bool has_own, eof_told; /* a connection of its own at the leader; it knows that nothing more comes */
    size_t releasable;      /* bytes of socket.out that may leave */
    uint64_t took;          /* bytes that it took, which the leader has not been told of yet; of a replica */
    struct buffer in;
    struct resp_request request;
    size_t wanted, scanned; /* bytes before it is worth looking again; that need no second look (machine_client.c) */
    uint64_t swallow;       /* that are thrown away */
    struct session session;
    struct session_decision decision; /* kept while there is no room for it */
    uint32_t outstanding;   /* requests whose answer has not come ... */
    uint32_t at_backend;    /* ... of which this node's own backend is to answer (stale.c) */
    uint64_t since_us, heard_us; /* it is there; it last said something */
    uint32_t asking;        /* bytes of its CLIENT LIST ... that is under way */
    uint64_t answered_us;   /* when the leader last answered it: it has seen that much */
    uint64_t answer_bytes;  /* of the answer coming in */
    uint64_t answer_bytes_mean;
    uint64_t waiting_since_us;
    uint64_t sequence;      /* forwarded requests so far */
    struct queue pending;   /* forwarded, in order */
    struct buffer local;    /* bytes of pending local answers */
    struct buffer unanswered; /* frames of forwarded requests, should they have to go to another leader */
    uint64_t described_term;  /* whose leader knows this client's addresses */
    uint64_t sent_term;       /* ... whose present one leads in this term */
    bool unsettled;           /* ... has gone: nothing else of this client goes on before they do */
    struct socket *verify;  /* the backend is looking at this client's credentials */
    bool verifying;         /* ... or the leader's is */
    uint8_t verify_hello;
};

struct stream { /* the backend's replication stream, read as its replica */
    struct socket socket;
    struct psync psync;     /* until it is LIVE, and the stream's replid */
    struct buffer effects;  /* stream bytes not cut yet */
    uint64_t cut_offset;    /* replication offset before effects' first byte */
    uint64_t live_since_us, acked_us;
};

struct cut { /* an EFFECT being proposed, piece by piece */
    bool active;
    uint64_t end, covered, gates;
    uint64_t kept;     /* see struct gate */
    uint64_t proposed; /* bytes done, of payload (header included) */
};

/* ---- feeding the own backend ----------------------------------------------------------------------------------- */

struct feed {
    struct source listener;
    struct socket socket;      /* the backend's connection */
    struct resp_request request;
    struct buffer in;
    bool authenticated, streaming, active /* bytes are collected */;
    struct buffer backlog;     /* effect bytes from base_offset on */
    uint64_t base_offset, sent_offset, end_offset, acked_offset;
    char told_replid[REPLID_BYTES + 1]; /* what the backend believes its master's id is */
    int rdb_fd;                /* a snapshot to install, or -1 */
    uint64_t rdb_offset, rdb_bytes, rdb_sent;
    bool rdb_head_sent, rdb_asked;
    uint64_t want_number, want_again_us;
    bool want_pending;
    uint64_t follow_again_us;  /* the backend runs a script, and is to be told REPLICAOF again then; 0: no */
    uint64_t flush_us;         /* when what is collected must go */
    uint64_t held_psync;       /* it asked to go on from there, and is answered once the next leader's EPOCH names what follows */
    bool goes_on;              /* the backend led until base_offset, and may go on from exactly there */
    bool stays;                /* the backend was lost while it was fed; what it lacks is here, if it is this feed's replica still */
};

/* ---- admin connection -------------------------------------------------------------------------------------------- */

enum admin_kind { ADMIN_SWALLOW, ADMIN_PING, ADMIN_ROLE, ADMIN_PROMOTE, ADMIN_FOLLOW, ADMIN_READ, ADMIN_CLIENT, ADMIN_CHECK, ADMIN_WRONG, ADMIN_CLIENTS };
struct admin_expect { enum admin_kind kind; struct destination to; uint32_t setting_bytes; /* of admin.settings, to be logged if it is done; READ, CHECK, WRONG: of admin.checks */ };
struct admin_answer { /* index: 0, not logged yet; settles: not 0, the own connection whose answer waited for those before it */
    struct destination to;
    uint64_t index, settles;
    uint32_t request_bytes, answer_bytes;
};
struct admin {
    struct socket socket;
    struct queue expects;
    struct resp_reply reply;
    struct buffer bytes;
    struct buffer settings; /* requests that are to be logged once they are done, in order */
    struct buffer checks;   /* requests that wait for what config_check.c has asked, in order */
    struct queue done;      /* struct admin_answer: done, and answered once they are logged and committed */
    struct buffer logging;  /* their requests and answers */
    uint64_t heard_us, asked_us, connect_us, up_us;
    bool ping_pending, role_pending, was_up;
    bool left_alone; /* lost: the control plane sees to it first */
};

/* ---- mesh links --------------------------------------------------------------------------------------------------- */

struct link {
    struct socket socket;
    uint32_t session; /* counts the streams there were */
    size_t releasable;
    struct buffer in;
    uint64_t serving_term; /* the peer leads and serves in this term; 0 not */
    bool queued_flush;
    uint64_t clients; /* so many has the peer */
};

/* ---- take-over --------------------------------------------------------------------------------------------------------- */

enum takeover_stage { TAKE_IDLE, TAKE_FEED, TAKE_PROMOTE, TAKE_ATTACH, TAKE_EPOCH, TAKE_RERUN_LOG, TAKE_RERUN, TAKE_SERVING };

struct patience { /* engine.c, look_before_sleep() */
    uint32_t in_a_row;  /* one request at a time was under way, so often */
    uint32_t credit[2]; /* of waiting for a client; for the backend */
    uint32_t unspun;
};

enum pause_wish { PAUSE_NONE, PAUSE_ON, PAUSE_OFF };
struct pause {
    enum pause_wish wish; /* the operator's; not in the log yet */
    uint64_t term, index; /* of the record last proposed for it */
};

struct client_pause { /* see client_pause.c */
    uint64_t until_us;    /* 0: nobody is paused */
    uint32_t unanswered;  /* so many PAUSEs are under way: what comes behind them is taken for paused */
    bool all;             /* not only writes ... */
    uint64_t held_from;   /* ... from this one of owns.staged on */
};

struct big { /* a request larger than one record, on its way into the log; nothing else travels meanwhile */
    bool active;
    struct command_entry entry;
    struct expect expect;
    struct buffer bytes; /* the request, taken over from whoever had read it */
    size_t length;
    uint64_t proposed;  /* of entry and bytes together */
    uint64_t forwarded; /* of the bytes, so many more are the backend's */
};

struct listener { struct source source; struct listener *next; };
enum control_kind { CONTROL_LISTEN, CONTROL_LISTEN_FEED, CONTROL_LINK, CONTROL_RDB, CONTROL_TAIL, CONTROL_RDB_FAILED, CONTROL_PEER,
                    CONTROL_HAND_OVER, CONTROL_PAUSE, CONTROL_BACKEND_READY,
                    CONTROL_REMOVE, CONTROL_COPY };
struct control { enum control_kind kind; int fd; uint32_t peer; uint64_t bytes, offset, number, exact, due_s; uint8_t *tail; };

struct engine {
    struct engine_config config;
    struct fabric *fabric;
    struct replica *replica;
    uint32_t self, nodes;
    int epoll;
    struct source fabric_source, control_source;
    struct listener *listeners;
    uint64_t now_us, now_ns, tick_us, tick_cpu_us, busy_until_us;
    uint64_t quiet_until_us; /* until then the control plane is left asleep */
    bool untold;             /* it has events to read */
    bool hurried;            /* this thread is in front (prompt.h) ... */
    bool backend_hurried;    /* ... and so has the backend, or would have */
    int32_t hurried_child;   /* its process, 0: not so; ... */
    struct prompt_attributes unhurried; /* ... and how it ran before */
    atomic_bool stopping;

    struct client *clients; /* clients_max slots */
    uint32_t clients_used;  /* slots ever used */
    uint32_t *free_slots, free_count;
    struct queue ready, flush, dead; /* slots */
    uint64_t next_client_id;
    struct session_context context;
    struct buffer normal, answer; /* scratch: an inline request in array form; a local answer */
    uint8_t *scratch;

    struct link links[FABRIC_NODES_MAX];
    struct shared shared;
    struct machine machine;
    struct owns owns;
    struct stale stale;
    struct stream stream;
    struct cut cut;
    struct feed feed;
    struct claim claim;
    struct admin admin;
    struct log_state log;
    struct big big;
    struct patience patience;
    struct handover handover;
    struct pause pause;
    struct queue waiters; /* wait.c */
    struct censuses censuses;
    struct client_pause client_pause;
    struct slowlog slowlog;
    uint64_t our_calls[OUR_CALLS]; /* of the sidecar's, since the backend counts */

    uint8_t *batch;               /* reserved place of the COMMAND record being filled */
    uint32_t batch_used, batch_entries;
    uint64_t command_index;       /* last COMMAND proposed */
    uint64_t admin_index;         /* last ADMIN proposed */
    uint64_t effect_index;        /* last EFFECT proposed, or the log's when this node took over */
    uint64_t covered_index;       /* last COMMAND that an EFFECT proposed since then covers */
    bool stalled;                 /* the ring had no room */
    bool more;                    /* something was left for the next turn */

    enum replica_role role;
    uint64_t term;
    enum takeover_stage takeover;
    uint64_t takeover_since_us;
    enum backend_state backend;
    char led_replid[REPLID_BYTES + 1]; /* the history of the own backend, since it led in a term that is over; "": of none */
    uint64_t resort_us;                /* since when no node may lead but this one, with that backend; 0: not so */
    bool resumes;                      /* it does: what it may have run already is not run again */
    bool serving_told;
    uint64_t leader_told, term_told;   /* leader + 1 */
    uint64_t leader_silent_us; /* since when whoever serves is not taken for alive; 0: it is */
    uint64_t snapshot_us;
    uint64_t ask_us; /* to be made a member: not before */
    uint32_t evicted; /* as told in the log */

    pthread_mutex_t mutex; /* guards what follows */
    struct queue events, controls;
    int event_fd;
    struct engine_status status;
    struct histogram stages[STAGES];
    struct engine_status counters; /* engine thread's own */
};

/* control.c */
void engine_log(struct engine *e, uint32_t level, const char *format, ...) __attribute__((format(printf, 3, 4)));
void engine_tell(struct engine *e, enum engine_event_kind kind, uint64_t a, uint64_t b);
void engine_fatal(struct engine *e, const char *text);
void event_push(struct engine *e, const struct engine_event *event);
void events_announce(struct engine *e);
void controls_handle(struct engine *e);
void status_publish(struct engine *e);

/* engine.c */
uint64_t clock_ns(void);
static inline bool engine_leads(const struct engine *e) { return e->takeover == TAKE_SERVING; }
void engine_update_eligible(struct engine *e);

/* socket.c */
void source_watch(struct engine *e, struct source *s, uint32_t interest);
void source_close(struct engine *e, struct source *s);
int32_t socket_child(const struct socket *s); /* the process at its other end if it is a child of this one, or 0 */
int backend_connect(struct engine *e); /* a non-blocking socket to the own backend, or -1 */
void append_command(struct buffer *out, uint32_t count, ...); /* strings, as an array of bulks */
uint32_t append_auth(struct engine *e, struct buffer *out);   /* AUTH if one is configured; how many replies it brings */
bool socket_flush(struct engine *e, struct socket *s, size_t limit, size_t *written); /* false: broken */

/* client.c */
void client_accept(struct engine *e, struct source *listener);
void client_event(struct engine *e, struct client *c, uint32_t events);
void client_close(struct engine *e, struct client *c);
void client_want_flush(struct engine *e, struct client *c);
void client_want_ready(struct engine *e, struct client *c);
void client_flush(struct engine *e, struct client *c);
void clients_ready(struct engine *e);     /* goes on with clients that had to wait */
void clients_wake_all(struct engine *e);
void clients_expire(struct engine *e);
struct client *client_find(struct engine *e, uint32_t slot, uint32_t generation);
void client_answered(struct engine *e, struct client *c, int32_t database_after, uint8_t reply_type);
void client_answer(struct engine *e, struct client *c, const void *bytes, size_t length);
void client_answer_local(struct engine *e, struct client *c, struct buffer *answer); /* given here, behind those that are still to come */
bool client_may_go_on(struct engine *e, struct client *c);
bool client_submit(struct engine *e, struct client *c, const struct session_decision *d); /* false: it has to wait */
void client_verify_event(struct engine *e, struct client *c);
void client_verified(struct engine *e, struct client *c, const void *line, size_t length);
void client_describe(const struct client *c, struct own_peer *peer);
struct client *client_of_verify(struct engine *e, struct source *s);
struct client *client_of_local(struct engine *e, struct source *s);

/* turn.c */
struct request { /* what travels */
    struct destination from;
    uint16_t database;
    uint8_t protocol;
    const struct session_decision *decision;
    uint64_t life;       /* of another node: its incarnation; a client of this one: 0 */
    uint32_t unanswered; /* see struct origin */
};
/* False: no room now. `holder`, if not NULL, is the buffer in which the request's bytes lie: a large request takes it over,
 * and leaves in its place one with what came behind the request. */
bool turn_submit(struct engine *e, const struct request *r, struct buffer *holder);
bool script_log(struct engine *e, const struct session_decision *d); /* false: no room now */
bool turn_take(struct engine *e, const struct request *r, struct buffer *holder); /* turn_submit(), unless its client is paused */
void turn_local(struct engine *e, struct destination to, const void *bytes, size_t length);
void turn_seal(struct engine *e);
void turn_end(struct engine *e);
void turn_reset(struct engine *e);
void turn_forward(struct engine *e, uint32_t database, uint8_t protocol, const void *bytes, size_t length,
                  const struct expect *expect); /* onto the shared connection, once what was proposed so far is committed */
void turn_mark(struct engine *e, uint64_t index); /* what is staged may be sent once `index` is committed */

void turn_big(struct engine *e);
/* Logs `entry` with the bytes behind it and puts the first `forwarded` of them on the shared connection. False: no room now. */
bool turn_log(struct engine *e, const struct command_entry *entry, const uint8_t *bytes, const struct expect *expect, size_t forwarded,
              struct buffer *holder);

/* load.c */
void load_submit(struct engine *e, const struct request *r);
void load_replied(struct engine *e, const struct expect *x);

/* shared.c */
void shared_staged(struct engine *e, uint64_t commit); /* what is committed may leave */
void shared_deliver(struct engine *e, const struct expect *x, const void *bytes, size_t length, bool last, uint8_t type);
bool shared_open(struct engine *e);
void shared_close(struct engine *e);
void shared_event(struct engine *e, uint32_t events);
void shared_send(struct engine *e);
void gates_release(struct engine *e);
void shared_pass_on(struct engine *e, const struct destination *to, enum arrival_kind kind, uint8_t type, int32_t database_after,
                    const void *bytes, size_t length); /* from an own connection, behind the ROLE that is being answered */
void shared_watch(struct engine *e); /* each tick */
void stand_in_edit(struct buffer *answer); /* the backend's to a stand-in (session.h): the client's */
void shared_gate(struct engine *e, const struct expect *x, uint64_t offset); /* over what is answered so far: the ROLE's */
struct buffer *shared_held_by(struct engine *e, const struct destination *to, struct client **client); /* NULL: gone */

/* own.c */
void owns_init(struct engine *e);
void owns_free(struct engine *e);
void owns_step(struct engine *e);
void owns_tick(struct engine *e);
void owns_bury(struct engine *e);
uint64_t owns_seal(struct engine *e);
uint64_t owns_shared_limit(const struct engine *e); /* absolute count of bytes of the shared connection */
void owns_deliver(struct engine *e, uint64_t until, bool refused);
bool owns_refused(const struct engine *e); /* what arrived first tells of nothing done (busy.h) */
void owns_end(struct engine *e, uint32_t node); /* REPLICA_NOBODY: of all */
void owns_drop(struct engine *e);
void owns_kill_replicas(struct engine *e, const struct destination *to); /* the clients' that are, and how many those were */
const struct own_peer *own_peer_of(const struct engine *e, uint32_t node, uint32_t slot, uint32_t generation); /* NULL: it has none */
void own_event(struct engine *e, struct source *source, uint32_t events);
void own_send(struct engine *e, struct own *own);
void own_settled(struct engine *e, uint64_t number); /* its answer need not wait any more */
bool own_submit(struct engine *e, const struct destination *to, const struct session_decision *d);
void own_eof(struct engine *e, const struct destination *to);
void own_close(struct engine *e, const struct destination *to);
bool own_verify(struct engine *e, struct client *c, const struct session_decision *d); /* credentials, by the leader; false: not now */
bool own_request(struct engine *e, struct client *c, const struct session_decision *d);
void own_took(struct engine *e, struct client *c, uint64_t bytes); /* a client that is a replica */
void own_taken(struct engine *e, const struct destination *to, uint64_t bytes); /* ... at the leader */
void own_describe(struct engine *e, const struct destination *to, const uint8_t *peer);
void own_tell(struct engine *e, const struct client *c, bool gone);
void own_ended(struct engine *e, struct client *c);
void own_pushed(struct engine *e, struct client *c, const void *bytes, size_t length);
/* A request that would have gone onto the shared connection goes onto one of its client's own. False: no room now. */
bool own_borrow(struct engine *e, const struct request *r);
bool own_origin_log(struct engine *e, const struct request *r); /* false: no room now */
bool own_lent(const struct engine *e, const struct destination *to); /* ... and not all of that has been passed on yet */
void own_frame(struct engine *e, uint32_t peer, const struct frame *f, const uint8_t *payload);
bool own_frame_request(struct engine *e, uint32_t peer, const struct frame *f, const uint8_t *payload);

/* effect.c */
bool stream_open(struct engine *e, bool full, uint64_t offset); /* after `offset` of what the backend was last told, or anew */
void stream_close(struct engine *e);
void stream_event(struct engine *e, uint32_t events);
void stream_tick(struct engine *e);
uint64_t stream_position(const struct engine *e); /* as far as it is read */
bool stream_read(struct engine *e);
void stream_watch(struct engine *e);
void effects_cut(struct engine *e);

/* apply.c */
void apply_committed(struct engine *e);
bool script_known(const struct log_state *log, const uint8_t *body, size_t length);
void scripts_hand_on(struct engine *e, bool afresh);
void settings_hand_on(struct engine *e);
void log_state_init(struct log_state *log);
void log_state_free(struct log_state *log);
bool log_state_whole(const struct log_state *log);
void log_state_save(const struct log_state *log, struct buffer *out);
bool log_state_load(struct log_state *log, const uint8_t *bytes, size_t length);

/* feed.c */
void feed_accept(struct engine *e);
void feed_event(struct engine *e, uint32_t events);
void feed_bytes(struct engine *e, uint64_t start, const uint8_t *bytes, size_t length); /* part of an EFFECT */
void feed_effect(struct engine *e, uint64_t end);                                      /* it is whole */
void feed_void(struct engine *e);                                                     /* it never will be */
void feed_flush(struct engine *e);
void feed_finish(struct engine *e);
void feed_acknowledged(struct feed *f, uint64_t offset); /* by the backend: it keeps these effects itself now */
void feed_epoch(struct engine *e, uint64_t start);
void feed_stop(struct engine *e);
void feed_refused(struct engine *e, const uint8_t *text, size_t length); /* REPLICAOF's answer */
void feed_tick(struct engine *e);
void feed_want_rdb(struct engine *e);
void feed_rdb(struct engine *e, const struct control *c);
void feed_rdb_failed(struct engine *e, uint64_t number);
void feed_disconnect(struct engine *e);
void feed_collect_from(struct engine *e, uint64_t offset);
void feed_go_on(struct engine *e, uint64_t offset, const char *replid); /* a backend that led, and did nothing beyond the log */
/* A backend that goes by `replid` and holds what the log says up to `offset`; `tail`, from malloc() and taken over, is what
 * follows up to where collecting began. False: there is no room for it. */
bool feed_go_on_with(struct engine *e, uint64_t offset, const char *replid, uint8_t *tail, size_t length);

/* admin.c */
void admin_tick(struct engine *e);
uint64_t admin_deadline_us(const struct engine *e); /* the backend is lost if it has not answered by then */
void admin_watch(struct engine *e);                 /* once a turn, when what came was read */
void admin_event(struct engine *e, uint32_t events);
void admin_close(struct engine *e);
void admin_send(struct engine *e, enum admin_kind kind, const void *bytes, size_t length);
void admin_send_for(struct engine *e, struct destination to, const void *bytes, size_t length, bool travels); /* a client's */
void admin_queue(struct engine *e, struct admin_expect expect, const void *bytes, size_t length);
void admin_answer_client(struct engine *e, const struct destination *to, const void *bytes, size_t length);
void admin_settings_log(struct engine *e);
void admin_settings_drop(struct engine *e);
void admin_setting_add(struct engine *e, const void *request, size_t length); /* done here: to be logged; nobody is answered */
void admin_settled_add(struct engine *e, uint64_t number); /* own_settled() once what was added before is committed */
void admin_ask_role(struct engine *e);

/* config_check.c */
struct word;
bool request_parse(const uint8_t *bytes, size_t length, struct resp_request *request); /* false: it is not one, in array form */
void request_bulk(struct buffer *out, struct word w);
/* True: it is a CONFIG SET of what the sidecar keeps, and the backend is asked whether that would change anything. */
bool config_check_begin(struct engine *e, const struct destination *to, const uint8_t *bytes, size_t length);
void config_check_end(struct engine *e, const struct admin_expect *x, const uint8_t *text, size_t length);
void config_wrong_end(struct engine *e, const struct admin_expect *x, const uint8_t *text, size_t length);

/* takeover.c */
bool backend_follows(const struct engine *e); /* its data is the log's, as far as that is committed here, or soon will be */
void takeover_follow_role(struct engine *e);
bool takeover_deposed(const struct engine *e); /* the core knows, the engine has not followed yet */
void takeover_step_down(struct engine *e);     /* if so; a next term of this node's begins only once its role is followed */
void takeover_step(struct engine *e);
void takeover_tick(struct engine *e);
void takeover_role(struct engine *e, bool is_master, uint64_t offset, bool connected);
void takeover_promoted(struct engine *e);
void takeover_attached(struct engine *e, bool continued);
void backend_lost(struct engine *e, const char *what);
void backend_changed(struct engine *e, const char *what); /* beyond the log: another node leads, and it is filled anew */
void backend_set(struct engine *e, enum backend_state state);

/* member.c */
void member_tick(struct engine *e);
void member_remove(struct engine *e, uint32_t peer);
uint32_t member_count(const struct engine *e);
void member_watch(struct engine *e);
void member_asked(struct engine *e, uint32_t peer, uint64_t incarnation);
void member_applied(struct engine *e, const struct record_header *record);
void member_status(const struct engine *e, struct engine_status *s);

/* pause.c */
void pause_want(struct engine *e, bool paused);
void pause_tick(struct engine *e);

/* config_kept.c */
bool config_kept_knows(const char *name, size_t length); /* one of these parameters? */
bool config_kept_value(const struct engine *e, const char *name, size_t length, struct buffer *out); /* the client's; false: none */
bool config_kept_translate(const struct engine *e, const uint8_t *bytes, size_t length, struct buffer *out); /* false: as it is */

/* view_stats.c */
void view_histogram(struct engine *e, struct buffer *answer);
bool view_stats_line(struct engine *e, const char *line, size_t length, struct buffer *out); /* of INFO; false: as it is */

/* view.c */
void view_block_note(struct engine *e, const uint8_t *bytes, size_t length, struct buffer *views); /* of a transaction */
void view_block(struct engine *e, struct buffer *views, struct buffer *answer); /* to the first of those noted */
void view_edit(struct engine *e, enum session_view view, int32_t count, struct buffer *answer); /* the backend's: the client's */

/* slowlog.c */
void slow_head(const uint8_t *bytes, size_t length, uint8_t head[SLOW_HEAD_BYTES], uint32_t *behind); /* of a request */
void slowlog_note(struct engine *e, enum slow_way way, const struct destination *to, const uint8_t head[SLOW_HEAD_BYTES], uint32_t behind,
                  bool block, const char *addr); /* its answer came late; addr: of SLOW_OWN */
void slowlog_late(struct engine *e); /* ... to a question of the sidecar's */
void slowlog_fetch(struct engine *e);
void slowlog_replied(struct engine *e, const struct expect *x);
void slowlog_frame(struct engine *e, uint32_t peer, const struct frame *f, const uint8_t *payload);
void slowlog_view(struct engine *e, int32_t count, struct buffer *answer);
void slowlog_view_length(struct engine *e, struct buffer *answer);
void slowlog_view_reset(struct engine *e, const struct buffer *answer);
void slowlog_begin(struct engine *e);
void slowlog_init(struct engine *e);
void slowlog_free(struct engine *e);

/* client_list.c */
/* The answer to CLIENT LIST or INFO as its client is given it, which has the number `asks`, and of whose buffers at the
 * backend the sidecar had filled `added` bytes with requests and `unseen` with answers; peers: clients with a connection of
 * their own, put in order. False: as it is. */
bool client_list_edit(struct own_peer *peers, size_t count, uint64_t asks, size_t added, size_t unseen, const uint8_t *reply,
                      size_t length, struct buffer *out);

/* census.c */
void census_begin(struct engine *e, const struct destination *to, const uint8_t *bytes, size_t length, uint8_t protocol);
void census_frame(struct engine *e, uint32_t peer, const struct frame *f, const uint8_t *payload);
void census_backend(struct engine *e, uint64_t number, const uint8_t *text, size_t length);
void census_tell(struct engine *e);
uint64_t census_count(const struct engine *e); /* clients of all nodes */
void censuses_step(struct engine *e);
void censuses_drop(struct engine *e);

/* client_pause.c */
static inline bool client_pause_on(const struct engine *e) { return e->client_pause.until_us != 0 || e->client_pause.unanswered != 0; }
bool client_pause_takes(const struct engine *e, const struct request *r);
void client_pause_sent(struct engine *e, uint32_t pause);
void client_pause_answered(struct engine *e, uint32_t pause, uint8_t reply_type); /* 0: it will not be answered */
bool client_pause_holds(const struct engine *e, uint64_t staged);
void client_pause_tick(struct engine *e);

/* link.c */
void link_add(struct engine *e, uint32_t peer, int fd);
void link_event(struct engine *e, uint32_t peer, uint32_t events);
void link_flush(struct engine *e, uint32_t peer);
void link_send(struct engine *e, uint32_t peer, const struct frame *frame, const void *payload);
void link_reply(struct engine *e, const struct destination *to, const void *bytes, size_t length, bool last, uint8_t type);
void link_announce(struct engine *e, bool serving);
void link_tell_busy(struct engine *e);
bool link_holds(const struct engine *e, const struct destination *to);
void links_depose(struct engine *e);
void links_process(struct engine *e); /* goes on with requests that had to wait */
void link_close(struct engine *e, uint32_t peer);
void link_lost(struct engine *e, uint32_t peer);
uint32_t link_leader(const struct engine *e); /* the node that serves, or REPLICA_NOBODY */
void link_answer(struct engine *e, const struct destination *to, const void *bytes, size_t length);
void links_drop_held(struct engine *e);
void link_hold(struct engine *e, uint32_t peer, const struct frame *frame, const void *payload); /* behind the next gate */

/* stale.c */
void stale_init(struct engine *e);
void stale_free(struct engine *e);
enum stale_way stale_read(struct engine *e, struct client *c, const struct session_decision *d); /* at a follower */
void stale_step(struct engine *e);
void stale_tick(struct engine *e);
void stale_event(struct engine *e, uint32_t events);
void stale_send(struct engine *e);
void stale_close(struct engine *e); /* the own backend does not follow any more */
void stale_asked(struct engine *e, uint32_t peer, const struct frame *f); /* at the leader ... */
void stale_tell(struct engine *e);                                         /* ... once a turn */
void stale_answered(struct engine *e, uint32_t peer, const struct frame *f, const uint8_t *payload);

/* forward.c */
bool forward(struct engine *e, struct client *c, const struct session_decision *d); /* to the leader; false: there is none, or no room */
bool forward_again(struct engine *e, struct client *c); /* what it waits for, to the next leader; false: not yet, or it is closed */
/* The leader is another, or none: who waits for what can go to the next one goes on waiting, the others are closed. */
void clients_unsettle(struct engine *e);
/* What a client waits for and may be put to another leader is kept: whether it can be, that it is, that it is answered, and
 * that nobody is going to answer it. */
bool forward_may_keep(const struct client *c, const struct session_decision *d);
struct frame forward_keep(struct engine *e, struct client *c, const struct session_decision *d);
void forward_answered(struct engine *e, struct client *c, uint8_t type);
void forward_unsettle(struct engine *e, struct client *c);
void forward_watch(struct engine *e); /* each tick */
/* At the leader; false: no room now, the frame stays. */
bool forward_request(struct engine *e, uint32_t peer, const struct frame *f, const uint8_t *payload, struct buffer *holder);
void forward_reply(struct engine *e, uint32_t peer, const struct frame *f, const uint8_t *payload); /* at the client's node */

#endif
