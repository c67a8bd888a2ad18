#define _GNU_SOURCE
#include "entries.h"
#include "safe_path.h"
#include "tree_walk.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

// A directory on the way down.
struct level {
    // So that the way up can be checked.
    struct place place;
    // Where its name is among the names of the level above.
    size_t name;
    // The mode that it is to get back, see clinux_visit_directory.
    int mode;
    // Its children that are still to come.
    struct names children;
    // Of its path; TOO_LONG if that has no room.
    size_t path_length;
};

static const size_t TOO_LONG = (size_t)-1;

struct walk {
    const struct clinux_tree_visitor *visitor;
    struct clinux_tree_usage *usage;
    uint64_t maximum_entries;
    // The way down, of which `current` is the end.
    struct level *levels;
    size_t depth, capacity;
    int current;
    // Whether something was out of sight.
    int has_lost;
    // Directories that were opened once more to find the way back.
    uint64_t returns;
    char path[PATH_MAX];
};

// Appends a name to the path of the directory above it.
static size_t extend_path(struct walk *walk, size_t above, const char *name)
{
    size_t length = strlen(name);
    if (above == TOO_LONG || above + 1 + length >= PATH_MAX) return TOO_LONG;
    if (above > 0) walk->path[above++] = '/';
    memcpy(walk->path + above, name, length + 1);
    return above + length;
}

// Counts the entries of the directory at hand and notes those that are directories.
static int visit_level(struct walk *walk)
{
    struct level *level = &walk->levels[walk->depth - 1];
    DIR *directory = stream_of_directory(walk->current);
    if (directory == NULL) {
        walk->has_lost = 1;
        return errno == EACCES ? 0 : -1;
    }
    const struct clinux_tree_visitor *visitor = level->path_length == TOO_LONG ? NULL : walk->visitor;
    if (visitor != NULL) visitor->directory(visitor->context, walk->path, level->path_length);
    struct dirent *entry;
    int result = 0;
    while (result == 0 && walk->usage->entries <= walk->maximum_entries
           && (errno = 0, entry = readdir(directory)) != NULL) {
        const char *name = entry->d_name;
        if (is_dot(name)) continue;
        struct stat status;
        if (fstatat(walk->current, name, &status, AT_SYMLINK_NOFOLLOW) < 0) {
            // What vanishes meanwhile counts nothing.
            if (errno != ENOENT) walk->has_lost = 1;
            continue;
        }
        walk->usage->entries += 1;
        walk->usage->bytes += (uint64_t)status.st_blocks * 512;
        if (visitor != NULL) visitor->entry(visitor->context, name, &status);
        if (S_ISDIR(status.st_mode)) result = add_name(&level->children, name);
    }
    closedir(directory);
    return result;
}

// Goes into the directory `fd`, whose name is at `name` among those of the one at hand.
static int enter(struct walk *walk, int fd, size_t name, int mode)
{
    struct stat status;
    if (walk->depth == walk->capacity) {
        size_t capacity = walk->capacity * 2 + 64;
        struct level *grown = realloc(walk->levels, capacity * sizeof *grown);
        if (grown == NULL) {
            close(fd);
            return -1;
        }
        walk->levels = grown;
        walk->capacity = capacity;
    }
    if (fstat(fd, &status) < 0) {
        close(fd);
        return -1;
    }
    size_t path_length = 0;
    if (walk->depth > 0) {
        const struct level *above = &walk->levels[walk->depth - 1];
        path_length = extend_path(walk, above->path_length, above->children.bytes + name);
    }
    walk->levels[walk->depth++] = (struct level){
        .place = {status.st_dev, status.st_ino}, .name = name, .mode = mode, .path_length = path_length};
    if (walk->current >= 0) close(walk->current);
    walk->current = fd;
    return visit_level(walk);
}

static void drop_level(struct walk *walk) { free(walk->levels[--walk->depth].children.bytes); }

// Finds the way from the top again, as far as it is still there, when somebody has moved a directory on it. What is
// above that one now isn't ours to count.
static int return_from_top(struct walk *walk, int top)
{
    walk->has_lost = 1;
    int fd = openat(top, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) return -1;
    size_t found = 1;
    for (; found < walk->depth; found++) {
        const char *name = walk->levels[found - 1].children.bytes + walk->levels[found].name;
        int next = openat(fd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        if (next < 0) break;
        if (!is_at(next, &walk->levels[found].place)) {
            close(next);
            break;
        }
        close(fd);
        fd = next;
        walk->returns++;
    }
    while (walk->depth > found) drop_level(walk);
    return fd;
}

// Leaves the directory at hand, if `top` isn't it.
static int leave(struct walk *walk, int top)
{
    // While it may still be searched.
    int above = walk->depth > 1 ? openat(walk->current, "..", O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
    clinux_end_visit(walk->current, walk->levels[walk->depth - 1].mode);
    drop_level(walk);
    if (walk->depth == 0) return 0;
    if (above < 0 || !is_at(above, &walk->levels[walk->depth - 1].place)) {
        if (above >= 0) close(above);
        above = return_from_top(walk, top);
        if (above < 0) return -1;
    }
    close(walk->current);
    walk->current = above;
    return 0;
}

int clinux_tree_walk(
    int top, uint64_t maximum_entries, const struct clinux_tree_visitor *visitor, struct clinux_tree_usage *usage)
{
    *usage = (struct clinux_tree_usage){0};
    struct walk *walk = calloc(1, sizeof *walk);
    if (walk == NULL) return -1;
    walk->visitor = visitor;
    walk->usage = usage;
    walk->maximum_entries = maximum_entries;
    walk->current = -1;
    int mode;
    int fd = clinux_visit_directory(top, ".", &mode);
    int result = fd < 0 ? -1 : enter(walk, fd, 0, mode);
    // Who moves directories all the time can't make the walk endless.
    while (result == 0 && walk->depth > 0 && usage->entries <= maximum_entries && walk->returns <= maximum_entries) {
        struct level *level = &walk->levels[walk->depth - 1];
        if (!has_name(&level->children)) {
            result = leave(walk, top);
            continue;
        }
        size_t name = take_name(&level->children);
        fd = clinux_visit_directory(walk->current, level->children.bytes + name, &mode);
        if (fd >= 0) {
            result = enter(walk, fd, name, mode);
        } else if (errno != ENOENT && errno != ENOTDIR && errno != ELOOP) {
            walk->has_lost = 1;
        }
    }
    usage->is_whole = result == 0 && walk->depth == 0 && !walk->has_lost;
    int error = errno;
    // No directory keeps a mode that only the walk wanted, if it can be found.
    while (walk->depth > 0 && walk->returns <= maximum_entries && leave(walk, top) == 0) continue;
    while (walk->depth > 0) drop_level(walk);
    free(walk->levels);
    if (walk->current >= 0) close(walk->current);
    free(walk);
    errno = error;
    return result;
}
