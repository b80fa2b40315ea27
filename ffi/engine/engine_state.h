/*
 * engine_state.h: what the files of the engine share. One thread, one loop; see engine.h for the outside.
 *
 *   client.c    clients: reading, framing, session, answers          link.c      the other nodes' engines, forwarding
 *   turn.c      requests -> COMMAND records -> shared connection      apply.c     committed records, on every node
 *   shared.c    the shared connection's replies, gates                effect.c    effect stream -> EFFECT records
 *   feed.c      playing master to the own backend (followers)         takeover.c  from elected to serving, and back
 *   admin.c     the admin connection, health                          socket.c    non-blocking sockets
 */
#ifndef MUSIDECAR_ENGINE_STATE_H
#define MUSIDECAR_ENGINE_STATE_H

#include <pthread.h>
#include <stdatomic.h>
#include <sys/epoll.h>
#include <time.h>

#include "buffer.h"
#include "engine/engine.h"
#include "engine/histogram.h"
#include "protocols/redis/resp.h"
#include "protocols/redis/session.h"

#define REPLID_BYTES 40u
#define SCRATCH_BYTES (256u * 1024u)
#define WINDOW_REQUESTS_MAX 1024u      /* forwarded requests of one client that wait for their answers ... */
#define WINDOW_REQUESTS_MIN 8u
#define WINDOW_ANSWER_BYTES (8u << 20) /* ... fewer where its answers were large */
#define ANSWER_BYTES_FIRST (64u << 10) /* as large as answers are taken for before one has come */
#define ANSWER_LARGE_BYTES (1u << 20)

/* ---- things that epoll knows ----------------------------------------------------------------------------------- */

enum source_kind {
    SOURCE_CLIENT, SOURCE_LISTEN, SOURCE_FEED_LISTEN, SOURCE_FEED, SOURCE_SHARED, SOURCE_STREAM, SOURCE_ADMIN,
    SOURCE_VERIFY, SOURCE_LINK, SOURCE_FABRIC, SOURCE_CONTROL
};

struct source {
    enum source_kind kind;
    int fd; /* -1: closed */
    uint32_t interest;
};

/* A stream socket with bytes waiting to leave. */
struct socket {
    struct source source;
    struct buffer out;
};

/* Where an answer goes. */
struct destination {
    uint32_t node; /* self: a client of this node */
    uint32_t slot, generation;
    uint64_t sequence;
};

struct pending { /* a forwarded request of a follower's client, or a local answer behind one */
    uint64_t sequence;
    uint32_t local_bytes;
    bool local;
    int32_t database_after;
};

struct client {
    struct socket socket;
    uint32_t slot, generation;
    bool in_use, leaving /* once flushed */, ended /* sent EOF */, queued_ready, queued_flush, throttled, barrier;
    bool has_decision;
    size_t releasable;      /* bytes of socket.out that may leave */
    struct buffer in;
    struct resp_request request;
    struct session session;
    struct session_decision decision; /* kept while there is no room for it */
    uint32_t outstanding;   /* requests whose answer has not come */
    uint64_t answer_bytes;  /* of the answer coming in */
    uint64_t answer_bytes_mean;
    uint64_t waiting_since_us;
    uint64_t sequence;      /* forwarded requests so far */
    struct queue pending;   /* forwarded, in order */
    struct buffer local;    /* bytes of pending local answers */
    struct socket *verify;  /* the backend is looking at this client's credentials */
    uint8_t verify_hello;
};

/* ---- the shared connection and what waits for it ---------------------------------------------------------------- */

enum expect_kind { EXPECT_CLIENT, EXPECT_LOCAL, EXPECT_SWALLOW, EXPECT_ROLE };

struct expect { /* one request in flight on the shared connection */
    uint8_t kind;
    uint32_t replies, swallow;
    uint32_t local_bytes;
    int32_t database_after;
    struct destination to;
    uint64_t covered;  /* ROLE: last COMMAND index before it */
    uint64_t since_ns;
};

struct segment { /* answer bytes of one destination that one gate lets go */
    uint32_t node, slot, generation;
    size_t bytes;
};

struct gate { /* a ROLE that came back: answers before it leave when its effects are committed (R9) */
    uint64_t offset;
    uint64_t covered;
    uint64_t segments;
    uint64_t effect_index; /* once cut */
    uint64_t probe;
    uint64_t since_ns, known_ns; /* its turn began; its ROLE came back */
    bool cut;
};

