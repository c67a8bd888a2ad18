#pragma once

// What reading a directory needs everywhere. Read after _GNU_SOURCE is defined.

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
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
