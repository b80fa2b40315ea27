/* own_setting.c: see own_setting.h. */
#include "engine/own_setting.h"

#include <stdio.h>

#include "engine/engine_state.h"
#include "protocols/redis/session_word.h"

struct named { uint32_t place /* in the transaction, from 0 */, length; };

static void put(struct buffer *to, uint32_t place, const uint8_t *bytes, size_t length) {
    const struct named head = {place, (uint32_t)length};
    buffer_append(to, &head, sizeof head);
    buffer_append(to, bytes, length);
}

uint32_t own_setting_staged(struct own_settings *s, const struct session_decision *d) {
    if (d->sets == SETS_NOTHING) return 0;
    size_t before = buffer_length(&s->named);
    if (d->sets == SETS_NOW) put(&s->named, 0, d->bytes + d->added, d->length - d->added);
    if (d->sets == SETS_EXEC) {
        buffer_append(&s->named, buffer_bytes(&s->naming), buffer_length(&s->naming));
        buffer_clear(&s->naming);
    }
    if (d->sets < SETS_QUEUED) return (uint32_t)(buffer_length(&s->named) - before);
    if (d->sets & SETS_FIRST) buffer_clear(&s->naming);
    put(&s->naming, (d->sets - SETS_QUEUED) / 2, d->bytes + d->added, d->length - d->added);
    return 0;
}

/* ---- what was done? ------------------------------------------------------------------------------------------------- */

/* The type of an answer's element, which `*bytes` moves behind; 0: there is none. */
static uint8_t next_element(const uint8_t **bytes, size_t *length) {
    struct resp_reply reply;
    enum resp_status status;
    resp_reply_reset(&reply);
    size_t used = resp_reply_feed(&reply, *bytes, *length, &status);
    if (status != RESP_DONE) return 0;
    *bytes += used;
    *length -= used;
    return reply.type;
}

/* EXEC's answer is an array; each of its elements, from the place `*at` on, is the answer to one command. */
static bool succeeded_in(const uint8_t **answer, size_t *length, uint32_t *at, uint32_t place) {
    uint8_t type = 0;
    if (*at > place) return false;
    for (; *at <= place; ++*at) type = next_element(answer, length);
    return type != 0 && type != '-' && type != '!';
}

static void ask(struct engine *e, const uint8_t *bytes, size_t length, uint64_t number) {
    struct resp_request request;
    struct buffer text = {0};
    if (!request_parse(bytes, length, &request) || request.argc < 3) return; /* another node's session made it */
    if (word_is(word_at(&request, bytes, 0), "config")) {
        char head[32];
        buffer_append(&text, head, (size_t)snprintf(head, sizeof head, "*%llu\r\n", (unsigned long long)(request.argc - 2) / 2 + 2));
        buffer_text(&text, "$6\r\n" OUR_CONFIG "\r\n$3\r\nGET\r\n");
        for (uint64_t i = 2; i + 1 < request.argc; i += 2) request_bulk(&text, word_at(&request, bytes, i));
    } else {
        buffer_text(&text, ASK_USERS);
    }
    buffer_append(&e->admin.checks, bytes, length);
    admin_queue(e, (struct admin_expect){.kind = ADMIN_READ, .to = {.node = REPLICA_NOBODY, .sequence = number}, .setting_bytes = (uint32_t)length},
                buffer_bytes(&text), buffer_length(&text));
    buffer_free(&text);
}

/* A question with nothing in it comes last: when it is answered, what the others found is in line for the log. */
static void ask_last(struct engine *e, uint64_t number) {
    static const char nothing[] = ASK_ALIVE;
    admin_queue(e, (struct admin_expect){.kind = ADMIN_READ, .to = {.node = REPLICA_NOBODY, .sequence = number}}, nothing, sizeof nothing - 1);
}

bool own_setting_answered(struct engine *e, struct own_settings *s, uint32_t sets, uint32_t named, const uint8_t *answer, size_t length,
                          uint64_t number) {
    bool array = length > 1 && answer[0] == '*' && answer[1] != '-', one = sets == SETS_NOW;
    const uint8_t *line = array ? memchr(answer, '\n', length) : NULL;
    if (!one && line != NULL) {
        length -= (size_t)(line + 1 - answer);
        answer = line + 1;
    }
    uint32_t at = 0;
    s->waits = false;
    for (uint32_t left = named; left > 0;) {
        struct named head;
        memcpy(&head, buffer_bytes(&s->named), sizeof head);
        if ((one || line != NULL) && succeeded_in(&answer, &length, &at, head.place)) {
            ask(e, buffer_bytes(&s->named) + sizeof head, head.length, number);
            s->waits = true;
        }
        buffer_consume(&s->named, sizeof head + head.length);
        left -= (uint32_t)sizeof head + head.length;
    }
    if (s->waits) ask_last(e, number);
    return s->waits;
}

void own_setting_lost(struct engine *e, struct own_settings *s) {
    while (buffer_length(&s->named) > 0) {
        struct named head;
        memcpy(&head, buffer_bytes(&s->named), sizeof head);
        ask(e, buffer_bytes(&s->named) + sizeof head, head.length, 0);
        buffer_consume(&s->named, sizeof head + head.length);
    }
}

