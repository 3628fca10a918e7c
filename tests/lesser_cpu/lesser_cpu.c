/* Makes every library in a process see a CPU with fewer instructions, at full speed: preload it (LD_PRELOAD).
 *
 * Libraries ask the CPUID instruction what there is. Linux lets a process make that instruction fault (arch_prctl(2),
 * ARCH_SET_CPUID; CPUs that have it say "cpuid_fault"), so this library answers in its place, from a table that it read before,
 * without the bits that LESSER_CPU names: "avx2" (no AVX-512, no AMX, no VNNI), "avx512" (no VNNI, no BF16, no FP16, no AMX) or
 * "sse4" (no AVX at all). The instructions are still there: code that does not ask may still use them.
 */
#define _GNU_SOURCE
#include <cpuid.h>
#include <dlfcn.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#define ARCH_SET_CPUID 0x1012
#define BIT(n) (1u << (n))
#define ROOM 4096

struct answer {
    uint32_t leaf, subleaf, a, b, c, d;
};

static struct answer answers[ROOM];
static size_t known;
static struct sigaction before; /* what the process wants done with its own segmentation faults */
static int (*real_sigaction)(int, const struct sigaction *, struct sigaction *);

/* Bits of Intel's manual, volume 2, table "Information Returned by CPUID Instruction". */
static void hide(struct answer *it) {
    static int fewer = -1; /* 0: AVX-512 stays, 1: AVX2 stays, 2: nothing of AVX stays */
    if (fewer < 0) {
        const char *name = getenv("LESSER_CPU");
        fewer = name && !strcmp(name, "sse4") ? 2 : name && !strcmp(name, "avx512") ? 0 : 1;
    }
    if (it->leaf == 1 && fewer == 2) it->c &= ~(BIT(12) | BIT(28) | BIT(29)); /* fma, avx, f16c */
    if (it->leaf == 7 && it->subleaf == 0) {
        if (fewer >= 1) { /* avx512: f, dq, ifma, pf, er, cd, bw, vl; vbmi, vbmi2, bitalg, vpopcntdq; vp2intersect */
            it->b &= ~(BIT(16) | BIT(17) | BIT(21) | BIT(26) | BIT(27) | BIT(28) | BIT(30) | BIT(31));
            it->c &= ~(BIT(1) | BIT(6) | BIT(12) | BIT(14));
            it->d &= ~BIT(8);
        }
        if (fewer == 2) it->b &= ~BIT(5), it->c &= ~(BIT(9) | BIT(10)); /* avx2; vaes, vpclmulqdq */
        it->c &= ~BIT(11); /* avx512_vnni */
        it->d &= ~(BIT(2) | BIT(3) | BIT(22) | BIT(23) | BIT(24) | BIT(25)); /* 4vnniw, 4fmaps, amx_bf16, avx512_fp16, amx */
    }
    if (it->leaf == 7 && it->subleaf == 1) {
        it->a &= ~(BIT(4) | BIT(5) | BIT(21) | BIT(23)); /* avx_vnni, avx512_bf16, amx_fp16, avx_ifma */
        it->d &= ~(BIT(4) | BIT(5) | BIT(8) | BIT(10) | BIT(19)); /* avx_vnni_int8, ne_convert, amx_complex, int16, avx10 */
    }
    if (it->leaf == 0x1d || it->leaf == 0x1e || it->leaf == 0x24) it->a = it->b = it->c = it->d = 0;
    if (it->leaf == 0x80000001u && fewer == 2) it->c &= ~(BIT(11) | BIT(16)); /* xop, fma4 */
}

static void learn(uint32_t leaf, uint32_t subleaf) {
    if (known == ROOM) return;
    struct answer *it = &answers[known++];
    it->leaf = leaf, it->subleaf = subleaf;
    __cpuid_count(leaf, subleaf, it->a, it->b, it->c, it->d);
    hide(it);
}

