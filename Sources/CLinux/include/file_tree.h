#pragma once

#include <stdint.h>

/// Removes the directory entry `name` of the directory `parent` with all that is below it. Symbolic links are
/// removed and never followed, directories without permissions are made accessible first. Two descriptors and a
/// bounded stack are enough for a tree of any depth.
///
/// Somebody who puts entries in as fast as they are removed could make it endless: after `maximum` of them it ends with
/// EBUSY. Of a tree that nobody changes, each directory is counted up to three times. Returns 0, also if there is no such
/// entry, or -1 with errno.
int clinux_remove_tree(int parent, const char *name, uint64_t maximum);
