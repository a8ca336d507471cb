/*
 * Merging identical pages of this process with those of others, in user space: the client of the daemon ksmfs.
 *
 * All functions but ksm_allocate and ksm_connected return 0, or -1 with errno set, as madvise(2) does. They may be
 * called from every thread and in forked children. Without a daemon they work all the same: what was registered is
 * merged when one comes.
 *
 * Link with -lksm_client (the static library needs -lpthread -ldl -lm as well).
 */
#ifndef KSM_CLIENT_H
#define KSM_CLIENT_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* What the daemon counts for this process; compare /proc/PID/ksm_stat. */
struct ksm_figures {
    uint64_t rmap_items;    /* pages that the daemon keeps a record of */
    uint64_t zero_pages;    /* zero pages placed and still there */
    uint64_t merging_pages; /* pages mapped to a merged page */
    int64_t profit;         /* bytes saved less bytes of bookkeeping */
};

/*
 * Starts the client of this process. socket names the daemon's socket; NULL: the environment variable KSMFS_SOCKET, or
 * the default. May be called again with the same socket. EBUSY: the client was started with another one.
 */
int ksm_start(const char *socket);

/*
 * madvise(addr, len, MADV_MERGEABLE), done by the daemon. The memory must be private and anonymous. addr must be at
 * the start of a page (EINVAL); len is rounded up. Call ksm_forget before you unmap, move or replace it, and
 * ksm_discard to empty it.
 */
int ksm_mergeable(void *addr, size_t len);

/* madvise(addr, len, MADV_UNMERGEABLE): when it returns every page is private. ENOMEM: some are not. */
int ksm_unmergeable(void *addr, size_t len);

/* The pages will be unmapped, moved or replaced next. */
int ksm_forget(void *addr, size_t len);

/* madvise(addr, len, MADV_DONTNEED) for pages that may be merged: they read as zero afterwards. */
int ksm_discard(void *addr, size_t len);

/* Zeroed memory that is merged; NULL with errno set if there is none. To be freed with ksm_free and the same len. */
void *ksm_allocate(size_t len);
int ksm_free(void *addr, size_t len);

/* Asks the daemon. */
int ksm_figures(struct ksm_figures *figures);

/* Whether a daemon knows this process: 1 or 0. */
int ksm_connected(void);

#ifdef __cplusplus
}
#endif

#endif
