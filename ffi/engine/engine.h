/*
 * engine.h: one node's data plane: the loop between clients, log, backend and the other nodes. One thread runs it;
 * what the control plane may call from other threads says so.
 */
#ifndef MUSIDECAR_ENGINE_H
#define MUSIDECAR_ENGINE_H

#include "core/replica.h"
#include "fabric/fabric.h"
#include "protocols/redis/commands.h"

enum engine_protocol { PROTOCOL_REDIS = 0, PROTOCOL_MEMCACHED = 1, PROTOCOL_LIQUIBOOK = 2, PROTOCOL_OWN = 3, PROTOCOL_HERD = 4 };

struct engine_config {
    struct replica_config replica;
    uint32_t tick_busy_us, tick_idle_us;   /* tick while requests flow, and when idle */
    uint32_t spin_us;                      /* looks for the next event so long before it sleeps; 0: never */
    uint32_t backend_timeout_us;           /* a backend silent for this long makes its node step down */
    uint32_t takeover_timeout_us;          /* a take-over not done by then is given up */
    uint32_t feed_delay_us;                /* followers feed their backend at least this often */
    uint64_t feed_bytes_max;               /* kept for a backend that lags or is being filled; beyond, it is filled anew */
    uint32_t stale_us;                     /* not 0: the own backend answers who asked for that with READONLY, where what it misses was
                                              acknowledged no longer ago than this */
    uint32_t replica_timeout_us;           /* a client that replicates from the leader may take nothing for so long */
    uint32_t wait_timeout_us;              /* requests wait this long for a leader, then their connection closes */
    uint32_t protocol;                     /* enum engine_protocol */
    uint64_t item_bytes_max;               /* of a backend that has such a limit */
    uint32_t exact;                        /* see struct protocol_limits */
    const char *names;                     /* the same; it outlives the engine */
    uint32_t databases;                    /* of the backend */
    char backend_version[32];              /* as HELLO tells it, e.g. "7.0.15" */
    uint32_t clients_max;
    uint64_t client_input_bytes_max;       /* one request of a client (query buffer limit) */
    uint64_t client_output_bytes_max;      /* replies a client may leave unread before it is no longer read from */
    uint64_t bulk_bytes_max;               /* proto-max-bulk-len */
    char backend_path[108];                /* Unix socket of the backend; "" = TCP below */
    char backend_host[64];
    uint32_t backend_port;
    char backend_user[64], backend_password[256]; /* "" = none */
    char feed_token[65];                   /* the backend presents it (masterauth) when it asks for its feed */
    uint32_t feed_port;                    /* loopback TCP port of engine_listen_feed()'s socket */
    uint32_t password_needed;              /* the backend's default user has a password: clients must AUTH */
    /* The backend holds claim_offset bytes of either of these histories, from before this life, and goes by the first; "" =
     * nothing is known. It is taken up there if the log vouches for it, or else filled. */
    char claim_replid[41], claim_before[41];
    uint64_t claim_offset;
    uint32_t seed;                         /* 1: this node's backend holds the data the cluster starts with */
    int32_t pids[FABRIC_NODES_MAX];        /* the nodes' processes, for "is it stopped?" on one host; 0 = not here */
};

struct engine;
/* NULL with a reason in `why`. Takes nothing over: fabric and command table outlive the engine. */
struct engine *engine_new(const struct engine_config *config, struct fabric *fabric, const struct command_table *commands,
                          char *why, uint32_t why_bytes);
void engine_free(struct engine *e);

/* Before engine_run() or from any thread: listening sockets (non-blocking, taken over). */
int engine_listen(struct engine *e, int fd);
int engine_listen_feed(struct engine *e, int fd);
/* An authenticated stream to a peer's engine (taken over); it replaces the one there was. */
int engine_add_link(struct engine *e, uint32_t peer, int fd);
/* Any thread, once engine_run() runs: another life of this node has come, its regions and fence are handed over
 * (`region` is what the fabric's life() says of it then), and the engine opens the fabric's link. */
int engine_peer(struct engine *e, uint32_t peer, int32_t pid, uint64_t region);
/* Runs until engine_stop(). 0, or -1 with the reason as last event. Enters the fabric itself. */
int engine_run(struct engine *e);
void engine_stop(struct engine *e); /* any thread, also a signal handler */

/* ---- what the engine tells the control plane (any one thread) --------------------------------------------------- */
enum engine_event_kind {
    ENGINE_LOG = 1,          /* text: a line for the log; a: level (10 debug, 20 info, 30 warning, 40 error) */
    ENGINE_ROLE = 2,         /* a: enum replica_role, b: term */
    ENGINE_SERVING = 3,      /* a: 1 this node answers clients (as leader or through the leader), 0 not */
    ENGINE_WANT_RDB = 4,     /* fetch an RDB of the backend's data whose replication offset is >= a from another node and
                                give it to engine_install_rdb() with number b; told again when it is needed again */
    ENGINE_FATAL = 5,        /* text: the node cannot go on */
    ENGINE_LINK_LOST = 6,    /* the stream to peer a's engine has ended: it needs another */
    ENGINE_HANDOVER = 7,     /* what came of engine_hand_over() number b. level: the successor; a: microseconds in which nothing
                                was acknowledged; text: why this node leads on, or "" */
    ENGINE_BACKEND_LOST = 8, /* it is gone, or does not answer: see to it, then engine_backend_ready() */
    ENGINE_REFUSES = 9,      /* for backend_timeout_us the leader's backend has refused writes for want of memory or disk: another
                                node should lead; told again when that much time has gone by once more */
    ENGINE_WANT_TAIL = 10,   /* fetch what the stream of effects has between claim_offset and a from another node and give it to
                                engine_install_tail() with number b, or say engine_rdb_failed() */
    ENGINE_LEADER = 11       /* another node leads, or nobody is known to, or in another term: the status has it */
};
struct engine_event { uint32_t kind; uint32_t level; uint64_t a, b; char text[232]; };
int engine_event_fd(const struct engine *e); /* readable when events wait */
bool engine_next_event(struct engine *e, struct engine_event *out);
/* Any thread. fd: an RDB file, read from its start (taken over); number: of the request it answers. */
int engine_install_rdb(struct engine *e, int fd, uint64_t bytes, uint64_t offset, uint64_t number);
/* Any thread. A piece of the stream (copied). */
int engine_install_tail(struct engine *e, const void *bytes, uint64_t length, uint64_t number);
/* Any thread: the same of a backend that does not reveal its effects, which the control plane has filled itself. done, given: what
 * engine_points() said at the donor before the copy was begun (at least a of the event), and after its end. exact: the number of the
 * last request that the copy holds, where the backend is told such numbers (protocol.h), else 0. due_s: as
 * engine_points() said at any time since the copy was begun. */
