#pragma once

// What reading a directory needs everywhere. Read after _GNU_SOURCE is defined.

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/// A stream that takes over `fd`, which is closed if there can't be one.
static inline DIR *stream_of(int fd)
{
    DIR *directory = fdopendir(fd);
    if (directory == NULL) {
        int error = errno;
        close(fd);
        errno = error;
    }
    return directory;
}

/// A stream of the directory `fd`, which stays as it is, from its beginning.
static inline DIR *stream_of_directory(int fd)
{
    int again = openat(fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    return again < 0 ? NULL : stream_of(again);
}

/// Whether the name is that of the directory itself or of the one above.
static inline int is_dot(const char *name)
{
    return name[0] == '.' && (name[1] == 0 || (name[1] == '.' && name[2] == 0));
}

/// Whether an entry of `parent` is a directory, by a look at it where the file system doesn't tell.
static inline int is_directory(int parent, const struct dirent *entry)
{
    if (entry->d_type != DT_UNKNOWN) return entry->d_type == DT_DIR;
    struct stat status;
    return fstatat(parent, entry->d_name, &status, AT_SYMLINK_NOFOLLOW) == 0 && S_ISDIR(status.st_mode);
}

/// Which directory something is open at.
struct place {
    dev_t device;
    ino_t inode;
};

static inline int is_at(int fd, const struct place *place)
{
    struct stat status;
    return fstat(fd, &status) == 0 && status.st_dev == place->device && status.st_ino == place->inode;
}

/// Names, each with its zero, that are taken in the order in which they came. To be freed by `free(names.bytes)`.
struct names {
    char *bytes;
    size_t length, capacity, next;
};

static inline int add_name(struct names *names, const char *name)
{
    size_t length = strlen(name) + 1;
    if (names->length + length > names->capacity) {
        size_t capacity = names->capacity * 2 + 4096;
        char *grown = realloc(names->bytes, capacity);
        if (grown == NULL) return -1;
        names->bytes = grown;
        names->capacity = capacity;
    }
    memcpy(names->bytes + names->length, name, length);
    names->length += length;
    return 0;
}

static inline int has_name(const struct names *names) { return names->next < names->length; }

/// Where the next one is. There must be one.
static inline size_t take_name(struct names *names)
{
    size_t place = names->next;
    names->next += strlen(names->bytes + place) + 1;
    return place;
}
