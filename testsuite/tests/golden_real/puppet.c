/* A process that does to its memory what it is told, and knows nothing of ksmfs.
 *
 * It connects to the socket it is given and says its process id; from then on each line is an order, answered by `ok`
 * and a value or by `err` and an errno. A child that it forks connects by itself. Numbers are hexadecimal; addresses
 * are whole pages. It ends when the other side hangs up. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <unistd.h>

#define PAGE 4096
#define WORDS (PAGE / sizeof(uint64_t))

typedef unsigned long number;

static const char *path;
static FILE *orders;
static char value[4096];

static void join(void) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || strlen(path) >= sizeof address.sun_path)
        _exit(1);
    strcpy(address.sun_path, path);
    if (connect(fd, (struct sockaddr *)&address, sizeof address) != 0)
        _exit(1);
    if (orders)
        fclose(orders);
    orders = fdopen(fd, "r");
    if (!orders || dprintf(fd, "%d\n", getpid()) < 0)
        _exit(1);
}

/* Page number i gets first + i * step in each of its words. */
static void fill(uint64_t *at, number pages, uint64_t first, uint64_t step) {
    for (number page = 0; page < pages; page++)
        for (number word = 0; word < WORDS; word++)
            at[page * WORDS + word] = first + page * step;
}

static int is_filled(const uint64_t *at, number pages, uint64_t first, uint64_t step) {
    for (number page = 0; page < pages; page++)
        for (number word = 0; word < WORDS; word++)
            if (at[page * WORDS + word] != first + page * step)
                return 0;
    return 1;
}

static int touch(const volatile char *at, number pages) {
    int sum = 0;
    for (number page = 0; page < pages; page++)
        sum += at[page * PAGE];
    return sum;
}

/* New memory at that place; over what is there only with MAP_FIXED. */
static int map(void *at, number bytes, int how) {
    return mmap(at, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | how, -1, 0) == at ? 0 : -1;
}

/* As the kernel shows it of this process, on one line. */
static int figures(void) {
    int fd = open("/proc/self/ksm_stat", O_RDONLY | O_CLOEXEC);
    ssize_t length = fd < 0 ? -1 : read(fd, value, sizeof value - 1);
    if (length < 0)
        return -1;
    close(fd);
    value[length] = 0;
    for (char *at = value; (at = strchr(at, '\n'));)
        *at = ' ';
    return 0;
}

/* Huge pages in the place of small ones, now. */
static int collapse(void *at, size_t bytes) {
    if (prctl(PR_SET_THP_DISABLE, 0, 0, 0, 0) != 0)
        return -1;
    for (int tries = 0; tries < 100; tries++) {
        if (madvise(at, bytes, 25 /* COLLAPSE */) == 0)
            return 0;
        usleep(10000);
    }
    return -1;
}

/* One pipe, for pages to be put into. */
static int reader, writer;

static int splice_pages(void *at, size_t bytes) {
    struct iovec vector = {at, bytes};
    int ends[2];
    if (!writer) {
        if (pipe2(ends, O_CLOEXEC) != 0)
            return -1;
        reader = ends[0];
        writer = ends[1];
    }
    return vmsplice(writer, &vector, 1, 0) == (ssize_t)bytes ? 0 : -1;
}

static int drain(size_t bytes) {
    static char into[PAGE];
    for (; bytes > 0; bytes -= PAGE)
        if (read(reader, into, PAGE) != PAGE)
            return -1;
    return 0;
}

static int forked(void) {
    fflush(NULL);
    pid_t child = fork();
    if (child == 0) {
        join();
        return 1;
    }
    return child < 0 ? -1 : 0;
}

/* 0, or -1 and errno; 1 if there is nothing to be answered. */
static int obey(const char *order) {
    char verb[16];
    number start = 0, pages = 0, first = 0, step = 0;
    value[0] = 0;
    if (sscanf(order, "%15s %lx %lx %lx %lx", verb, &start, &pages, &first, &step) < 1)
        return errno = EINVAL, -1;
    void *at = (void *)(start * PAGE);
    size_t bytes = pages * PAGE;
    if (!strcmp(verb, "map"))
        return map(at, bytes, MAP_FIXED_NOREPLACE);
    if (!strcmp(verb, "remap"))
        return map(at, bytes, MAP_FIXED);
    if (!strcmp(verb, "fill"))
        return fill(at, pages, first, step), 0;
    if (!strcmp(verb, "check"))
        return is_filled(at, pages, first, step) ? 0 : (errno = EILSEQ, -1);
    if (!strcmp(verb, "touch"))
        return snprintf(value, sizeof value, "%d", touch(at, pages)), 0;
    if (!strcmp(verb, "advise"))
        return madvise(at, bytes, (int)first);
    if (!strcmp(verb, "unmap"))
        return munmap(at, bytes);
    if (!strcmp(verb, "move"))
        return mremap(at, bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED, (void *)(first * PAGE)) == MAP_FAILED ? -1 : 0;
    if (!strcmp(verb, "collapse"))
        return collapse(at, bytes);
    if (!strcmp(verb, "splice"))
        return splice_pages(at, bytes);
    if (!strcmp(verb, "drain"))
        return drain(bytes);
    if (!strcmp(verb, "figures"))
        return figures();
    if (!strcmp(verb, "fork"))
        return forked();
    if (!strcmp(verb, "exit"))
        _exit(0);
    return errno = ENOSYS, -1;
}

int main(int argc, char **argv) {
    char order[256];
    if (argc != 2)
        return 2;
    path = argv[1];
    signal(SIGCHLD, SIG_IGN);
    prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
    join();
    while (fgets(order, sizeof order, orders)) {
        int done = obey(order);
        if (done == 0)
            dprintf(fileno(orders), "ok %s\n", value);
        else if (done < 0)
            dprintf(fileno(orders), "err %s\n", strerror(errno));
    }
    return 0;
}
