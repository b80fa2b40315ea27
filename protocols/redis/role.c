/* role.c: see role.h. */
#include "protocols/redis/role.h"

#include <string.h>

#include "protocols/redis/digits.h"

struct reader { const uint8_t *bytes; size_t left; };

static bool take_text(struct reader *r, const char *text) {
    size_t length = strlen(text);
    if (r->left < length || memcmp(r->bytes, text, length) != 0) return false;
    r->bytes += length;
    r->left -= length;
    return true;
}

/* "<mark><digits>\r\n" */
static bool take_number(struct reader *r, char mark, uint64_t *value) {
    const uint8_t *end = memchr(r->bytes, '\r', r->left);
    if (end == NULL || r->bytes[0] != (uint8_t)mark) return false;
    size_t digits = (size_t)(end - r->bytes) - 1;
    if (!digits_read(r->bytes + 1, digits, value)) return false;
    r->bytes = end;
    r->left -= digits + 1;
    return take_text(r, "\r\n");
}

static bool take_bulk(struct reader *r, const uint8_t **text, size_t *length) {
    uint64_t n;
    if (!take_number(r, '$', &n) || n > r->left) return false;
    *text = r->bytes;
    *length = (size_t)n;
    r->bytes += n;
    r->left -= (size_t)n;
    return take_text(r, "\r\n");
}

/* "*5 slave <host> :<port> <state> :<offset>"; the offset is -1 when there never was a master. */
static bool read_slave(struct reader *r, struct redis_role *role) {
    const uint8_t *host, *state;
    size_t host_length, state_length;
    uint64_t port;
    if (!take_bulk(r, &host, &host_length) || !take_number(r, ':', &port) || !take_bulk(r, &state, &state_length)) return false;
    role->is_connected = state_length == 9 && memcmp(state, "connected", 9) == 0;
    role->offset = 0;
    if (take_text(r, ":-1\r\n")) return r->left == 0;
    return take_number(r, ':', &role->offset) && r->left == 0;
}

bool redis_role_read(const uint8_t *bytes, size_t length, struct redis_role *role) {
    struct reader r = {bytes, length};
    *role = (struct redis_role){0};
    if (take_text(&r, "*3\r\n$6\r\nmaster\r\n")) { /* then its replicas, which nobody asks for */
        role->is_master = true;
        return take_number(&r, ':', &role->offset);
    }
    return take_text(&r, "*5\r\n$5\r\nslave\r\n") && read_slave(&r, role);
}
