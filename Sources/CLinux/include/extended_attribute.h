#pragma once

#include <stdbool.h>

/// Whether a file has an extended attribute of this name and value. An attribute that can't be read is none.
bool clinux_extended_attribute_is(const char *path, const char *name, const char *value);
