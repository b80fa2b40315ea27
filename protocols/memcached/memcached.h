/*
 * memcached.h: the memcached protocol, text and meta, as 1.6.18 speaks it: framed, classified, rewritten, decided, answered.
 * Pure: no system call, no clock (now_s is given), no thread, no allocation but what a struct buffer grows by.
 *
 * The way of a request (design.md section 7: decide, log the decision, apply it):
 *
 *   memcached_request_read()   what it is and where it ends
 *     READ, WRITE              memcached_rewrite() -> what the backend is given (WRITE: what is logged, and every node's backend given)
 *     DECIDE                   memcached_question() -> the leader's backend -> memcached_item_read() -> memcached_decide() -> WRITE or NOTHING
 *   memcached_reply_read()     where an answer of the backend ends
 *   memcached_answer()         what the client is given
 *
 * What is logged has four properties that hold for every byte string that memcached_rewrite() of a WRITE and memcached_decide()
 * give: times are absolute; the backend answers it exactly once; running it again, or on a copy that already holds a part of
 * what came later in the log, leads to the same data once the log's end is reached; and its effect does not depend on a CAS
 * number. (Several lines may be in it: those before the last are told `noreply`.)
 *
 * Nothing that was not understood is forwarded: what the backend is given is always written anew from the parsed parts. Where the
 * server itself would go on and run the rest as commands though a value was meant (a storage line it refuses before it knows the
 * length, a value that does not end where it should), the connection is closed after the server's own error.
 *
 * CAS: a client sees `token` = term << 48 | the backend's number. A token of another term never matches.
 */
#ifndef MUSIDECAR_MEMCACHED_H
#define MUSIDECAR_MEMCACHED_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "buffer.h"

#define MEMCACHED_KEY_BYTES_MAX 250u
#define MEMCACHED_LINE_BYTES_MAX 2048u /* of a request's line, unless it is get, gets, gat or gats */
#define MEMCACHED_OPAQUE_BYTES_MAX 32u
#define MEMCACHED_TOKENS_MAX 18u       /* of a meta line behind the command's name */

enum memcached_class {
    MEMCACHED_MORE = 0, /* not whole: see `wanted` */
    MEMCACHED_READ,     /* not logged: memcached_rewrite() to the leader's backend, its answer through memcached_answer() */
    MEMCACHED_WRITE,    /* memcached_rewrite() is logged and run on every node; the leader's backend's answer through memcached_answer() */
    MEMCACHED_DECIDE,   /* memcached_question(), memcached_decide() */
    MEMCACHED_ANSWER,   /* `text` is the answer (may be empty: quiet): nothing is done */
    MEMCACHED_LOCAL,    /* memcached_rewrite() to this node's own backend, on any connection that carries nothing else's answers;
                           memcached_answer() as usual */
    MEMCACHED_STATS,    /* `stats mu`: the sidecar's own lines: it answers itself, "STAT <name> <value>\r\n" ... "END\r\n" */
    MEMCACHED_STREAM,   /* watch, lru_crawler metadump: memcached_rewrite() on a connection of its own, whose bytes are passed on raw until
                           either side closes. What the client sends after it must not be forwarded. */
    MEMCACHED_CLOSE,    /* give `text` (may be empty), then close. `why`: a line for the log, or NULL where the client asked for it */
    MEMCACHED_NOTHING   /* of memcached_decide() only: nothing is logged */
};

struct memcached_limits {
    uint32_t item_bytes_max;   /* the backends' -I, in bytes (1048576); must be the same on every node */
    uint32_t line_bytes_max;   /* of a get with many keys; longer closes. 0: 16 MiB */
    int64_t started_s;         /* when the backend began, Unix time; 0 will do. An absolute time of flush_all before it flushes nothing (a delay
                                  of more than 30 days is read as such a time), as on the server; with 0 it flushes at once */
    const char *version;       /* "VERSION 1.6.18\r\n": then `version` is an ANSWER; NULL: LOCAL */
    bool exact;                /* the consistency level. true: touch, gat (one key), mg with N or T are DECIDE, so that whether the
                                  key was there is the leader's decision on every node. false: they are WRITE. */
};

