/* What an app may do to its memory, done to memory that is merged: it means what it means on any anonymous memory. */
#include "kit.h"
#include <signal.h>
#include <setjmp.h>
#include <sys/wait.h>

#define N 64
#define LEN ((size_t)N * PAGE)

static sigjmp_buf fault;

static void on_fault(int signal) {
    siglongjmp(fault, signal);
}

/* Whether an access to the byte is a fault. */
static int faults(volatile char *at, int writes) {
    if (sigsetjmp(fault, 1) != 0)
        return 1;
    if (writes)
        *at = *at;
    else
        (void)*at;
    return 0;
}

static void emptying(void) {
    char *at = merged(N, 1);
    check(madvise(at + 8 * PAGE, 8 * PAGE, MADV_DONTNEED) == 0);
    check(is_filled(at, 8, 1) && is_filled(at + 8 * PAGE, 8, 0) && is_filled(at + 16 * PAGE, N - 16, 1));
    check(madvise(at + 20 * PAGE, 4 * PAGE, MADV_FREE) == 0);
    /* Of memory that was freed each page is as it was, or empty. */
    for (int i = 20; i < 24; i++)
        check(is_filled(at + i * PAGE, 1, 0) || is_filled(at + i * PAGE, 1, 1));
    check(madvise(at, LEN, MADV_REMOVE) == -1 && errno == EINVAL);
    /* All of it, with a hole in the middle. */
    check(munmap(at + 30 * PAGE, PAGE) == 0);
    check(madvise(at, LEN, MADV_DONTNEED) == -1 && errno == ENOMEM);
    check(is_filled(at, 30, 0) && is_filled(at + 31 * PAGE, N - 31, 0));
    /* It merges again. */
    fill(at, 30, 2);
    wait_merged(30);
    check(munmap(at, LEN) == 0);
    wait_merged(0);
}

static void protecting(void) {
    char *at = merged(N, 3);
    check(mprotect(at, 16 * PAGE, PROT_READ) == 0);
    check(mprotect(at + 16 * PAGE, 16 * PAGE, PROT_NONE) == 0);
    check(faults(at, 1) && !faults(at, 0) && faults(at + 16 * PAGE, 0));
    /* Also after some more scans. */
    pause_ms(300);
    check(faults(at, 1) && !faults(at, 0) && faults(at + 16 * PAGE, 0) && !faults(at + 32 * PAGE, 1));
    check(mprotect(at, LEN, PROT_READ | PROT_WRITE) == 0);
    check(!faults(at, 1) && !faults(at + 16 * PAGE, 1) && is_filled(at, N, 3));
    /* Code: a page of returns. */
    wait_merged(N);
    char *code = merged_beside(N, 4, 0xC3);
    check(mprotect(code, 4 * PAGE, PROT_READ | PROT_EXEC) == 0);
    ((void (*)(void))(uintptr_t)code)();
    check(mprotect(code, 4 * PAGE, PROT_READ | PROT_WRITE | PROT_EXEC) == 0);
    code[PAGE] = 0x90;
    ((void (*)(void))(uintptr_t)(code + PAGE))();
    /* The kernel writes through a protection for debuggers. */
    check(mprotect(at, LEN, PROT_NONE) == 0);
    int mem = open("/proc/self/mem", O_RDWR);
    check(mem >= 0 && pwrite(mem, "debugger", 8, (off_t)(uintptr_t)(at + 5 * PAGE)) == 8);
    close(mem);
    check(mprotect(at, LEN, PROT_READ) == 0);
    check(memcmp(at + 5 * PAGE, "debugger", 8) == 0 && at[6 * PAGE] == 3 && is_filled(at, 5, 3));
    check(munmap(at, LEN) == 0 && munmap(code, 4 * PAGE) == 0);
    wait_merged(0);
}

