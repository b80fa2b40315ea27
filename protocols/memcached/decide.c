/*
 * decide.c: what comes of a request whose outcome depends on what its key holds: storing and counting here, times and marks in
 * decide_touch.c. The rules are those of do_store_item() and do_add_delta() of the server (memcached.c); what is logged is the item as it is
 * afterwards.
 */
#include "protocols/memcached/decide.h"

#include <stdio.h>

#define CHUNKED_BYTES (512u << 10) /* an item that takes more is kept in pieces, and is never a number */

/* ---- saying and logging -------------------------------------------------------------------------------------------------------- */

void say_text(struct deciding *d, const char *line) {
    buffer_text(d->reply, line);
    put_line_end(d->reply);
}

bool decide_write(struct deciding *d, uint32_t hide) {
    *d->style = STYLE_REPLY | hide;
    return true;
}

void put_mark(struct deciding *d) {
    bool binary;
    buffer_text(d->command, "md ");
    put_meta_key(d->command, &d->key, false, &binary);
    buffer_text(d->command, binary ? " b I\r\n" : " I\r\n");
    d->item->sent = d->item->stolen = d->item->cas_known = false;
}

/* A question that took an item's token logs that it is free again. */
bool decide_nothing(struct deciding *d, uint32_t hide) {
    *d->style = STYLE_REPLY | hide;
    if (!d->item->present || !d->item->stolen) return false;
    put_mark(d);
    return true;
}

static void say_key(struct deciding *d) {
    if (!d->base64) return buffer_append(d->reply, d->key.bytes, d->key.length);
    put_base64(d->reply, d->key.bytes, d->key.length);
    buffer_text(d->reply, " b");
}

static void say_remaining(struct deciding *d, int64_t expires_s) {
    int64_t left = expires_s - backend_s(d);
    if (expires_s == 0) put_i64(d->reply, -1);
    else put_u64(d->reply, left > 0 && expires_s != GONE ? (uint64_t)left : 0);
}

/* Those of `letters`, in the order of the request. N and T, where they are among them, set what a t behind them says. */
void say_meta_flags(struct deciding *d, const char *letters, enum said_cas cas, int64_t expires_s) {
    const struct parts *p = d->parts;
    const struct memcached_item *item = d->item;
    for (uint8_t i = 0; i < p->flag_count; i++) {
        const struct flag *f = &p->flags[i];
        if (strchr(letters, f->letter) == NULL) continue;
        if (f->letter == 'T') expires_s = absolute_s(p->exptime, d->now_s);
        else if (f->letter == 'N') expires_s = absolute_s(p->autoviv_exptime, d->now_s);
        if (f->letter == 'T' || f->letter == 'N') continue;
        buffer_append(d->reply, " ", 1);
        buffer_append(d->reply, d->bytes + f->offset, f->length);
        if (f->letter == 'k') say_key(d);
        else if (f->letter == 'c' && cas == SAID_STORED) buffer_append(d->reply, "", 1);
        else if (f->letter == 'c') put_token(d->reply, d->term, cas == SAID_OWN && item->cas_known ? item->cas : 0);
        else if (f->letter == 't') say_remaining(d, expires_s);
        else if (f->letter == 's') put_u64(d->reply, buffer_length(&item->value));
        else if (f->letter == 'f') put_u64(d->reply, item->client_flags);
        else if (f->letter == 'l') put_u64(d->reply, item->idle_s);
        else if (f->letter == 'h') put_u64(d->reply, item->hit);
    }
}

static void say_outcome(struct deciding *d, enum outcome outcome) {
    static const char *const TEXT[] = {"STORED", "NOT_STORED", "EXISTS", "NOT_FOUND"}, *const META[] = {"HD", "NS", "EX", "NF"};
    if (!d->parts->meta) return say_text(d, TEXT[outcome]);
    buffer_text(d->reply, META[outcome]);
    bool counts = d->parts->verb == VERB_INCR || d->parts->verb == VERB_DECR;
    say_meta_flags(d, counts ? "Ok" : "Okc", outcome == OUTCOME_DONE ? SAID_STORED : SAID_NONE, 0);
    put_line_end(d->reply);
}