int engine_install_copy(struct engine *e, uint64_t done, uint64_t given, uint64_t exact, uint64_t due_s, uint64_t number);
/* Any thread: `done` is the last record whose requests the backend has answered, with all before it; none behind `given` was given to
 * it; due_s: when what it was told to do later is to be logged (Unix time, protocol.h), 0: nothing is. Returns 0 while the backend does not hold the cluster's data, else a number that is another whenever it did not in between. */
uint64_t engine_points(struct engine *e, uint64_t *done, uint64_t *given, uint64_t *due_s);
/* Any thread: the fetch asked for with this number failed; the engine asks again after a pause. */
int engine_rdb_failed(struct engine *e, uint64_t number);

/* Any thread: hand leadership over to `peer` (REPLICA_NOBODY: to whom the engine chooses) while nothing is in flight. The
 * successor gets prepare_us to catch up; then requests wait, for hold_us at most. ENGINE_HANDOVER with b = number tells how
 * it ended; where it cannot be done this node leads on. */
int engine_hand_over(struct engine *e, uint32_t peer, uint64_t prepare_us, uint64_t hold_us, uint64_t number);

/* Any thread: the backend that was lost answers, and its settings are right (again). Until then nothing is sent to it. */
int engine_backend_ready(struct engine *e);
/* Any thread: the leader is to remove the member `peer`. Once that is so it is in the status. */
int engine_remove_member(struct engine *e, uint32_t peer);
/* Any thread: automatic fail-over is to be paused, or resumed, in the whole cluster. The leader logs it (what it says is in
 * the status once it stands there); asked to resume while nobody leads, a node may take over and log it then. */
int engine_pause(struct engine *e, bool paused);

/* ---- looking at it (any thread) --------------------------------------------------------------------------------- */
struct engine_status {
    uint32_t role, leader, serving, eligible, damage, alive, confirmed, backend_state; /* enum backend_state */
    uint32_t is_member; /* this life of this node */
    uint64_t log_position; /* bytes of log that were applied here or before */
    uint32_t evicted;   /* bit i: node i held up the log and was dropped; it is caught up once it goes on */
    uint64_t members[FABRIC_NODES_MAX], former[FABRIC_NODES_MAX]; /* incarnations: replica_membership */
    uint64_t term, commit, applied, last, log_hash, hash_index; /* log_hash: running hash after hash_index */
    uint64_t backend_offset;   /* replication offset the backend is known to have applied or produced */
    uint64_t clients, requests, reads, writes, records, effects, effect_bytes, batches, probes, forwarded, rerun;
    uint64_t takeovers, stepdowns, local_reads, closed_unknown, turn_us_max, free_bytes, uncovered_commands, uncovered_bytes;
    struct replica_takeover takeover;
    uint32_t paused; /* automatic fail-over, as the log has it */
    uint32_t heir; /* to whom this node is handing over; REPLICA_NOBODY: to nobody */
    uint64_t refilled, continued; /* so often the backend was given an RDB; went on from where it was before this life */
    uint64_t failed; /* logged requests that the own backend did not do, for want of memory: other nodes' may have */
    uint64_t handovers, handover_pause_us; /* done by this node; without acknowledgements in the last one */
    uint64_t takeover_fed_us, takeover_promoted_us, takeover_attached_us, takeover_served_us;
    /* What the log says that the data is: up to effect_offset of the history `replid`; the own backend, while it follows, goes
     * by told_replid. After engine_run() has returned this is all that the node knew. */
    uint64_t epoch, effect_offset;
    char replid[41], told_replid[41];
};
enum backend_state { BACKEND_DOWN = 0, BACKEND_DIRTY = 1, BACKEND_SYNCING = 2, BACKEND_FED = 3, BACKEND_PROMOTING = 4, BACKEND_LEADS = 5 };
void engine_status(struct engine *e, struct engine_status *out);

/* Log-linear histograms: 16 steps an octave, nanoseconds. */
enum engine_stage { STAGE_COMMIT = 0, STAGE_BACKEND = 1, STAGE_EFFECT = 2, STAGE_REQUEST = 3, STAGES = 4 };
struct engine_percentiles { uint64_t count, p50_ns, p90_ns, p99_ns, p999_ns, max_ns; };
void engine_stage(struct engine *e, enum engine_stage stage, struct engine_percentiles *out);

#endif
