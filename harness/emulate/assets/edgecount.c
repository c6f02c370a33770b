/* Counts the aarch64 instructions that a program executes under qemu-user, by class (QEMU plugin API 1, qemu 7.2).
 *
 *   qemu-aarch64 -plugin libedgecount.so,out=FILE program      or  QEMU_PLUGIN=libedgecount.so,out=FILE
 *
 * Appends one JSON line to FILE for every marker and one when the process exits:
 *   {"edgecount":"mark","pid":7,"tag":1,"total":136529,"int":...}   since the previous marker (or the start)
 *   {"edgecount":"exit","pid":7,"tag":0,"total":...}                the whole process
 * A marker is the guest call prctl(0x45444745, tag, 0, 0, 0): on a real board it fails with EINVAL and does no harm.
 *
 * total = int + branch + ldst + simd + other; dot, mmla, mull8 and fmla are parts of simd. Every thread counts into
 * its own cells, so counts are exact with threads too. A forked child starts at zero. A process that execve replaces,
 * or that a signal kills, writes no exit line.
 *
 * Hot path: one increment per executed translation block. Its instructions are classified once, when it is
 * translated; blocks and classes are multiplied out only when a line is written.
 * The API is declared here: Debian ships no qemu-plugin.h.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))

typedef uint64_t plugin_id;
typedef struct qemu_info_t qemu_info_t;
struct qemu_plugin_tb;
struct qemu_plugin_insn;

EXPORT int qemu_plugin_version = 1;
extern void qemu_plugin_register_vcpu_tb_trans_cb(plugin_id, void (*)(plugin_id, struct qemu_plugin_tb *));
extern void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb *, void (*)(unsigned, void *), int, void *);
extern size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
extern struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *, size_t);
extern const void *qemu_plugin_insn_data(const struct qemu_plugin_insn *);
extern void qemu_plugin_register_vcpu_syscall_cb(
    plugin_id, void (*)(plugin_id, unsigned, int64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t,
                        uint64_t, uint64_t));
extern void qemu_plugin_register_atexit_cb(plugin_id, void (*)(plugin_id, void *), void *);

enum { TOTAL, INTEGER, BRANCH, LDST, SIMD, DOT, MMLA, MULL8, FMLA, OTHER, CLASSES };
static const char *const class_names[CLASSES] = {"total", "int",  "branch", "ldst", "simd",
                                                 "dot",   "mmla", "mull8",  "fmla", "other"};

enum { PRCTL = 167, MARKER = 0x45444745 };              /* the aarch64 system call; "EDGE" */
enum { PAGE = 4096, PAGES = 4096, VCPUS = 1024 };       /* at most 16 M blocks, 1024 threads at one time */

struct block {
    uint16_t classes[CLASSES];
};

static struct block *blocks[PAGES];                     /* what each translated block consists of */
static uint64_t *executions[VCPUS][PAGES];              /* how often each thread ran it */
static uint32_t block_count;
static uint64_t marked[CLASSES];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char out_path[4096];

static void *zeroed(size_t count, size_t size)
{
    void *memory = calloc(count, size);
    if (memory == NULL) {
        fputs("edgecount: out of memory\n", stderr);
        _exit(125);
    }
    return memory;
}

/* The part of SIMD that matters to neural networks, or -1. Encodings: Arm ARM, C4.1, "Data Processing -- Scalar
 * Floating-Point and Advanced SIMD". */
static int simd_part(uint32_t word)
{
    if ((word & 0x9fe0fc00) == 0x0e809400 || (word & 0x9fc0f400) == 0x0f80e000) {
        return DOT;                                     /* SDOT, UDOT: vector, by element */
    }
    if ((word & 0xdfe0f400) == 0x4e80a400) {
        return MMLA;                                    /* SMMLA, UMMLA, USMMLA */
    }
    if ((word & 0x9fe0fc00) == 0x0e20c000 || (word & 0x9fe0fc00) == 0x0e208000) {
        return MULL8;                                   /* SMULL, UMULL, SMLAL, UMLAL of 8-bit lanes, and their "2" */
    }
    if ((word & 0xbfa0fc00) == 0x0e20cc00 || (word & 0xbf80f400) == 0x0f801000) {
        return FMLA;                                    /* single and double: vector, by element */
    }
    if ((word & 0xbfe0fc00) == 0x0e400c00 || (word & 0xbfc0f400) == 0x0f001000) {
        return FMLA;                                    /* half: vector, by element */
    }
    return -1;
}

/* The main class by op0, bits 28:25. */
static int main_class(uint32_t word)
{
    unsigned op0 = (word >> 25) & 15;
    if ((op0 & 14) == 8 || (op0 & 7) == 5) {
        return INTEGER;
    }
    if ((op0 & 14) == 10) {
        return BRANCH;
    }
    if ((op0 & 5) == 4) {
        return LDST;
    }
    if ((op0 & 7) == 7) {
        return SIMD;
    }
    return OTHER;
}

static void on_execute(unsigned vcpu, void *user)
{
    uintptr_t index = (uintptr_t)user;
    uint64_t **page = &executions[vcpu % VCPUS][index / PAGE];
    if (__builtin_expect(*page == NULL, 0)) {
        uint64_t *fresh = zeroed(PAGE, sizeof **page);
        __atomic_store_n(page, fresh, __ATOMIC_RELEASE);
    }
    uint64_t *cell = &(*page)[index % PAGE];
    __atomic_store_n(cell, *cell + 1, __ATOMIC_RELAXED); /* one writer per cell: no locked instruction needed */
}

