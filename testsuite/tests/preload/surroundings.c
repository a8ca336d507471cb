/* What a program does to itself and to those it starts while its memory is merged: nothing of it breaks, and nothing of
 * it breaks the merging. */
#include "kit.h"
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stddef.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <grp.h>
#include <sched.h>

#define N 32
#define LEN ((size_t)N * PAGE)
extern char **environ;
static const char *self;

static int wait_for(pid_t pid) {
    int status;
    check(waitpid(pid, &status, 0) == pid && WIFEXITED(status));
    return WEXITSTATUS(status);
}

/* Merged pages of the calling process, and that they can be written, read and merge again. */
static void still_merges(char *at) {
    fill(at, N, 0x21);
    wait_merged(N);
    check(is_filled(at, N, 0x21));
}

/* Every one of these runs in a child of its own. */

static void descriptors(char *at) {
    check(syscall(SYS_close_range, 3, ~0u, 0) == 0);
    still_merges(at);
    for (int fd = 3; fd < 64; fd++)
        dup2(2, fd);
    struct rlimit few = {64, 64};
    check(setrlimit(RLIMIT_NOFILE, &few) == 0);
    check(madvise(at, LEN, 13) == 0 && is_filled(at, N, 0x21) && madvise(at, LEN, 12) == 0);
    fill(at, N, 0x22);
    for (int fd = 3; fd < 64; fd++)
        close(fd);
    still_merges(at);
}

static void another_user(char *at) {
    check(setgroups(0, NULL) == 0 && setresgid(65534, 65534, 65534) == 0 && setresuid(65534, 65534, 65534) == 0);
    fill(at, N, 0x23);
    pause_ms(100);
    check(is_filled(at, N, 0x23));
    check(madvise(at, LEN, MADV_DONTNEED) == 0 && is_filled(at, N, 0));
    check(madvise(at, LEN, 13) == 0 && munmap(at, LEN) == 0);
}

static void another_root(char *at) {
    check(chroot("/usr") == 0 && chdir("/") == 0);
    fill(at, N, 0x24);
    char *more = map(N);
    fill(more, N, 0x24);
    check(madvise(more, LEN, 12) == 0);
    check(madvise(at, LEN, MADV_DONTNEED) == 0 && is_filled(at, N, 0) && is_filled(more, N, 0x24));
    check(madvise(more, LEN, 13) == 0 && is_filled(more, N, 0x24));
}

static void namespaces(char *at) {
    check(unshare(CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS) == 0);
    still_merges(at);
}

static void sandbox(char *at) {
    /* Nothing but what threads, memory and the end of it take; anything else kills. */
#define ALLOW(number) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, number, 0, 1), BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        ALLOW(SYS_mmap), ALLOW(SYS_munmap), ALLOW(SYS_mremap), ALLOW(SYS_mprotect), ALLOW(SYS_madvise),
        ALLOW(SYS_brk), ALLOW(SYS_futex), ALLOW(SYS_rt_sigprocmask), ALLOW(SYS_nanosleep), ALLOW(SYS_clock_nanosleep),
        ALLOW(SYS_write), ALLOW(SYS_exit), ALLOW(SYS_exit_group),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
    };
    struct sock_fprog program = {sizeof filter / sizeof filter[0], filter};
    check(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
    check(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program) == 0);
    fill(at, N, 0x25);
    for (int i = 0; i < 20; i++) {
        char *more = malloc(1 << 20);
        check(more != NULL);
        fill(more, 200, 0x25);
        pause_ms(10);
        check(is_filled(more, 200, 0x25) && is_filled(at, N, 0x25));
        free(more);
    }
    check(madvise(at, LEN / 2, MADV_DONTNEED) == 0 && is_filled(at, N / 2, 0) && is_filled(at + LEN / 2, N / 2, 0x25));
    /* Moving merged memory takes more than is left. */
    char *grown = mremap(at, LEN, 2 * LEN, MREMAP_MAYMOVE);
    check(grown != MAP_FAILED || errno == ENOMEM);
    at = grown == MAP_FAILED ? at : grown;
    check(is_filled(at + LEN / 2, N / 2, 0x25) && mprotect(at, LEN, PROT_READ) == 0 && munmap(at, LEN) == 0);
}

