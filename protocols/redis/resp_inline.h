/*
 * resp_inline.h: the arguments of an inline request ("SET key 'a value'\r\n"), split as redis-server does it (sds.c:
 * sdssplitargs). A line holds no NUL: resp_request_feed() never finds the end of one that does.
 */
#ifndef MUSIDECAR_RESP_INLINE_H
#define MUSIDECAR_RESP_INLINE_H

#include "protocols/redis/resp.h"

enum inline_token { INLINE_END = 0, INLINE_ARGUMENT = 1, INLINE_UNBALANCED = -1 };

/* The next argument of the line bytes[*at .. end): its place as it stands there, and its bytes without the quotes, written
 * to `out` unless that is NULL. *at moves behind it. */
enum inline_token inline_next(const uint8_t *bytes, size_t end, size_t *at, struct resp_argument *raw, uint8_t *out,
                              size_t *out_length);

#endif
