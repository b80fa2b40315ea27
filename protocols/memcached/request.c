/*
 * request.c: where a request ends and what it is: lines, and the text commands; meta ones in request_meta.c.
 *
 * Read as proto_text.c of the server does it: a line ends with '\n', one '\r' in front of it does not count, nor does anything behind a
 * NUL; tokens are separated by blanks only; `noreply` counts where it is the last token, whatever it stands for there.
 */
#include "protocols/memcached/parts.h"

#include "check.h"

#define LEADING_BLANKS_MAX 100u /* of a long line */

static const char ERROR[] = "ERROR\r\n";
static const char BAD_FORMAT[] = "CLIENT_ERROR bad command line format\r\n";
static const char BAD_HEADER[] = "a storage command that the server refuses before it knows the length of the value: what follows cannot be told "
                                 "from commands";
static const char BAD_EXPTIME[] = "CLIENT_ERROR invalid exptime argument\r\n";

/* ---- what it comes to ------------------------------------------------------------------------------------------------------ */

static void say(const struct protocol_request *r, struct buffer *answer, const char *text) {
    if (!parts(r)->quiet) buffer_text(answer, text);
}

void request_answer(struct protocol_request *r, const struct line *l, struct buffer *answer, const char *text) {
    r->class = PROTOCOL_ANSWER;
    r->length = l->consumed;
    say(r, answer, text);
}

void request_swallow(struct protocol_request *r, const struct line *l, struct buffer *answer, const char *text, uint32_t value_length) {
    request_answer(r, l, answer, text);
    r->swallow = (uint64_t)value_length + 2;
}

void request_close(struct protocol_request *r, const struct line *l, struct buffer *answer, const char *text, const char *why) {
    request_answer(r, l, answer, text);
    r->class = PROTOCOL_CLOSE;
    r->why = why;
}

static uint64_t hash(const uint8_t *bytes, size_t length) {
    uint64_t h = length * 0x9e3779b97f4a7c15u;
    while (length > 0) {
        uint64_t word = 0;
        size_t n = length < sizeof word ? length : sizeof word;
        memcpy(&word, bytes, n);
        h = (h ^ word) * 0xff51afd7ed558ccdu;
        h ^= h >> 32;
        bytes += n;
        length -= n;
    }
    h *= 0xc4ceb9fe1a85ec53u;
    return h ^ h >> 29;
}

void request_of_key(struct protocol_request *r, const struct line *l, enum protocol_class class) {
    struct key key;
    key_of(parts(r), l->bytes, &key);
    r->class = class;
    r->length = l->consumed;
    r->key_hash = hash(key.bytes, key.length);
}

/* What `set` and ms too large still do: the old value goes. */
static void too_large(struct protocol_request *r, const struct line *l, struct buffer *answer) {
    struct parts *p = parts_of(r);
    if (p->verb != VERB_SET && !p->meta) return request_swallow(r, l, answer, "SERVER_ERROR object too large for cache\r\n", p->value_length);
    p->too_large = true;
    request_of_key(r, l, PROTOCOL_WRITE);
    r->swallow = (uint64_t)p->value_length + 2;
    r->style = STYLE_TOO_LARGE | (p->quiet && !p->meta ? STYLE_HIDE_ALL : 0);
}

void request_value(struct protocol_request *r, const struct line *l, struct buffer *answer) {
    struct parts *p = parts_of(r);
    struct key key;
    key_of(p, l->bytes, &key);
    if (item_bytes(key.length, p->client_flags, p->value_length) > p->item_bytes_max) return too_large(r, l, answer);
    size_t whole = l->consumed + p->value_length + 2;
    if (l->bytes_length < whole) {
        r->wanted = whole; /* and it stays MORE */
        return;
    }
    p->value_offset = (uint32_t)l->consumed;
    if (memcmp(l->bytes + whole - 2, "\r\n", 2) != 0) {
        if (p->meta) p->quiet = false;
        request_close(r, l, answer, "CLIENT_ERROR bad data chunk\r\n", "a value does not end where its length says: what follows cannot be told from commands");
        r->length = whole;
        return;
    }
    request_of_key(r, l, p->verb == VERB_SET ? PROTOCOL_WRITE : PROTOCOL_DECIDE);
    r->length = whole;
}

/* ---- text commands ----------------------------------------------------------------------------------------------------------- */

