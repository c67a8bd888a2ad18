#define _GNU_SOURCE
#include "entries.h"
#include "file_tree.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

// Opens the directory itself, never what a link of that name points to, and makes sure that it can be changed.
static int open_directory(int parent, const char *name)
{
    int path = openat(parent, name, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (path < 0) return -1;
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", path);
    struct stat status;
    int result = -1;
    // The owner may always change the mode; for somebody else's directory the open below tells what is wrong.
    if (fstat(path, &status) == 0 && ((status.st_mode & 0700) == 0700 || chmod(link, 0700) == 0 || errno == EPERM))
        result = openat(path, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int error = errno;
    close(path);
    errno = error;
    return result;
}

// Counts an entry that is removed or moved.
static int take(uint64_t *left)
{
    if (*left == 0) {
        errno = EBUSY;
        return -1;
    }
    --*left;
    return 0;
}

// Takes everything out of the directory `name` of `top`: files are removed, directories moved to `top`, where
// their turn comes. A directory is so moved once at most, and depth costs neither stack nor descriptors.
static int flatten(int top, const char *name, unsigned long *moved, uint64_t *left)
{
    int fd = open_directory(top, name);
    if (fd < 0) return errno == ENOENT ? 0 : -1;
    DIR *directory = stream_of(fd);
    if (directory == NULL) return -1;
    int result = 0;
    struct dirent *entry;
    while (result == 0 && (errno = 0, entry = readdir(directory)) != NULL) {
        if (is_dot(entry->d_name)) continue;
        result = take(left);
        if (result < 0) break;
        if (!is_directory(fd, entry)) {
            if (unlinkat(fd, entry->d_name, 0) < 0 && errno != ENOENT) result = -1;
        } else if (unlinkat(fd, entry->d_name, AT_REMOVEDIR) < 0) {
            // Moving a directory changes its "..", for which it must be writable.
            int child = open_directory(fd, entry->d_name);
            if (child < 0) {
                result = -1;
                break;
            }
            close(child);
            char target[64];
            do {
                snprintf(target, sizeof target, ".removing-%lu", (*moved)++);
                result = renameat2(fd, entry->d_name, top, target, RENAME_NOREPLACE);
            } while (result < 0 && errno == EEXIST);
        }
    }
    if (result == 0 && errno != 0) result = -1;
    int error = errno;
    closedir(directory);
    if (result == 0 && unlinkat(top, name, AT_REMOVEDIR) < 0 && errno != ENOENT) {
        // Entries that were moved or made while it was read are found by the next round.
        if (errno != ENOTEMPTY && errno != EEXIST) return -1;
    } else {
        errno = error;
    }
    return result;
}

static int remove_content(int top, uint64_t *left)
{
    unsigned long moved = 0;
    for (;;) {
        // Read anew in each round, as the rounds add entries.
        DIR *directory = stream_of_directory(top);
        if (directory == NULL) return -1;
        int found = 0, result = 0;
        struct dirent *entry;
        while (result == 0 && (errno = 0, entry = readdir(directory)) != NULL) {
            if (is_dot(entry->d_name)) continue;
            found = 1;
            result = take(left);
            if (result < 0) break;
            if (is_directory(top, entry))
                result = flatten(top, entry->d_name, &moved, left);
            else if (unlinkat(top, entry->d_name, 0) < 0 && errno != ENOENT)
                result = -1;
        }
        if (result == 0 && errno != 0) result = -1;
        int error = errno;
        closedir(directory);
        if (result < 0) {
            errno = error;
            return -1;
        }
        if (!found) return 0;
    }
}

int clinux_remove_tree(int parent, const char *name, uint64_t maximum)
{
    if (unlinkat(parent, name, 0) == 0 || errno == ENOENT) return 0;
    if (errno != EISDIR && errno != EPERM) return -1;
    // Whoever has a directory of it open may put something into it just before it goes.
    enum { ATTEMPTS = 32 };
    for (int attempt = 1;; attempt++) {
        int top = open_directory(parent, name);
        if (top < 0) return errno == ENOENT ? 0 : -1;
        int result = remove_content(top, &maximum);
        int error = errno;
        close(top);
        errno = error;
        if (result == 0) result = unlinkat(parent, name, AT_REMOVEDIR);
        if (result == 0 || errno == ENOENT) return 0;
        if (errno != ENOTEMPTY || attempt == ATTEMPTS) return -1;
    }
}