static uint32_t hide(const struct deciding *d, bool done) {
    if (!d->parts->quiet) return 0;
    return !d->parts->meta ? STYLE_HIDE_ALL : done ? STYLE_HIDE_REPLY : 0;
}

bool outcome_nothing(struct deciding *d, enum outcome outcome) {
    say_outcome(d, outcome);
    return decide_nothing(d, hide(d, false));
}

static bool refuse(struct deciding *d, const char *error) {
    say_text(d, error);
    return decide_nothing(d, d->parts->meta ? 0 : hide(d, false));
}

static void put_pieces(struct buffer *out, const struct pieces *value) {
    buffer_append(out, value->first, value->first_length);
    buffer_append(out, value->second, value->second_length);
    put_line_end(out);
}

void put_store(struct deciding *d, struct pieces value, uint32_t client_flags, int64_t expires_s, bool as_binary, bool wants_cas) {
    struct buffer *out = d->command;
    bool binary;
    buffer_text(out, "ms ");
    put_meta_key(out, &d->key, as_binary, &binary);
    buffer_append(out, " ", 1);
    put_u64(out, pieces_length(&value));
    if (binary) buffer_text(out, " b");
    if (client_flags != 0) {
        buffer_text(out, " F");
        put_u64(out, client_flags);
    }
    if (expires_s != 0) {
        buffer_text(out, " T");
        put_i64(out, expires_s);
    }
    buffer_text(out, wants_cas ? " c\r\n" : "\r\n");
    put_pieces(out, &value);
}

void put_store_unanswered(struct deciding *d, struct pieces value, uint32_t client_flags, int64_t expires_s) {
    struct buffer *out = d->command;
    buffer_text(out, "set ");
    buffer_append(out, d->key.bytes, d->key.length);
    buffer_append(out, " ", 1);
    put_u64(out, client_flags);
    buffer_append(out, " ", 1);
    put_i64(out, expires_s);
    buffer_append(out, " ", 1);
    put_u64(out, pieces_length(&value));
    buffer_text(out, " noreply\r\n");
    put_pieces(out, &value);
}

/* And it is stale. Under a key that is no text, only one that is there stays stale, and keeps its expiry: it is stored by a CAS number
 * that is lower than any of an item. */
void put_store_stale(struct deciding *d, struct pieces value, uint32_t client_flags, int64_t expires_s, bool as_binary) {
    struct buffer *out = d->command;
    if (key_is_text(&d->key) && !(as_binary && d->key.length <= BINARY_KEY_BYTES_MAX)) {
        put_store_unanswered(d, value, client_flags, expires_s);
        return put_mark(d);
    }
    buffer_text(out, "ms ");
    put_base64(out, d->key.bytes, d->key.length);
    buffer_append(out, " ", 1);
    put_u64(out, pieces_length(&value));
    buffer_text(out, " b C1 I F");
    put_u64(out, client_flags);
    buffer_text(out, d->parts->wants_cas ? " c\r\n" : "\r\n");
    put_pieces(out, &value);
}

/* The pieces may be of the item's own value. */
void item_stored(struct deciding *d, struct pieces value, uint32_t client_flags, int64_t expires_s, bool as_binary) {
    struct memcached_item *item = d->item;
    struct buffer *own = &item->value;
    if (value.second != NULL && value.second == buffer_bytes(own)) { /* in front of what it holds */
        buffer_room(own, value.first_length);
        memmove(buffer_bytes(own) + value.first_length, buffer_bytes(own), value.second_length);
        memcpy(buffer_bytes(own), value.first, value.first_length);
        own->end += value.first_length;
    } else {
        if (value.first == NULL || value.first != buffer_bytes(own)) {
            buffer_clear(own);
            buffer_append(own, value.first, value.first_length);
        }
        buffer_append(own, value.second, value.second_length);
    }
    int64_t lag_s = item->lag_s;
    *item = (struct memcached_item){.value = item->value, .present = true, .binary = as_binary, .client_flags = client_flags,
                                    .expires_s = expires_s, .lag_s = lag_s};
}

/* ---- CAS -------------------------------------------------------------------------------------------------------------------------- */

bool item_matches(const struct deciding *d) {
    const struct memcached_item *item = d->item;
    return item->cas_known && item->cas != 0 && d->parts->cas == (d->term << MEMCACHED_TERM_SHIFT | item->cas);
}

