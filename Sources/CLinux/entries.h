#pragma once

// What reading a directory needs everywhere. Read after _GNU_SOURCE is defined.

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>

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
