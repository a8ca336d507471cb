/* Prints what the calls answer that start and end merging. Run with the library and without, it says the same. */
#include "kit.h"
#include <sys/shm.h>
#include <sys/syscall.h>

#ifndef MFD_CLOEXEC
#define MFD_CLOEXEC 1
#endif

static void say(const char *what, long answer) {
    printf("%s: %ld %s\n", what, answer, answer == -1 ? strerror(errno) : "");
}

static void both(const char *what, void *at, size_t len) {
    char line[100];
    snprintf(line, sizeof line, "%s, mergeable", what);
    say(line, madvise(at, len, 12));
    snprintf(line, sizeof line, "%s, mergeable again", what);
    say(line, madvise(at, len, 12));
    snprintf(line, sizeof line, "%s, unmergeable", what);
    say(line, madvise(at, len, 13));
}

static void *special(int protection, int flags, int fd) {
    void *at = mmap(NULL, 8 * PAGE, protection, flags, fd, 0);
    check(at != MAP_FAILED);
    return at;
}

int main(void) {
    const int rw = PROT_READ | PROT_WRITE, anonymous = MAP_PRIVATE | MAP_ANONYMOUS;
    char *at = map(16);
    both("anonymous", at, 16 * PAGE);
    both("untouched, no access", special(PROT_NONE, anonymous, -1), 8 * PAGE);
    both("read only", special(PROT_READ, anonymous, -1), 8 * PAGE);
    both("no reserve", special(rw, anonymous | MAP_NORESERVE, -1), 8 * PAGE);
    both("shared", special(rw, MAP_SHARED | MAP_ANONYMOUS, -1), 8 * PAGE);
    int fd = memfd_create("x", MFD_CLOEXEC);
    check(fd >= 0 && ftruncate(fd, 8 * PAGE) == 0);
    both("private file", special(rw, MAP_PRIVATE, fd), 8 * PAGE);
    both("shared file", special(rw, MAP_SHARED, fd), 8 * PAGE);
    int zero = open("/dev/zero", O_RDWR);
    both("zero device", special(rw, MAP_PRIVATE, zero), 8 * PAGE);
    char local;
    both("stack", (void *)((uintptr_t)&local & ~(uintptr_t)(PAGE - 1)), PAGE);
    both("text", (void *)((uintptr_t)main & ~(uintptr_t)(PAGE - 1)), PAGE);
    char *heap = sbrk(8 * PAGE);
    both("heap", heap + PAGE - (uintptr_t)heap % PAGE, 4 * PAGE);
    int id = shmget(IPC_PRIVATE, 8 * PAGE, IPC_CREAT | 0600);
    void *segment = shmat(id, NULL, 0);
    shmctl(id, IPC_RMID, NULL);
    both("System V segment", segment, 8 * PAGE);

    both("unaligned", at + 1, PAGE);
    both("nothing", at, 0);
    both("nothing, nowhere", (void *)0x10000, 0);
    both("part of a page", at, 1);
    both("wraps", at, (size_t)-PAGE);
    both("wraps by rounding", at, ~(size_t)0);
    both("not mapped", at + 16 * PAGE + 64 * 1024 * 1024, 0);
    both("beyond user memory", (void *)(~(uintptr_t)0 - 16 * PAGE + 1), PAGE);
    check(munmap(at + 4 * PAGE, 4 * PAGE) == 0);
    both("with a hole", at, 16 * PAGE);
    both("begins in a hole", at + 5 * PAGE, 8 * PAGE);
    both("ends in a hole", at, 6 * PAGE);
    both("in a hole", at + 5 * PAGE, PAGE);
    say("by number", syscall(SYS_madvise, at, PAGE, 12));
    say("by number, unaligned", syscall(SYS_madvise, at + 1, PAGE, 12));
    say("by number, another call", syscall(SYS_getppid) > 0);
    say("by number, a call that fails", syscall(SYS_close, -1));
    say("advice that is none", madvise(at, PAGE, 77));

    say("get", prctl(PR_GET_MEMORY_MERGE, 0, 0, 0, 0));
    say("get, argument", prctl(PR_GET_MEMORY_MERGE, 1, 0, 0, 0));
    say("get, last argument", prctl(PR_GET_MEMORY_MERGE, 0, 0, 0, 1));
    say("set, argument", prctl(PR_SET_MEMORY_MERGE, 1, 1, 0, 0));
    say("set, last argument", prctl(PR_SET_MEMORY_MERGE, 1, 0, 0, 1));
    say("clear when clear", prctl(PR_SET_MEMORY_MERGE, 0, 0, 0, 0));
    say("set", prctl(PR_SET_MEMORY_MERGE, 77, 0, 0, 0));
    say("set again", prctl(PR_SET_MEMORY_MERGE, 1, 0, 0, 0));
    say("get", prctl(PR_GET_MEMORY_MERGE, 0, 0, 0, 0));
    say("unmergeable meanwhile", madvise(at, PAGE, 13));
    say("clear", prctl(PR_SET_MEMORY_MERGE, 0, 0, 0, 0));
    say("get", prctl(PR_GET_MEMORY_MERGE, 0, 0, 0, 0));
    say("another prctl", prctl(PR_SET_NAME, "answers", 0, 0, 0));
    say("a prctl that fails", prctl(-1, 0, 0, 0, 0));
    fflush(stdout);

    char text[400] = {0};
    int stat = open("/proc/self/ksm_stat", O_RDONLY);
    check(stat >= 0 && read(stat, text, sizeof text - 1) > 0);
    check(strncmp(text, "ksm_rmap_items ", 15) == 0);
    printf("%s", strstr(text, "ksm_merge_any"));
    return 0;
}
