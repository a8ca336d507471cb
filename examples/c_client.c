/* A C program whose two equal buffers are merged by a running ksmfs:
 *   cc -Iclient/include examples/c_client.c -Ltarget/release -lksm_client -o c_client
 *   LD_LIBRARY_PATH=target/release ./c_client [SOCKET]
 */
#include <ksm_client.h>
#include <stdio.h>
#include <string.h>

enum { LEN = 1 << 20 };

int main(int argc, char **argv)
{
    if (ksm_start(argc > 1 ? argv[1] : NULL) != 0) {
        perror("ksm_start");
        return 1;
    }
    char *one = ksm_allocate(LEN), *two = ksm_allocate(LEN);
    if (!one || !two) {
        perror("ksm_allocate");
        return 1;
    }
    for (int i = 0; i < LEN; i++)
        one[i] = two[i] = (char)(i / 4096 + i % 7 + 1);
    puts("press enter to see what was merged");
    getchar();

    struct ksm_figures figures;
    if (ksm_figures(&figures) != 0) {
        perror("ksm_figures");
        return 1;
    }
    printf("%llu pages merged, %lld bytes saved\n", (unsigned long long)figures.merging_pages,
           (long long)figures.profit);
    if (memcmp(one, two, LEN) != 0 || ksm_discard(one, LEN) != 0 || one[4711] != 0)
        return 1;
    return ksm_free(one, LEN) || ksm_free(two, LEN);
}
