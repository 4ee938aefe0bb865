"""Memory for large bodies: each page that is new to a process costs a fault."""

cdef extern from * nogil:
    """
    #include <stddef.h>
    #include <stdint.h>
    #include <stdlib.h>
    #if defined(__linux__)
    #include <sys/mman.h>
    #endif

    /* Below it the fault of each page is not worth a system call. */
    #define LN_MANY_PAGES ((size_t) 4 << 20)

    static inline void ln_expect_pages(void *data, size_t size) {
    #if defined(MADV_HUGEPAGE)
        uintptr_t first = ((uintptr_t) data + 4095) & ~(uintptr_t) 4095;
        if (size >= LN_MANY_PAGES) {
            /* Refused where there are none, which is fine. */
            madvise((void *) first, (size - (first - (uintptr_t) data)), MADV_HUGEPAGE);
        }
    #else
        (void) data;
        (void) size;
    #endif
    }

    /* Once a process has given back so much at once, glibc keeps up to twice as much
       for what is allocated next; a body of 1 MiB had all its pages new each time.
       Without effect where the user has set a threshold, and elsewhere. */
    static inline void ln_keep_pages(void) {
        void *volatile data = malloc((size_t) 8 << 20);
        free(data);
    }
    """
    # Say that memory, just allocated, is about to be written in full.
    void expect_pages "ln_expect_pages"(void* data, size_t size)
    # Have freed memory of some megabytes used again.
    void keep_pages "ln_keep_pages"()