static volatile sig_atomic_t handled;

static void handler(int signal) {
    /* What a runtime does in its handlers. */
    char *at = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at != MAP_FAILED) {
        at[0] = (char)signal;
        mprotect(at, 4 * PAGE, PROT_READ);
        munmap(at, 4 * PAGE);
    }
    handled++;
}

static void signals(char *at) {
    struct sigaction action = {.sa_handler = handler, .sa_flags = SA_RESTART};
    check(sigaction(SIGALRM, &action, NULL) == 0);
    struct itimerspec often = {{0, 200000}, {0, 200000}};
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGALRM};
    timer_t timer;
    check(timer_create(CLOCK_MONOTONIC, &event, &timer) == 0 && timer_settime(timer, 0, &often, NULL) == 0);
    for (int round = 0; round < 300 || handled < 200; round++) {
        char *more = map(16);
        fill(more, 16, 0x26);
        check(madvise(more, 16 * PAGE, 12) == 0 && is_filled(more, 16, 0x26));
        check(madvise(more, 8 * PAGE, 13) == 0 && munmap(more, 16 * PAGE) == 0);
    }
    check(timer_delete(timer) == 0);
    still_merges(at);
}

/* Handlers of a fork that map and free memory, as mathematical libraries do. */
static void map_and_free(void) {
    free(malloc(1 << 20));
}

static void forks(char *at) {
    check(pthread_atfork(map_and_free, map_and_free, map_and_free) == 0);
    for (int i = 0; i < 20; i++) {
        pid_t pid = fork();
        check(pid >= 0);
        if (pid == 0) {
            check(is_filled(at, N, 0x20));
            fill(at, N, i);
            check(is_filled(at, N, i));
            _exit(0);
        }
        check(wait_for(pid) == 0 && is_filled(at, N, 0x20));
    }
    /* One that shares the address space until it execs, and one by the library. */
    for (int i = 0; i < 20; i++) {
        char *arguments[] = {"true", NULL};
        pid_t pid = vfork();
        check(pid >= 0);
        if (pid == 0) {
            munmap(mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), PAGE);
            execv("/bin/true", arguments);
            _exit(9);
        }
        check(wait_for(pid) == 0);
        check(posix_spawn(&pid, "/bin/true", NULL, NULL, arguments, environ) == 0 && wait_for(pid) == 0);
    }
    check(system("exit 3") == 3 << 8);
    /* By the bare call. */
    pid_t pid = (pid_t)syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
    check(pid >= 0);
    if (pid == 0) {
        check(is_filled(at, N, 0x20));
        fill(at, N, 1);
        check(madvise(at, LEN, MADV_DONTNEED) == 0 && is_filled(at, N, 0));
        _exit(0);
    }
    check(wait_for(pid) == 0);
    still_merges(at);
}

/* Many that live for a moment, several at a time: none of them takes long, or anything from the parent. */
static void many_forks(char *at) {
    enum { AT_A_TIME = 10 };
    for (int i = 0; i < 300; i++) {
        pid_t pids[AT_A_TIME];
        for (int j = 0; j < AT_A_TIME; j++) {
            pids[j] = fork();
            check(pids[j] >= 0);
            if (pids[j] == 0) {
                check(is_filled(at, N, 0x20));
                fill(at, 1, j);
                _exit(is_filled(at, 1, j) && is_filled(at + PAGE, N - 1, 0x20) ? 0 : 1);
            }
        }
        for (int j = 0; j < AT_A_TIME; j++)
            check(wait_for(pids[j]) == 0);
    }
    check(is_filled(at, N, 0x20));
    still_merges(at);
}

/* The kernel's own flag, as a service manager sets it that does not have the library. */
static void kernels_flag(void) {
    if (prctl(PR_SET_MEMORY_MERGE, 1, 0, 0, 0) != 0 && errno == EINVAL) {
        printf("this kernel has no such flag\n");
        return;
    }
    check(prctl(PR_GET_MEMORY_MERGE, 0, 0, 0, 0) == 1);
    check(setenv("LD_PRELOAD", getenv("LIBRARY"), 1) == 0);
    execl(self, self, "is-merging", NULL);
    _exit(9);
}