void own_setting_free(struct own_settings *s) {
    buffer_free(&s->naming);
    buffer_free(&s->named);
}

/* ---- what there is -------------------------------------------------------------------------------------------------- */

static void array_head(struct buffer *out, uint64_t words) {
    char head[32];
    buffer_append(out, head, (size_t)snprintf(head, sizeof head, "*%llu\r\n", (unsigned long long)words));
}

/* What the client set, where the server has a value of the sidecar's (config_kept.h); else what the server has. */
static struct word value_of(const struct resp_request *request, const uint8_t *bytes, struct word name, struct word has) {
    for (uint64_t i = 2; config_kept_knows(name.text, name.length) && i + 1 < request->argc; i += 2) {
        struct word set = word_at(request, bytes, i);
        if (set.length == name.length && strncasecmp(set.text, name.text, name.length) == 0) return word_at(request, bytes, i + 1);
    }
    return has;
}

/* CONFIG GET's answer to what the request set, as one that sets the same. */
static void log_config(struct engine *e, const struct resp_request *request, const uint8_t *bytes, const uint8_t *text, size_t length) {
    struct resp_request answer;
    struct buffer out = {0};
    if (length < 4 || text[0] != '*' || !request_parse(text, length, &answer) || answer.argc < 2) return;
    array_head(&out, answer.argc + 2);
    buffer_text(&out, "$6\r\nCONFIG\r\n$3\r\nSET\r\n");
    for (uint64_t i = 0; i + 1 < answer.argc; i += 2) {
        struct word name = word_at(&answer, text, i);
        request_bulk(&out, name);
        request_bulk(&out, value_of(request, bytes, name, word_at(&answer, text, i + 1)));
    }
    admin_setting_add(e, buffer_bytes(&out), buffer_length(&out));
    buffer_free(&out);
}

/* The next rule of a line of ACL LIST: up to a blank, a selector up to its bracket. */
static struct word next_rule(const char **at, const char *end) {
    while (*at < end && **at == ' ') ++*at;
    struct word rule = {*at, 0};
    const char *last = *at < end ? memchr(*at, **at == '(' ? ')' : ' ', (size_t)(end - *at)) : NULL;
    if (last == NULL) last = end;
    else if (*rule.text == '(') last++;
    rule.length = (size_t)(last - rule.text);
    *at = last;
    return rule;
}

/* As "reset" would, which ACL LIST shows ("sanitize-payload") of a user that was never asked for it. */
static const char *const AFRESH[] = {"off", "resetpass", "resetkeys", "resetchannels", "clearselectors", "-@all"};
#define AFRESH_WORDS (sizeof AFRESH / sizeof *AFRESH)

/* The request that makes the user what it is here. ACL LIST's answer: "user NAME RULE ..." for each. */
static void log_user(struct engine *e, struct word name, const struct resp_request *answer, const uint8_t *text) {
    struct buffer rules = {0}, out = {0};
    uint64_t count = 0;
    bool known = false;
    for (uint64_t i = 0; i < answer->argc && !known; i++) {
        struct word line = word_at(answer, text, i);
        const char *at = line.text, *end = line.text + line.length;
        next_rule(&at, end);
        struct word user = next_rule(&at, end);
        known = user.length == name.length && memcmp(user.text, name.text, name.length) == 0;
        for (struct word rule = next_rule(&at, end); known && rule.length > 0; rule = next_rule(&at, end), count++) request_bulk(&rules, rule);
    }
    array_head(&out, known ? count + 3 + AFRESH_WORDS : 3);
    buffer_text(&out, known ? "$3\r\nACL\r\n$7\r\nSETUSER\r\n" : "$3\r\nACL\r\n$7\r\nDELUSER\r\n");
    request_bulk(&out, name);
    for (size_t i = 0; known && i < AFRESH_WORDS; i++) request_bulk(&out, (struct word){AFRESH[i], strlen(AFRESH[i])});
    buffer_append(&out, buffer_bytes(&rules), buffer_length(&rules));
    admin_setting_add(e, buffer_bytes(&out), buffer_length(&out));
    buffer_free(&rules);
    buffer_free(&out);
}

void own_setting_read(struct engine *e, const struct admin_expect *x, const uint8_t *text, size_t length) {
    struct resp_request request, answer;
    const uint8_t *bytes = buffer_bytes(&e->admin.checks);
    if (!engine_leads(e)) return buffer_consume(&e->admin.checks, x->setting_bytes);
    if (x->setting_bytes == 0) return admin_settled_add(e, x->to.sequence);
    CHECK(request_parse(bytes, x->setting_bytes, &request));
    if (word_is(word_at(&request, bytes, 0), "config")) {
        log_config(e, &request, bytes, text, length);
    } else if (request_parse(text, length, &answer)) {
        uint64_t last = word_is(word_at(&request, bytes, 1), "deluser") ? request.argc - 1 : 2;
        for (uint64_t i = 2; i <= last; i++) log_user(e, word_at(&request, bytes, i), &answer, text);
    }
    buffer_consume(&e->admin.checks, x->setting_bytes);
}
