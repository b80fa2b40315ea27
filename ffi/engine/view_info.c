/* view_info.c: INFO and ROLE without the replica that the sidecar is (R4: the stream), INFO without its calls. */
#include <stdio.h>

#include "engine/engine_state.h"
#include "engine/view_reply.h"

static const char OURS[] = "musidecar"; /* as which the stream replicates: effect.c */

/* ROLE: "master", an offset, and of each replica its address, port and offset. */
void view_role(struct buffer *answer) {
    struct reply reply = {buffer_bytes(answer), buffer_bytes(answer) + buffer_length(answer)};
    struct reply_item head, item, replicas;
    struct buffer kept = {0}, out = {0};
    int64_t count = 0;
    bool right = reply_next(&reply, &head) && head.type == '*' && head.number == 3 && reply_next(&reply, &item) && reply_next(&reply, &item) && item.type == ':';
    const uint8_t *upto = reply.at;
    right = right && reply_next(&reply, &replicas) && replicas.type == '*';
    for (int64_t i = 0; right && i < replicas.number; i++) {
        struct reply one = reply;
        right = reply_next(&one, &head) && reply_next(&one, &item);
        const uint8_t *from = reply.at;
        right = right && reply_skip(&reply);
        if (!right || (item.length == sizeof OURS - 1 && memcmp(item.text, OURS, item.length) == 0)) continue;
        buffer_append(&kept, from, (size_t)(reply.at - from));
        count++;
    }
    if (right) {
        char text[32];
        buffer_append(&out, buffer_bytes(answer), (size_t)(upto - buffer_bytes(answer)));
        buffer_append(&out, text, (size_t)snprintf(text, sizeof text, "*%lld\r\n", (long long)count));
        buffer_append(&out, buffer_bytes(&kept), buffer_length(&kept));
        buffer_free(answer);
        *answer = out;
    }
    buffer_free(&kept);
}

struct info { uint32_t replicas; };

static bool begins(const char *line, size_t length, const char *with) { return length >= strlen(with) && memcmp(line, with, strlen(with)) == 0; }

/* "slave0:ip=musidecar,port=..." */
static bool is_our_replica(const char *line, size_t length) {
    static const char ours[] = ":ip=musidecar,";
    return begins(line, length, "slave") && memmem(line, length, ours, sizeof ours - 1) != NULL;
}

/* A replica of a client's has the number that it would have. */
static bool replica_line(struct info *info, const char *line, size_t length, struct buffer *out) {
    char name[32];
    const char *behind = begins(line, length, "slave") ? memchr(line, ':', length) : NULL;
    if (behind == NULL || behind - line < 6 || line[5] < '0' || line[5] > '9') return false;
    if (is_our_replica(line, length)) return true;
    buffer_append(out, name, (size_t)snprintf(name, sizeof name, "slave%u", info->replicas++));
    buffer_append(out, behind, length - (size_t)(behind - line));
    return true;
}

static bool replicas_line(const char *text, size_t left, const char *line, size_t length, struct buffer *out) {
    static const char name[] = "connected_slaves:";
    char own[48];
    if (!begins(line, length, name)) return false;
    uint32_t count = (uint32_t)strtoul(line + sizeof name - 1, NULL, 10); /* "\r" ends it */
    for (const char *end = text + left, *next; text < end && count > 0; text = next) {
        const char *stop = memchr(text, '\n', (size_t)(end - text));
        next = stop == NULL ? end : stop + 1;
        if (is_our_replica(text, (size_t)(next - text))) count--;
    }
    buffer_append(out, own, (size_t)snprintf(own, sizeof own, "%s%u\r\n", name, count));
    return true;
}

/* Those of all nodes. Replicas are counted apart. */
static bool clients_line(struct engine *e, const char *line, size_t length, struct buffer *out) {
    static const char name[] = "connected_clients:";
    char own[48];
    if (!begins(line, length, name)) return false;
    uint64_t all = census_count(e), replicas = e->owns.replicas;
    buffer_append(out, own, (size_t)snprintf(own, sizeof own, "%s%llu\r\n", name, (unsigned long long)(all > replicas ? all - replicas : 0)));
    return true;
}

static void info_edit(struct engine *e, const char *text, size_t left, struct buffer *out) {
    struct info info = {0};
    while (left > 0) {
        const char *stop = memchr(text, '\n', left), *line = text;
        size_t length = stop == NULL ? left : (size_t)(stop - text) + 1;
        text += length;
        left -= length;
        if (view_stats_line(e, line, length, out) || clients_line(e, line, length, out)) continue;
        if (replicas_line(text, left, line, length, out) || replica_line(&info, line, length, out)) continue;
        buffer_append(out, line, length);
    }
}

void view_info(struct engine *e, struct buffer *answer) {
    struct reply reply = {buffer_bytes(answer), buffer_bytes(answer) + buffer_length(answer)};
    struct reply_item item;
    if (!reply_next(&reply, &item) || !item.is_bulk) return;
    struct buffer text = {0}, out = {0};
    char head[32];
    info_edit(e, item.text, item.length, &text);
    buffer_append(&out, head, (size_t)snprintf(head, sizeof head, "%c%zu\r\n", item.type, buffer_length(&text)));
    buffer_append(&out, buffer_bytes(&text), buffer_length(&text));
    buffer_text(&out, "\r\n");
    buffer_free(&text);
    buffer_free(answer);
    *answer = out;
}
