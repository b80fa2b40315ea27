/* fiber.c: see fiber.h. By ucontext; the sanitizers are told, for they keep a stack's bounds. */
#include "fiber.h"

#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <ucontext.h>

#include "check.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
static void switch_begin(void **save, const void *bottom, size_t bytes) {
    __sanitizer_start_switch_fiber(save, bottom, bytes);
}
static void switch_end(void *save, const void **bottom, size_t *bytes) {
    __sanitizer_finish_switch_fiber(save, bottom, bytes);
}
#else
static void switch_begin(void **save, const void *bottom, size_t bytes) { (void)save, (void)bottom, (void)bytes; }
static void switch_end(void *save, const void **bottom, size_t *bytes) { (void)save, (void)bottom, (void)bytes; }
#endif

#define STACK_BYTES (256u << 10)

struct fiber {
    ucontext_t inside, outside;
    void (*run)(void *);
    void *argument, *stack;
    /* for the sanitizers */
    const void *outer_bottom;
    size_t outer_bytes;
    void *inner_save, *outer_save;
};

static struct fiber *starting; /* makecontext() passes integers only */

static void begin(void) {
    struct fiber *f = starting;
    switch_end(NULL, &f->outer_bottom, &f->outer_bytes);
    f->run(f->argument);
    abort();
}

struct fiber *fiber_new(void (*run)(void *), void *argument) {
    struct fiber *f = calloc(1, sizeof *f);
    CHECK(f != NULL);
    f->run = run;
    f->argument = argument;
    f->stack = mmap(NULL, STACK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    CHECK(f->stack != MAP_FAILED && getcontext(&f->inside) == 0);
    f->inside.uc_stack.ss_sp = f->stack;
    f->inside.uc_stack.ss_size = STACK_BYTES;
    f->inside.uc_link = NULL;
    makecontext(&f->inside, begin, 0);
    return f;
}

void fiber_free(struct fiber *f) {
    if (!f) return;
    munmap(f->stack, STACK_BYTES);
    free(f);
}

void fiber_enter(struct fiber *f) {
    starting = f;
    switch_begin(&f->outer_save, f->stack, STACK_BYTES);
    CHECK(swapcontext(&f->outside, &f->inside) == 0);
    switch_end(f->outer_save, NULL, NULL);
}

void fiber_leave(struct fiber *f) {
    switch_begin(&f->inner_save, f->outer_bottom, f->outer_bytes);
    CHECK(swapcontext(&f->inside, &f->outside) == 0);
    switch_end(f->inner_save, &f->outer_bottom, &f->outer_bytes);
}
