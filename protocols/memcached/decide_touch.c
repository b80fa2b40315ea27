/* decide_touch.c: what concerns an item's time or mark and leaves its value: touch, gat, mg with T or N, md with C. */
#include "protocols/memcached/decide.h"

/*
 * Where an item had little time left and gets more, a node that comes to it late (it was slow, or is being filled) may find it gone, and
 * would stay without it: so it is stored anew, which costs it its CAS number. Not one that is marked: the marks would go.
 */
static bool must_store(const struct deciding *d, int64_t expires_s) {
    const struct memcached_item *item = d->item;
    if (item->expires_s == 0 || item->stale || item->sent) return false;
    bool longer = expires_s == 0 || expires_s > item->expires_s;
    return longer && item->expires_s - backend_s(d) < PROLONGED_S;
}

static struct pieces own_value(const struct deciding *d) { return one_piece(buffer_bytes(&d->item->value), buffer_length(&d->item->value)); }

static void put_touch(struct deciding *d, int64_t expires_s) {
    buffer_text(d->command, "touch ");
    buffer_append(d->command, d->key.bytes, d->key.length);
    buffer_append(d->command, " ", 1);
    put_i64(d->command, expires_s);
    if (!d->item->stolen) return put_line_end(d->command);
    buffer_text(d->command, " noreply\r\n"); /* see decide_nothing() */
    put_mark(d);
}

/* The CAS number of gats: what it is now, or a NUL for what storing it brings. */
static void say_value(struct deciding *d, bool stored) {
    const struct memcached_item *item = d->item;
    struct buffer *out = d->reply;
    buffer_text(out, "VALUE ");
    buffer_append(out, d->key.bytes, d->key.length);
    buffer_append(out, " ", 1);
    put_u64(out, item->client_flags);
    buffer_append(out, " ", 1);
    put_u64(out, buffer_length(&item->value));
    if (d->parts->verb == VERB_GATS) {
        buffer_append(out, " ", 1);
        if (stored) buffer_append(out, "", 1);
        else put_token(out, d->term, item->cas_known ? item->cas : 0);
    }
    put_line_end(out);
    buffer_append(out, buffer_bytes(&item->value), buffer_length(&item->value));
    say_text(d, "\r\nEND");
}

bool decide_touch(struct deciding *d) {
    const struct parts *p = d->parts;
    struct memcached_item *item = d->item;
    bool gat = p->verb != VERB_TOUCH;
    uint32_t hide = p->quiet ? STYLE_HIDE_ALL : 0;
    int64_t expires_s = absolute_s(p->exptime, d->now_s);
    if (!item->present) {
        say_text(d, gat ? "END" : "NOT_FOUND");
        return decide_nothing(d, hide);
    }
    bool stores = must_store(d, expires_s) || (p->verb == VERB_GATS && !item->cas_known && !item->stale && !item->sent);
    if (stores) {
        put_store(d, own_value(d), item->client_flags, expires_s, item->binary, p->verb == VERB_GATS);
        item->cas_known = false;
    } else {
        put_touch(d, expires_s);
    }
    if (gat) say_value(d, stores);
    else say_text(d, "TOUCHED");
    item->expires_s = expires_s;
    return decide_write(d, hide);
}

/* ---- mg ---------------------------------------------------------------------------------------------------------------------------- */

/*
 * The server prints the key of an item that N made as it is, even under a key that is no text: a line end in it would end the answer. So
 * such an item is stored in the usual way, and that its token is out is not known to the server.
 */
static bool mg_create_binary(struct deciding *d) {
    const struct parts *p = d->parts;
    int64_t expires_s = created_expires_s(d);
    put_store(d, one_piece(NULL, 0), 0, expires_s, true, p->wants_cas);
    item_stored(d, one_piece(NULL, 0), 0, expires_s, true);
    buffer_text(d->reply, p->wants_value ? "VA 0" : "HD");
    say_meta_flags(d, "OkctTNsflh", SAID_STORED, 0);
    buffer_text(d->reply, p->wants_value ? " W\r\n\r\n" : " W\r\n");
    return decide_write(d, 0);
}

static bool mg_absent(struct deciding *d) {
    const struct parts *p = d->parts;
    struct memcached_item *item = d->item;
    if (p->has_autoviv && !key_is_text(&d->key)) return mg_create_binary(d);
    if (p->has_autoviv) {
        rewrite_mg(d->command, p, d->bytes, d->now_s, true);
        item_stored(d, one_piece(NULL, 0), 0, created_expires_s(d), false);
        item->sent = true;
        return true;
    }
    buffer_text(d->reply, "EN");
    say_meta_flags(d, "Ok", SAID_NONE, 0);
    put_line_end(d->reply);
    return decide_nothing(d, p->quiet ? STYLE_HIDE_REPLY : 0);
}

/* N finds an item: nothing is to be logged. The question counted as the use that this is, and the token that it took is this client's. */
static bool mg_hit(struct deciding *d) {
    struct memcached_item *item = d->item;
    bool value = d->parts->wants_value, stolen = item->stolen;
    buffer_text(d->reply, value ? "VA " : "HD");
    if (value) put_u64(d->reply, buffer_length(&item->value));
    d->base64 = item->binary || !key_is_text(&d->key);
    say_meta_flags(d, "Okctsflh", SAID_OWN, item->expires_s);
    if (item->sent && !stolen) buffer_text(d->reply, " Z");
    if (item->stale) buffer_text(d->reply, " X");
    if (stolen) buffer_text(d->reply, " W");
    put_line_end(d->reply);
    if (value) {
        buffer_append(d->reply, buffer_bytes(&item->value), buffer_length(&item->value));
        put_line_end(d->reply);
    }
    item->stolen = false;
    return decide_nothing(d, 0);
}

bool decide_mg(struct deciding *d) {
    const struct parts *p = d->parts;
    struct memcached_item *item = d->item;
    int64_t expires_s = absolute_s(p->exptime, d->now_s);
    if (!item->present) return mg_absent(d);
    if (!p->has_exptime && !p->has_recache) return mg_hit(d);
    if (p->has_exptime && must_store(d, expires_s) && !item->binary && key_is_text(&d->key)) {
        put_store_unanswered(d, own_value(d), item->client_flags, expires_s);
        item->cas_known = false;
    }
    rewrite_mg(d->command, p, d->bytes, d->now_s, false);
    if (item->stolen) *d->style |= STYLE_WON;
    item->stolen = false;
    item->sent |= p->has_recache;
    if (p->has_exptime) item->expires_s = expires_s;
    return true;
}

/* ---- md with a CAS number ------------------------------------------------------------------------------------------------------------- */

static bool md_nothing(struct deciding *d, const char *outcome) {
    buffer_text(d->reply, outcome);
    say_meta_flags(d, "Ok", SAID_NONE, 0);
    put_line_end(d->reply);
    return decide_nothing(d, 0);
}

bool decide_md(struct deciding *d) {
    const struct parts *p = d->parts;
    struct memcached_item *item = d->item;
    if (!item->present) return md_nothing(d, "NF");
    if (!item_matches(d)) return md_nothing(d, "EX");
    memcached_rewrite(d->request, d->bytes, d->now_s, d->command);
    item->present = p->stale;
    item->stale = true;
    item->sent = item->stolen = item->cas_known = false;
    if (p->has_exptime) item->expires_s = absolute_s(p->exptime, d->now_s);
    return true;
}
