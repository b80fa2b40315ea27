/*
 * resp.h: framing of the Redis protocol (RESP2, RESP3, inline), incremental and without copying.
 *
 * Requests: resp_request_feed() is given all bytes of a client that are not yet consumed, always starting at the same
 * request, and says whether that request is whole. State is kept between calls, so that a request of n bytes that comes
 * in many parts costs O(n). Limits and error texts are those of redis-server 7.0 (networking.c: processMultibulkBuffer,
 * processInlineBuffer): after an error Redis answers it and closes the connection. Its quirks are kept too, because two
 * parsers that disagree on where a request ends let a client smuggle one: the byte after the '\r' of a length and the two
 * bytes after a bulk may be anything, and a NUL hides the end of its line, so that such a line never ends.
 *
 * Replies: resp_reply_feed() consumes bytes as they come and says where the reply ends; nothing has to be buffered, and
 * elements may be nested to any depth (a script can return thousands of levels).
 */
#ifndef MUSIDECAR_RESP_H
#define MUSIDECAR_RESP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define RESP_ARGUMENTS_KEPT 16u

enum resp_status { RESP_MORE = 0, RESP_DONE = 1, RESP_EMPTY = 2 /* consume `length`, no request (blank line, *0) */, RESP_BAD = -1 };

struct resp_argument { uint32_t offset, length; }; /* from the start of the request; both < 4 GiB */

struct resp_request {
    size_t length;             /* bytes of the whole request, once DONE or EMPTY */
    uint64_t argc;             /* arguments, command name included */
    bool is_inline;            /* to be rewritten by resp_request_normalise() before it goes anywhere */
    struct resp_argument arguments[RESP_ARGUMENTS_KEPT]; /* the first of them; of an inline request still in their quotes */
    const char *error;         /* after RESP_BAD: the text without "-ERR ", e.g. "Protocol error: invalid bulk length";
                                  "": Redis closes without a word (request_bytes_max) */
    char error_text[64];
    /* progress */
    size_t scanned;            /* start of the line or bulk being read */
    size_t searched;           /* no end of line before this */
    uint64_t left;
    uint64_t bulk_left;
    uint32_t stage;
};

struct resp_limits {
    uint64_t bulk_bytes_max;    /* proto-max-bulk-len, 512 MB */
    uint64_t request_bytes_max; /* everything of one request together (client-query-buffer-limit, 1 GB); < 4 GiB */
    uint64_t inline_bytes_max;  /* 64 KB: of an inline request, and of a line with a length */
    bool authenticated;         /* before AUTH Redis allows 10 arguments and 16 KB bulks */
};

void resp_request_reset(struct resp_request *request);
enum resp_status resp_request_feed(struct resp_request *request, const uint8_t *bytes, size_t length,
                                   const struct resp_limits *limits);
/* The i-th argument of a whole request, any i < argc: found by walking when i >= RESP_ARGUMENTS_KEPT. */
struct resp_argument resp_request_argument(const struct resp_request *request, const uint8_t *bytes, uint64_t i);
/* The argument behind `before`, which must not be the last: looking at all arguments of a request is O(length) so. */
struct resp_argument resp_request_next(const struct resp_request *request, const uint8_t *bytes, struct resp_argument before);
/* Bytes that the request takes as an array of bulk strings, and the writing of it (quotes of inline requests resolved). */
size_t resp_request_normalised_bytes(const struct resp_request *request, const uint8_t *bytes);
size_t resp_request_normalise(const struct resp_request *request, const uint8_t *bytes, uint8_t *out);

struct resp_reply {
    uint8_t type;         /* first byte of the outermost element ('|' attributes are skipped: the element behind them) */
    bool is_push;         /* outermost type is '>' */
    bool is_null;         /* "$-1", "*-1" or "_" outermost */
    /* progress */
    uint8_t element;      /* first byte of the element being read */
    bool outermost;       /* it is the outermost one */
    uint32_t stage;
    uint64_t pending;     /* elements still to come, at all levels together */
    uint64_t bulk_left;
    uint32_t line_length;
    char line[32];
};

void resp_reply_reset(struct resp_reply *reply);
/* Consumes bytes of one reply; returns how many. *status: DONE (reset before the next reply), MORE, BAD (not RESP). */
size_t resp_reply_feed(struct resp_reply *reply, const uint8_t *bytes, size_t length, enum resp_status *status);

#endif
