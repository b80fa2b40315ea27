/*
 * request_meta.c: the meta commands: mg ms md ma me mn. Flags are read as proto_text.c of 1.6.18 does: each letter once, what a command
 * has no use for is allowed and ignored, and which of several errors is told is the server's choice.
 */
#include "protocols/memcached/parts.h"

static const char BAD_FORMAT[] = "CLIENT_ERROR bad command line format\r\n";
static const char BAD_TOKEN[] = "CLIENT_ERROR bad token in command line format\r\n";
static const char BAD_FLAG[] = "CLIENT_ERROR invalid or duplicate flag\r\n";
static const char LONG_OPAQUE[] = "CLIENT_ERROR opaque token too long\r\n";
static const char BAD_HEADER[] = "an ms that the server refuses before it knows the length of the value: what follows cannot be told from commands";

struct reading { /* of the flags */
    struct parts *parts;
    const char *error; /* the last one */
    bool failed, long_opaque;
    uint8_t mode;
};

static void check(struct reading *g, bool good, const char *error) {
    if (good) return;
    g->failed = true;
    if (error != NULL) g->error = error;
}

static void time_flag(struct reading *g, const uint8_t *text, uint32_t length, bool *has, int32_t *value) {
    bool good = read_i32(text, length, value);
    if (good) *has = true;
    check(g, good, BAD_TOKEN);
}

/* False: it is none. `text` is what stands behind the letter. */
static bool flag(struct reading *g, uint8_t letter, const uint8_t *text, uint32_t length) {
    struct parts *p = g->parts;
    switch (letter) {
        case 'T': time_flag(g, text, length, &p->has_exptime, &p->exptime); return true;
        case 'N': time_flag(g, text, length, &p->has_autoviv, &p->autoviv_exptime); return true;
        case 'R': time_flag(g, text, length, &p->has_recache, &p->recache_exptime); return true;
        case 'F': check(g, read_u32(text, length, &p->client_flags), NULL); return true;
        case 'C':
            p->has_cas = read_u64(text, length, &p->cas);
            check(g, p->has_cas, BAD_TOKEN);
            return true;
        case 'J': check(g, read_u64(text, length, &p->initial), "CLIENT_ERROR invalid numeric initial value\r\n"); return true;
        case 'D': check(g, read_u64(text, length, &p->delta), "CLIENT_ERROR invalid numeric delta value\r\n"); return true;
        case 'M':
            g->mode = length == 1 ? text[0] : 0;
            check(g, length == 1, "CLIENT_ERROR incorrect length for M token\r\n");
            return true;
        case 'O': g->long_opaque = length + 1 > OPAQUE_BYTES_MAX; return true;
        case 'b': p->binary = true; return true;
        case 'c': p->wants_cas = true; return true;
        case 'v': p->wants_value = true; return true;
        case 'q': p->quiet = true; return true;
        case 'I': p->stale = true; return true;
        default: return letter != 0 && memchr("PLkstflhu", letter, 9) != NULL;
    }
}

/* All tokens from the `first` on. False: what is told is g->error. */
static bool flags(struct reading *g, const struct line *l, uint32_t first) {
    struct parts *p = g->parts;
    bool seen[127] = {false};
    for (uint32_t i = first; i < l->count; i++) {
        const struct token *t = &l->tokens[i];
        uint8_t letter = l->bytes[t->offset];
        if (letter >= sizeof seen || seen[letter]) {
            g->error = "CLIENT_ERROR duplicate flag\r\n";
            return false;
        }
        seen[letter] = true;
        if (letter == 'b') {
            uint8_t decoded[192];
            check(g, base64_decode(l->bytes + p->key_offset, p->key_length, decoded) > 0, "CLIENT_ERROR error decoding key\r\n");
        }
        if (!flag(g, letter, l->bytes + t->offset + 1, t->length - 1)) {
            g->error = "CLIENT_ERROR invalid flag\r\n";
            return false;
        }
        p->flags[p->flag_count++] = (struct flag){letter, letter == 'O' ? (uint8_t)t->length : 1, (uint16_t)t->offset};
    }
    return !g->failed;
}

/* An error of a meta command is always told. */
static void refuse(struct protocol_request *r, const struct line *l, struct buffer *answer, const char *text) {
    parts_of(r)->quiet = false;
    request_answer(r, l, answer, text);
}

/* The key is there, and not too many tokens. False: it has been answered. */
static bool begins(struct protocol_request *r, const struct line *l, struct buffer *answer, const char *too_many) {
    struct parts *p = parts_of(r);
    if (l->count < 2) return refuse(r, l, answer, "ERROR\r\n"), false;
    p->key_offset = l->tokens[1].offset;
    p->key_length = l->tokens[1].length;
    if (p->key_length > KEY_BYTES_MAX) return refuse(r, l, answer, BAD_FORMAT), false;
    if (l->count > META_FLAGS_MAX + 2) return refuse(r, l, answer, too_many), false;
    return true;
}

