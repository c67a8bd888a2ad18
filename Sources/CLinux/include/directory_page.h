#pragma once

#include <stddef.h>
#include <stdint.h>

/// An entry of a directory. In order come directories first, then the rest, both by the bytes of their names.
struct clinux_directory_entry {
    /// The first bytes of the name as a number, the first one in the highest place, so that most pairs of names are
    /// told apart by one comparison.
    uint64_t head;
    /// Bytes of the name, which ends with a zero.
    size_t length;
    const char *name;
    unsigned char is_directory;
};

/// The first entries in order after a place.
struct clinux_directory_page {
    /// All entries of the directory, without `.` and `..`.
    uint64_t count;
    /// Those of the page, in order.
    struct clinux_directory_entry *entries;
    size_t length;
    /// Whether no entry comes after them.
    unsigned char is_complete;
};

/// Reads the `limit` first entries in order that come after `after`, or after the beginning if that is NULL; of
/// `after`, the name, its length and the type are looked at. The directory is read as a stream: memory depends on
/// `limit` and not on the size of the directory.
///
/// `fd` is open for reading and is read from where it stands. Returns 0, or -1 with errno; after success the page is to
/// be given to `clinux_free_directory_page`.
int clinux_read_directory_page(
    int fd, const struct clinux_directory_entry *after, size_t limit, struct clinux_directory_page *page);

void clinux_free_directory_page(struct clinux_directory_page *page);
