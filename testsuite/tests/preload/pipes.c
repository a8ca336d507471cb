/* Pages that are in a pipe: what the program writes to them meanwhile is what the reader gets, and they merge when the
 * pipe is empty. */
#include "kit.h"
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>

#define N 16
#define LEN ((size_t)N * PAGE)

static ssize_t by_name(int fd, const struct iovec *vectors, size_t count) {
    return vmsplice(fd, vectors, count, 0);
}

static ssize_t by_number(int fd, const struct iovec *vectors, size_t count) {
    return syscall(SYS_vmsplice, fd, vectors, count, 0);
}

/* Whether the next page that the pipe gives begins with these bytes. */
static int gives(int fd, const char *bytes) {
    char page[PAGE];
    for (size_t got = 0; got < PAGE;) {
        ssize_t more = read(fd, page + got, PAGE - got);
        check(more > 0);
        got += (size_t)more;
    }
    return memcmp(page, bytes, strlen(bytes)) == 0;
}

/* The last page is the one in the pipe: it is never the one that the others wait for. */
static void written_meanwhile(ssize_t (*splices)(int, const struct iovec *, size_t), int first_advised) {
    int ends[2];
    char *at = map(N), *last = at + LEN - PAGE;
    struct iovec vector = {last, PAGE};
    fill(at, N, 0x31);
    /* Equal to nothing before it is in the pipe: else it might be merged by then. */
    fill(last, 1, 0x77);
    check(pipe(ends) == 0);
    check(!first_advised || madvise(at, LEN, 12) == 0);
    check(splices(ends[1], &vector, 1) == PAGE);
    fill(last, 1, 0x31);
    check(first_advised || madvise(at, LEN, 12) == 0);
    wait_merged(N - 1);
    strcpy(last, "written since");
    check(gives(ends[0], "written since"));
    fill(last, 1, 0x31);
    wait_merged(N);
    close(ends[0]);
    close(ends[1]);
    check(is_filled(at, N, 0x31) && munmap(at, LEN) == 0);
    wait_merged(0);
}

/* Pages of several places, moved since; only another process has the pipe. */
static void read_elsewhere(void) {
    int ends[2], go[2], status;
    check(pipe(ends) == 0 && pipe(go) == 0);
    pid_t reader = fork();
    check(reader >= 0);
    if (reader == 0) {
        char byte;
        close(ends[1]);
        check(read(go[0], &byte, 1) == 1);
        check(gives(ends[0], "two") && gives(ends[0], "twelve") && gives(ends[0], "2222"));
        /* The end of it: nobody has kept it open. */
        check(read(ends[0], &byte, 1) == 0);
        _exit(0);
    }
    char *at = map(N), *place = map(N);
    struct iovec vectors[] = {{at + 2 * PAGE, PAGE}, {at + 10 * PAGE, 0}, {at + 12 * PAGE, 2 * PAGE}};
    fill(at, N, 0x32);
    check(vmsplice(ends[1], vectors, 3, 0) == 3 * PAGE);
    close(ends[0]);
    close(ends[1]);
    check(mremap(at, LEN, LEN, MREMAP_MAYMOVE | MREMAP_FIXED, place) == place);
    check(madvise(place, LEN, 12) == 0);
    wait_merged(N - 3);
    strcpy(place + 2 * PAGE, "two");
    strcpy(place + 12 * PAGE, "twelve");
    check(write(go[1], "g", 1) == 1);
    check(waitpid(reader, &status, 0) == reader && WIFEXITED(status) && WEXITSTATUS(status) == 0);
    wait_merged(N - 2);
    check(is_filled(place, 2, 0x32) && is_filled(place + 13 * PAGE, N - 13, 0x32) && munmap(place, LEN) == 0);
    wait_merged(0);
}

int main(void) {
    written_meanwhile(by_name, 1);
    written_meanwhile(by_name, 0);
    written_meanwhile(by_number, 1);
    read_elsewhere();
    /* What is no pipe, and no memory. */
    struct iovec vector = {(void *)16, PAGE};
    int ends[2];
    check(pipe(ends) == 0);
    check(vmsplice(2000, &vector, 1, 0) == -1 && errno == EBADF);
    check(vmsplice(ends[1], (void *)16, 1, 0) == -1 && errno == EFAULT);
    check(vmsplice(ends[1], &vector, 1, 0) == -1 && errno == EFAULT);
    check(vmsplice(ends[1], &vector, 0, 0) == 0);
    return 0;
}
