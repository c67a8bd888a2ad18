#pragma once

#include <stdint.h>
#include <sys/types.h>

enum {
    /// O_PATH of open(2), as a plain integer so that Swift sees it.
    CLINUX_O_PATH = 010000000,
};

/// All functions return -1 and set errno on failure.

/// Opens `path` below the directory `parent`, close-on-exec. No symbolic link is followed in any part of the path,
/// and nothing outside `parent` is reached, whatever is moved or replaced meanwhile. If `cached` is set, the call
/// never waits for a disk: when it had to, it fails with EAGAIN.
int clinux_open_beneath(int parent, const char *path, int flags, unsigned int mode, int cached);

/// Opens the entry `name` of `parent`, close-on-exec; a link isn't followed. A file or directory of this process's own
/// user is opened even where its mode forbids that: the mode is another one for that moment.
int clinux_open_own(int parent, const char *name, int flags);

/// Opens the directory `name` of `parent` to look at all that is in it, close-on-exec; a link isn't followed. If its mode
/// forbids that and it belongs to this process's user, the mode is changed, and `mode` gets the one that it had, for
/// `clinux_end_visit`; else -1. `name` may be ".".
int clinux_visit_directory(int parent, const char *name, int *mode);

/// Gives a directory that `fd` is open at the mode back that `clinux_visit_directory` took; nothing if that is -1.
void clinux_end_visit(int fd, int mode);

/// Reads from the start of a file. It never waits for a disk: when it had to, it fails or reads less.
ssize_t clinux_read_cached(int fd, void *buffer, size_t length);

/// Renames an entry. If `replace` is 0 and there is an entry of the new name, it fails with EEXIST.
int clinux_rename(int from, const char *name, int to, const char *new_name, int replace);

/// Gives the file that `fd` is open at a name in the directory `to`.
int clinux_link_open_file(int fd, int to, const char *name);

/// Copies `length` bytes of `from`, starting at `offset`, to where `to` stands. Fails with EIO when `from` ends
/// before.
int clinux_copy_range(int from, off_t offset, int to, uint64_t length);
