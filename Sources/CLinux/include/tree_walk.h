#pragma once

#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>

/// What a walk has counted.
struct clinux_tree_usage {
    uint64_t entries;
    /// Bytes that they take on the disk. A file with several names counts once for each.
    uint64_t bytes;
    /// 0 if not all was seen: because of the number of entries, or because a directory was moved or closed meanwhile.
    int is_whole;
};

/// Is told what a walk finds, one directory after the other.
struct clinux_tree_visitor {
    void *context;
    /// The entries of this directory come next. The path is that below the top, empty for the top itself. Directories
    /// whose paths are longer than PATH_MAX are counted and not told of.
    void (*directory)(void *context, const char *path, size_t length);
    void (*entry)(void *context, const char *name, const struct stat *status);
};

/// Counts all that is below the directory `top`, and tells `visitor` of it if that isn't NULL. Links aren't followed,
/// and depth costs neither stack nor descriptors. Directories of this process's user are looked into even where their mode
/// forbids it. Of one that is moved meanwhile what comes after that isn't counted, but all the rest is. Stops early when there are more than `maximum_entries`. Returns 0,
/// or -1 with errno.
int clinux_tree_walk(
    int top, uint64_t maximum_entries, const struct clinux_tree_visitor *visitor, struct clinux_tree_usage *usage);
