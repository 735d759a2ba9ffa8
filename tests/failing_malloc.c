/* Takes the place of the system's allocation functions (LD_PRELOAD), and has some calls of them fail:
 * those that come from one loaded library, by the address they return to.
 *
 * fail_from(low, high): the library's code.
 * fail_at(number, lasts): its call of that number fails, counted from 1 from now on; with `lasts` all
 *     calls from that one on fail too. 0 ends it.
 * fail_count(): how many of its calls have failed since.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

extern void *__libc_malloc(size_t);
extern void *__libc_calloc(size_t, size_t);
extern void *__libc_realloc(void *, size_t);
extern void *__libc_memalign(size_t, size_t);

static uintptr_t low, high;
static long left, failed;
static int lasting;

void fail_from(uintptr_t from, uintptr_t to) { low = from, high = to; }

void fail_at(long number, int lasts) { left = number, lasting = lasts, failed = 0; }

long fail_count(void) { return failed; }

static int fails(void *caller)
{
    uintptr_t at = (uintptr_t)caller;
    if (left == 0 || at < low || at >= high || --left > 0)
        return 0;
    left = lasting;
    failed++;
    errno = ENOMEM;
    return 1;
}

#define FAILS fails(__builtin_return_address(0))

void *malloc(size_t size) { return FAILS ? NULL : __libc_malloc(size); }

void *calloc(size_t count, size_t size) { return FAILS ? NULL : __libc_calloc(count, size); }

void *realloc(void *old, size_t size) { return FAILS ? NULL : __libc_realloc(old, size); }

void *aligned_alloc(size_t align, size_t size) { return FAILS ? NULL : __libc_memalign(align, size); }

int posix_memalign(void **place, size_t align, size_t size)
{
    void *made = FAILS ? NULL : __libc_memalign(align, size);
    if (made == NULL)
        return ENOMEM;
    *place = made;
    return 0;
}

void *mmap(void *at, size_t size, int protection, int flags, int file, off_t offset)
{
    if (FAILS)
        return MAP_FAILED;
    return (void *)syscall(SYS_mmap, at, size, protection, flags, file, offset);
}