struct staged { /* bytes of shared.out up to `end` may be sent once `index` is committed */
    uint64_t end, index;
    uint64_t since_ns;
};

struct shared {
    struct socket socket;
    uint64_t appended, sendable, sent; /* absolute byte counts of socket.out */
    struct queue staged, expects, segments, gates;
    uint64_t open_segments;            /* since the last gate */
    uint32_t roles_in_flight;
    bool unproven;                     /* something was staged since the last ROLE */
    int32_t database;                  /* that the connection will be in; -1 unknown */
    uint8_t protocol;
    struct resp_reply reply;
    struct buffer role;                /* the ROLE reply coming in */
    struct buffer local;               /* bytes of EXPECT_LOCAL answers, in order */
};

enum stream_stage { STREAM_CLOSED, STREAM_LINES, STREAM_RDB_HEAD, STREAM_RDB_LENGTH, STREAM_RDB_MARK, STREAM_LIVE };

struct stream { /* the backend's replication stream, read as its replica */
    struct socket socket;
    enum stream_stage stage;
    uint32_t lines_left;    /* answers to AUTH and REPLCONF before PSYNC's */
    bool wants_full;        /* a FULLRESYNC is what was asked for */
    struct buffer line;     /* head bytes, or the tail window of an RDB that ends with a mark */
    uint64_t rdb_left;
    uint8_t mark[REPLID_BYTES];
    struct buffer effects;  /* stream bytes not cut yet */
    uint64_t cut_offset;    /* replication offset before effects' first byte */
    char replid[REPLID_BYTES + 1];
    uint64_t live_since_us, acked_us;
};

struct cut { /* an EFFECT being proposed, piece by piece */
    bool active;
    uint64_t end, covered, gates;
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
    uint64_t flush_us;         /* when what is collected must go */
};

/* ---- admin connection -------------------------------------------------------------------------------------------- */

enum admin_kind { ADMIN_SWALLOW, ADMIN_PING, ADMIN_ROLE, ADMIN_PROMOTE, ADMIN_FOLLOW, ADMIN_CLIENT };
struct admin_expect { enum admin_kind kind; struct destination to; };
struct admin {
    struct socket socket;
    struct queue expects;
    struct resp_reply reply;
    struct buffer bytes;
    uint64_t heard_us, asked_us, connect_us;
    bool ping_pending, role_pending, was_up;
};

/* ---- mesh links --------------------------------------------------------------------------------------------------- */

enum frame_type { FRAME_REQUEST = 1, FRAME_REPLY = 2, FRAME_SERVING = 3, FRAME_NOT_SERVING = 4, FRAME_SNAPSHOT_ASK = 5, FRAME_SNAPSHOT = 6 };
enum frame_flags { FRAME_WRITES = 1, FRAME_RESP3 = 2, FRAME_LOSES_DATABASE = 4, FRAME_LAST = 8, FRAME_FLUSHES_SCRIPTS = 16,
                   FRAME_ADMIN = 32 /* for the admin connection */, FRAME_BUSY = 64 /* SERVING: the backend runs a script that does not end */ };
struct frame {
    uint32_t length; /* payload bytes */
    uint8_t type, flags;
    uint16_t database;
    uint32_t slot, generation;
    uint64_t sequence; /* SERVING: term */
    uint32_t replies, swallow;
    uint32_t script_offset, script_length;
};
struct link {
    struct socket socket;
    size_t releasable;
    struct buffer in;
    uint64_t serving_term; /* the peer leads and serves in this term; 0 not */
    bool queued_flush;
};

/* ---- log payloads ---------------------------------------------------------------------------------------------------- */

struct command_entry { /* one request in a COMMAND record; `length` bytes follow */
    uint32_t length;
    uint16_t database;
    uint8_t protocol, flags;
    uint32_t node, slot;
    uint32_t generation, replies;
    uint64_t sequence;
};
struct effect_head { /* in front of the first piece of an EFFECT */
    uint64_t epoch, start, end, covered;
};
enum admin_record { ADMIN_RECORD_EPOCH = 1, ADMIN_RECORD_SCRIPT = 2, ADMIN_RECORD_SCRIPT_FLUSH = 3, ADMIN_RECORD_RERUN = 4 };
struct epoch_record { /* EPOCH: from `start` on the effects are those of `replid` */
    uint32_t kind, pad;
    uint64_t epoch, start;
    char replid[REPLID_BYTES];
};