/* An item whose number is not known got it after every token of this term that is out. */
static bool token_is_older(const struct deciding *d) {
    const struct memcached_item *item = d->item;
    uint64_t token = d->parts->cas;
    if (token == 0) return false;
    if (!item->cas_known) return token >> MEMCACHED_TERM_SHIFT <= (d->term & 0xffff);
    return token < (d->term << MEMCACHED_TERM_SHIFT | item->cas);
}

/* ---- storing ------------------------------------------------------------------------------------------------------------------------ */

static bool store(struct deciding *d) {
    const struct parts *p = d->parts;
    struct pieces value = one_piece(d->bytes + p->value_offset, p->value_length);
    int64_t expires_s = absolute_s(p->exptime, d->now_s);
    put_store(d, value, p->client_flags, expires_s, p->binary, p->wants_cas);
    item_stored(d, value, p->client_flags, expires_s, p->binary);
    say_outcome(d, OUTCOME_DONE);
    return decide_write(d, hide(d, true));
}

/* By an older CAS number, with I: the item is stale then, and keeps its expiry. */
static bool store_stale(struct deciding *d) {
    const struct parts *p = d->parts;
    struct pieces value = one_piece(d->bytes + p->value_offset, p->value_length);
    int64_t expires_s = d->item->expires_s;
    put_store_stale(d, value, p->client_flags, expires_s, p->binary);
    item_stored(d, value, p->client_flags, expires_s, p->binary);
    d->item->stale = true;
    say_outcome(d, OUTCOME_DONE);
    return decide_write(d, hide(d, true));
}

static bool cas(struct deciding *d) {
    if (!d->item->present) return outcome_nothing(d, OUTCOME_NOT_FOUND);
    if (item_matches(d)) return store(d);
    if (d->parts->stale && token_is_older(d)) return store_stale(d);
    return outcome_nothing(d, OUTCOME_EXISTS);
}

static bool extend(struct deciding *d, bool behind) {
    const struct parts *p = d->parts;
    struct memcached_item *item = d->item;
    if (!item->present) return outcome_nothing(d, OUTCOME_NOT_STORED);
    if (p->has_cas && p->cas != 0 && !item_matches(d)) return outcome_nothing(d, OUTCOME_EXISTS);
    const uint8_t *new = d->bytes + p->value_offset, *old = buffer_bytes(&item->value);
    size_t length = buffer_length(&item->value);
    struct pieces value = behind ? (struct pieces){old, new, length, p->value_length} : (struct pieces){new, old, p->value_length, length};
    if (item_bytes(d->key.length, item->client_flags, pieces_length(&value)) > p->item_bytes_max) return outcome_nothing(d, OUTCOME_NOT_STORED);
    put_store(d, value, item->client_flags, item->expires_s, false, p->wants_cas);
    item_stored(d, value, item->client_flags, item->expires_s, false);
    say_outcome(d, OUTCOME_DONE);
    return decide_write(d, hide(d, true));
}

/* ---- counting ------------------------------------------------------------------------------------------------------------------------ */

struct decimal { char text[21]; uint8_t length; };

static struct decimal decimal_of(uint64_t value) {
    struct decimal n;
    n.length = (uint8_t)snprintf(n.text, sizeof n.text, "%llu", (unsigned long long)value);
    return n;
}

/* Of ma: `created` or counted. */
static bool say_number(struct deciding *d, const struct decimal *n, bool created, int64_t expires_s) {
    if (!d->parts->meta) {
        say_text(d, n->text);
        return decide_write(d, hide(d, true));
    }
    buffer_text(d->reply, d->parts->wants_value ? "VA " : "HD");
    if (d->parts->wants_value) put_u64(d->reply, n->length);
    say_meta_flags(d, created ? "OkctTN" : "OkctT", SAID_STORED, expires_s);
    put_line_end(d->reply);
    if (d->parts->wants_value) say_text(d, n->text);
    return decide_write(d, hide(d, !created)); /* q hides no item made by N */
}

int64_t created_expires_s(const struct deciding *d) {
    const struct parts *p = d->parts;
    int32_t exptime = 0;
    for (uint8_t i = 0; i < p->flag_count; i++) {
        if (p->flags[i].letter == 'N') exptime = p->autoviv_exptime;
        else if (p->flags[i].letter == 'T') exptime = p->exptime;
    }
    return absolute_s(exptime, d->now_s);
}

