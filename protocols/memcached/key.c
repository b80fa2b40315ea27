/* key.c: a request's key, plain or in base64. */
#include "protocols/memcached/parts.h"

#include "check.h"

static const char ALPHABET[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

static int digit(uint8_t c) { /* -1: none */
    if (c >= 'A' && c <= 'Z') return c - 'A';
    if (c >= 'a' && c <= 'z') return c - 'a' + 26;
    if (c >= '0' && c <= '9') return c - '0' + 52;
    return c == '+' ? 62 : c == '/' ? 63 : c == '=' ? 0 : -1;
}

/* The server's reading: what is no digit is passed over, and nothing counts behind the block that has padding. */
size_t base64_decode(const uint8_t *text, size_t length, uint8_t *out) {
    size_t digits = 0, done = 0, in_block = 0, padding = 0;
    uint32_t block = 0;
    for (size_t i = 0; i < length; i++) digits += digit(text[i]) >= 0;
    if (digits == 0 || digits % 4 != 0) return 0;
    for (size_t i = 0; i < length && (in_block > 0 || padding == 0); i++) {
        int d = digit(text[i]);
        if (d < 0) continue;
        padding += text[i] == '=';
        block = block << 6 | (uint32_t)d;
        if (++in_block < 4) continue;
        in_block = 0;
        if (padding > 2) return 0;
        out[done++] = (uint8_t)(block >> 16);
        if (padding < 2) out[done++] = (uint8_t)(block >> 8);
        if (padding < 1) out[done++] = (uint8_t)block;
    }
    return done;
}

void put_base64(struct buffer *out, const uint8_t *bytes, size_t length) {
    for (size_t i = 0; i < length; i += 3) {
        size_t n = length - i < 3 ? length - i : 3;
        uint32_t block = (uint32_t)bytes[i] << 16 | (n > 1 ? (uint32_t)bytes[i + 1] << 8 : 0) | (n > 2 ? bytes[i + 2] : 0);
        char text[4] = {ALPHABET[block >> 18], ALPHABET[block >> 12 & 63], n > 1 ? ALPHABET[block >> 6 & 63] : '=',
                        n > 2 ? ALPHABET[block & 63] : '='};
        buffer_append(out, text, sizeof text);
    }
}

void key_of(const struct parts *p, const uint8_t *bytes, struct key *key) {
    if (!p->binary) {
        key->bytes = bytes + p->key_offset;
        key->length = (uint8_t)p->key_length;
        return;
    }
    size_t length = base64_decode(bytes + p->key_offset, p->key_length, key->decoded);
    CHECK(length > 0 && length <= sizeof key->decoded);
    key->bytes = key->decoded;
    key->length = (uint8_t)length;
}

bool key_is_text(const struct key *key) {
    for (size_t i = 0; i < key->length; i++)
        if (key->bytes[i] == ' ' || key->bytes[i] == '\n' || key->bytes[i] == 0) return false;
    return true;
}

void put_meta_key(struct buffer *out, const struct key *key, bool as_binary, bool *binary) {
    *binary = (as_binary && key->length <= BINARY_KEY_BYTES_MAX) || (key->bytes == key->decoded && !key_is_text(key));
    if (*binary) put_base64(out, key->bytes, key->length);
    else buffer_append(out, key->bytes, key->length);
}