struct uncovered { /* a COMMAND record whose effect is in no committed EFFECT */
    uint64_t index;
    uint32_t length;
    bool tried; /* its re-run was logged */
    bool mine;  /* ... by this leader, now */
    uint8_t *own; /* the bytes of a large one; NULL: in uncovered_bytes, in order */
};

struct assembly { bool open; struct buffer bytes; }; /* pieces of a COMMAND so far */
struct effect_assembly { bool open; struct effect_head head; uint64_t received; }; /* the bytes are the feed's */

struct log_state { /* what the committed log says; the same on every replica at the same index */
    uint64_t epoch;             /* 0: no data yet */
    uint64_t epoch_start;
    char replid[REPLID_BYTES + 1];
    uint64_t effect_offset;     /* end of the last EFFECT */
    uint64_t effect_index;
    struct queue uncovered;     /* struct uncovered */
    struct buffer uncovered_bytes;
    struct assembly command;
    struct effect_assembly effect;
    struct buffer scripts;      /* u32 length, body; in order */
    uint64_t *script_hashes;    /* open addressing, 0 empty */
    uint32_t script_count, script_capacity;
};

/* ---- take-over --------------------------------------------------------------------------------------------------------- */

enum takeover_stage { TAKE_IDLE, TAKE_FEED, TAKE_PROMOTE, TAKE_ATTACH, TAKE_EPOCH, TAKE_RERUN_LOG, TAKE_RERUN, TAKE_SERVING };

struct big { /* a request larger than one record, on its way into the log; nothing else travels meanwhile */
    bool active;
    struct command_entry entry;
    struct expect expect;
    struct buffer bytes; /* the request, taken over from whoever had read it */
    size_t length;
    uint64_t proposed; /* of entry and bytes together */
};

struct listener { struct source source; struct listener *next; };
enum control_kind { CONTROL_LISTEN, CONTROL_LISTEN_FEED, CONTROL_LINK, CONTROL_RDB, CONTROL_RDB_FAILED };
struct control { enum control_kind kind; int fd; uint32_t peer; uint64_t bytes, offset, number; };

struct engine {
    struct engine_config config;
    struct shm *shm;
    struct fabric *fabric;
    struct replica *replica;
    uint32_t self, nodes;
    int epoll;
    struct source fabric_source, control_source;
    struct listener *listeners;
    uint64_t now_us, now_ns, tick_us, tick_cpu_us, busy_until_us;
    uint64_t spin_until_us; /* until then it does not sleep */
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
    struct stream stream;
    struct cut cut;
    struct feed feed;
    struct admin admin;
    struct log_state log;
    struct big big;

    uint8_t *batch;               /* reserved place of the COMMAND record being filled */
    uint32_t batch_used;
    uint64_t command_index;       /* last COMMAND proposed */
    uint64_t admin_index;         /* last ADMIN proposed */
    uint64_t effect_index;        /* last EFFECT proposed, or the log's when this node took over */
    bool stalled;                 /* the ring had no room */
    bool more;                    /* something was left for the next turn */

    enum replica_role role;
    uint64_t term;
    enum takeover_stage takeover;
    uint64_t takeover_since_us;
    enum backend_state backend;
    bool serving_told;
    uint64_t snapshot_us;

    pthread_mutex_t mutex; /* guards what follows */
    struct queue events, controls;
    int event_fd;
    struct engine_status status;
    struct histogram stages[STAGES];
    struct engine_status counters; /* engine thread's own */
};

/* engine.c */
void engine_log(struct engine *e, uint32_t level, const char *format, ...) __attribute__((format(printf, 3, 4)));
void engine_tell(struct engine *e, enum engine_event_kind kind, uint64_t a, uint64_t b);
void engine_fatal(struct engine *e, const char *text);
uint64_t clock_ns(void);
static inline bool engine_leads(const struct engine *e) { return e->takeover == TAKE_SERVING; }
void engine_update_eligible(struct engine *e);

