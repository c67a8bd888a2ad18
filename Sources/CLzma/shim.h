// What lzma.h includes of the C library is to stay the C library's, or else its types would be this module's.
#pragma clang module import SwiftGlibc

#include <lzma.h>

// The macro isn't to be had in Swift.
static const uint32_t clzma_concatenated = LZMA_CONCATENATED;
