/*
 * view.c: answers of the backend's that tell of the sidecar, as they would be without it. An answer is edited once it is
 * whole. What is not understood is passed on as it is, but for the secret by which the sidecar knows its backend.
 */
#include <stdio.h>

#include "engine/engine_state.h"
#include "engine/view_reply.h"

static void append_bulk(struct buffer *out, const void *bytes, size_t length) {
    char head[32];
    buffer_append(out, head, (size_t)snprintf(head, sizeof head, "$%zu\r\n", length));
    buffer_append(out, bytes, length);
    buffer_text(out, "\r\n");
}

static bool is_token(const struct engine *e, const struct reply_item *item) {
    size_t length = strlen(e->config.feed_token);
    return item->is_bulk && length > 0 && item->length == length && memcmp(item->text, e->config.feed_token, length) == 0;
}

/* A bulk that is the secret is the client's `masterauth` instead, wherever it stands. */
static void view_secrets(struct engine *e, struct buffer *answer) {
    struct reply reply = {buffer_bytes(answer), buffer_bytes(answer) + buffer_length(answer)};
    struct buffer out = {0}, value = {0};
    struct reply_item item;
    while (reply_next(&reply, &item)) {
        if (is_token(e, &item) && config_kept_value(e, "masterauth", 10, &value)) append_bulk(&out, buffer_bytes(&value), buffer_length(&value));
        else buffer_append(&out, item.at, item.whole);
    }
    buffer_append(&out, reply.at, (size_t)(reply.end - reply.at));
    buffer_free(answer);
    buffer_free(&value);
    *answer = out;
}

/* CONFIG GET: names and values in turns. */
static void view_config(struct engine *e, struct buffer *answer) {
    struct reply reply = {buffer_bytes(answer), buffer_bytes(answer) + buffer_length(answer)};
    struct buffer out = {0}, value = {0};
    struct reply_item head, name, item;
    if (reply_next(&reply, &head) && (head.type == '*' || head.type == '%')) {
        buffer_append(&out, head.at, head.whole);
        while (reply_next(&reply, &name) && reply_next(&reply, &item)) {
            buffer_append(&out, name.at, name.whole);
            bool kept = name.is_bulk && config_kept_value(e, name.text, name.length, &value);
            if (kept) append_bulk(&out, buffer_bytes(&value), buffer_length(&value));
            else buffer_append(&out, item.at, item.whole);
        }
        buffer_free(answer);
        *answer = out;
    }
    buffer_free(&value);
}

void view_edit(struct engine *e, enum session_view view, int32_t count, struct buffer *answer) {
    switch (view) {
        case VIEW_CONFIG: view_config(e, answer); break;
        case VIEW_SECRETS: view_secrets(e, answer); break;
        case VIEW_ROLE: view_role(answer); break;
        case VIEW_INFO: view_info(e, answer); break;
        case VIEW_SLOWLOG_GET: slowlog_view(e, count, answer); break;
        case VIEW_SLOWLOG_LEN: slowlog_view_length(e, answer); break;
        case VIEW_SLOWLOG_RESET: slowlog_view_reset(e, answer); break;
        case VIEW_HISTOGRAM: view_histogram(e, answer); break;
        case VIEW_RESETSTAT:
        case VIEW_KILL_REPLICAS:
        case VIEW_CLIENTS:
        case VIEW_CLIENT_ID:
        case VIEW_REDIRECTION:
        case VIEW_PLAIN: break;
    }
}