static void noreply(struct protocol_request *r, const struct line *l) {
    if (!token_is(l, l->count - 1, "noreply")) return;
    parts_of(r)->quiet = true;
    r->style |= STYLE_HIDE_ALL;
}

static bool number_u64(const struct line *l, uint32_t i, uint64_t *value) { return read_u64(l->bytes + l->tokens[i].offset, l->tokens[i].length, value); }
static bool number_u32(const struct line *l, uint32_t i, uint32_t *value) { return read_u32(l->bytes + l->tokens[i].offset, l->tokens[i].length, value); }
static bool number_i32(const struct line *l, uint32_t i, int32_t *value) { return read_i32(l->bytes + l->tokens[i].offset, l->tokens[i].length, value); }

static bool take_key(struct parts *p, const struct line *l) {
    p->key_offset = l->tokens[1].offset;
    p->key_length = l->tokens[1].length;
    return p->key_length <= KEY_BYTES_MAX;
}

static bool take_exptime(struct parts *p, const struct line *l, uint32_t i) {
    p->has_exptime = true;
    return number_i32(l, i, &p->exptime);
}

static void store(struct protocol_request *r, const struct line *l, struct buffer *answer) {
    struct parts *p = parts_of(r);
    uint32_t least = p->verb == VERB_CAS ? 6 : 5;
    int32_t length = -1;
    if (l->count != least && l->count != least + 1) return request_close(r, l, answer, ERROR, BAD_HEADER);
    noreply(r, l);
    bool good = take_key(p, l) && number_u32(l, 2, &p->client_flags) && take_exptime(p, l, 3) && number_i32(l, 4, &length) &&
                (p->verb != VERB_CAS || number_u64(l, 5, &p->cas));
    if (!good || length < 0 || length > INT32_MAX - 2) return request_close(r, l, answer, BAD_FORMAT, BAD_HEADER);
    p->has_cas = p->verb == VERB_CAS;
    p->value_length = (uint32_t)length;
    request_value(r, l, answer);
}

static void arithmetic(struct protocol_request *r, const struct line *l, struct buffer *answer) {
    struct parts *p = parts_of(r);
    if (l->count != 3 && l->count != 4) return request_answer(r, l, answer, ERROR);
    noreply(r, l);
    if (!take_key(p, l)) return request_answer(r, l, answer, BAD_FORMAT);
    if (!number_u64(l, 2, &p->delta)) return request_answer(r, l, answer, "CLIENT_ERROR invalid numeric delta argument\r\n");
    request_of_key(r, l, PROTOCOL_DECIDE);
}

static void touch(struct protocol_request *r, const struct line *l, struct buffer *answer) {
    struct parts *p = parts_of(r);
    if (l->count != 3 && l->count != 4) return request_answer(r, l, answer, ERROR);
    noreply(r, l);
    if (!take_key(p, l)) return request_answer(r, l, answer, BAD_FORMAT);
    if (!take_exptime(p, l, 2)) return request_answer(r, l, answer, BAD_EXPTIME);
    request_of_key(r, l, l->limits->exact ? PROTOCOL_DECIDE : PROTOCOL_WRITE);
}

static void delete(struct protocol_request *r, const struct line *l, struct buffer *answer) {
    struct parts *p = parts_of(r);
    if (l->count < 2 || l->count > 4) return request_answer(r, l, answer, ERROR);
    if (l->count > 2) {
        bool zero = token_is(l, 2, "0");
        noreply(r, l);
        if (l->count == 3 ? !zero && !p->quiet : !zero || !p->quiet)
            return request_answer(r, l, answer, "CLIENT_ERROR bad command line format.  Usage: delete <key> [noreply]\r\n");
    }
    if (!take_key(p, l)) return request_answer(r, l, answer, BAD_FORMAT);
    request_of_key(r, l, PROTOCOL_WRITE);
}

static void flush_all(struct protocol_request *r, const struct line *l, struct buffer *answer) {
    struct parts *p = parts_of(r);
    if (l->count > 3) return request_answer(r, l, answer, ERROR);
    noreply(r, l);
    if (l->count != (p->quiet ? 2 : 1) && !take_exptime(p, l, 1)) return request_answer(r, l, answer, BAD_EXPTIME);
    r->class = PROTOCOL_WRITE;
    r->length = l->consumed;
    r->style |= STYLE_FLUSH;
    r->all_keys = true;
}