/* A flag of a meta request, in the order sent. */
struct memcached_flag { uint8_t letter; uint8_t length; /* of an O token, the O included */ uint32_t offset; };

struct memcached_request {
    /* what it is */
    uint8_t class;             /* enum memcached_class */
    uint8_t verb;              /* which command: private to protocols/memcached */
    bool all_keys;             /* concerns every key (flush_all), or several (gat k1 k2): waits for, and holds up, all of them */
    bool has_key;              /* key_hash is of its one key */
    size_t length;             /* bytes of it, value and line end included */
    size_t wanted;             /* at MORE: the length it will have, once its line is there (the caller can make room); 0: not known yet */
    uint64_t swallow;          /* bytes behind `length` that still belong to it and have to be thrown away as they come, unlooked at
                                  (a value too large to be kept: at most 2 GiB) */
    uint64_t key_hash;         /* of the decoded key: the same for a key and its base64 form */
    uint32_t style;            /* for memcached_answer(); memcached_decide() gives a new one */
    const char *text;          /* ANSWER, CLOSE: static, "" for none */
    const char *why;           /* CLOSE: static */
    /* the parts; offsets from the request's first byte */
    uint32_t line_length;      /* without its end */
    uint32_t key_offset, key_length;     /* as sent */
    uint32_t value_offset, value_length; /* without "\r\n" */
    uint32_t client_flags;
    int32_t exptime;           /* as sent (text: exptime, delay; meta: T) */
    int32_t autoviv_exptime, recache_exptime; /* N, R */
    uint64_t cas;              /* the token sent */
    uint64_t delta, initial;
    uint8_t mode;              /* ms: 'S' 'E' 'A' 'P' 'R'; ma: 'I' 'D' */
    bool quiet;                /* noreply, q */
    bool binary;               /* b: the key is base64 */
    bool has_exptime, has_autoviv, has_recache, has_cas, stale, wants_value, too_large;
    uint8_t flag_count;
    struct memcached_flag flags[MEMCACHED_TOKENS_MAX];
    uint8_t decoded_length;
    uint8_t decoded[192];      /* the key of a request with b */
    uint32_t item_bytes_max;
    /* progress */
    size_t scanned;            /* no end of line before this */
    bool line_read;
};

void memcached_request_reset(struct memcached_request *request);

/* Looks at `bytes`: all that a client sent and that is not consumed, always starting at the same request. MORE until it is whole; call
 * again with more. Each byte of a line is searched once, a value's bytes never. Otherwise consume `length` (then `swallow` more as
 * they come) and reset. `length` may be 0 only with CLOSE. Copies nothing: `bytes` of a READ, WRITE, DECIDE are needed until the
 * last of memcached_rewrite(), memcached_question(), memcached_decide(); the struct may be copied. Returns request->class.
 * A first byte 0x80 (binary protocol) is CLOSE. */
enum memcached_class memcached_request_read(struct memcached_request *request, const struct memcached_limits *limits,
                                            const uint8_t *bytes, size_t length);

/* READ, WRITE, LOCAL, STREAM: appends what the backend is given. Times are absolute, noreply and q dropped, so that there is always
 * exactly one answer (STREAM apart). A `set` too large becomes the delete that it amounts to. */
void memcached_rewrite(const struct memcached_request *request, const uint8_t *bytes, int64_t now_s, struct buffer *out);

/* ---- DECIDE --------------------------------------------------------------------------------------------------------------- */

