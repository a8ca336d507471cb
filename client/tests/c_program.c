/* The app of tests/c_programs.rs: uses every function of the interface, and exits with the line that failed. */
#define _DEFAULT_SOURCE
#include <errno.h>
#include <ksm_client.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define CHECK(what)           \
    do {                      \
        if (!(what))          \
            _exit(__LINE__);  \
    } while (0)
#define FAILS(call, why) CHECK((call) == -1 && errno == (why))

enum { LEN = 5 * 4096 };

int main(int argc, char **argv)
{
    struct ksm_figures figures;
    CHECK(argc == 2);
    FAILS(ksm_mergeable(argv, 4096), EINVAL); /* not started */
    CHECK(ksm_allocate(LEN) == NULL && errno == EINVAL);
    CHECK(ksm_connected() == 0);
    CHECK(ksm_start(argv[1]) == 0);
    CHECK(ksm_start(argv[1]) == 0);
    FAILS(ksm_start("/nonexistent"), EBUSY);
    CHECK(ksm_connected() == 1);

    char *own = mmap(NULL, LEN, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(own != MAP_FAILED);
    memset(own, 7, LEN);
    FAILS(ksm_mergeable(own + 1, 4096), EINVAL);
    CHECK(ksm_mergeable(own, 0) == 0);
    CHECK(ksm_mergeable(own, LEN - 1) == 0); /* rounded up */

    CHECK(ksm_figures(&figures) == 0);
    CHECK(figures.rmap_items == 1 && figures.zero_pages == 2 && figures.merging_pages == 3 && figures.profit == -4);

    char *theirs = ksm_allocate(LEN);
    CHECK(theirs != NULL && theirs[LEN - 1] == 0);
    memset(theirs, 8, LEN);
    CHECK(ksm_discard(theirs + 4096, 4096) == 0);
    CHECK(theirs[4095] == 8 && theirs[4096] == 0 && theirs[8191] == 0 && theirs[8192] == 8);

    pid_t child = fork();
    if (child == 0)
        _exit(theirs[0] != 8 || own[0] != 7 || ksm_unmergeable(own, LEN) != 0);
    int status;
    CHECK(waitpid(child, &status, 0) == child && status == 0);

    CHECK(ksm_unmergeable(own, LEN) == 0);
    CHECK(madvise(own, LEN, MADV_DONTNEED) == 0 && own[0] == 0);
    CHECK(ksm_mergeable(own, LEN) == 0);
    CHECK(ksm_forget(own, LEN) == 0);
    CHECK(munmap(own, LEN) == 0);
    CHECK(ksm_free(theirs, LEN) == 0);
    return 0;
}
