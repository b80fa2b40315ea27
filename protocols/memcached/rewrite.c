/* rewrite.c: what the backend is given for a request that needs no decision. */
#include "protocols/memcached/parts.h"

#include "check.h"

/* No server began before this: an absolute time of flush_all before it is a delay of more than 30 days by mistake, which flushes nothing. */
#define FIRST_START_S 1000000000

static void put_text_key(struct buffer *out, const char *name, const struct parts *p, const uint8_t *bytes) {
    buffer_text(out, name);
    buffer_append(out, bytes + p->key_offset, p->key_length);
}

/* The tokens, but for what is dropped. */
static void put_tokens(struct buffer *out, const struct parts *p, const uint8_t *bytes) {
    uint32_t at = 0, count = 0;
    size_t before_last = buffer_length(out);
    for (struct token token; count < TOKENS_MAX && token_next(bytes, p->line_length, &at, &token); count++) {
        before_last = buffer_length(out);
        if (count > 0) buffer_append(out, " ", 1);
        buffer_append(out, bytes + token.offset, token.length);
    }
    if (p->quiet) out->end -= buffer_length(out) - before_last;
    put_line_end(out);
}

static void put_keys(struct buffer *out, const struct parts *p, const uint8_t *bytes) {
    uint32_t at = p->key_offset;
    for (struct token token; token_next(bytes, p->line_length, &at, &token);) {
        buffer_append(out, " ", 1);
        buffer_append(out, bytes + token.offset, token.length);
    }
    put_line_end(out);
}

static void put_value(struct buffer *out, const struct parts *p, const uint8_t *bytes) {
    buffer_append(out, bytes + p->value_offset, (size_t)p->value_length + 2);
}

/* In the order of the request, because the answer has that order: those of `letters`. */
static void put_flags(struct buffer *out, const struct parts *p, const uint8_t *bytes, uint64_t now_s, const char *letters) {
    for (uint8_t i = 0; i < p->flag_count; i++) {
        const struct flag *f = &p->flags[i];
        if (strchr(letters, f->letter) == NULL) continue;
        buffer_append(out, " ", 1);
        buffer_append(out, bytes + f->offset, f->length);
        if (f->letter == 'T') put_i64(out, absolute_s(p->exptime, now_s));
        else if (f->letter == 'N') put_i64(out, absolute_s(p->autoviv_exptime, now_s));
        else if (f->letter == 'R') put_i64(out, absolute_s(p->recache_exptime, now_s));
        else if (f->letter == 'F') put_u64(out, p->client_flags);
    }
    put_line_end(out);
}

void rewrite_mg(struct buffer *out, const struct parts *p, const uint8_t *bytes, uint64_t now_s, bool creates) {
    put_text_key(out, "mg ", p, bytes);
    put_flags(out, p, bytes, now_s, creates ? "bcfhklOstuvTNR" : "bcfhklOstuvTR");
}

static void set(struct buffer *out, const struct parts *p, const uint8_t *bytes, uint64_t now_s) {
    put_text_key(out, p->meta ? "ms " : "set ", p, bytes);
    buffer_append(out, " ", 1);
    if (p->meta) {
        put_u64(out, p->value_length);
        put_flags(out, p, bytes, now_s, "bckOTF");
    } else {
        put_u64(out, p->client_flags);
        buffer_append(out, " ", 1);
        put_i64(out, absolute_s(p->exptime, now_s));
        buffer_append(out, " ", 1);
        put_u64(out, p->value_length);
        put_line_end(out);
    }
    put_value(out, p, bytes);
}

/* With a delay: a request that does nothing, and says when (memcached_delays()). */
static void flush_all(struct buffer *out, const struct parts *p, uint64_t now_s) {
    int64_t at = absolute_s(p->exptime, now_s);
    bool never = p->exptime > RELATIVE_S_MAX && at < FIRST_START_S;
    if (at > (int64_t)now_s || never) {
        buffer_text(out, DELAY);
        put_u64(out, never ? 0 : (uint64_t)at);
    } else {
        buffer_text(out, FLUSH);
    }
    put_line_end(out);
}

const char memcached_flush[] = FLUSH "\r\n";

bool memcached_delays(const uint8_t *command, size_t length, uint64_t *due_s) {
    *due_s = 0;
    if (begins_word(command, length, FLUSH)) return true;
    if (!starts_with(command, length, DELAY)) return false;
    for (size_t at = sizeof DELAY - 1; at < length && command[at] >= '0' && command[at] <= '9'; at++) *due_s = *due_s * 10 + (uint64_t)(command[at] - '0');
    return true;
}

void memcached_rewrite(const struct protocol_request *r, const uint8_t *bytes, uint64_t now_s, struct buffer *out) {
    const struct parts *p = parts(r);
    if (p->too_large) {
        put_text_key(out, "md ", p, bytes);
        return buffer_text(out, p->binary ? " b\r\n" : "\r\n");
    }
    switch ((enum verb)p->verb) {
        case VERB_GET:
        case VERB_GETS:
            buffer_text(out, p->verb == VERB_GET ? "get" : "gets");
            return put_keys(out, p, bytes);
        case VERB_GAT:
        case VERB_GATS:
            buffer_text(out, p->verb == VERB_GAT ? "gat " : "gats ");
            put_i64(out, absolute_s(p->exptime, now_s));
            return put_keys(out, p, bytes);
        case VERB_ME:
            put_text_key(out, "me ", p, bytes);
            return buffer_text(out, p->binary ? " b\r\n" : "\r\n");
        case VERB_MG: return rewrite_mg(out, p, bytes, now_s, true);
        case VERB_MD:
            put_text_key(out, "md ", p, bytes);
            return put_flags(out, p, bytes, now_s, p->stale ? "bkOIT" : "bkO");
        case VERB_TOUCH:
            put_text_key(out, "touch ", p, bytes);
            buffer_append(out, " ", 1);
            put_i64(out, absolute_s(p->exptime, now_s));
            return put_line_end(out);
        case VERB_DELETE:
            put_text_key(out, "delete ", p, bytes);
            return put_line_end(out);
        case VERB_FLUSH: return flush_all(out, p, now_s);
        case VERB_SET: return set(out, p, bytes, now_s);
        default:
            CHECK(p->verb == VERB_LINE);
            return put_tokens(out, p, bytes);
    }
}
