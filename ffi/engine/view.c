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

/* ---- transactions ------------------------------------------------------------------------------------------------------- */

struct part { uint32_t index; enum session_view view; int32_t count; }; /* of EXEC's answer, counted from 0 */

/* One whole transaction, from MULTI to EXEC. What stands in `views` is, for each of them in turn, how many parts, and these. */
void view_block_note(struct engine *e, const uint8_t *bytes, size_t length, struct buffer *views) {
    const struct resp_limits limits = {UINT32_MAX, UINT32_MAX, 1 << 16, true};
    struct buffer parts = {0};
    struct resp_request request;
    const struct command_info *info;
    uint32_t count = 0;
    for (uint32_t i = 0; length > 0; i++) {
        resp_request_reset(&request);
        if (resp_request_feed(&request, bytes, length, &limits) != RESP_DONE) break;
        bool known = i > 0 && command_lookup(e->context.commands, &request, bytes, &info) == COMMAND_OK;
        bool viewed = known && (info->action == ACTION_VIEW || info->action == ACTION_INFO) && session_view(info) != VIEW_PLAIN;
        const struct part part = {i - 1, viewed ? session_view(info) : VIEW_PLAIN, viewed ? session_view_count(&request, bytes) : 0};
        if (viewed) buffer_append(&parts, &part, sizeof part);
        if (part.view == VIEW_RESETSTAT) memset(e->our_calls, 0, sizeof e->our_calls);
        count += viewed;
        bytes += request.length;
        length -= request.length;
    }
    buffer_append(views, &count, sizeof count);
    buffer_append(views, buffer_bytes(&parts), buffer_length(&parts));
    buffer_free(&parts);
}

static void block_parts(struct engine *e, const uint8_t *parts, uint32_t count, struct buffer *answer) {
    struct reply reply = {buffer_bytes(answer), buffer_bytes(answer) + buffer_length(answer)};
    struct buffer out = {0}, one = {0};
    struct reply_item head;
    struct part part;
    if (!reply_next(&reply, &head) || head.type != '*' || head.number <= 0) return;
    buffer_append(&out, head.at, head.whole);
    for (int64_t i = 0; i < head.number; i++) {
        const uint8_t *from = reply.at;
        if (!reply_skip(&reply)) break;
        if (count > 0) memcpy(&part, parts, sizeof part);
        bool viewed = count > 0 && part.index == (uint32_t)i;
        buffer_clear(&one);
        buffer_append(&one, from, (size_t)(reply.at - from));
        if (viewed) view_edit(e, part.view, part.count, &one);
        buffer_append(&out, buffer_bytes(&one), buffer_length(&one));
        parts += viewed ? sizeof part : 0;
        count -= viewed;
    }
    buffer_append(&out, reply.at, (size_t)(reply.end - reply.at));
    buffer_free(&one);
    buffer_free(answer);
    *answer = out;
}

/* EXEC's answer, or NULL: it was another than that which its client is given. */
void view_block(struct engine *e, struct buffer *views, struct buffer *answer) {
    uint32_t count;
    memcpy(&count, buffer_bytes(views), sizeof count);
    if (answer != NULL) {
        block_parts(e, buffer_bytes(views) + sizeof count, count, answer);
        view_secrets(e, answer);
    }
    buffer_consume(views, sizeof count + count * sizeof(struct part));
}