static void on_translate(plugin_id id, struct qemu_plugin_tb *tb)
{
    (void)id;
    struct block block = {{0}};
    size_t count = qemu_plugin_tb_n_insns(tb);
    for (size_t i = 0; i < count; i++) {
        uint32_t word;
        memcpy(&word, qemu_plugin_insn_data(qemu_plugin_tb_get_insn(tb, i)), sizeof word);
        int class = main_class(word);
        int part = class == SIMD ? simd_part(word) : -1;
        block.classes[TOTAL]++;
        block.classes[class]++;
        if (part >= 0) {
            block.classes[part]++;
        }
    }
    pthread_mutex_lock(&lock);
    uintptr_t index = block_count;
    if (index >= (uintptr_t)PAGE * PAGES) {
        fputs("edgecount: more than 16 M translated blocks\n", stderr);
        _exit(125);
    }
    if (blocks[index / PAGE] == NULL) {
        blocks[index / PAGE] = zeroed(PAGE, sizeof block);
    }
    blocks[index / PAGE][index % PAGE] = block;
    block_count++;
    pthread_mutex_unlock(&lock);
    qemu_plugin_register_vcpu_tb_exec_cb(tb, on_execute, 0, (void *)index);
}

/* Called with the lock held. */
static void count_all(uint64_t counts[CLASSES])
{
    memset(counts, 0, CLASSES * sizeof counts[0]);
    for (unsigned vcpu = 0; vcpu < VCPUS; vcpu++) {
        for (uint32_t page = 0; page * PAGE < block_count; page++) {
            const uint64_t *cells = __atomic_load_n(&executions[vcpu][page], __ATOMIC_ACQUIRE);
            for (uint32_t i = 0; cells != NULL && i < PAGE; i++) {
                uint64_t times = __atomic_load_n(&cells[i], __ATOMIC_RELAXED);
                for (int class = 0; times != 0 && class < CLASSES; class++) {
                    counts[class] += times * blocks[page][i].classes[class];
                }
            }
        }
    }
}

/* One line, one write: lines of several processes do not mix. The file is opened each time because the guest shares
 * our descriptors and may close them (Python's subprocess does). */
static void report(const char *what, uint64_t tag)
{
    uint64_t counts[CLASSES];
    char line[1024];
    pthread_mutex_lock(&lock);
    count_all(counts);
    int since_mark = strcmp(what, "mark") == 0;
    int length = snprintf(line, sizeof line, "{\"edgecount\":\"%s\",\"pid\":%d,\"tag\":%llu", what, (int)getpid(),
                          (unsigned long long)tag);
    for (int class = 0; class < CLASSES; class++) {
        uint64_t value = counts[class] - (since_mark ? marked[class] : 0);
        length += snprintf(line + length, sizeof line - length, ",\"%s\":%llu", class_names[class],
                           (unsigned long long)value);
        marked[class] = counts[class];
    }
    length += snprintf(line + length, sizeof line - length, "}\n");
    int file = out_path[0] ? open(out_path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0644) : STDERR_FILENO;
    if (file < 0 || write(file, line, length) != length) {
        fprintf(stderr, "edgecount: cannot write %s\n", out_path);
    }
    if (file > STDERR_FILENO) {
        close(file);
    }
    pthread_mutex_unlock(&lock);
}

static void on_system_call(plugin_id id, unsigned vcpu, int64_t number, uint64_t a1, uint64_t a2, uint64_t a3,
                           uint64_t a4, uint64_t a5, uint64_t a6, uint64_t a7, uint64_t a8)
{
    (void)id, (void)vcpu, (void)a3, (void)a4, (void)a5, (void)a6, (void)a7, (void)a8;
    if (number == PRCTL && a1 == MARKER) {
        report("mark", a2);
    }
}

static void on_exit_process(plugin_id id, void *user)
{
    (void)id, (void)user;
    report("exit", 0);
}

/* A forked child inherits the counts of its parent: start it at zero. */
static void before_fork(void)
{
    pthread_mutex_lock(&lock);
}

static void after_fork_in_parent(void)
{
    pthread_mutex_unlock(&lock);
}

static void after_fork_in_child(void)
{
    for (unsigned vcpu = 0; vcpu < VCPUS; vcpu++) {
        for (uint32_t page = 0; page * PAGE < block_count; page++) {
            if (executions[vcpu][page] != NULL) {
                memset(executions[vcpu][page], 0, PAGE * sizeof executions[vcpu][page][0]);
            }
        }
    }
    memset(marked, 0, sizeof marked);
    pthread_mutex_init(&lock, NULL);
}

EXPORT int qemu_plugin_install(plugin_id id, const qemu_info_t *info, int argc, char **argv)
{
    (void)info;
    for (int i = 0; i < argc; i++) {
        if (strncmp(argv[i], "out=", 4) == 0) {
            const char *path = argv[i] + 4;
            char folder[2048] = "";
            if (path[0] != '/' && getcwd(folder, sizeof folder) == NULL) {
                return -1;                              /* the guest may change its folder later */
            }
            int length = snprintf(out_path, sizeof out_path, "%s%s%s", folder, folder[0] ? "/" : "", path);
            if (length >= (int)sizeof out_path) {
                return -1;
            }
        }
    }
    pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child);
    qemu_plugin_register_vcpu_tb_trans_cb(id, on_translate);
    qemu_plugin_register_vcpu_syscall_cb(id, on_system_call);
    qemu_plugin_register_atexit_cb(id, on_exit_process, NULL);
    return 0;
}