/* get, gets, gat, gats: any number of keys. */
static void get(struct protocol_request *r, const struct line *l, struct buffer *answer) {
    struct parts *p = parts_of(r);
    bool touches = p->verb == VERB_GAT || p->verb == VERB_GATS;
    if (l->count < 2) return request_answer(r, l, answer, ERROR);
    if (touches && !take_exptime(p, l, 1)) return request_answer(r, l, answer, BAD_EXPTIME);
    uint32_t at = l->tokens[touches ? 1 : 0].offset + l->tokens[touches ? 1 : 0].length, keys = 0;
    for (struct token token; token_next(l->bytes, l->length, &at, &token); keys++) {
        if (token.length > KEY_BYTES_MAX) return request_answer(r, l, answer, BAD_FORMAT);
        if (keys > 0) continue;
        p->key_offset = token.offset;
        p->key_length = token.length;
    }
    if (keys == 0) return request_answer(r, l, answer, "END\r\n");
    if (p->verb == VERB_GETS || p->verb == VERB_GATS) r->style = STYLE_VALUES_CAS;
    request_of_key(r, l, !touches ? PROTOCOL_READ : keys == 1 && l->limits->exact ? PROTOCOL_DECIDE : PROTOCOL_WRITE);
    r->all_keys = touches && keys > 1;
}

/* ---- what concerns one node alone --------------------------------------------------------------------------------------------- */

static void local(struct protocol_request *r, const struct line *l) {
    parts_of(r)->verb = VERB_LINE;
    r->class = PROTOCOL_LOCAL;
    r->length = l->consumed;
}

static void stats(struct protocol_request *r, const struct line *l) {
    local(r, l);
    if (l->count == 2 && token_is(l, 1, "mu")) r->class = PROTOCOL_STATUS;
}

static void local_noreply(struct protocol_request *r, const struct line *l, struct buffer *answer, uint32_t least, uint32_t most) {
    if (l->count < least || l->count > most) return request_answer(r, l, answer, ERROR);
    noreply(r, l);
    local(r, l);
}

static void slabs(struct protocol_request *r, const struct line *l) {
    if (l->count >= 3 && token_is(l, 1, "automove")) noreply(r, l);
    local(r, l);
}

static void lru_crawler(struct protocol_request *r, const struct line *l) {
    local(r, l);
    if (l->count == 3 && token_is(l, 1, "metadump")) r->class = PROTOCOL_STREAM;
}

static void watch(struct protocol_request *r, const struct line *l) {
    local(r, l);
    r->class = PROTOCOL_STREAM;
}

static void unknown(struct protocol_request *r, const struct line *l, struct buffer *answer) {
    const struct token *last = &l->tokens[l->count - 1];
    if (starts_with(l->bytes + last->offset, last->length, "HTTP/")) return request_close(r, l, answer, "", "it speaks HTTP");
    request_answer(r, l, answer, ERROR);
}

/* ---- which -------------------------------------------------------------------------------------------------------------------- */

static const struct { const char *name; uint8_t verb; } NAMES[] = {
    {"get", VERB_GET}, {"set", VERB_SET}, {"gets", VERB_GETS}, {"add", VERB_ADD}, {"replace", VERB_REPLACE}, {"append", VERB_APPEND},
    {"prepend", VERB_PREPEND}, {"cas", VERB_CAS}, {"incr", VERB_INCR}, {"decr", VERB_DECR}, {"delete", VERB_DELETE}, {"touch", VERB_TOUCH},
    {"gat", VERB_GAT}, {"gats", VERB_GATS}, {"bget", VERB_GET}, {"flush_all", VERB_FLUSH}};

static void by_name(struct protocol_request *r, const struct line *l, struct buffer *answer) {
    if (token_is(l, 0, "stats")) return stats(r, l);
    if (token_is(l, 0, "version")) return local(r, l);
    if (token_is(l, 0, "verbosity") || token_is(l, 0, "cache_memlimit")) return local_noreply(r, l, answer, 2, 3);
    if (token_is(l, 0, "lru") || token_is(l, 0, "extstore")) return local_noreply(r, l, answer, 2, TOKENS_MAX);
    if (token_is(l, 0, "refresh_certs")) return local_noreply(r, l, answer, 1, TOKENS_MAX);
    if (token_is(l, 0, "slabs")) return slabs(r, l);
    if (token_is(l, 0, "lru_crawler")) return lru_crawler(r, l);
    if (token_is(l, 0, "watch")) return watch(r, l);
    if (token_is(l, 0, "quit")) return request_close(r, l, answer, "", NULL);
    if (token_is(l, 0, "shutdown")) return request_answer(r, l, answer, "ERROR: shutdown not enabled\r\n");
    /* The server looks for a browser among names of other first letters only. */
    if (memchr("gsacidt", l->bytes[l->tokens[0].offset], 7) != NULL) return request_answer(r, l, answer, ERROR);
    unknown(r, l, answer);
}

