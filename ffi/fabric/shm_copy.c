#include "fabric/shm_copy.h"

#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <ucontext.h>

#include "check.h"

#if defined(__x86_64__) && !defined(MUSIDECAR_PORTABLE_COPY)

/* The copy is a leaf without a stack frame, so the handler can let it return from wherever it is. It costs the request
 * path nothing, and no sanitizer's bookkeeping stands between a store and its refusal.
 *   rdi to, rsi bytes, rdx length; r10 .. r11 what may be refused; r8 the tail word, for r9.
 * Long ones by `rep movsb`: its stores are unordered among themselves, but not with the tail word's behind them. */
bool shm_copy_leaf(uint8_t *to, const void *bytes, uint64_t length);
extern const char shm_copy_leaf_end[], shm_copy_refused[];
__asm__(".text\n"
        ".p2align 4\n"
        ".hidden shm_copy_leaf, shm_copy_leaf_end, shm_copy_refused\n"
        ".globl shm_copy_leaf, shm_copy_leaf_end, shm_copy_refused\n"
        ".type shm_copy_leaf, @function\n"
        "shm_copy_leaf:\n"
        "    movq %rdi, %r10\n"
        "    leaq (%rdi,%rdx), %r11\n"
        "    movq %rdx, %rcx\n"
        "    subq $8, %rcx\n"
        "    jb 6f\n"
        "    movq (%rsi,%rcx), %r8\n"
        "    leaq (%rdi,%rcx), %r9\n"
        "    cmpq $1024, %rcx\n"
        "    ja 5f\n"
        "1:  cmpq $64, %rcx\n" /* records are whole lines, mostly */
        "    jb 2f\n"
        "    movups (%rsi), %xmm0\n"
        "    movups 16(%rsi), %xmm1\n"
        "    movups 32(%rsi), %xmm2\n"
        "    movups 48(%rsi), %xmm3\n"
        "    movups %xmm0, (%rdi)\n"
        "    movups %xmm1, 16(%rdi)\n"
        "    movups %xmm2, 32(%rdi)\n"
        "    movups %xmm3, 48(%rdi)\n"
        "    addq $64, %rsi\n"
        "    addq $64, %rdi\n"
        "    subq $64, %rcx\n"
        "    jmp 1b\n"
        "2:  cmpq $8, %rcx\n"
        "    jb 3f\n"
        "    movq (%rsi), %rax\n"
        "    movq %rax, (%rdi)\n"
        "    addq $8, %rsi\n"
        "    addq $8, %rdi\n"
        "    subq $8, %rcx\n"
        "    jmp 2b\n"
        "3:  testq %rcx, %rcx\n"
        "    je 4f\n"
        "    movb (%rsi), %al\n"
        "    movb %al, (%rdi)\n"
        "    incq %rsi\n"
        "    incq %rdi\n"
        "    decq %rcx\n"
        "    jmp 3b\n"
        "4:  movq %r8, (%r9)\n"
        "    movl $1, %eax\n"
        "    ret\n"
        "5:  rep movsb\n"
        "    jmp 4b\n"
        "6:  movq %rdx, %rcx\n" /* shorter than a tail word */
        "    rep movsb\n"
        "    movl $1, %eax\n"
        "    ret\n"
        "shm_copy_refused:\n"
        "    xorl %eax, %eax\n"
        "    ret\n"
        "shm_copy_leaf_end:\n"
        ".size shm_copy_leaf, . - shm_copy_leaf\n");

bool shm_copy(uint8_t *to, const void *bytes, uint32_t length) { return shm_copy_leaf(to, bytes, length); }

/* Was it a store of the copy? Then the interrupted thread goes on where the copy returns false. */
static bool refuse(uintptr_t address, ucontext_t *context) {
    greg_t *registers = context->uc_mcontext.gregs;
    uintptr_t at = (uintptr_t)registers[REG_RIP];
    if (at < (uintptr_t)shm_copy_leaf || at >= (uintptr_t)shm_copy_leaf_end) return false;
    if (address < (uintptr_t)registers[REG_R10] || address >= (uintptr_t)registers[REG_R11]) return false;
    registers[REG_RIP] = (greg_t)(uintptr_t)shm_copy_refused;
    return true;
}

#else

struct guarded {
    sigjmp_buf refused;
    uintptr_t from, until;
};

/* Initial-exec: reading it in a signal handler must not allocate. */
static _Thread_local struct guarded *volatile guarded_now __attribute__((tls_model("initial-exec")));

/* Apart, so that no variable lives across the jump. Not for ThreadSanitizer, whose store takes a lock that the jump
 * would leave behind. */
__attribute__((no_sanitize("thread"))) static void copy_tail_last(uint8_t *to, const uint8_t *bytes, uint32_t length) {
    const uint32_t word = sizeof(uint64_t);
    uint64_t tail;
    if (length < word) {
        memcpy(to, bytes, length);
        return;
    }
    memcpy(to, bytes, length - word);
    memcpy(&tail, bytes + length - word, word);
    uint8_t *last = to + length - word;
    if ((uintptr_t)last % word == 0) {
        atomic_store_explicit((_Atomic uint64_t *)(void *)last, tail, memory_order_release);
    } else {
        atomic_thread_fence(memory_order_release);
        memcpy(last, &tail, word);
    }
}

__attribute__((no_sanitize("thread"))) bool shm_copy(uint8_t *to, const void *bytes, uint32_t length) {
    struct guarded guarded;
    guarded.from = (uintptr_t)to;
    guarded.until = guarded.from + length;
    if (sigsetjmp(guarded.refused, 0)) {
        guarded_now = NULL;
        return false;
    }
    guarded_now = &guarded;
    atomic_signal_fence(memory_order_seq_cst);
    copy_tail_last(to, bytes, length);
    atomic_signal_fence(memory_order_seq_cst);
    guarded_now = NULL;
    return true;
}

static bool refuse(uintptr_t address, ucontext_t *context) {
    struct guarded *guarded = guarded_now;
    if (!guarded || address < guarded->from || address >= guarded->until) return false;
    pthread_sigmask(SIG_SETMASK, &context->uc_sigmask, NULL); /* as it was: this handler does not return */
    siglongjmp(guarded->refused, 1);
}

#endif

static struct sigaction handled_before;
static pthread_once_t handled_once = PTHREAD_ONCE_INIT;

static void on_bus_error(int number, siginfo_t *info, void *context) {
    if (refuse((uintptr_t)info->si_addr, context)) return;
    if (handled_before.sa_flags & SA_SIGINFO) {
        handled_before.sa_sigaction(number, info, context);
    } else if (handled_before.sa_handler != SIG_DFL && handled_before.sa_handler != SIG_IGN) {
        handled_before.sa_handler(number);
    } else {
        signal(number, SIG_DFL); /* on return the instruction faults again */
    }
}

static void install_handler(void) {
    struct sigaction action = {.sa_sigaction = on_bus_error, .sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK};
    CHECK(sigaction(SIGBUS, &action, &handled_before) == 0);
}

void shm_copy_init(void) { CHECK(pthread_once(&handled_once, install_handler) == 0); }