static void moving(void) {
    char *at = merged(N, 4);
    /* Grows; may move. */
    char *bigger = mremap(at, LEN, LEN + 16 * PAGE, MREMAP_MAYMOVE);
    check(bigger != MAP_FAILED && is_filled(bigger, N, 4) && is_filled(bigger + LEN, 16, 0));
    fill(bigger + LEN, 16, 4);
    wait_merged(N + 16);
    /* Shrinks in place. */
    check(mremap(bigger, LEN + 16 * PAGE, LEN, 0) == bigger && is_filled(bigger, N, 4));
    check(faults(bigger + LEN, 0));
    /* To a place of its choice, over what is there. */
    char *place = merged_beside(N, N, 5);
    check(mremap(bigger, LEN, LEN, MREMAP_MAYMOVE | MREMAP_FIXED, place) == place);
    check(is_filled(place, N, 4) && faults(bigger, 0));
    /* Some of it merged, some written since, some never. */
    place[3 * PAGE] = 9;
    place[40 * PAGE] = 9;
    char *other = mremap(place, LEN, 2 * LEN, MREMAP_MAYMOVE);
    check(other != MAP_FAILED && other[3 * PAGE] == 9 && other[40 * PAGE] == 9 && other[41 * PAGE] == 4);
    check(is_filled(other + LEN, N, 0));
    /* Leaving an empty mapping behind. */
    check(munmap(other, 2 * LEN) == 0);
    wait_merged(0);
    char *full = merged(N, 6);
    char *gone = mremap(full, LEN, LEN, MREMAP_MAYMOVE | 4 /* DONTUNMAP */, NULL);
    check(gone != MAP_FAILED && is_filled(gone, N, 6) && is_filled(full, N, 0));
    /* No room to grow where it may not move. */
    check(mmap(gone + LEN, PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == gone + LEN);
    check(mremap(gone, LEN, LEN + PAGE, 0) == MAP_FAILED && errno == ENOMEM);
    check(is_filled(gone, N, 6));
    munmap(gone, LEN);
    munmap(full, LEN);
    wait_merged(0);
}

static void replacing(void) {
    char *at = merged(N, 7);
    char *hole = at + 10 * PAGE;
    check(mmap(hole, 10 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == hole);
    check(is_filled(hole, 10, 0) && is_filled(at, 10, 7) && is_filled(at + 20 * PAGE, N - 20, 7));
    int shared = memfd_create("shared", 0);
    check(ftruncate(shared, 10 * PAGE) == 0);
    check(mmap(hole, 10 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, shared, 0) == hole);
    fill(hole, 10, 7);
    pause_ms(200);
    char byte = 8;
    check(pwrite(shared, &byte, 1, 4 * PAGE) == 1 && hole[4 * PAGE] == 8);
    close(shared);
    check(munmap(at, LEN) == 0);
    wait_merged(0);
}

static void locking(void) {
    char *at = merged(N, 8);
    check(mlock(at, 16 * PAGE) == 0);
    check(madvise(at, 16 * PAGE, MADV_DONTNEED) == -1 && errno == EINVAL);
    check(is_filled(at, N, 8));
    pause_ms(300);
    check(madvise(at, 16 * PAGE, MADV_DONTNEED) == -1 && errno == EINVAL);
    check(munlock(at, LEN) == 0 && madvise(at, 16 * PAGE, MADV_DONTNEED) == 0);
    check(is_filled(at, 16, 0) && is_filled(at + 16 * PAGE, N - 16, 8));
    munmap(at, LEN);
    wait_merged(0);
}

/* Runs in a child, which checks. */
static int child(int (*looks)(char *), char *at) {
    pid_t pid = fork();
    check(pid >= 0);
    if (pid == 0)
        _exit(looks(at));
    int status;
    check(waitpid(pid, &status, 0) == pid && WIFEXITED(status));
    return WEXITSTATUS(status);
}

static int sees_faults(char *at) {
    return faults(at, 0) && faults(at + LEN - 1, 0) ? 0 : 1;
}

static int sees_zeroes(char *at) {
    return is_filled(at, N, 0) ? 0 : 1;
}

static int sees_nines(char *at) {
    if (!is_filled(at, N, 9))
        return 1;
    fill(at, N, 10);
    return is_filled(at, N, 10) ? 0 : 2;
}

static int is_in_dumps(char *at) {
    char line[256];
    int in = 0, dumped = -1;
    FILE *smaps = fopen("/proc/self/smaps", "re");
    check(smaps != NULL);
    while (fgets(line, sizeof line, smaps) != NULL) {
        unsigned long from, to;
        if (sscanf(line, "%lx-%lx ", &from, &to) == 2)
            in = from <= (uintptr_t)at && (uintptr_t)at < to;
        else if (in && strncmp(line, "VmFlags:", 8) == 0)
            dumped = strstr(line, " dd") == NULL;
    }
    fclose(smaps);
    check(dumped >= 0);
    return dumped;
}

static void forking(void) {
    char *at = merged(N, 9);
    check(child(sees_nines, at) == 0 && is_filled(at, N, 9));
    /* Not in children: when it is merged already, and when it merges later. */
    check(madvise(at, LEN, MADV_DONTFORK) == 0 && child(sees_faults, at) == 0);
    char *later = map(N);
    check(madvise(later, LEN, MADV_DONTFORK) == 0 && madvise(later, LEN, MADV_DONTDUMP) == 0);
    fill(later, N, 9);
    check(madvise(later, LEN, 12) == 0);
    wait_merged(2 * N);
    check(child(sees_faults, later) == 0 && !is_in_dumps(later));
    check(madvise(later, LEN, MADV_DOFORK) == 0 && madvise(later, LEN, MADV_DODUMP) == 0);
    check(child(sees_nines, later) == 0 && is_in_dumps(later));
    check(madvise(later, LEN, 13) == 0 && child(sees_nines, later) == 0);
    /* Empty in children. */
    check(madvise(at, LEN, MADV_DOFORK) == 0 && madvise(at, LEN, MADV_WIPEONFORK) == 0);
    check(child(sees_zeroes, at) == 0 && is_filled(at, N, 9));
    check(madvise(at, LEN, 12) == 0);
    pause_ms(300);
    check(child(sees_zeroes, at) == 0 && is_filled(at, N, 9));
    check(madvise(at, LEN, MADV_KEEPONFORK) == 0 && child(sees_nines, at) == 0);
    munmap(at, LEN);
    munmap(later, LEN);
    wait_merged(0);
}

/* How many of the pages are mapped from a file, as merged ones are. */
static int in_files(const char *at) {
    uint64_t entries[N];
    int pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC), count = 0;
    check(pagemap >= 0 && is_filled(at, N, at[0]));
    check(pread(pagemap, entries, sizeof entries, (off_t)((uintptr_t)at / PAGE * 8)) == sizeof entries);
    close(pagemap);
    for (int i = 0; i < N; i++)
        count += entries[i] >> 61 & 1;
    return count;
}

/* Every advice there is, given to merged memory and to memory that never was: the answers are the same, and the bytes. */
static void any_advice(void) {
    const int freeing = 8, broken[] = {100, 101}, merging[] = {12, 13};
    for (int advice = -1; advice <= 110; advice++) {
        if (advice == broken[0] || advice == broken[1] || advice == merging[0] || advice == merging[1])
            continue;
        char *at = merged(N, 13), *plain = map(N);
        fill(plain, N, 13);
        errno = 0;
        int answer = madvise(at + PAGE, 8 * PAGE, advice), error = errno;
        errno = 0;
        int plains = madvise(plain + PAGE, 8 * PAGE, advice);
        if (answer != plains || error != errno)
            fprintf(stderr, "advice %d: %d %d, not %d %d\n", advice, answer, error, plains, errno);
        check(answer == plains && error == errno);
        /* Guarded pages (102) cannot be read until that is taken back (103). */
        if (advice == 102)
            check(faults(at + PAGE, 0) && madvise(at, LEN, 103) == 0 && madvise(plain, LEN, 103) == 0);
        check(advice == freeing || memcmp(at, plain, LEN) == 0);
        check(munmap(at, LEN) == 0 && munmap(plain, LEN) == 0);
        wait_merged(0);
    }
}

static void going_back(void) {
    char *at = merged(N, 11);
    check(in_files(at) == N);
    /* All of it is done when the call returns. */
    check(madvise(at, LEN, 13) == 0 && in_files(at) == 0);
    check(is_filled(at, N, 11));
    wait_merged(0);
    /* Plain memory again: of one kind, as far as the app can tell. */
    fill(at, N, 12);
    check(madvise(at, LEN, MADV_FREE) == 0 && madvise(at, LEN, MADV_DONTNEED) == 0 && is_filled(at, N, 0));
    fill(at, N, 12);
    check(madvise(at, LEN, 12) == 0);
    wait_merged(N);
    check(is_filled(at, N, 12));
    munmap(at, LEN);
}

int main(void) {
    struct sigaction action = {.sa_handler = on_fault};
    check(sigaction(SIGSEGV, &action, NULL) == 0 && sigaction(SIGBUS, &action, NULL) == 0);
    emptying();
    protecting();
    moving();
    replacing();
    locking();
    forking();
    any_advice();
    going_back();
    return 0;
}
