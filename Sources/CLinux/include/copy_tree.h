#pragma once

#include <stdint.h>

/// What a copy may become.
struct clinux_copy_limits {
    /// Files, directories and links.
    uint64_t entries;
    /// Bytes of content, without holes.
    uint64_t bytes;
};

/// Copies what is in the directory `source` into the directory `target`, which must be empty and nobody else's.
///
/// Regular files share their blocks with the copy where the file system can do that. Symbolic links are copied as
/// they are and never followed; nothing outside `source` is reached, whatever is moved or replaced meanwhile. Modes
/// (without set-id bits) and times of change are kept, holes stay holes. Sockets, devices and pipes are left out, as
/// is what vanishes or is moved while it is copied; a file with several names becomes several files. What belongs to this
/// process's user is copied even where its mode forbids reading it. A few descriptors, a bounded stack and memory for the
/// names of directories that are still to come are enough for a tree of any size and depth.
///
/// If `from` isn't NULL, it is replaced by `to` wherever it occurs in the name of an entry; both must have the same
/// length. Returns 0, or -1 with errno, which is E2BIG if there is more than `limits` allow, as there may be without an
/// end when somebody changes the source all the time; what was copied until then stays.
int clinux_copy_tree(
    int source, int target, const char *from, const char *to, const struct clinux_copy_limits *limits);