static void learn_from(uint32_t first) {
    uint32_t last, b, c, d;
    __cpuid(first, last, b, c, d);
    if (last < first || last > first + 0x40) return; /* no such range on this CPU */
    for (uint32_t leaf = first; leaf <= last; leaf++)
        for (uint32_t subleaf = 0; subleaf < 32; subleaf++) learn(leaf, subleaf);
}

static const struct answer *look_up(uint32_t leaf, uint32_t subleaf) {
    static const struct answer nothing;
    for (size_t i = 0; i < known; i++)
        if (answers[i].leaf == leaf && answers[i].subleaf == (subleaf < 32 ? subleaf : 31)) return &answers[i];
    return &nothing;
}

static void on_fault(int number, siginfo_t *info, void *context) {
    greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
    const unsigned char *code = (const unsigned char *)registers[REG_RIP];
    /* The general protection fault of CPUID has no address; any other fault might lie in code that cannot be read. */
    if (info->si_code == SI_KERNEL && info->si_addr == NULL && code[0] == 0x0f && code[1] == 0xa2) {
        const struct answer *it = look_up((uint32_t)registers[REG_RAX], (uint32_t)registers[REG_RCX]);
        registers[REG_RAX] = it->a, registers[REG_RBX] = it->b, registers[REG_RCX] = it->c, registers[REG_RDX] = it->d;
        registers[REG_RIP] += 2;
        return;
    }
    if (before.sa_flags & SA_SIGINFO) return before.sa_sigaction(number, info, context);
    if (before.sa_handler != SIG_DFL && before.sa_handler != SIG_IGN) return before.sa_handler(number);
    real_sigaction(SIGSEGV, &before, NULL); /* what faulted does so again, and ends the process as it would have */
    if (info->si_code <= 0) raise(number);  /* somebody sent it */
}

int sigaction(int number, const struct sigaction *wanted, struct sigaction *old) {
    if (!real_sigaction) real_sigaction = dlsym(RTLD_NEXT, "sigaction");
    if (number != SIGSEGV) return real_sigaction(number, wanted, old);
    if (old) *old = before;
    if (wanted) before = *wanted;
    return 0;
}

typedef void (*handler_t)(int);
handler_t signal(int number, handler_t wanted) {
    struct sigaction action = {.sa_handler = wanted, .sa_flags = SA_RESTART}, old;
    return sigaction(number, &action, &old) ? SIG_ERR : old.sa_handler;
}

/* A fault while its signal is blocked ends a process. */
int pthread_sigmask(int how, const sigset_t *wanted, sigset_t *old) {
    static int (*real)(int, const sigset_t *, sigset_t *);
    if (!real) real = dlsym(RTLD_NEXT, "pthread_sigmask");
    sigset_t open;
    if (wanted && how != SIG_UNBLOCK) open = *wanted, sigdelset(&open, SIGSEGV), wanted = &open;
    return real(how, wanted, old);
}

/* qemu-user shows a CPU of its own, and says so where a hypervisor would. */
static int is_emulated(void) {
    uint32_t a, b, c, d;
    __cpuid(0x40000000u, a, b, c, d);
    return b == 0x54474354u && c == 0x43544743u && d == 0x47435447u; /* "TCGTCGTCGTCG" */
}

__attribute__((constructor)) static void start(void) {
    if (!getenv("LESSER_CPU") || is_emulated()) return;
    learn_from(0), learn_from(0x40000000u), learn_from(0x80000000u);
    struct sigaction ours = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER};
    if (!real_sigaction) real_sigaction = dlsym(RTLD_NEXT, "sigaction");
    if (real_sigaction(SIGSEGV, &ours, &before) || syscall(SYS_arch_prctl, ARCH_SET_CPUID, 0)) {
        fprintf(stderr, "lesser_cpu: this CPU or kernel cannot make CPUID fault\n");
        _exit(70);
    }
}
