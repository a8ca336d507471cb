/* The files in which a process sees its own merging and that of others, opened once and read again and again. */
#include "kit.h"
#include <sched.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>

#define N 32
#define LEN ((size_t)N * PAGE)

static char text[512];

/* Reads a kept descriptor from its start. */
static ssize_t again(int fd) {
    check(lseek(fd, 0, SEEK_SET) == 0);
    ssize_t length = read(fd, text, sizeof text - 1);
    text[length < 0 ? 0 : length] = 0;
    return length;
}

static void until(int fd, const char *contains) {
    for (int i = 0; i < 6000; i++) {
        check(again(fd) > 0);
        if (strstr(text, contains) != NULL)
            return;
        pause_ms(10);
    }
    fprintf(stderr, "never \"%s\" in:\n%s", contains, text);
    _exit(1);
}

/* Where the daemon's files and its socket are not to be seen. */
static int sees_itself_in(const char *directory) {
    char *at = merged(N, 0x53);
    char proc[64];
    snprintf(proc, sizeof proc, "%s/proc", directory);
    check(unshare(CLONE_NEWNS) == 0 && mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) == 0);
    check(mount("/proc", proc, NULL, MS_BIND | MS_REC, NULL) == 0);
    check(chroot(directory) == 0 && chdir("/") == 0);
    check(merging_pages() == N);
    int own = open("/proc/self/ksm_stat", O_RDONLY);
    check(own >= 0);
    until(own, "ksm_merging_pages 32\n");
    at[0] = 1;
    until(own, "ksm_merging_pages 31\n");
    check(madvise(at, LEN, 13) == 0);
    until(own, "ksm_merging_pages 0\n");
    return 0;
}

static void another_root(void) {
    char directory[] = "/tmp/stat_files.XXXXXX", proc[64];
    check(mkdtemp(directory) != NULL);
    snprintf(proc, sizeof proc, "%s/proc", directory);
    check(mkdir(proc, 0700) == 0);
    pid_t pid = fork();
    check(pid >= 0);
    if (pid == 0)
        _exit(sees_itself_in(directory));
    int status;
    check(waitpid(pid, &status, 0) == pid && rmdir(proc) == 0 && rmdir(directory) == 0 && status == 0);
}

int main(void) {
    int ready[2], go[2];
    char byte, path[64];
    char *at = map(N);
    fill(at, N, 0x51);
    check(madvise(at, LEN, 12) == 0);
    int own = open("/proc/self/ksm_stat", O_RDONLY);
    check(own >= 0);
    until(own, "ksm_merging_pages 32\n");
    check(strstr(text, "ksm_mergeable: yes\n") != NULL && strstr(text, "ksm_merge_any: no\n") != NULL);
    /* Written, and taken back: both are seen through the same descriptor. */
    at[0] = 1;
    until(own, "ksm_merging_pages 31\n");
    check(madvise(at, LEN, 13) == 0);
    /* As with the kernel's: the pages are private, and are counted until the next scan has passed. */
    until(own, "ksm_merging_pages 0\n");
    check(strstr(text, "ksm_mergeable: no\n") != NULL);
    /* In two parts, as of one text. */
    check(lseek(own, 0, SEEK_SET) == 0 && read(own, text, 4) == 4 && memcmp(text, "ksm_", 4) == 0);
    check(read(own, text, 10) == 10 && memcmp(text, "rmap_items", 10) == 0);
    /* Another process. */
    check(pipe(ready) == 0 && pipe(go) == 0);
    pid_t pid = fork();
    check(pid >= 0);
    if (pid == 0) {
        check(prctl(PR_SET_MEMORY_MERGE, 1, 0, 0, 0) == 0);
        char *mine = map(N);
        fill(mine, N, 0x52);
        check(write(ready[1], "r", 1) == 1);
        pause();
    }
    check(read(ready[0], &byte, 1) == 1);
    snprintf(path, sizeof path, "/proc/%d/ksm_stat", pid);
    int others = open(path, O_RDONLY);
    snprintf(path, sizeof path, "/proc/%d/ksm_merging_pages", pid);
    FILE *pages = fopen(path, "re");
    check(others >= 0 && pages != NULL);
    /* With a buffer the C library would rewind no farther than to what it has read already. */
    check(setvbuf(pages, NULL, _IONBF, 0) == 0 && fgets(text, sizeof text, pages) != NULL && strchr(text, '\n') != NULL);
    long merged = 0;
    for (int i = 0; merged < N; i++) {
        check(i < 6000);
        pause_ms(10);
        rewind(pages);
        check(fscanf(pages, "%ld", &merged) == 1);
    }
    until(others, "ksm_merge_any: yes\n");
    check(strstr(text, "ksm_mergeable: yes\n") != NULL);
    check(kill(pid, SIGKILL) == 0 && waitpid(pid, NULL, 0) == pid);
    for (int i = 0; again(others) >= 0; i++) {
        check(i < 6000);
        pause_ms(10);
    }
    check(errno == ESRCH);
    another_root();
    return 0;
}
