#define _GNU_SOURCE
#include "safe_path.h"

#include <dirent.h>
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

unsigned char clinux_entry_type(int parent, const char *name, unsigned char told)
{
    if (told != DT_UNKNOWN) return told;
    struct stat status;
    if (fstatat(parent, name, &status, AT_SYMLINK_NOFOLLOW) < 0) return DT_UNKNOWN;
    return (unsigned char)IFTODT(status.st_mode);
}

// A directory on the way down: where it is, so that the way up can be checked, and its children still to come.
struct level {
    dev_t device;
    ino_t inode;
    char *names;
    size_t length, capacity, next;
};

static int add_name(struct level *level, const char *name)
{
    size_t length = strlen(name) + 1;
    if (level->length + length > level->capacity) {
        size_t capacity = level->capacity * 2 + 4096;
        char *grown = realloc(level->names, capacity);
        if (grown == NULL) return -1;
        level->names = grown;
        level->capacity = capacity;
    }
    memcpy(level->names + level->length, name, length);
    level->length += length;
    return 0;
}

// Counts the entries of the directory `fd` and notes those that are directories.
static int count_level(
    int fd, struct level *level, uint64_t maximum_entries, uint64_t *entries, uint64_t *bytes)
{
    struct stat status;
    *level = (struct level){0};
    if (fstat(fd, &status) < 0) return -1;
    level->device = status.st_dev;
    level->inode = status.st_ino;
    int copy = openat(fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (copy < 0) return errno == EACCES ? 0 : -1;
    DIR *directory = fdopendir(copy);
    if (directory == NULL) {
        int error = errno;
        close(copy);
        errno = error;
        return -1;
    }
    struct dirent *entry;
    int result = 0;
    while (result == 0 && *entries <= maximum_entries && (errno = 0, entry = readdir(directory)) != NULL) {
        const char *name = entry->d_name;
        if (name[0] == '.' && (name[1] == 0 || (name[1] == '.' && name[2] == 0))) continue;
        // What vanishes meanwhile counts nothing.
        if (fstatat(copy, name, &status, AT_SYMLINK_NOFOLLOW) < 0) continue;
        *entries += 1;
        *bytes += (uint64_t)status.st_blocks * 512;
        if (S_ISDIR(status.st_mode)) result = add_name(level, name);
    }
    closedir(directory);
    return result;
}

int clinux_tree_usage(int top, uint64_t maximum_entries, uint64_t *entries, uint64_t *bytes)
{
    *entries = 0;
    *bytes = 0;
    size_t depth = 0, capacity = 64;
    struct level *levels = malloc(capacity * sizeof *levels);
    if (levels == NULL) return -1;
    int current = openat(top, ".", O_PATH | O_DIRECTORY | O_CLOEXEC);
    int result = current < 0 ? -1 : count_level(current, &levels[depth++], maximum_entries, entries, bytes);
    while (result == 0 && depth > 0 && *entries <= maximum_entries) {
        struct level *level = &levels[depth - 1];
        int next;
        if (level->next < level->length) {
            const char *name = level->names + level->next;
            level->next += strlen(name) + 1;
            next = openat(current, name, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
            if (next < 0) continue;
            if (depth == capacity) {
                capacity *= 2;
                struct level *grown = realloc(levels, capacity * sizeof *levels);
                if (grown == NULL) {
                    close(next);
                    result = -1;
                    break;
                }
                levels = grown;
            }
            result = count_level(next, &levels[depth++], maximum_entries, entries, bytes);
        } else {
            free(level->names);
            level->names = NULL;
            if (--depth == 0) break;
            next = openat(current, "..", O_PATH | O_DIRECTORY | O_CLOEXEC);
            struct stat status;
            // Somebody moved the directory meanwhile: what is above it now isn't ours to count.
            if (next < 0 || fstat(next, &status) < 0 || status.st_dev != levels[depth - 1].device
                || status.st_ino != levels[depth - 1].inode) {
                if (next >= 0) close(next);
                break;
            }
        }
        close(current);
        current = next;
    }
    int error = errno;
    while (depth > 0) free(levels[--depth].names);
    free(levels);
    if (current >= 0) close(current);
    errno = error;
    return result;
}
