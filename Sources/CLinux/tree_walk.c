#define _GNU_SOURCE
#include "entries.h"
#include "tree_walk.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

// A directory on the way down: where it is, so that the way up can be checked, and its children still to come.
struct level {
    dev_t device;
    ino_t inode;
    char *names;
    size_t length, capacity, next;
    // Of its path; TOO_LONG if that has no room.
    size_t path_length;
};

static const size_t TOO_LONG = (size_t)-1;

struct walk {
    const struct clinux_tree_visitor *visitor;
    struct clinux_tree_usage *usage;
    uint64_t maximum_entries;
    char path[PATH_MAX];
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

// Appends a name to the path of the directory above it.
static size_t extend_path(struct walk *walk, size_t above, const char *name)
{
    size_t length = strlen(name);
    if (above == TOO_LONG || above + 1 + length >= PATH_MAX) return TOO_LONG;
    if (above > 0) walk->path[above++] = '/';
    memcpy(walk->path + above, name, length + 1);
    return above + length;
}

// Counts the entries of the directory `fd` and notes those that are directories.
static int visit_level(struct walk *walk, int fd, size_t path_length, struct level *level)
{
    struct stat status;
    *level = (struct level){.path_length = path_length};
    if (fstat(fd, &status) < 0) return -1;
    level->device = status.st_dev;
    level->inode = status.st_ino;
    DIR *directory = stream_of_directory(fd);
    if (directory == NULL) return errno == EACCES ? 0 : -1;
    const struct clinux_tree_visitor *visitor = path_length == TOO_LONG ? NULL : walk->visitor;
    if (visitor != NULL) visitor->directory(visitor->context, walk->path, path_length);
    struct dirent *entry;
    int result = 0;
    while (result == 0 && walk->usage->entries <= walk->maximum_entries
           && (errno = 0, entry = readdir(directory)) != NULL) {
        const char *name = entry->d_name;
        if (is_dot(name)) continue;
        // What vanishes meanwhile counts nothing.
        if (fstatat(fd, name, &status, AT_SYMLINK_NOFOLLOW) < 0) continue;
        walk->usage->entries += 1;
        walk->usage->bytes += (uint64_t)status.st_blocks * 512;
        if (visitor != NULL) visitor->entry(visitor->context, name, &status);
        if (S_ISDIR(status.st_mode)) result = add_name(level, name);
    }
    closedir(directory);
    return result;
}

int clinux_tree_walk(
    int top, uint64_t maximum_entries, const struct clinux_tree_visitor *visitor, struct clinux_tree_usage *usage)
{
    *usage = (struct clinux_tree_usage){0};
    size_t depth = 0, capacity = 64;
    struct level *levels = malloc(capacity * sizeof *levels);
    struct walk *walk = malloc(sizeof *walk);
    int current = -1, result = -1;
    if (levels != NULL && walk != NULL) {
        walk->visitor = visitor;
        walk->usage = usage;
        walk->maximum_entries = maximum_entries;
        walk->path[0] = 0;
        current = openat(top, ".", O_PATH | O_DIRECTORY | O_CLOEXEC);
        if (current >= 0) result = visit_level(walk, current, 0, &levels[depth++]);
    }
    while (result == 0 && depth > 0 && usage->entries <= maximum_entries) {
        struct level *level = &levels[depth - 1];
        int next;
        if (level->next < level->length) {
            const char *name = level->names + level->next;
            level->next += strlen(name) + 1;
            next = openat(current, name, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
            if (next < 0) continue;
            size_t path_length = extend_path(walk, level->path_length, name);
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
            result = visit_level(walk, next, path_length, &levels[depth++]);
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
    usage->is_whole = result == 0 && depth == 0;
    int error = errno;
    while (depth > 0) free(levels[--depth].names);
    free(levels);
    free(walk);
    if (current >= 0) close(current);
    errno = error;
    return result;
}
