/*
 * request.h: what a client of HERD's may say, in the memcached text protocol or in RESP: told apart by a request's first byte, '*' of a
 * RESP array, so that the bytes alone say what they are. Framing is that of protocols/memcached and protocols/redis.
 *
 * get, set, delete; GET, MGET, SET, DEL, EXISTS. What HERD cannot keep (a value that is too long, an expiry, a condition) is refused
 * here, before anything is logged, and the connection goes on.
 */
#ifndef MUSIDECAR_HERD_REQUEST_H
#define MUSIDECAR_HERD_REQUEST_H

#include "protocols/protocol.h"

/* protocol_request.style: how the answer is put. */
enum herd_style {
    HERD_STYLE_TEXT_GET = 1, HERD_STYLE_TEXT_SET, HERD_STYLE_TEXT_DELETE, HERD_STYLE_GET, HERD_STYLE_MGET, HERD_STYLE_SET, HERD_STYLE_DEL,
    HERD_STYLE_EXISTS, HERD_STYLE_KIND = 15, HERD_STYLE_NO_REPLY = 16
};

void herd_request(const struct protocol_limits *limits, const uint8_t *bytes, size_t length, struct protocol_request *r,
                  struct buffer *answer);
/* Appends it as a request of wire.h. */
void herd_rewrite(const struct protocol_request *r, const uint8_t *bytes, uint64_t now_us, struct buffer *out);

/* request_resp.c */
void herd_resp_request(const uint8_t *bytes, size_t length, struct protocol_request *r, struct buffer *answer);
void herd_resp_rewrite(const struct protocol_request *r, const uint8_t *bytes, struct buffer *out);

/* Appends the head; herd_wire_end() then fills it in. */
size_t herd_wire_begin(struct buffer *out);
void herd_wire_key(struct buffer *out, const uint8_t *key, size_t length);
void herd_wire_put(struct buffer *out, uint32_t flags, const uint8_t *key, size_t key_length, const uint8_t *data, size_t length);
void herd_wire_end(struct buffer *out, size_t began, uint8_t kind, uint32_t items);

#endif