/* Whether the kernel would merge any memory of this process. */
static int kernel_merges(void) {
    char line[256];
    int merges = 0;
    FILE *smaps = fopen("/proc/self/smaps", "re");
    check(smaps != NULL);
    while (fgets(line, sizeof line, smaps) != NULL)
        merges |= strncmp(line, "VmFlags:", 8) == 0 && strstr(line, " mg") != NULL;
    fclose(smaps);
    return merges;
}

static pthread_mutex_t mapping = PTHREAD_MUTEX_INITIALIZER;
static volatile int is_over;

static void begin_mapping(void) {
    check(pthread_mutex_lock(&mapping) == 0);
}

static void end_mapping(void) {
    check(pthread_mutex_unlock(&mapping) == 0);
}

static void *maps_and_unmaps(void *unused) {
    while (!is_over) {
        begin_mapping();
        char *at = mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        check(at != MAP_FAILED && munmap(at, PAGE) == 0);
        end_mapping();
        sched_yield();
    }
    return unused;
}

/* Handlers of a fork that were there before anything merged, and wait for a thread that is changing mappings. */
static void early_handlers(void) {
    /* It would wait for ever. */
    alarm(120);
    check(pthread_atfork(begin_mapping, end_mapping, end_mapping) == 0);
    char *at = merged(N, 0x20);
    pthread_t thread;
    check(pthread_create(&thread, NULL, maps_and_unmaps, NULL) == 0);
    for (int i = 0; i < 200; i++) {
        pid_t pid = fork();
        check(pid >= 0);
        if (pid == 0)
            _exit(is_filled(at, N, 0x20) ? 0 : 1);
        check(wait_for(pid) == 0);
    }
    is_over = 1;
    check(pthread_join(thread, NULL) == 0);
}

static void *answer_faults(void *argument) {
    int fd = *(int *)argument;
    struct uffd_msg message;
    static char page[PAGE] __attribute__((aligned(PAGE)));
    memset(page, 0x77, PAGE);
    while (read(fd, &message, sizeof message) == sizeof message) {
        struct uffdio_copy copy = {.dst = message.arg.pagefault.address & ~(uint64_t)(PAGE - 1), .src = (uintptr_t)page, .len = PAGE};
        check(message.event == UFFD_EVENT_PAGEFAULT && ioctl(fd, UFFDIO_COPY, &copy) == 0);
    }
    return NULL;
}

static void own_userfaultfd(char *at) {
    /* Some pages merged, some written since. */
    at[3 * PAGE] = 1;
    at[4 * PAGE] = 1;
    int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC);
    struct uffdio_api api = {.api = UFFD_API};
    struct uffdio_register whole = {.range = {(uintptr_t)at, LEN}, .mode = UFFDIO_REGISTER_MODE_MISSING};
    check(fd >= 0 && ioctl(fd, UFFDIO_API, &api) == 0 && ioctl(fd, UFFDIO_REGISTER, &whole) == 0);
    pthread_t thread;
    check(pthread_create(&thread, NULL, answer_faults, &fd) == 0);
    check(at[0] == 0x20 && at[3 * PAGE] == 1);
    check(madvise(at, 8 * PAGE, MADV_DONTNEED) == 0);
    check(is_filled(at, 8, 0x77) && is_filled(at + 8 * PAGE, N - 8, 0x20));
    pause_ms(200);
    check(madvise(at + 8 * PAGE, 8 * PAGE, MADV_DONTNEED) == 0 && is_filled(at, 16, 0x77));
    struct uffdio_range range = {(uintptr_t)at, LEN};
    check(ioctl(fd, UFFDIO_UNREGISTER, &range) == 0);
    still_merges(at);
}

static void stopped(char *at) {
    /* A brother stops it, changes nothing, and finds it merged; see `stop` below. */
    pid_t parent = getpid(), pid = fork();
    check(pid >= 0);
    if (pid == 0) {
        check(kill(parent, SIGSTOP) == 0);
        pause_ms(300);
        check(kill(parent, SIGCONT) == 0);
        _exit(0);
    }
    fill(at, N, 0x20);
    check(wait_for(pid) == 0 && is_filled(at, N, 0x20));
    still_merges(at);
}

