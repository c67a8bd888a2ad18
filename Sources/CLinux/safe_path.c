#define _GNU_SOURCE
#include "safe_path.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

int clinux_open_beneath(int parent, const char *path, int flags, unsigned int mode, int cached)
{
    struct open_how how = {
        .flags = (uint64_t)(flags | O_CLOEXEC),
        .mode = mode,
        .resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS | (cached ? RESOLVE_CACHED : 0),
    };
    for (;;) {
        long fd = syscall(SYS_openat2, parent, path, &how, sizeof how);
        // EAGAIN means that something was renamed during the walk, which a second walk gets over.
        if (fd >= 0 || cached || (errno != EINTR && errno != EAGAIN)) return (int)fd;
    }
}

// Adds permissions to what `reference` is open at by O_PATH, and tells which it had; -1 if it has them already.
static int permit(int reference, int flags, int *mode)
{
    struct stat status;
    if (fstat(reference, &status) < 0) return -1;
    mode_t wanted = S_ISDIR(status.st_mode) ? 0500 : 0400;
    if ((flags & O_ACCMODE) != O_RDONLY || (!S_ISDIR(status.st_mode) && !S_ISREG(status.st_mode))
        || (status.st_mode & wanted) == wanted) {
        errno = EACCES;
        return -1;
    }
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", reference);
    if (chmod(link, (status.st_mode & 07777) | wanted) < 0) return -1;
    *mode = status.st_mode & 07777;
    return 0;
}

static void close_keeping_errno(int fd)
{
    int error = errno;
    close(fd);
    errno = error;
}

// Opens what its mode forbids to open. `mode` gets the mode that it had, which it hasn't any more.
static int open_forbidden(int parent, const char *name, int flags, int *mode)
{
    // Of a directory that can't be searched not even "." can be opened.
    int is_parent = name[0] == '.' && name[1] == 0;
    int reference = is_parent ? parent : openat(parent, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
    if (reference < 0) return -1;
    int fd = -1;
    if (permit(reference, flags, mode) == 0) {
        char link[64];
        snprintf(link, sizeof link, "/proc/self/fd/%d", reference);
        fd = open(link, (flags & ~O_NOFOLLOW) | O_CLOEXEC);
        if (fd < 0) {
            int error = errno;
            chmod(link, (mode_t)*mode);
            errno = error;
        }
    }
    if (!is_parent) close_keeping_errno(reference);
    return fd;
}

int clinux_open_own(int parent, const char *name, int flags)
{
    int fd = openat(parent, name, flags | O_NOFOLLOW | O_CLOEXEC);
    if (fd >= 0 || errno != EACCES) return fd;
    int mode = -1;
    fd = open_forbidden(parent, name, flags, &mode);
    if (fd >= 0) clinux_end_visit(fd, mode);
    return fd;
}

int clinux_visit_directory(int parent, const char *name, int *mode)
{
    static const int flags = O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC;
    *mode = -1;
    int fd = openat(parent, name, flags);
    if (fd < 0 && errno == EACCES) return open_forbidden(parent, name, flags, mode);
    // It can be read, but perhaps not searched.
    struct stat status;
    if (fd >= 0 && fstatat(fd, ".", &status, 0) < 0 && errno == EACCES && fstat(fd, &status) == 0
        && fchmod(fd, (status.st_mode & 07777) | 0500) == 0)
        *mode = status.st_mode & 07777;
    return fd;
}

void clinux_end_visit(int fd, int mode)
{
    if (mode < 0) return;
    int error = errno;
    // It is the agent's affair again; that it can't be changed back any more is no reason to fail.
    (void)!fchmod(fd, (mode_t)mode);
    errno = error;
}

ssize_t clinux_read_cached(int fd, void *buffer, size_t length)
{
    struct iovec part = {.iov_base = buffer, .iov_len = length};
    return preadv2(fd, &part, 1, 0, RWF_NOWAIT);
}

int clinux_rename(int from, const char *name, int to, const char *new_name, int replace)
{
    return renameat2(from, name, to, new_name, replace ? 0 : RENAME_NOREPLACE);
}

int clinux_link_open_file(int fd, int to, const char *name)
{
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    return linkat(AT_FDCWD, link, to, name, AT_SYMLINK_FOLLOW);
}

static int write_all(int to, const char *bytes, size_t length)
{
    while (length > 0) {
        ssize_t written = write(to, bytes, length);
        if (written < 0 && errno == EINTR) continue;
        if (written <= 0) return -1;
        bytes += written;
        length -= (size_t)written;
    }
    return 0;
}

// For file systems between which the kernel doesn't copy.
static int copy_by_hand(int from, off_t offset, int to, uint64_t length)
{
    enum { PART = 1 << 18 };
    char *buffer = malloc(PART);
    if (buffer == NULL) return -1;
    int result = 0;
    while (length > 0 && result == 0) {
        ssize_t count = pread(from, buffer, length < PART ? (size_t)length : PART, offset);
        if (count < 0 && errno == EINTR) continue;
        if (count == 0) errno = EIO;
        if (count <= 0) {
            result = -1;
            break;
        }
        result = write_all(to, buffer, (size_t)count);
        offset += count;
        length -= (uint64_t)count;
    }
    int error = errno;
    free(buffer);
    errno = error;
    return result;
}

int clinux_copy_range(int from, off_t offset, int to, uint64_t length)
{
    while (length > 0) {
        size_t part = length < (1u << 30) ? (size_t)length : (1u << 30);
        ssize_t count = copy_file_range(from, &offset, to, NULL, part, 0);
        if (count > 0) {
            length -= (uint64_t)count;
            continue;
        }
        if (count < 0 && errno == EINTR) continue;
        if (count == 0 || errno == EXDEV || errno == EINVAL || errno == EOPNOTSUPP || errno == ENOSYS)
            return copy_by_hand(from, offset, to, length);
        return -1;
    }
    return 0;
}
