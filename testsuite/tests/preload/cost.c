/* What the library costs a program that has nothing merged, and one that has: microseconds each, one line. Run with and
 * without it: cost [mergeable pages] */
#include "kit.h"
#include <sys/wait.h>

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec * 1e6 + (double)time.tv_nsec / 1e3;
}

int main(int argc, char **argv) {
    size_t pages = argc > 1 ? (size_t)atol(argv[1]) : 0;
    if (pages > 0) {
        char *at = map(pages);
        fill(at, pages, 0x11);
        check(madvise(at, pages * PAGE, 12) == 0);
    }
    double start = now();
    for (int i = 0; i < 20000; i++) {
        char *at = mmap(NULL, 16 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        check(at != MAP_FAILED);
        at[0] = 1;
        check(munmap(at, 16 * PAGE) == 0);
    }
    double mapped = (now() - start) / 20000;
    start = now();
    for (int i = 0; i < 20000; i++) {
        char *volatile at = malloc(1 << 18);
        at[0] = 1;
        free(at);
    }
    double allocated = (now() - start) / 20000;
    start = now();
    for (int i = 0; i < 500; i++) {
        pid_t pid = fork();
        check(pid >= 0);
        if (pid == 0)
            _exit(0);
        check(waitpid(pid, NULL, 0) == pid);
    }
    double forked = (now() - start) / 500;
    printf("mmap and munmap %.2f, malloc and free %.2f, fork and exit %.0f\n", mapped, allocated, forked);
    return 0;
}
