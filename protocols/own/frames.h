/*
 * frames.h: what proposers say to a machine of the user's own, and what it answers. Numbers are little-endian.
 *
 * A request is a head of 32 bytes and a body:
 *   0   kind: 'O' open a client, 'P' propose, 'C' close a client, 'R' read
 *   1   three zero bytes
 *   4   u32 bytes of the whole frame
 *   8   u64 client, chosen by the proposer
 *   16  u64 number: of the proposal, by its client, from 1 on; of a read, its own
 *   24  u64 all outcomes up to this number have arrived, and need not be kept
 * P has a body: u32 how many records, their lengths (u32 each), their bytes. The others have none.
 * The one byte '.' asks whether anybody lives, and is answered by itself. In front of what is logged, a server is told its place:
 * 'S', seven zero bytes, u64 number. That is not for clients.
 *
 * A reply is a head of 16 bytes (0 kind, 1 three zero bytes, 4 u32 bytes of the whole frame, 8 u64 number) and a body, or one byte:
 * '.' as above, '!' no place for another client. wire.py has the kinds and bodies.
 */
#ifndef MUSIDECAR_OWN_FRAMES_H
#define MUSIDECAR_OWN_FRAMES_H

#include <stddef.h>
#include <stdint.h>

#define FRAMES_HEAD_BYTES 32u
#define FRAMES_STAMP_BYTES 16u
#define FRAMES_REPLY_HEAD_BYTES 16u
#define FRAMES_BYTES_MAX (16u << 20)        /* of a request */
#define FRAMES_REPLY_BYTES_MAX (1u << 30)
#define FRAMES_PING "."
#define FRAMES_FULL "!"

enum frames_class {
    FRAMES_MORE = 0, /* not whole */
    FRAMES_READ,     /* changes nothing */
    FRAMES_WRITE,
    FRAMES_BAD       /* no request, and so no next one; `why` */
};

struct frames_request {
    enum frames_class class;
    size_t length;   /* bytes of it; once it is not MORE */
    size_t wanted;   /* MORE: nothing changes before so many bytes are there */
    const char *why; /* BAD: static, for the log */
};

/* What stands at the start of a client's bytes. */
enum frames_class frames_request_read(struct frames_request *request, const uint8_t *bytes, size_t length);

/* What a server is told in front of a frame that is logged. */
void frames_stamp(uint64_t number, uint8_t out[FRAMES_STAMP_BYTES]);

struct frames_reply { uint64_t seen, length; }; /* zero in front of a reply */
enum frames_status { FRAMES_REPLY_MORE = 0, FRAMES_REPLY_WHOLE = 1, FRAMES_REPLY_BAD = -1 };

/* Takes bytes of a reply; returns how many. WHOLE: the last of them was its last. */
size_t frames_reply_read(struct frames_reply *reply, const uint8_t *bytes, size_t length, enum frames_status *status);

#endif
