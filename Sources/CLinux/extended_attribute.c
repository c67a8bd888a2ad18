#include "extended_attribute.h"

#include <string.h>
#include <sys/xattr.h>

bool clinux_extended_attribute_is(const char *path, const char *name, const char *value) {
  char found[256];
  const ssize_t size = getxattr(path, name, found, sizeof found);
  return size >= 0 && (size_t)size == strlen(value) && memcmp(found, value, (size_t)size) == 0;
}
