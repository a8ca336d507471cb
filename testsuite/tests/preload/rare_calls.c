/* Calls that few programs make, on memory that is merged: other ways to fork, and to advise and replace mappings. */
#include "kit.h"
#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <stdalign.h>
#include <sys/ipc.h>
#include <sys/shm.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>

#define N 64
#define LEN ((size_t)N * PAGE)

static int status_of(pid_t pid) {
    int status;
    check(pid > 0 && waitpid(pid, &status, 0) == pid && WIFEXITED(status));
    return WEXITSTATUS(status);
}

/* What a child sees, and may do. */
static int child(void *argument) {
    char *at = argument;
    if (!is_filled(at, N, 0x41))
        return 1;
    fill(at, N / 2, 0x42);
    if (!is_filled(at, N / 2, 0x42) || !is_filled(at + LEN / 2, N / 2, 0x41))
        return 2;
    if (madvise(at, LEN / 4, MADV_DONTNEED) != 0 || !is_filled(at, N / 4, 0) || !is_filled(at + LEN / 4, N / 4, 0x42))
        return 3;
    char *more = mmap(at, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    return more == at && *at == 0 ? 0 : 4;
}

static pid_t by_clone(char *at) {
    static alignas(16) char stack[64 * 1024];
    return clone(child, stack + sizeof stack, SIGCHLD, at);
}

static pid_t by_number(char *at) {
    pid_t pid = (pid_t)syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
    if (pid == 0)
        _exit(child(at));
    return pid;
}

static pid_t by_fork(char *at) {
    pid_t pid = (pid_t)syscall(SYS_fork);
    if (pid == 0)
        _exit(child(at));
    return pid;
}

static pid_t by_clone3(char *at) {
    struct clone_args arguments = {.exit_signal = SIGCHLD};
    pid_t pid = (pid_t)syscall(SYS_clone3, &arguments, sizeof arguments);
    if (pid == 0)
        _exit(child(at));
    return pid;
}

static int flag;

static int sets_flag(void *argument) {
    flag = 7;
    return argument == &flag ? 5 : 6;
}

/* Forks of all kinds, while pages merge and are written by turns. */
static void forks(void) {
    static pid_t (*const ways[])(char *) = {by_clone, by_number, by_fork, by_clone3};
    char *at = merged(N, 0x41);
    for (int round = 0; round < 100; round++) {
        /* Written, so that the agent is at work on them. */
        fill(at, N, 0x41);
        check(status_of(ways[round % 4](at)) == 0);
        check(is_filled(at, N, 0x41));
    }
    /* One that shares the memory. */
    static alignas(16) char stack[64 * 1024];
    check(status_of(clone(sets_flag, stack + sizeof stack, CLONE_VM | CLONE_VFORK | SIGCHLD, &flag)) == 5 && flag == 7);
    check(clone(NULL, stack + sizeof stack, SIGCHLD, NULL) == -1 && errno == EINVAL);
    check(clone(child, NULL, SIGCHLD, NULL) == -1 && errno == EINVAL);
    check(syscall(SYS_clone3, NULL, 0) == -1 && errno == EINVAL);
    wait_merged(N);
    check(munmap(at, LEN) == 0);
    wait_merged(0);
}

static void advising_oneself(void) {
    char *at = merged(N, 0x43);
    int self = (int)syscall(SYS_pidfd_open, getpid(), 0);
    check(self >= 0);
    struct iovec vectors[] = {{at + 4 * PAGE, 2 * PAGE}, {at + 10 * PAGE, PAGE}};
    ssize_t done = process_madvise(self, vectors, 2, MADV_DONTNEED, 0);
    /* Only since Linux 6.13. */
    check(done == 3 * PAGE || (done == -1 && errno == EINVAL));
    if (done > 0) {
        check(is_filled(at, 4, 0x43) && is_filled(at + 4 * PAGE, 2, 0) && is_filled(at + 6 * PAGE, 4, 0x43));
        check(is_filled(at + 10 * PAGE, 1, 0) && is_filled(at + 11 * PAGE, N - 11, 0x43));
        struct iovec half = {at, LEN / 2};
        check(syscall(SYS_process_madvise, self, &half, 1, 13, 0) == LEN / 2);
        wait_merged(N / 2);
        struct iovec bad[] = {{at, PAGE}, {at + 1, PAGE}};
        check(process_madvise(self, bad, 2, MADV_DONTNEED, 0) == PAGE && is_filled(at, 1, 0));
        check(process_madvise(self, bad + 1, 1, MADV_DONTNEED, 0) == -1 && errno == EINVAL);
    }
    check(process_madvise(self, vectors, 2, MADV_DONTNEED, 1) == -1 && errno == EINVAL);
    check(process_madvise(-1, vectors, 2, MADV_DONTNEED, 0) == -1 && errno == EBADF);
    check(process_madvise(self, (void *)16, 1, MADV_COLD, 0) == -1 && errno == EFAULT);
    close(self);
    check(munmap(at, LEN) == 0);
    wait_merged(0);
}

static void replaced_by_shared(void) {
    char *at = merged(N, 0x44), *middle = at + 8 * PAGE;
    int id = shmget(IPC_PRIVATE, 8 * PAGE, IPC_CREAT | 0600);
    check(id >= 0 && shmat(id, at, 0) == (void *)-1 && errno == EINVAL);
    check(shmat(id, middle, SHM_REMAP) == middle && shmctl(id, IPC_RMID, NULL) == 0);
    check(is_filled(middle, 8, 0) && is_filled(at, 8, 0x44) && is_filled(at + 16 * PAGE, N - 16, 0x44));
    wait_merged(N - 8);
    /* Shared with a child: nobody has put anything else there since. */
    fill(middle, 8, 0x44);
    pause_ms(200);
    pid_t pid = fork();
    if (pid == 0) {
        fill(middle, 8, 0x45);
        _exit(0);
    }
    check(status_of(pid) == 0 && is_filled(middle, 8, 0x45));
    check(shmdt(middle) == 0 && munmap(at, LEN) == 0);
    wait_merged(0);
}

int main(void) {
    forks();
    advising_oneself();
    replaced_by_shared();
    return 0;
}
