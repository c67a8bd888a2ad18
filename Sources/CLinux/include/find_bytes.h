#pragma once

#include <stddef.h>

/// Where `needle` begins in `bytes` for the first time, or -1.
long clinux_find_bytes(const void *bytes, size_t length, const void *needle, size_t needle_length);
