/* Threads that allocate, check and free blocks of all sizes while everything in the process is merged: the C library
 * maps and unmaps by itself, for large blocks, heaps of threads, and stacks. Runs for the seconds given; exits 0 if
 * every byte was right all the time. */
#define _GNU_SOURCE
#include <malloc.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <time.h>

#ifndef PR_SET_MEMORY_MERGE
#define PR_SET_MEMORY_MERGE 67
#endif
#define BLOCKS 24
static time_t end;

static uint64_t next(uint64_t *state) {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    return *state ^= *state << 17;
}

/* Few different pages, so that nearly all of them have a twin. */
static void fill(uint64_t *block, size_t words, uint64_t value) {
    for (size_t i = 0; i < words; i++)
        block[i] = value + (i / 512 % 3);
}

static void check(const uint64_t *block, size_t words, uint64_t value) {
    for (size_t i = 0; i < words; i++)
        if (block[i] != value + (i / 512 % 3)) {
            fprintf(stderr, "word %zu of block %p is %#lx and not %#lx\n", i, (void *)block, block[i], value + (i / 512 % 3));
            abort();
        }
}

static void *short_lived(void *argument) {
    uint64_t here[2048];
    uint64_t value = (uintptr_t)argument;
    fill(here, 2048, value);
    void *block = calloc(1, 300000);
    for (size_t i = 0; i < 300000; i++)
        if (((char *)block)[i] != 0) {
            fprintf(stderr, "calloc gave a byte that is not zero\n");
            abort();
        }
    memset(block, 1, 300000);
    struct timespec pause = {0, 3000000};
    nanosleep(&pause, NULL);
    check(here, 2048, value);
    free(block);
    return NULL;
}

static void *work(void *argument) {
    uint64_t state = 88172645463325252u + (uintptr_t)argument;
    struct { uint64_t *at; size_t words; uint64_t value; } blocks[BLOCKS] = {0};
    while (time(NULL) < end) {
        int i = next(&state) % BLOCKS;
        if (blocks[i].at == NULL) {
            /* Below and above the size from which a block has a mapping of its own. */
            blocks[i].words = 512 + next(&state) % 60000;
            blocks[i].value = next(&state) % 4;
            blocks[i].at = malloc(blocks[i].words * 8);
            fill(blocks[i].at, blocks[i].words, blocks[i].value);
        } else if (next(&state) % 3 == 0) {
            check(blocks[i].at, blocks[i].words, blocks[i].value);
            size_t words = 512 + next(&state) % 60000;
            blocks[i].at = realloc(blocks[i].at, words * 8);
            check(blocks[i].at, words < blocks[i].words ? words : blocks[i].words, blocks[i].value);
            blocks[i].words = words;
            fill(blocks[i].at, words, blocks[i].value);
        } else {
            check(blocks[i].at, blocks[i].words, blocks[i].value);
            free(blocks[i].at);
            blocks[i].at = NULL;
        }
        if (next(&state) % 8 == 0) {
            pthread_t thread;
            if (pthread_create(&thread, NULL, short_lived, (void *)(uintptr_t)(next(&state) % 4)) != 0)
                abort();
            pthread_join(thread, NULL);
        }
        if (next(&state) % 64 == 0)
            malloc_trim(0);
        struct timespec pause = {0, 500000};
        nanosleep(&pause, NULL);
    }
    for (int i = 0; i < BLOCKS; i++)
        if (blocks[i].at != NULL)
            check(blocks[i].at, blocks[i].words, blocks[i].value);
    return NULL;
}

int main(int argc, char **argv) {
    end = time(NULL) + (argc > 1 ? atoi(argv[1]) : 5);
    /* Keeps blocks of all these sizes in mappings of their own, as the C library does at first. */
    mallopt(M_MMAP_THRESHOLD, 128 * 1024);
    if (prctl(PR_SET_MEMORY_MERGE, 1, 0, 0, 0) != 0) {
        perror("prctl");
        return 1;
    }
    pthread_t threads[4];
    for (uintptr_t i = 0; i < 4; i++)
        if (pthread_create(&threads[i], NULL, work, (void *)(i + 1)) != 0)
            return 1;
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    char line[80];
    FILE *stat = fopen("/proc/self/ksm_stat", "r");
    while (stat != NULL && fgets(line, sizeof line, stat) != NULL)
        fputs(line, stdout);
    return 0;
}
