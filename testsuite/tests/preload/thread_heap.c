/* The heap of a thread is mapped, made writable, and given back by the C library itself: all of it merges. */
#include "kit.h"
#include <pthread.h>

#define BLOCKS 30
#define SIZE (100 * 1000)

static void *work(void *unused) {
    char *blocks[BLOCKS];
    for (int i = 0; i < BLOCKS; i++) {
        check((blocks[i] = malloc(SIZE)) != NULL);
        memset(blocks[i], 0x5A, SIZE);
    }
    /* Whatever else merges in this process. */
    for (int i = 0; merging_pages() < BLOCKS * (SIZE / PAGE - 2); i++) {
        check(i < 6000);
        pause_ms(10);
    }
    for (int i = BLOCKS; i-- > 0;)
        free(blocks[i]);
    for (int i = 0; i < BLOCKS; i++) {
        check((blocks[i] = calloc(1, SIZE)) != NULL);
        for (int at = 0; at < SIZE; at++)
            check(blocks[i][at] == 0);
    }
    return unused;
}

int main(void) {
    pthread_t thread;
    check(prctl(PR_SET_MEMORY_MERGE, 1, 0, 0, 0) == 0);
    check(pthread_create(&thread, NULL, work, NULL) == 0);
    check(pthread_join(thread, NULL) == 0);
    return 0;
}
