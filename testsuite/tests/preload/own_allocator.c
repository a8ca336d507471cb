/* A program with an allocator of its own, whose lock is taken around every fork: as with jemalloc, which redis has. */
#include "kit.h"
#include <pthread.h>
#include <signal.h>
#include <sys/wait.h>

#define N 32

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char heap[32 << 20] __attribute__((aligned(PAGE)));
static size_t used;

static void *allocate(size_t alignment, size_t len) {
    pthread_mutex_lock(&lock);
    used = (used + alignment - 1) & ~(alignment - 1);
    /* The length is kept before it, for whoever wants more. */
    used += alignment > 16 ? alignment : 16;
    char *at = heap + used;
    memcpy(at - sizeof len, &len, sizeof len);
    used += len;
    pthread_mutex_unlock(&lock);
    return used < sizeof heap ? at : NULL;
}

void *malloc(size_t len) {
    return allocate(16, len);
}

void *calloc(size_t count, size_t len) {
    return allocate(16, count * len);
}

void *realloc(void *old, size_t len) {
    size_t before = 0;
    void *at = allocate(16, len);
    if (old != NULL)
        memcpy(&before, (char *)old - sizeof before, sizeof before);
    return old == NULL ? at : memcpy(at, old, before < len ? before : len);
}

int posix_memalign(void **at, size_t alignment, size_t len) {
    *at = allocate(alignment, len);
    return *at == NULL ? ENOMEM : 0;
}

void free(void *at) {
    (void)at;
}

static void take(void) {
    pthread_mutex_lock(&lock);
}

static void give(void) {
    pthread_mutex_unlock(&lock);
}

__attribute__((constructor)) static void watch_forks(void) {
    check(pthread_atfork(take, give, give) == 0);
}

static void give_up(int signal) {
    kill(0, SIGKILL);
    (void)signal;
}

int main(void) {
    /* A child that waits for ever must not outlive the test. */
    check(setpgid(0, 0) == 0 && signal(SIGALRM, give_up) != SIG_ERR);
    alarm(60);
    char *at = merged(N, 0x61);
    for (int i = 0; i < 50; i++) {
        pid_t pid = fork();
        check(pid >= 0);
        if (pid == 0) {
            check(is_filled(at, N, 0x61));
            fill(at, N, 0x62);
            /* Some live for longer, and take part. */
            if (i % 10 == 0)
                wait_merged(N);
            _exit(is_filled(at, N, 0x62) ? 0 : 1);
        }
        int status;
        check(waitpid(pid, &status, 0) == pid && status == 0);
    }
    check(is_filled(at, N, 0x61));
    return 0;
}
