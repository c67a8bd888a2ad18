#pragma once

/// Copies what is in the directory `source` into the directory `target`, which must be empty and nobody else's.
///
/// Regular files share their blocks with the copy where the file system can do that. Symbolic links are copied as
/// they are and never followed; nothing outside `source` is reached, whatever is moved or replaced meanwhile. Modes
/// (without set-id bits) and times of change are kept, holes stay holes. Sockets, devices and pipes are left out, as
/// is what vanishes while it is copied; a file with several names becomes several files. Two descriptors and a
/// bounded stack are enough for a tree of any depth, but a path of more than PATH_MAX bytes fails with ENAMETOOLONG.
///
/// If `from` isn't NULL, it is replaced by `to` wherever it occurs in the name of an entry; both must have the same
/// length. Returns 0, or -1 with errno; what was copied until then stays.
int clinux_copy_tree(int source, int target, const char *from, const char *to);