/* What the leader's backend holds under a key. Zero it before first use, memcached_item_free() at last; may be used again and again. */
struct memcached_item {
    struct buffer value;
    bool present;
    bool binary;        /* was stored under a base64 key: says how it is printed */
    bool stale;         /* X */
    bool sent;          /* Z: somebody has the token to recache */
    bool stolen;        /* the question itself was given that token (W): memcached_decide() gives it back, see there */
    bool cas_known;
    uint32_t client_flags;
    int64_t expires_s;  /* absolute; 0: never; -1: at once */
    uint64_t cas;       /* the backend's number */
};

void memcached_item_free(struct memcached_item *item);

/* DECIDE: appends the question to the leader's backend; its whole answer is one for memcached_reply_read(), told `answers` of them. */
void memcached_question(const struct memcached_request *request, const uint8_t *bytes, struct buffer *out, uint32_t *answers);

/* Reads the whole answer to the question (all `answers`). false: it is none (SERVER_ERROR, or out of step): nothing was decided;
 * close the client. */
bool memcached_item_read(struct memcached_item *item, const uint8_t *answer, size_t length, int64_t now_s);

/* Decides. WRITE: `command` was appended to, is to be logged and run on every node; when the leader's backend has answered it,
 * memcached_answer(*style, reply, answer of the backend) is the client's answer.
 * NOTHING: memcached_answer(*style, reply, "") is the client's answer at once.
 * `reply` may be empty or not in both cases: it is part of what memcached_answer() needs, to be kept with the request and not looked at.
 * *item becomes what the key holds afterwards (its CAS unknown: no token matches it), so that the next DECIDE of the same key may be
 * decided from it without asking again. It may not after any other WRITE of that key (or one with all_keys).
 *
 * Exact: values, client flags, outcome, error texts, the CAS verdict, the stale mark. Expiry of an item that keeps its own
 * (incr, append, ...) is kept to the second, without drift (the question brings the backend's own clock where one is needed).
 * Not exact: asking takes the recache token (W) of a stale item that nobody has it of. It is given back by logging `md <key> I`,
 * which also gives the item a new CAS number: tokens known from `gets` miss then. */
enum memcached_class memcached_decide(const struct memcached_request *request, const uint8_t *bytes, struct memcached_item *item,
                                      uint16_t term, int64_t now_s, struct buffer *command, struct buffer *reply, uint32_t *style);

/* ---- answers of the backend --------------------------------------------------------------------------------------------------- */

struct memcached_reply {
    /* progress; zeros at first but for `answers` */
    uint32_t answers;    /* how many still to come; set before the first byte (1, or what memcached_question() said) */
    uint8_t stage;
    uint8_t word_length;
    char word[16];
    uint64_t left;       /* of a value */
    uint64_t number;
    uint32_t field;
};

void memcached_reply_reset(struct memcached_reply *reply, uint32_t answers);
/* Consumes bytes of what a backend answered one thing with: returns how many. *status: 1: its last byte was the last one consumed
 * (reset before the next); 0: more has to come, all were consumed; -1: this is no answer. Each byte is looked at once, values are skipped. */
size_t memcached_reply_read(struct memcached_reply *reply, const uint8_t *bytes, size_t length, int *status);

/* ---- answers to the client ------------------------------------------------------------------------------------------------------ */

/* The backend's answer is the client's, byte for byte: it need not go through memcached_answer(). */
bool memcached_is_plain(uint32_t style);

/* Appends what the client is given (nothing: quiet). `ack`: the backend's whole answer; `reply`: what memcached_decide() left, else
 * empty. `term`: in which the backend answered. false: the answer is none that belongs to this request (out of step, nothing was
 * appended): close the client. An error of the backend ("SERVER_ERROR out of memory ...") is passed on unless quiet; see
 * memcached_failed(). */
bool memcached_answer(uint32_t style, const uint8_t *reply, size_t reply_length, const uint8_t *ack, size_t ack_length,
                      uint16_t term, struct buffer *out);

/* An answer to a logged command says that this node's backend did not do it for want of memory (it then holds nothing under that
 * key): a visible alarm, since other nodes may have. */
bool memcached_failed(const uint8_t *ack, size_t ack_length);

#endif
