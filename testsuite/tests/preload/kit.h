/* What the programs here share: a check that says where it failed, and waiting until memory is merged. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

#ifndef PR_SET_MEMORY_MERGE
#define PR_SET_MEMORY_MERGE 67
#define PR_GET_MEMORY_MERGE 68
#endif
#define PAGE 4096

#define check(condition)                                                                                              \
    do {                                                                                                              \
        if (!(condition)) {                                                                                           \
            fprintf(stderr, "%s:%d: %s (errno %d, %s)\n", __FILE__, __LINE__, #condition, errno, strerror(errno));    \
            _exit(1);                                                                                                 \
        }                                                                                                             \
    } while (0)

/* What the library says is merged in this process. */
static inline long merging_pages(void) {
    char text[32] = {0};
    int fd = open("/proc/self/ksm_merging_pages", O_RDONLY | O_CLOEXEC);
    check(fd >= 0);
    check(read(fd, text, sizeof text - 1) > 0);
    close(fd);
    return atol(text);
}

static inline void pause_ms(long ms) {
    struct timespec time = {ms / 1000, ms % 1000 * 1000000};
    nanosleep(&time, NULL);
}

/* Waits until exactly that many pages of this process are merged. What was unmapped or written counts until the next
 * scan has come by. */
static inline void wait_merged(long pages) {
    for (int i = 0; i < 6000; i++) {
        if (merging_pages() == pages)
            return;
        pause_ms(10);
    }
    fprintf(stderr, "%ld pages are merged, not %ld\n", merging_pages(), pages);
    _exit(1);
}

static inline void fill(void *at, size_t pages, int byte) {
    memset(at, byte, pages * PAGE);
}

static inline int is_filled(const void *at, size_t pages, int byte) {
    const unsigned char *bytes = at;
    for (size_t i = 0; i < pages * PAGE; i++)
        if (bytes[i] != (unsigned char)byte)
            return 0;
    return 1;
}

static inline char *map(size_t pages) {
    /* Room around it, so that nothing joins it. */
    char *at = mmap(NULL, (pages + 2) * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    check(at != MAP_FAILED);
    check(mmap(at + PAGE, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == at + PAGE);
    return at + PAGE;
}

/* Pages filled with one byte, all of them merged, and beside them `others` in this process. */
static inline char *merged_beside(long others, size_t pages, int byte) {
    char *at = map(pages);
    fill(at, pages, byte);
    check(madvise(at, pages * PAGE, 12) == 0);
    wait_merged(others + (long)pages);
    return at;
}

static inline char *merged(size_t pages, int byte) {
    return merged_beside(0, pages, byte);
}
