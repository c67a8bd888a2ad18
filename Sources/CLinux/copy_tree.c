#define _GNU_SOURCE
#include "copy_tree.h"
#include "entries.h"
#include "safe_path.h"

#include <errno.h>
#include <limits.h>
#include <linux/fs.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

// A directory that is to be copied, or whose mode and time are to be set when everything in it is there.
struct directory {
    char *source, *target;
    mode_t mode;
    struct timespec times[2];
};

struct work {
    int source, target;
    const char *from, *to;
    struct directory *directories;
    size_t count, capacity;
};

static int open_directory(int parent, const char *path)
{
    return clinux_open_beneath(parent, path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW, 0, 0);
}

static void close_keeping_errno(int fd)
{
    int error = errno;
    close(fd);
    errno = error;
}

static char *join(const char *directory, const char *name)
{
    size_t first = strlen(directory), second = strlen(name);
    if (first + second + 2 > PATH_MAX) {
        errno = ENAMETOOLONG;
        return NULL;
    }
    char *path = malloc(first + second + 2);
    if (path == NULL) return NULL;
    memcpy(path, directory, first);
    path[first] = '/';
    memcpy(path + first + 1, name, second + 1);
    return path;
}

static int add(struct work *work, char *source, char *target, const struct stat *status)
{
    if (work->count == work->capacity) {
        size_t capacity = work->capacity * 2 + 64;
        struct directory *grown = realloc(work->directories, capacity * sizeof *grown);
        if (grown == NULL) return -1;
        work->directories = grown;
        work->capacity = capacity;
    }
    work->directories[work->count++] = (struct directory){
        .source = source,
        .target = target,
        .mode = status->st_mode & 0777,
        .times = {status->st_atim, status->st_mtim},
    };
    return 0;
}

// For file systems between which the kernel doesn't copy.
static int copy_by_hand(int from, int to, off_t offset, off_t end)
{
    enum { PART = 1 << 18 };
    char *buffer = malloc(PART);
    if (buffer == NULL) return -1;
    int result = 0;
    while (offset < end) {
        ssize_t count = pread(from, buffer, end - offset < PART ? (size_t)(end - offset) : PART, offset);
        if (count < 0 && errno == EINTR) continue;
        if (count < 0) result = -1;
        // It has become shorter meanwhile.
        if (count <= 0) break;
        for (ssize_t done = 0; done < count;) {
            ssize_t written = pwrite(to, buffer + done, (size_t)(count - done), offset + done);
            if (written < 0 && errno == EINTR) continue;
            if (written <= 0) {
                result = -1;
                break;
            }
            done += written;
        }
        if (result < 0) break;
        offset += count;
    }
    int error = errno;
    free(buffer);
    errno = error;
    return result;
}

static int copy_range(int from, int to, off_t offset, off_t end)
{
    off_t target = offset;
    while (offset < end) {
        size_t part = end - offset < (1 << 30) ? (size_t)(end - offset) : (1u << 30);
        ssize_t count = copy_file_range(from, &offset, to, &target, part, 0);
        if (count > 0 || (count < 0 && errno == EINTR)) continue;
        if (count == 0 || errno == EXDEV || errno == EINVAL || errno == EOPNOTSUPP || errno == ENOSYS || errno == EPERM)
            return copy_by_hand(from, to, offset, end);
        return -1;
    }
    return 0;
}

static int copy_content(int from, int to, off_t size)
{
    if (size == 0 || ioctl(to, FICLONE, from) == 0) return 0;
    if (ftruncate(to, size) < 0) return -1;
    off_t offset = 0;
    while (offset < size) {
        off_t start = lseek(from, offset, SEEK_DATA);
        // Only a hole is left.
        if (start < 0 && errno == ENXIO) return 0;
        if (start < 0) return copy_range(from, to, offset, size);
        off_t end = lseek(from, start, SEEK_HOLE);
        if (end < 0 || end > size) end = size;
        if (copy_range(from, to, start, end) < 0) return -1;
        offset = end > start ? end : size;
    }
    return 0;
}

