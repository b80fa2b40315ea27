/*
 * parts.h: private to protocols/memcached, and to protocols/herd, which speaks some of it: what memcached_request() found, kept in
 * protocol_request.parsed; the styles of an answer; small writers.
 */
#ifndef MUSIDECAR_MEMCACHED_PARTS_H
#define MUSIDECAR_MEMCACHED_PARTS_H

#include <assert.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "buffer.h"
#include "protocols/memcached/memcached.h"

#define KEY_BYTES_MAX 250u
#define BINARY_KEY_BYTES_MAX 186u      /* of what base64 of that length holds */
#define LINE_BYTES_MAX 2048u           /* of a request without its line end; not of get, gets, gat, gats */
#define LONG_LINE_BYTES_MAX (16u << 20) /* of those */
#define OPAQUE_BYTES_MAX 32u           /* the O included */
#define META_FLAGS_MAX 17u             /* of a meta line, behind the key (and the length, of ms) */
#define RELATIVE_S_MAX (60 * 60 * 24 * 30)
#define ABSOLUTE_S_MAX INT32_MAX
#define GONE (-1)                      /* an expiry: at once */

enum verb {
    VERB_LINE = 1, /* LOCAL, STREAM: the tokens as they came */
    VERB_GET, VERB_GETS, VERB_GAT, VERB_GATS, VERB_ME, VERB_MG,
    VERB_SET, VERB_ADD, VERB_REPLACE, VERB_APPEND, VERB_PREPEND, VERB_CAS,
    VERB_INCR, VERB_DECR, VERB_TOUCH, VERB_DELETE, VERB_FLUSH, VERB_MD
};

/* A flag of a meta request. Only O has more than its letter that is of use as it stands. */
struct flag { uint8_t letter, length; uint16_t offset; };

/* Offsets from the request's first byte. */
struct parts {
    uint8_t verb;                   /* enum verb; ms is one of SET..CAS, ma INCR or DECR */
    bool meta;                      /* ms, ma: answers and errors are those of meta commands */
    bool quiet;                     /* noreply, q */
    bool binary;                    /* b */
    bool has_exptime, has_autoviv, has_recache, has_cas, stale, wants_value, wants_cas, too_large;
    uint8_t flag_count;
    uint32_t line_length;           /* as far as it counts */
    uint32_t key_offset, key_length; /* as sent; of a get with several keys: the first */
    uint32_t value_offset, value_length;
    uint32_t client_flags, item_bytes_max;
    int32_t exptime, autoviv_exptime, recache_exptime;
    uint64_t cas, delta, initial;
    struct flag flags[META_FLAGS_MAX];
};
static_assert(sizeof(struct parts) <= sizeof(((struct protocol_request *)0)->parsed), "a request's parts have room");

static inline struct parts *parts_of(struct protocol_request *r) { return (struct parts *)(void *)r->parsed; }
static inline const struct parts *parts(const struct protocol_request *r) { return (const struct parts *)(const void *)r->parsed; }

/* flush_all as the backend is given it, and what it is given for one with a delay: Unix time, or 0 for never, follows. */
#define FLUSH "flush_all"
#define DELAY "mn flush_all "

/* How the client's answer is made of the backend's. */
enum style {
    STYLE_PLAIN = 0,       /* as it is */
    STYLE_VALUES_CAS = 1,  /* VALUE lines with CAS numbers */
    STYLE_META_CAS = 2,    /* a meta line with a c flag */
    STYLE_ME = 3,          /* cas=<number> in it */
    STYLE_REPLY = 4,       /* what was decided, with the CAS number that the backend's brings in place of its first NUL */
    STYLE_TOO_LARGE = 5,
    STYLE_FLUSH = 6,       /* OK, whether it is done or is to come */
    STYLE_KIND = 7,
    /* and */
    STYLE_HIDE_ALL = 8,    /* noreply */
    STYLE_HIDE_DONE = 16,  /* q: HD, of ms, md */
    STYLE_HIDE_MISS = 32,  /* q: EN, of mg */
    STYLE_HIDE_REPLY = 64, /* q: unless it is an error */
    STYLE_WON = 128        /* the question took the token that the client would have been given: "Z X" at the line's end is "X W" */
};

/* ---- the key -------------------------------------------------------------------------------------------------------------- */

struct key { const uint8_t *bytes; uint8_t length; uint8_t decoded[192]; };

/* Decoded. */
void key_of(const struct parts *p, const uint8_t *bytes, struct key *key);
/* It may stand in a text command, whatever it is sent as in a meta one. */
bool key_is_text(const struct key *key);
static inline bool parts_key_is_text(const struct parts *p, const uint8_t *bytes) {
    struct key key;
    key_of(p, bytes, &key);
    return key_is_text(&key);
}
/* Appends it as a meta command's token; *binary: "b" has to be among its flags. Text where it can be, unless `as_binary`. */
void put_meta_key(struct buffer *out, const struct key *key, bool as_binary, bool *binary);
size_t base64_decode(const uint8_t *text, size_t length, uint8_t *out); /* 0: it is none; never more than `length` */
void put_base64(struct buffer *out, const uint8_t *bytes, size_t length);

