/* Memory that Linux loses, without any merging: a child reads zeros where its parent had bytes at the fork.
 *
 *     cc -o lost_in_a_child lost_in_a_child.c && ./lost_in_a_child        (root; a memory cgroup, version 1 or 2; no swap)
 *
 * 1. Pages are shared by a fork. Somebody pins them for reading: process_vm_readv, a write with O_DIRECT, an io_uring.
 *    The kernel gives the reader a copy of each first ("unsharing"), so that what is pinned is what is mapped. No write
 *    made this copy, so neither its page table entry nor the page is marked dirty.
 * 2. The next fork shares these copies.
 * 3. One of the two gives the memory away: MADV_FREE. For a dirty page the kernel looks whether others have it, and
 *    leaves it alone then. For a clean one it does not look: the page counts as given away.
 * 4. Reclaim takes pages that were given away and are clean from everybody who has them. The other one never gave them.
 *
 * Seen on Linux 6.18: 64 of 64 pages. So nothing here gives memory away while it has children, and our agent pins no page
 * whose frame a fork shares (client/src/sys/read.rs). */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 4096
#define N 64

static void check(int right, const char *what) {
    if (!right) {
        perror(what);
        exit(2);
    }
}

/* Writes a text to a file of the kernel's. */
static int put(const char *directory, const char *file, const char *text) {
    char path[256];
    snprintf(path, sizeof path, "%s/%s", directory, file);
    int fd = open(path, O_WRONLY), done = fd >= 0 && write(fd, text, strlen(text)) > 0;
    if (fd >= 0)
        close(fd);
    return done;
}

int main(void) {
    int first = access("/sys/fs/cgroup/memory/tasks", F_OK) == 0;
    const char *group = first ? "/sys/fs/cgroup/memory/lost_in_a_child" : "/sys/fs/cgroup/lost_in_a_child";
    if (!first)
        put("/sys/fs/cgroup", "cgroup.subtree_control", "+memory");
    check(mkdir(group, 0755) == 0 || errno == EEXIST, group);
    char pid[16];
    snprintf(pid, sizeof pid, "%d", getpid());
    check(put(group, "cgroup.procs", pid), "cgroup.procs");

    char *at = mmap(NULL, N * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    check(at != MAP_FAILED, "mmap");
    madvise(at, N * PAGE, MADV_NOHUGEPAGE);
    memset(at, 7, N * PAGE);

    /* 1. */
    pid_t brief = fork();
    if (brief == 0) {
        pause();
        _exit(0);
    }
    static char copy[N * PAGE];
    struct iovec to = {copy, sizeof copy}, from = {at, N * PAGE};
    check(process_vm_readv(getpid(), &to, 1, &from, 1, 0) == N * PAGE, "process_vm_readv");
    kill(brief, SIGKILL);
    waitpid(brief, NULL, 0);

    /* 2. */
    int reclaimed[2], status;
    check(pipe(reclaimed) == 0, "pipe");
    pid_t child = fork();
    if (child == 0) {
        char byte;
        int lost = 0;
        check(read(reclaimed[0], &byte, 1) == 1, "read");
        for (int i = 0; i < N; i++)
            lost += at[i * PAGE] != 7;
        printf("%d of %d pages of the child are lost\n", lost, N);
        exit(lost > 0);
    }

    /* 3. */
    check(madvise(at, N * PAGE, MADV_FREE) == 0, "MADV_FREE");

    /* 4. The second file takes what it can get, and says that it was not all. */
    put(group, first ? "memory.force_empty" : "memory.reclaim", "64M");
    check(write(reclaimed[1], "", 1) == 1, "write");
    check(waitpid(child, &status, 0) == child && WIFEXITED(status), "waitpid");

    put(first ? "/sys/fs/cgroup/memory" : "/sys/fs/cgroup", "cgroup.procs", pid);
    rmdir(group);
    return WEXITSTATUS(status);
}