static void mg(struct protocol_request *r, const struct line *l, struct buffer *answer) {
    struct parts *p = parts_of(r);
    struct reading g = {.parts = p, .error = BAD_FORMAT};
    p->verb = VERB_MG;
    if (!begins(r, l, answer, "CLIENT_ERROR options flags are too long\r\n")) return;
    if (!flags(&g, l, 2)) return refuse(r, l, answer, g.error);
    if (g.long_opaque) return refuse(r, l, answer, LONG_OPAQUE);
    r->style = (p->wants_cas ? STYLE_META_CAS : STYLE_PLAIN) | (p->quiet ? STYLE_HIDE_MISS : 0);
    bool writes = p->has_exptime || p->has_autoviv || p->has_recache;
    bool decides = (l->limits->exact && (p->has_exptime || p->has_autoviv)) || (p->has_autoviv && !parts_key_is_text(p, l->bytes));
    request_of_key(r, l, decides ? PROTOCOL_DECIDE : writes ? PROTOCOL_WRITE : PROTOCOL_READ);
}

/* The command that an ms amounts to; 0: there is no such mode. */
static uint8_t store_verb(uint8_t mode, bool has_cas) {
    switch (mode) {
        case 0:
        case 'S': return has_cas ? VERB_CAS : VERB_SET;
        case 'R': return has_cas ? VERB_CAS : VERB_REPLACE;
        case 'E': return VERB_ADD;
        case 'A': return VERB_APPEND;
        case 'P': return VERB_PREPEND;
        default: return 0;
    }
}

static void ms(struct protocol_request *r, const struct line *l, struct buffer *answer) {
    struct parts *p = parts_of(r);
    struct reading g = {.parts = p, .error = BAD_FORMAT};
    int32_t length;
    p->meta = true;
    if (!begins(r, l, answer, "CLIENT_ERROR options flags too long\r\n")) {
        r->class = PROTOCOL_CLOSE;
        r->why = BAD_HEADER;
        return;
    }
    if (l->count == 2 || !read_i32(l->bytes + l->tokens[2].offset, l->tokens[2].length, &length) || length < 0 || length > INT32_MAX - 2)
        return request_close(r, l, answer, BAD_FORMAT, BAD_HEADER);
    p->value_length = (uint32_t)length;
    bool good = flags(&g, l, 3);
    p->verb = store_verb(g.mode, p->has_cas);
    if (good && g.long_opaque) g.error = LONG_OPAQUE;
    if (good && p->verb == 0) g.error = "CLIENT_ERROR invalid mode for ms M token\r\n";
    if (!good || g.long_opaque || p->verb == 0) {
        p->quiet = false;
        return request_swallow(r, l, answer, g.error, p->value_length);
    }
    r->style = (p->wants_cas ? STYLE_META_CAS : STYLE_PLAIN) | (p->quiet ? STYLE_HIDE_DONE : 0);
    request_value(r, l, answer);
}

static void md(struct protocol_request *r, const struct line *l, struct buffer *answer) {
    struct parts *p = parts_of(r);
    struct reading g = {.parts = p};
    p->verb = VERB_MD;
    if (!begins(r, l, answer, "CLIENT_ERROR options flags too long\r\n")) return;
    if (!flags(&g, l, 2)) return refuse(r, l, answer, BAD_FLAG);
    if (g.long_opaque) return refuse(r, l, answer, LONG_OPAQUE);
    r->style = STYLE_PLAIN | (p->quiet ? STYLE_HIDE_DONE : 0);
    request_of_key(r, l, p->has_cas ? PROTOCOL_DECIDE : PROTOCOL_WRITE);
}

static void ma(struct protocol_request *r, const struct line *l, struct buffer *answer) {
    struct parts *p = parts_of(r);
    struct reading g = {.parts = p};
    p->meta = true;
    p->verb = VERB_INCR;
    if (!begins(r, l, answer, "CLIENT_ERROR options flags too long\r\n")) return;
    if (!flags(&g, l, 2)) return refuse(r, l, answer, BAD_FLAG);
    if (g.mode == 'D' || g.mode == '-') p->verb = VERB_DECR;
    else if (g.mode != 0 && g.mode != 'I' && g.mode != '+') return refuse(r, l, answer, "CLIENT_ERROR invalid mode for ma M token\r\n");
    if (g.long_opaque) return refuse(r, l, answer, LONG_OPAQUE);
    request_of_key(r, l, PROTOCOL_DECIDE);
}

static void me(struct protocol_request *r, const struct line *l, struct buffer *answer) {
    struct parts *p = parts_of(r);
    uint8_t decoded[192];
    p->verb = VERB_ME;
    if (l->count < 2 || l->tokens[1].length > KEY_BYTES_MAX) return refuse(r, l, answer, BAD_FORMAT);
    p->key_offset = l->tokens[1].offset;
    p->key_length = l->tokens[1].length;
    p->binary = l->count >= 3 && token_is(l, 2, "b");
    if (p->binary && base64_decode(l->bytes + p->key_offset, p->key_length, decoded) == 0) return refuse(r, l, answer, BAD_FORMAT);
    r->style = STYLE_ME;
    request_of_key(r, l, PROTOCOL_READ);
}

void request_meta(struct protocol_request *r, const struct line *l, struct buffer *answer) {
    switch (l->bytes[l->tokens[0].offset + 1]) {
        case 'g': return mg(r, l, answer);
        case 's': return ms(r, l, answer);
        case 'd': return md(r, l, answer);
        case 'a': return ma(r, l, answer);
        case 'e': return me(r, l, answer);
        case 'n': return refuse(r, l, answer, "MN\r\n");
        default: return refuse(r, l, answer, "ERROR\r\n");
    }
}
