/*
 * view_stats.c: how often which command was called, and how long it took, without the sidecar's own calls: LATENCY HISTOGRAM
 * and INFO commandstats. The server cannot tell them apart, so what the sidecar has sent since CONFIG RESETSTAT is taken off,
 * from a histogram as the fastest ones, which its questions are. Exact for what travels on one connection with the question;
 * of the others' calls one that is on its way may be missed. More than the server knows of were none: it counts anew.
 */
#include <stdio.h>

#include "engine/engine_state.h"
#include "engine/view_reply.h"

static const char *const NAMES[OUR_CALLS] = {[OUR_CALLS_ROLE] = "role", [OUR_CALLS_PING] = "ping", [OUR_CALLS_SELECT] = "select",
                                             [OUR_CALLS_HELLO] = "hello", [OUR_CALLS_REPLCONF] = "replconf",
                                             [OUR_CALLS_CLIENT_ID] = "client|id", [OUR_CALLS_CLIENT_SETNAME] = "client|setname",
                                             [OUR_CALLS_SLOWLOG_GET] = "slowlog|get", [OUR_CALLS_CONFIG_GET] = "config|get"};

/* Of so many calls of a command these are ours. */
static uint64_t ours(struct engine *e, const char *name, size_t length, uint64_t calls) {
    for (int i = 0; i < OUR_CALLS; i++) {
        if (strlen(NAMES[i]) != length || memcmp(NAMES[i], name, length) != 0) continue;
        if (e->our_calls[i] > calls) e->our_calls[i] = calls;
        return e->our_calls[i];
    }
    return 0;
}

/* "cmdstat_role:calls=2,usec=10,usec_per_call=5.00,rejected_calls=0,failed_calls=0" */
bool view_stats_line(struct engine *e, const char *line, size_t length, struct buffer *out) {
    static const char begin[] = "cmdstat_", calls_is[] = ":calls=", usec_is[] = ",usec=";
    if (length < sizeof begin || memcmp(line, begin, sizeof begin - 1) != 0) return false;
    const char *name = line + sizeof begin - 1, *end = memmem(name, length - sizeof begin + 1, calls_is, sizeof calls_is - 1);
    if (end == NULL) return false;
    uint64_t calls = strtoull(end + sizeof calls_is - 1, NULL, 10), mine = ours(e, name, (size_t)(end - name), calls);
    const char *usec = memmem(end, length - (size_t)(end - line), usec_is, sizeof usec_is - 1);
    const char *rest = usec == NULL ? NULL : memchr(usec + 1, ',', length - (size_t)(usec + 1 - line));
    if (mine == 0 || rest == NULL) return false;
    if (mine == calls) return true;
    char text[128];
    double each = (double)strtoull(usec + sizeof usec_is - 1, NULL, 10) / (double)calls;
    int n = snprintf(text, sizeof text, ":calls=%llu,usec=%.0f", (unsigned long long)(calls - mine), each * (double)(calls - mine));
    buffer_append(out, line, (size_t)(end - line));
    buffer_append(out, text, (size_t)n);
    buffer_append(out, rest, length - (size_t)(rest - line));
    return true;
}

static void append_number(struct buffer *out, char type, int64_t value) {
    char text[32];
    buffer_append(out, text, (size_t)snprintf(text, sizeof text, "%c%lld\r\n", type, (long long)value));
}

/* Times and how many calls took no longer, in turns. */
static bool buckets(struct reply *reply, const struct reply_item *head, int64_t mine, struct buffer *out) {
    struct buffer kept = {0};
    struct reply_item time, count;
    int64_t pairs = head->type == '%' ? head->number : head->number / 2, left = 0;
    bool right = true;
    for (int64_t i = 0; right && i < pairs; i++) {
        right = reply_next(reply, &time) && reply_next(reply, &count) && count.type == ':';
        if (!right || count.number <= mine) continue;
        buffer_append(&kept, time.at, time.whole);
        append_number(&kept, ':', count.number - mine);
        left++;
    }
    append_number(out, (char)head->type, head->type == '%' ? left : 2 * left);
    buffer_append(out, buffer_bytes(&kept), buffer_length(&kept));
    buffer_free(&kept);
    return right;
}

/* One command's: "calls", a number, "histogram_usec", its buckets. False: it is not understood. */
static bool histogram(struct engine *e, struct reply *reply, struct buffer *out, int64_t *count) {
    struct reply_item name, head, calls_is, calls, hist_is, hist;
    const uint8_t *from = reply->at;
    if (!reply_next(reply, &name) || !reply_next(reply, &head) || !reply_next(reply, &calls_is)) return false;
    const uint8_t *upto = reply->at;
    if (!reply_next(reply, &calls) || calls.type != ':' || !reply_next(reply, &hist_is) || !reply_next(reply, &hist)) return false;
    if (memchr("*%", hist.type, 2) == NULL) return false;
    int64_t mine = (int64_t)ours(e, name.text, name.length, (uint64_t)calls.number);
    if (mine > 0 && mine == calls.number) {
        for (int64_t i = hist.type == '%' ? 2 * hist.number : hist.number; i > 0; i--)
            if (!reply_skip(reply)) return false;
        return true;
    }
    ++*count;
    buffer_append(out, from, (size_t)(upto - from));
    append_number(out, ':', calls.number - mine);
    buffer_append(out, hist_is.at, hist_is.whole);
    return buckets(reply, &hist, mine, out);
}

void view_histogram(struct engine *e, struct buffer *answer) {
    struct reply reply = {buffer_bytes(answer), buffer_bytes(answer) + buffer_length(answer)};
    struct buffer kept = {0};
    struct reply_item head;
    int64_t count = 0;
    bool right = reply_next(&reply, &head) && memchr("*%", head.type, 2) != NULL;
    for (int64_t i = right ? (head.type == '%' ? head.number : head.number / 2) : 0; right && i > 0; i--) right = histogram(e, &reply, &kept, &count);
    if (right) {
        buffer_clear(answer);
        append_number(answer, (char)head.type, head.type == '%' ? count : 2 * count);
        buffer_append(answer, buffer_bytes(&kept), buffer_length(&kept));
    }
    buffer_free(&kept);
}
