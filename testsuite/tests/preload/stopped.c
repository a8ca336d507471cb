/* Holds pages that another process holds too, and stops itself. Whoever lets it go on has it look at them. */
#include "kit.h"
#include <signal.h>

#define N 64

int main(void) {
    char *at = map(N);
    for (int i = 0; i < N; i++)
        fill(at + i * PAGE, 1, i + 1);
    check(madvise(at, N * PAGE, 12) == 0 && raise(SIGSTOP) == 0);
    for (int i = 0; i < N; i++)
        check(is_filled(at + i * PAGE, 1, i + 1));
    return 0;
}
