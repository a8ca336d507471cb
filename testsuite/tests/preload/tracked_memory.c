/* Calm memory whose writes are tracked: to the kernel it is another mapping than what is beside it, and to the program it
 * is not. */
#include "kit.h"
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/syscall.h>

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

/* Pages that are tracked together. */
#define BLOCK 8192

/* Whether the kernel tracks writes to the page. */
static int is_tracked(const char *page) {
    FILE *smaps = fopen("/proc/self/smaps", "r");
    check(smaps);
    char line[512];
    int inside = 0, tracked = 0;
    while (fgets(line, sizeof line, smaps)) {
        unsigned long start, end;
        if (sscanf(line, "%lx-%lx ", &start, &end) == 2)
            inside = start <= (unsigned long)page && (unsigned long)page < end;
        else if (inside && strncmp(line, "VmFlags:", 8) == 0)
            tracked = strstr(line, " uw") != NULL;
    }
    fclose(smaps);
    return tracked;
}

/* Two blocks, nothing in the first and `used` pages in the second, each of its own content. */
static char *two_blocks(size_t used) {
    char *at = map(3 * BLOCK);
    at += BLOCK * PAGE - (size_t)at % (BLOCK * PAGE);
    for (size_t i = 0; i < used; i++)
        memset(at + (BLOCK + i) * PAGE, (int)i + 1, PAGE / 2);
    check(madvise(at, 2 * BLOCK * PAGE, 12) == 0);
    return at;
}

static void check_used(const char *at, size_t used) {
    for (size_t i = 0; i < used; i++)
        check(at[(BLOCK + i) * PAGE] == (char)(i + 1) && at[(BLOCK + i + 1) * PAGE - 1] == 0);
}

static void wait_tracked(const char *at) {
    for (int i = 0; i < 6000 && !is_tracked(at + BLOCK * PAGE); i++)
        pause_ms(10);
    check(is_tracked(at + BLOCK * PAGE));
}

/* In whichever way: all of it, or nothing. */
static void moved(void) {
    char *at = two_blocks(100);
    wait_tracked(at);
    check(!is_tracked(at));
    char *to = map(2 * BLOCK);
    check(mremap(at, 2 * BLOCK * PAGE, 2 * BLOCK * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, to) == to);
    check_used(to, 100);
    wait_tracked(to);
    char *grown = mremap(to, 2 * BLOCK * PAGE, 3 * BLOCK * PAGE, MREMAP_MAYMOVE);
    check(grown != MAP_FAILED);
    check_used(grown, 100);
    check(is_filled(grown + 2 * BLOCK * PAGE, 10, 0));
}

/* The library's calls are no longer allowed, so nothing must be left that needs them. */
static void sandboxed(void) {
    char *at = two_blocks(100), *to = map(2 * BLOCK);
    wait_tracked(at);
    /* Refused: programs try what the kernel knows. */
    check(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, NULL, 0, 0) == -1);
    wait_tracked(at);
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_pidfd_open, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog all = {sizeof filter / sizeof *filter, filter};
    check(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
    check(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &all, 0, 0) == 0);
    check(!is_tracked(at + BLOCK * PAGE));
    check(mremap(at, 2 * BLOCK * PAGE, 2 * BLOCK * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, to) == to);
    check_used(to, 100);
}

/* To the kernel a page that is protected cannot become a part of a huge page. */
static void collapsed(void) {
    char *at = two_blocks(0) + BLOCK * PAGE, *other = map(3 * 512);
    other += 512 * PAGE - (size_t)other % (512 * PAGE);
    for (long i = 0; i < 512; i++)
        *(long *)(at + i * PAGE) = *(long *)(other + i * PAGE) = i + 1;
    wait_tracked(at - BLOCK * PAGE);
    /* The machine may have no huge page to give. */
    int can = 0, could = 0;
    for (int i = 0; i < 100 && !could; i++) {
        can |= madvise(other, 512 * PAGE, MADV_COLLAPSE) == 0;
        could = madvise(at, 512 * PAGE, MADV_COLLAPSE) == 0;
        pause_ms(1);
    }
    check(could >= can);
    for (long i = 0; i < 512; i++)
        check(*(long *)(at + i * PAGE) == i + 1);
}

int main(int argc, char **argv) {
    check(argc == 2);
    if (strcmp(argv[1], "moved") == 0)
        moved();
    else if (strcmp(argv[1], "collapsed") == 0)
        collapsed();
    else
        sandboxed();
    return 0;
}
