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

// A directory on the way down.
struct level {
    // So that the way up can be checked.
    struct place place;
    // Where its name is among the names of the level above.
    size_t name;
    // The mode that it is to get back, see clinux_visit_directory.
    int taken_mode;
    // What its copy is to get when everything in it is there.
    mode_t mode;
    struct timespec times[2];
    // Its children that are still to come.
    struct names children;
};

struct work {
    // The directories at hand, the ends of the way down.
    int source, target;
    const char *from, *to;
    struct clinux_copy_limits left;
    struct level *levels;
    size_t depth, capacity;
};

static void close_keeping_errno(int fd)
{
    int error = errno;
    close(fd);
    errno = error;
}

static int take(uint64_t *left, uint64_t amount)
{
    if (amount > *left) {
        errno = E2BIG;
        return -1;
    }
    *left -= amount;
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

static int copy_content(struct work *work, int from, int to, const struct stat *status)
{
    off_t size = status->st_size;
    if (size == 0) return 0;
    if (ioctl(to, FICLONE, from) == 0) return take(&work->left.bytes, (uint64_t)status->st_blocks * 512);
    if (ftruncate(to, size) < 0) return -1;
    off_t offset = 0;
    while (offset < size) {
        off_t start = lseek(from, offset, SEEK_DATA);
        // Only a hole is left.
        if (start >= size || (start < 0 && errno == ENXIO)) return 0;
        off_t end = start < 0 ? size : lseek(from, start, SEEK_HOLE);
        if (start < 0) start = offset;
        if (end <= start || end > size) end = size;
        if (take(&work->left.bytes, (uint64_t)(end - start)) < 0 || copy_range(from, to, start, end) < 0) return -1;
        offset = end;
    }
    return 0;
}

static int copy_file(struct work *work, const char *name, const char *new_name)
{
    // Not blocking, in case it is a pipe by now.
    int from = clinux_open_own(work->source, name, O_RDONLY | O_NONBLOCK | O_NOCTTY);
    if (from < 0) return errno == ENOENT || errno == ELOOP || errno == ENXIO ? 0 : -1;
    struct stat status;
    if (fstat(from, &status) < 0 || !S_ISREG(status.st_mode)) {
        close(from);
        return 0;
    }
    int to = openat(work->target, new_name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (to < 0) {
        close_keeping_errno(from);
        return -1;
    }
    struct timespec times[2] = {status.st_atim, status.st_mtim};
    int result = copy_content(work, from, to, &status);
    if (result == 0) result = fchmod(to, status.st_mode & 0777);
    if (result == 0) result = futimens(to, times);
    close_keeping_errno(to);
    close_keeping_errno(from);
    return result;
}

static int copy_link(struct work *work, const char *name, const char *new_name)
{
    char content[PATH_MAX];
    ssize_t length = readlinkat(work->source, name, content, sizeof content);
    if (length < 0) return errno == ENOENT || errno == EINVAL ? 0 : -1;
    if (length == sizeof content) {
        errno = ENAMETOOLONG;
        return -1;
    }
    content[length] = 0;
    return symlinkat(content, work->target, new_name);
}

static void rename_in_place(char *name, const char *from, const char *to)
{
    size_t length = strlen(from);
    while (length > 0 && (name = strstr(name, from)) != NULL) {
        memcpy(name, to, length);
        name += length;
    }
}

// The name that the copy of an entry has.
static int new_name_of(const struct work *work, const char *name, char new_name[NAME_MAX + 1])
{
    size_t length = strlen(name);
    if (length > NAME_MAX) {
        errno = ENAMETOOLONG;
        return -1;
    }
    memcpy(new_name, name, length + 1);
    if (work->from != NULL) rename_in_place(new_name, work->from, work->to);
    return 0;
}

static int copy_entry(struct work *work, const char *name)
{
    struct stat status;
    char new_name[NAME_MAX + 1];
    if (fstatat(work->source, name, &status, AT_SYMLINK_NOFOLLOW) < 0) return errno == ENOENT ? 0 : -1;
    if (new_name_of(work, name, new_name) < 0) return -1;
    switch (status.st_mode & S_IFMT) {
    case S_IFREG: return take(&work->left.entries, 1) < 0 ? -1 : copy_file(work, name, new_name);
    case S_IFLNK: return take(&work->left.entries, 1) < 0 ? -1 : copy_link(work, name, new_name);
    case S_IFDIR: return take(&work->left.entries, 1) < 0 ? -1 : add_name(&work->levels[work->depth - 1].children, name);
    default: return 0;
    }
}

// Copies what is in the directory at hand; its directories are only noted.
static int copy_level(struct work *work)
{
    DIR *stream = stream_of_directory(work->source);
    if (stream == NULL) return -1;
    int result = 0;
    struct dirent *entry;
    while (result == 0 && (errno = 0, entry = readdir(stream)) != NULL) {
        if (!is_dot(entry->d_name)) result = copy_entry(work, entry->d_name);
    }
    if (result == 0 && errno != 0) result = -1;
    int error = errno;
    closedir(stream);
    errno = error;
    return result;
}

static int push_level(struct work *work, int source, size_t name, int taken_mode)
{
    struct stat status;
    if (fstat(source, &status) < 0) return -1;
    if (work->depth == work->capacity) {
        size_t capacity = work->capacity * 2 + 64;
        struct level *grown = realloc(work->levels, capacity * sizeof *grown);
        if (grown == NULL) return -1;
        work->levels = grown;
        work->capacity = capacity;
    }
    work->levels[work->depth++] = (struct level){
        .place = {status.st_dev, status.st_ino},
        .name = name,
        .taken_mode = taken_mode,
        .mode = (taken_mode >= 0 ? (mode_t)taken_mode : status.st_mode) & 0777,
        .times = {status.st_atim, status.st_mtim},
    };
    return 0;
}

// Takes both descriptors over, which are open at a directory and its copy.
static int enter(struct work *work, int source, int target, size_t name, int taken_mode)
{
    if (push_level(work, source, name, taken_mode) < 0) {
        clinux_end_visit(source, taken_mode);
        close_keeping_errno(source);
        close_keeping_errno(target);
        return -1;
    }
    if (work->source >= 0) close(work->source);
    if (work->target >= 0) close(work->target);
    work->source = source;
    work->target = target;
    return copy_level(work);
}

static int enter_next(struct work *work)
{
    struct level *level = &work->levels[work->depth - 1];
    size_t place = take_name(&level->children);
    const char *name = level->children.bytes + place;
    char new_name[NAME_MAX + 1];
    if (new_name_of(work, name, new_name) < 0 || mkdirat(work->target, new_name, 0700) < 0) return -1;
    int taken_mode;
    int source = clinux_visit_directory(work->source, name, &taken_mode);
    // It vanished, or something else has taken its place: its copy stays empty.
    if (source < 0) return errno == ENOENT || errno == ENOTDIR || errno == ELOOP ? 0 : -1;
    int target = openat(work->target, new_name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (target < 0) {
        clinux_end_visit(source, taken_mode);
        close_keeping_errno(source);
        return -1;
    }
    return enter(work, source, target, place, taken_mode);
}

static int open_above(int fd) { return openat(fd, "..", O_RDONLY | O_DIRECTORY | O_CLOEXEC); }

// Leaves the copy at hand, which is complete. Only now that nothing is written into it any more can it get a mode that
// forbids that. The top keeps the mode that it was made with.
static int leave_target(struct work *work)
{
    struct level *level = &work->levels[--work->depth];
    free(level->children.bytes);
    if (work->depth == 0) return 0;
    int above = open_above(work->target);
    if (above < 0) return -1;
    int result = futimens(work->target, level->times);
    if (result == 0) result = fchmod(work->target, level->mode);
    close_keeping_errno(work->target);
    work->target = above;
    return result;
}

// Finds the way from the top again, as far as it is still there, when somebody has moved a directory on it; the rest of
// what was moved is left out.
static int return_from_top(struct work *work, int top)
{
    // Who does that all the time can't make the work endless.
    if (take(&work->left.entries, work->depth) < 0) return -1;
    int fd = openat(top, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) return -1;
    size_t found = 1;
    for (; found < work->depth; found++) {
        const char *name = work->levels[found - 1].children.bytes + work->levels[found].name;
        int next = openat(fd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        if (next < 0) break;
        if (!is_at(next, &work->levels[found].place)) {
            close(next);
            break;
        }
        close(fd);
        fd = next;
    }
    while (work->depth > found) {
        if (leave_target(work) == 0) continue;
        close_keeping_errno(fd);
        return -1;
    }
    return fd;
}

// Leaves the directory at hand and its copy.
static int leave(struct work *work, int top)
{
    // While it may still be searched.
    int above = work->depth > 1 ? open_above(work->source) : -1;
    clinux_end_visit(work->source, work->levels[work->depth - 1].taken_mode);
    if (leave_target(work) < 0) {
        if (above >= 0) close_keeping_errno(above);
        return -1;
    }
    if (work->depth == 0) return 0;
    if (above < 0 || !is_at(above, &work->levels[work->depth - 1].place)) {
        if (above >= 0) close(above);
        above = return_from_top(work, top);
        if (above < 0) return -1;
    }
    close(work->source);
    work->source = above;
    return 0;
}

int clinux_copy_tree(
    int source, int target, const char *from, const char *to, const struct clinux_copy_limits *limits)
{
    if (from != NULL && strlen(from) != strlen(to)) {
        errno = EINVAL;
        return -1;
    }
    struct work work = {.source = -1, .target = -1, .from = from, .to = to, .left = *limits};
    int taken_mode;
    int old = clinux_visit_directory(source, ".", &taken_mode);
    int new = old < 0 ? -1 : openat(target, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int result = -1;
    if (new >= 0) {
        result = enter(&work, old, new, 0, taken_mode);
    } else if (old >= 0) {
        clinux_end_visit(old, taken_mode);
        close_keeping_errno(old);
    }
    while (result == 0 && work.depth > 0) {
        const struct level *level = &work.levels[work.depth - 1];
        result = has_name(&level->children) ? enter_next(&work) : leave(&work, source);
    }
    int error = errno;
    // Of a copy that failed nobody looks at modes and times, but the source is to have its own.
    while (work.depth > 0 && leave(&work, source) == 0) continue;
    while (work.depth > 0) free(work.levels[--work.depth].children.bytes);
    free(work.levels);
    if (work.source >= 0) close(work.source);
    if (work.target >= 0) close(work.target);
    errno = error;
    return result;
}
