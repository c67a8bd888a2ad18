#define _GNU_SOURCE
#include "find_bytes.h"

#include <string.h>

long clinux_find_bytes(const void *bytes, size_t length, const void *needle, size_t needle_length)
{
    const char *found = memmem(bytes, length, needle, needle_length);
    return found == NULL ? -1 : found - (const char *)bytes;
}
