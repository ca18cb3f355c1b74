/* Preloaded into a program: every regular file that it opens for reading and writing is opened with O_DIRECT.
 *
 * fsx has no option for it. Its own files are the only ones that it opens in this way. Both names are needed: programs
 * with 64-bit offsets call the second.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <sys/types.h>

typedef int (*open_call)(const char *, int, ...);

static int direct(int flags) { return (flags & O_ACCMODE) == O_RDWR ? flags | O_DIRECT : flags; }

#define OPEN(name)                                        \
    int name(const char *path, int flags, ...) {          \
        va_list rest;                                     \
        va_start(rest, flags);                            \
        mode_t mode = va_arg(rest, mode_t);               \
        va_end(rest);                                     \
        open_call next = (open_call)dlsym(RTLD_NEXT, #name); \
        return next(path, direct(flags), mode);           \
    }

OPEN(open)
OPEN(open64)
