/* Large blocks are unmapped by free itself while they are being merged, and mapped anew at the same address by malloc. */
#include "kit.h"
#include <malloc.h>

#define PAGES 64

int main(int argc, char **argv) {
    time_t end = time(NULL) + (argc > 1 ? atoi(argv[1]) : 10);
    check(mallopt(M_MMAP_THRESHOLD, 64 * 1024) == 1);
    unsigned rounds = 0, reused = 0;
    /* Longer where the machine is slow. */
    while (time(NULL) < end || (reused <= 10 && time(NULL) < end + 100)) {
        char *block = malloc(PAGES * PAGE);
        check(block != NULL);
        uintptr_t address = (uintptr_t)block;
        char *start = block + PAGE - address % PAGE;
        fill(start, PAGES - 1, 0x33);
        check(madvise(start, (PAGES - 1) * PAGE, 12) == 0);
        /* Some way into a scan or two, at another point each time. */
        for (volatile unsigned i = 0; i < rounds * 7919 % 10000000; i++) {
        }
        free(block);
        block = malloc(PAGES * PAGE);
        check(block != NULL);
        reused += (uintptr_t)block == address;
        fill(block, PAGES - 1, rounds % 7);
        for (int i = 0; i < 20; i++)
            check(is_filled(block, PAGES - 1, rounds % 7));
        free(block);
        rounds++;
    }
    printf("%u rounds, %u at an address used before\n", rounds, reused);
    check(reused > 10);
    return 0;
}