static int copy_file(int source, int target, const char *name, const char *new_name)
{
    // Not blocking, in case it is a pipe by now.
    int from = clinux_open_beneath(source, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY, 0, 0);
    if (from < 0) return errno == ENOENT || errno == ELOOP || errno == ENXIO ? 0 : -1;
    struct stat status;
    if (fstat(from, &status) < 0 || !S_ISREG(status.st_mode)) {
        close(from);
        return 0;
    }
    int to = openat(target, new_name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (to < 0) {
        close_keeping_errno(from);
        return -1;
    }
    struct timespec times[2] = {status.st_atim, status.st_mtim};
    int result = copy_content(from, to, status.st_size);
    if (result == 0) result = fchmod(to, status.st_mode & 0777);
    if (result == 0) result = futimens(to, times);
    close_keeping_errno(to);
    close_keeping_errno(from);
    return result;
}

static int copy_link(int source, int target, const char *name, const char *new_name)
{
    char content[PATH_MAX];
    ssize_t length = readlinkat(source, name, content, sizeof content);
    if (length < 0) return errno == ENOENT || errno == EINVAL ? 0 : -1;
    if (length == sizeof content) {
        errno = ENAMETOOLONG;
        return -1;
    }
    content[length] = 0;
    return symlinkat(content, target, new_name);
}

static int copy_directory(
    struct work *work, size_t index, int target, const char *name, const char *new_name,
    const struct stat *status)
{
    if (mkdirat(target, new_name, 0700) < 0) return -1;
    char *path = join(work->directories[index].source, name);
    char *new_path = join(work->directories[index].target, new_name);
    if (path != NULL && new_path != NULL && add(work, path, new_path, status) == 0) return 0;
    int error = errno;
    free(path);
    free(new_path);
    errno = error;
    return -1;
}

static void rename_in_place(char *name, const char *from, const char *to)
{
    size_t length = strlen(from);
    while (length > 0 && (name = strstr(name, from)) != NULL) {
        memcpy(name, to, length);
        name += length;
    }
}

static int copy_entry(struct work *work, size_t index, int source, int target, const char *name)
{
    struct stat status;
    if (fstatat(source, name, &status, AT_SYMLINK_NOFOLLOW) < 0) return errno == ENOENT ? 0 : -1;
    char new_name[NAME_MAX + 1];
    size_t length = strlen(name);
    if (length > NAME_MAX) {
        errno = ENAMETOOLONG;
        return -1;
    }
    memcpy(new_name, name, length + 1);
    if (work->from != NULL) rename_in_place(new_name, work->from, work->to);
    switch (status.st_mode & S_IFMT) {
    case S_IFREG: return copy_file(source, target, name, new_name);
    case S_IFLNK: return copy_link(source, target, name, new_name);
    case S_IFDIR: return copy_directory(work, index, target, name, new_name, &status);
    default: return 0;
    }
}

static int copy_level(struct work *work, size_t index)
{
    int source = open_directory(work->source, work->directories[index].source);
    // It vanished, or something else has taken its place: its copy stays empty.
    if (source < 0) return errno == ENOENT || errno == ENOTDIR || errno == ELOOP ? 0 : -1;
    int target = open_directory(work->target, work->directories[index].target);
    DIR *stream = target < 0 ? NULL : fdopendir(source);
    if (stream == NULL) {
        close_keeping_errno(source);
        if (target >= 0) close_keeping_errno(target);
        return -1;
    }
    int result = 0;
    struct dirent *entry;
    while (result == 0 && (errno = 0, entry = readdir(stream)) != NULL) {
        const char *name = entry->d_name;
        if (is_dot(name)) continue;
        result = copy_entry(work, index, dirfd(stream), target, name);
    }
    if (entry == NULL && errno != 0) result = -1;
    int error = errno;
    closedir(stream);
    close(target);
    errno = error;
    return result;
}

// Only now that nothing is written into it any more can a directory get a mode that forbids that.
static int finish_directory(const struct work *work, const struct directory *directory)
{
    int fd = open_directory(work->target, directory->target);
    if (fd < 0) return -1;
    int result = futimens(fd, directory->times);
    if (result == 0) result = fchmod(fd, directory->mode);
    close_keeping_errno(fd);
    return result;
}

int clinux_copy_tree(int source, int target, const char *from, const char *to)
{
    if (from != NULL && strlen(from) != strlen(to)) {
        errno = EINVAL;
        return -1;
    }
    struct work work = {.source = source, .target = target, .from = from, .to = to};
    struct stat status = {0};
    char *top = strdup("."), *new_top = strdup(".");
    int result = -1;
    if (top != NULL && new_top != NULL && add(&work, top, new_top, &status) == 0) {
        result = 0;
    } else {
        free(top);
        free(new_top);
    }
    for (size_t index = 0; result == 0 && index < work.count; index++) result = copy_level(&work, index);
    // The deepest first. The top keeps the mode that it was made with.
    for (size_t index = work.count; result == 0 && index > 1; index--)
        result = finish_directory(&work, &work.directories[index - 1]);
    int error = errno;
    for (size_t index = 0; index < work.count; index++) {
        free(work.directories[index].source);
        free(work.directories[index].target);
    }
    free(work.directories);
    errno = error;
    return result;
}