static void command(struct protocol_request *r, const struct line *l, struct buffer *answer) {
    if (l->count == 0 || l->tokens[0].length < 2) return request_answer(r, l, answer, ERROR);
    if (l->tokens[0].length == 2 && l->bytes[l->tokens[0].offset] == 'm') return request_meta(r, l, answer);
    for (size_t i = 0; i < sizeof NAMES / sizeof *NAMES; i++) {
        if (!token_is(l, 0, NAMES[i].name)) continue;
        parts_of(r)->verb = NAMES[i].verb;
        switch ((enum verb)NAMES[i].verb) {
            case VERB_GET: case VERB_GETS: case VERB_GAT: case VERB_GATS: return get(r, l, answer);
            case VERB_INCR: case VERB_DECR: return arithmetic(r, l, answer);
            case VERB_DELETE: return delete(r, l, answer);
            case VERB_TOUCH: return touch(r, l, answer);
            case VERB_FLUSH: return flush_all(r, l, answer);
            default: return store(r, l, answer);
        }
    }
    by_name(r, l, answer);
}

/* ---- lines ---------------------------------------------------------------------------------------------------------------------- */

/* Only these may be longer than LINE_BYTES_MAX. Told by their first bytes, before the line is whole. */
static bool may_be_long(const uint8_t *bytes, size_t length) {
    size_t blanks = 0;
    while (blanks < length && bytes[blanks] == ' ') blanks++;
    bytes += blanks;
    length -= blanks;
    return blanks <= LEADING_BLANKS_MAX && (starts_with(bytes, length, "get ") || starts_with(bytes, length, "gets ") ||
                                            starts_with(bytes, length, "gat ") || starts_with(bytes, length, "gats ") ||
                                            starts_with(bytes, length, "bget "));
}

static void tokenise(struct line *l) {
    struct token token;
    l->count = 0;
    l->rest = 0;
    while (l->count < TOKENS_MAX && token_next(l->bytes, l->length, &l->rest, &token)) l->tokens[l->count++] = token;
}

void memcached_request(const struct protocol_limits *limits, const uint8_t *bytes, size_t length, struct protocol_request *r,
                       struct buffer *answer) {
    struct line l = {.limits = limits, .bytes = bytes, .bytes_length = length};
    struct parts *p = parts_of(r);
    *p = (struct parts){.item_bytes_max = limits->item_bytes_max < INT32_MAX ? (uint32_t)limits->item_bytes_max : INT32_MAX, .delta = 1};
    r->class = PROTOCOL_MORE;
    r->wanted = 0;
    r->swallow = 0;
    r->key_hash = 0;
    r->all_keys = false;
    r->style = STYLE_PLAIN;
    r->why = NULL;
    if (length == 0) return;
    l.consumed = length; /* where nothing else is found in it */
    if (bytes[0] == 0x80) return request_close(r, &l, answer, "", "it speaks the binary protocol: the client has to be set to the text or meta protocol");
    CHECK(r->scanned <= length);
    const uint8_t *end = memchr(bytes + r->scanned, '\n', length - r->scanned);
    size_t at = end != NULL ? (size_t)(end - bytes) : length;
    if (at > LINE_BYTES_MAX && (at > LONG_LINE_BYTES_MAX || !may_be_long(bytes, at)))
        return request_close(r, &l, answer, "", "a line is too long");
    if (end == NULL) {
        r->scanned = length;
        return;
    }
    r->scanned = at;
    l.consumed = at + 1;
    if (at > 1 && bytes[at - 1] == '\r') at--;
    const uint8_t *nul = memchr(bytes, 0, at);
    l.length = p->line_length = (uint32_t)(nul != NULL ? (size_t)(nul - bytes) : at);
    tokenise(&l);
    command(r, &l, answer);
}