/* socket.c */
void source_watch(struct engine *e, struct source *s, uint32_t interest);
void source_close(struct engine *e, struct source *s);
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
void clients_drop_unknown(struct engine *e); /* closes those with requests whose outcome is unknown */
void clients_wake_all(struct engine *e);
void clients_expire(struct engine *e);
struct client *client_find(struct engine *e, uint32_t slot, uint32_t generation);
void client_answered(struct engine *e, struct client *c, int32_t database_after, uint8_t reply_type);
void client_answer(struct engine *e, struct client *c, const void *bytes, size_t length);
void client_verify_event(struct engine *e, struct client *c);
struct client *client_of_verify(struct engine *e, struct source *s);

/* turn.c */
struct request { /* what travels */
    struct destination from;
    uint16_t database;
    uint8_t protocol;
    const struct session_decision *decision;
};
/* False: no room now. `holder`, if not NULL, is the buffer in which the request's bytes lie: a large request takes it over,
 * and leaves in its place one with what came behind the request. */
bool turn_submit(struct engine *e, const struct request *r, struct buffer *holder);
void turn_local(struct engine *e, struct destination to, const void *bytes, size_t length);
void turn_end(struct engine *e);
void turn_reset(struct engine *e);
void turn_forward(struct engine *e, uint32_t database, uint8_t protocol, const void *bytes, size_t length,
                  const struct expect *expect); /* onto the shared connection, once what was proposed so far is committed */
void turn_mark(struct engine *e, uint64_t index); /* what is staged may be sent once `index` is committed */

/* shared.c */
bool shared_open(struct engine *e);
void shared_close(struct engine *e);
void shared_event(struct engine *e, uint32_t events);
void shared_send(struct engine *e);
void gates_release(struct engine *e);

/* effect.c */
bool stream_open(struct engine *e, bool full, uint64_t offset); /* after `offset` of what the backend was last told, or anew */
void stream_close(struct engine *e);
void stream_event(struct engine *e, uint32_t events);
void stream_tick(struct engine *e);
bool stream_read(struct engine *e);
void effects_cut(struct engine *e);

/* apply.c */
void apply_committed(struct engine *e);
bool script_known(const struct log_state *log, const uint8_t *body, size_t length);
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
void feed_epoch(struct engine *e, uint64_t start);
void feed_stop(struct engine *e);
void feed_want_rdb(struct engine *e);
void feed_rdb(struct engine *e, const struct control *c);
void feed_rdb_failed(struct engine *e, uint64_t number);
void feed_disconnect(struct engine *e);

/* admin.c */
void admin_tick(struct engine *e);
void admin_event(struct engine *e, uint32_t events);
void admin_close(struct engine *e);
void admin_send(struct engine *e, enum admin_kind kind, const void *bytes, size_t length);
void admin_send_for(struct engine *e, struct destination to, const void *bytes, size_t length); /* a client's SCRIPT KILL */
void admin_ask_role(struct engine *e);
void busy_set(struct engine *e, bool busy);

/* takeover.c */
void takeover_follow_role(struct engine *e);
void takeover_step(struct engine *e);
void takeover_role(struct engine *e, bool is_master, uint64_t offset, bool connected);
void takeover_promoted(struct engine *e);
void takeover_attached(struct engine *e, bool continued);
void backend_lost(struct engine *e, const char *what);
void backend_set(struct engine *e, enum backend_state state);

/* link.c */
void link_add(struct engine *e, uint32_t peer, int fd);
void link_event(struct engine *e, uint32_t peer, uint32_t events);
void link_flush(struct engine *e, uint32_t peer);
void link_send(struct engine *e, uint32_t peer, const struct frame *frame, const void *payload);
void link_reply(struct engine *e, const struct destination *to, const void *bytes, size_t length, bool last, uint8_t type);
void link_announce(struct engine *e, bool serving);
void links_depose(struct engine *e);
void links_process(struct engine *e); /* goes on with requests that had to wait */
void link_close(struct engine *e, uint32_t peer);
uint32_t link_leader(const struct engine *e); /* the node that serves, or REPLICA_NOBODY */
bool link_forward(struct engine *e, struct client *c, const struct session_decision *d); /* false: no leader, or no room */
void link_answer(struct engine *e, const struct destination *to, const void *bytes, size_t length);
void links_drop_held(struct engine *e);

#endif