/* ---- numbers, as the server reads and keeps them ------------------------------------------------------------------------------ */

bool read_u64(const uint8_t *text, size_t length, uint64_t *value);
bool read_u32(const uint8_t *text, size_t length, uint32_t *value); /* of more than 32 bits the lower ones */
bool read_i32(const uint8_t *text, size_t length, int32_t *value);  /* the same */

/* Absolute: 0 never, GONE, else a time. */
static inline int64_t absolute_s(int32_t exptime, uint64_t now_s) {
    if (exptime == 0) return 0;
    if (exptime < 0) return GONE;
    int64_t at = exptime > RELATIVE_S_MAX ? exptime : (int64_t)now_s + exptime;
    return at > ABSOLUTE_S_MAX ? ABSOLUTE_S_MAX : at;
}

/* What an item takes of -I. */
static inline uint64_t item_bytes(size_t key_length, uint32_t client_flags, uint64_t value_length) {
    return 48 + 8 + key_length + 1 + (client_flags != 0 ? 4 : 0) + value_length + 2;
}

/* ---- writers ------------------------------------------------------------------------------------------------------------------ */

static inline void put_u64(struct buffer *out, uint64_t value) {
    uint8_t text[20];
    size_t at = sizeof text;
    do text[--at] = (uint8_t)('0' + value % 10);
    while ((value /= 10) != 0);
    buffer_append(out, text + at, sizeof text - at);
}

static inline void put_i64(struct buffer *out, int64_t value) {
    if (value < 0) buffer_append(out, "-", 1);
    put_u64(out, value < 0 ? 0 - (uint64_t)value : (uint64_t)value);
}

static inline void put_token(struct buffer *out, uint64_t term, uint64_t number) {
    put_u64(out, number == 0 ? 0 : term << MEMCACHED_TERM_SHIFT | number);
}

static inline void put_line_end(struct buffer *out) { buffer_append(out, "\r\n", 2); }

static inline bool starts_with(const uint8_t *bytes, size_t length, const char *text) {
    size_t n = strlen(text);
    return length >= n && memcmp(bytes, text, n) == 0;
}

static inline bool begins_word(const uint8_t *bytes, size_t length, const char *word) {
    size_t n = strlen(word);
    return starts_with(bytes, length, word) && (length == n || bytes[n] == ' ' || bytes[n] == '\r');
}

static inline bool is_text(const uint8_t *bytes, size_t length, const char *text) {
    return length == strlen(text) && memcmp(bytes, text, length) == 0;
}

/* ---- request.c and request_meta.c -------------------------------------------------------------------------------------------- */

/* The server looks at 23 tokens of a line (those of get and gat apart), and then at none. */
#define TOKENS_MAX 23u
struct token { uint32_t offset, length; };
struct line {
    const struct protocol_limits *limits;
    const uint8_t *bytes;    /* of the request */
    size_t bytes_length;     /* that have come */
    size_t consumed;         /* line and its end */
    uint32_t length;
    uint32_t count;
    struct token tokens[TOKENS_MAX];
    uint32_t rest;           /* offset behind the last one looked at */
};

static inline bool token_is(const struct line *l, uint32_t i, const char *text) {
    return is_text(l->bytes + l->tokens[i].offset, l->tokens[i].length, text);
}

/* The next token at or behind *at: false if there is none. *at moves behind it. */
static inline bool token_next(const uint8_t *bytes, uint32_t end, uint32_t *at, struct token *token) {
    uint32_t i = *at;
    while (i < end && bytes[i] == ' ') i++;
    token->offset = i;
    const uint8_t *blank = i < end ? memchr(bytes + i, ' ', end - i) : NULL;
    *at = blank == NULL ? end : (uint32_t)(blank - bytes);
    token->length = *at - i;
    return token->length > 0;
}

void request_answer(struct protocol_request *r, const struct line *l, struct buffer *answer, const char *text);
void request_close(struct protocol_request *r, const struct line *l, struct buffer *answer, const char *text, const char *why);
void request_swallow(struct protocol_request *r, const struct line *l, struct buffer *answer, const char *text, uint32_t value_length);
/* The parts of a storage command are read but for the value. */
void request_value(struct protocol_request *r, const struct line *l, struct buffer *answer);
void request_of_key(struct protocol_request *r, const struct line *l, enum protocol_class class);
void request_meta(struct protocol_request *r, const struct line *l, struct buffer *answer);

/* ---- rewrite.c ------------------------------------------------------------------------------------------------------------------ */

/* An mg as the backend is given it; N is among its flags if it `creates`. */
void rewrite_mg(struct buffer *out, const struct parts *p, const uint8_t *bytes, uint64_t now_s, bool creates);

#endif
