/* What the library costs a program that has nothing merged, and one that has. Prints for each thing that is done the shortest and
 * the median time, in nanoseconds. Run with the library and without it: cost [mergeable pages] */
#include "kit.h"
#include <sys/wait.h>

#define SAMPLES 1000

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec * 1e9 + (double)time.tv_nsec;
}

static void map_and_unmap(void) {
    char *at = mmap(NULL, 16 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    check(at != MAP_FAILED);
    at[0] = 1;
    check(munmap(at, 16 * PAGE) == 0);
}

static void allocate_and_free(void) {
    char *volatile at = malloc(1 << 18);
    at[0] = 1;
    free(at);
}

/* Blocks of all sizes that live for different times: the heap grows and shrinks. */
static void use_the_heap(void) {
    static char *blocks[64];
    static unsigned next;
    for (int i = 0; i < 16; i++) {
        next = next * 1103515245 + 12345;
        char **block = &blocks[next >> 26];
        free(*block);
        size_t len = (size_t)64 << (next >> 8) % 14;
        check((*block = malloc(len)) != NULL);
        (*block)[len - 1] = 1;
    }
}

static void fork_and_exit(void) {
    pid_t pid = fork();
    check(pid >= 0);
    if (pid == 0)
        _exit(0);
    check(waitpid(pid, NULL, 0) == pid);
}

static int is_longer(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void measure(const char *what, void (*act)(void), int times) {
    static double took[SAMPLES];
    for (int i = 0; i < SAMPLES; i++) {
        double start = now();
        for (int j = 0; j < times; j++)
            act();
        took[i] = (now() - start) / times;
    }
    qsort(took, SAMPLES, sizeof took[0], is_longer);
    printf("%s %.0f %.0f\n", what, took[0], took[SAMPLES / 2]);
}

int main(int argc, char **argv) {
    size_t pages = argc > 1 ? (size_t)atol(argv[1]) : 0;
    if (pages > 0) {
        char *at = map(pages);
        fill(at, pages, 0x11);
        check(madvise(at, pages * PAGE, 12) == 0);
    }
    measure("map", map_and_unmap, 20);
    measure("malloc", allocate_and_free, 100);
    measure("heap", use_the_heap, 20);
    measure("fork", fork_and_exit, 1);
    return 0;
}