static bool create_number(struct deciding *d) {
    struct decimal n = decimal_of(d->parts->initial);
    struct pieces value = one_piece((const uint8_t *)n.text, n.length);
    int64_t expires_s = created_expires_s(d);
    put_store(d, value, 0, expires_s, false, d->parts->wants_cas);
    item_stored(d, value, 0, expires_s, false);
    return say_number(d, &n, true, 0);
}

static bool counted(struct deciding *d, uint64_t number) {
    const struct parts *p = d->parts;
    struct memcached_item *item = d->item;
    struct decimal n = decimal_of(number);
    struct buffer *own = &item->value;
    int64_t before_s = item->expires_s, expires_s = p->meta && p->has_exptime ? absolute_s(p->exptime, d->now_s) : before_s;
    bool in_place = n.length <= buffer_length(own), stale = in_place && item->stale, as_binary = in_place && item->binary;
    if (in_place) { /* blanks take the place of what is left */
        memcpy(buffer_bytes(own), n.text, n.length);
        memset(buffer_bytes(own) + n.length, ' ', buffer_length(own) - n.length);
    } else {
        buffer_clear(own);
        buffer_append(own, n.text, n.length);
    }
    struct pieces value = one_piece(buffer_bytes(own), buffer_length(own));
    bool marked = stale && !as_binary && key_is_text(&d->key);
    if (marked) put_store_stale(d, value, item->client_flags, expires_s, false);
    else put_store(d, value, item->client_flags, expires_s, as_binary, p->wants_cas);
    item_stored(d, value, item->client_flags, expires_s, as_binary);
    item->stale = marked;
    return say_number(d, &n, false, before_s);
}

static bool count(struct deciding *d) {
    static const char NOT_A_NUMBER[] = "CLIENT_ERROR cannot increment or decrement non-numeric value";
    const struct parts *p = d->parts;
    const struct memcached_item *item = d->item;
    size_t length = buffer_length(&item->value);
    uint64_t number;
    if (!item->present) return p->meta && p->has_autoviv ? create_number(d) : outcome_nothing(d, OUTCOME_NOT_FOUND);
    if (length == 0 || item_bytes(d->key.length, item->client_flags, length) > CHUNKED_BYTES) return refuse(d, NOT_A_NUMBER);
    if (p->has_cas && p->cas != 0 && !item_matches(d)) return outcome_nothing(d, OUTCOME_EXISTS);
    if (!read_u64(buffer_bytes(&item->value), length, &number)) return refuse(d, NOT_A_NUMBER);
    if (p->verb == VERB_INCR) return counted(d, number + p->delta);
    return counted(d, p->delta > number ? 0 : number - p->delta);
}

/* ---- which --------------------------------------------------------------------------------------------------------------------------- */

bool memcached_decide(const struct protocol_request *r, const uint8_t *bytes, void *item, uint64_t term, uint64_t now_s,
                      struct buffer *command, struct buffer *reply, uint32_t *style) {
    struct deciding d = {.request = r, .parts = parts(r), .bytes = bytes, .item = item, .term = term, .now_s = now_s, .command = command,
                         .reply = reply, .style = style, .base64 = parts(r)->binary};
    key_of(d.parts, bytes, &d.key);
    *style = r->style;
    if (d.item->failed) return refuse(&d, "SERVER_ERROR out of memory");
    if (d.item->present && is_over(&d, d.item->expires_s)) d.item->present = false;
    switch ((enum verb)d.parts->verb) {
        case VERB_ADD: return d.item->present ? outcome_nothing(&d, OUTCOME_NOT_STORED) : store(&d);
        case VERB_REPLACE: return d.item->present ? store(&d) : outcome_nothing(&d, OUTCOME_NOT_STORED);
        case VERB_CAS: return cas(&d);
        case VERB_APPEND: return extend(&d, true);
        case VERB_PREPEND: return extend(&d, false);
        case VERB_INCR:
        case VERB_DECR: return count(&d);
        case VERB_MG: return decide_mg(&d);
        case VERB_MD: return decide_md(&d);
        default: return decide_touch(&d);
    }
}