static void everything(char *at) {
    (void)at;
    check(prctl(PR_SET_MEMORY_MERGE, 1, 0, 0, 0) == 0);
    char *plain[] = {NULL, NULL}, preload[300], socket[300];
    snprintf(preload, sizeof preload, "LD_PRELOAD=%s", getenv("LD_PRELOAD"));
    snprintf(socket, sizeof socket, "KSMFS_SOCKET=%s", getenv("KSMFS_SOCKET"));
    char *own[] = {preload, socket, NULL};
    char *arguments[] = {(char *)self, "is-merging", NULL};
    for (int i = 0; i < 4; i++) {
        pid_t pid = i < 2 ? fork() : 1;
        check(pid >= 0);
        if (pid == 0) {
            check(prctl(PR_GET_MEMORY_MERGE, 0, 0, 0, 0) == 1);
            execve(self, arguments, i == 0 ? environ : own);
            _exit(9);
        }
        if (i >= 2)
            check(posix_spawn(&pid, self, NULL, NULL, arguments, i == 2 ? environ : own) == 0);
        check(wait_for(pid) == 0);
    }
    /* Not where the library is left out on purpose. */
    pid_t pid;
    check(posix_spawn(&pid, "/bin/true", NULL, NULL, arguments, plain) == 0 && wait_for(pid) == 0);
    check(prctl(PR_SET_MEMORY_MERGE, 0, 0, 0, 0) == 0);
    wait_merged(0);
    arguments[1] = "is-not-merging";
    check(posix_spawn(&pid, self, NULL, NULL, arguments, environ) == 0 && wait_for(pid) == 0);
}

/* A child that only borrows the memory acts on its parent's. */
static void vforks(char *at) {
    pid_t child = vfork();
    if (child == 0) {
        int done = madvise(at, N / 2 * PAGE, 13) == 0 && madvise(at, N / 2 * PAGE, 12) == 0;
        _exit(done ? 0 : 1);
    }
    int status;
    check(child > 0 && waitpid(child, &status, 0) == child && status == 0);
    check(is_filled(at, N, 0x20));
    char *more = map(N);
    fill(more, N, 0x20);
    check(madvise(more, N * PAGE, 12) == 0);
    wait_merged(2 * N);
}

/* Trying what the kernel knows of filters gives up nothing. */
static void probe_for_filters(void) {
    unsigned action = SECCOMP_RET_KILL_PROCESS;
    check(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, NULL) == -1);
    check(errno == EFAULT);
    check(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, NULL, 0, 0) == -1);
    check(syscall(SYS_seccomp, SECCOMP_GET_ACTION_AVAIL, 0, &action) == 0);
}

static const struct {
    const char *name;
    void (*run)(char *);
} parts[] = {
    {"descriptors", descriptors}, {"another_user", another_user}, {"another_root", another_root},
    {"namespaces", namespaces},   {"sandbox", sandbox},           {"signals", signals},
    {"forks", forks},             {"own_userfaultfd", own_userfaultfd}, {"stopped", stopped},
    {"everything", everything}, {"vforks", vforks}, {"many_forks", many_forks},
};

int main(int argc, char **argv) {
    check(argc == 2);
    self = argv[0];
    if (strcmp(argv[1], "is-merging") == 0) {
        check(prctl(PR_GET_MEMORY_MERGE, 0, 0, 0, 0) == 1);
        char *at = map(N);
        fill(at, N, 0x29);
        while (merging_pages() < N)
            pause_ms(5);
        check(!kernel_merges());
        return is_filled(at, N, 0x29) ? 0 : 1;
    }
    if (strcmp(argv[1], "kernels_flag") == 0) {
        kernels_flag();
        return 0;
    }
    if (strcmp(argv[1], "early_handlers") == 0) {
        early_handlers();
        return 0;
    }
    if (strcmp(argv[1], "probes") == 0) {
        probe_for_filters();
        merged(N, 0x20);
        return 0;
    }
    if (strcmp(argv[1], "is-not-merging") == 0)
        return prctl(PR_GET_MEMORY_MERGE, 0, 0, 0, 0);
    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++)
        if (strcmp(argv[1], parts[i].name) == 0) {
            parts[i].run(merged(N, 0x20));
            return 0;
        }
    return 2;
}
