// What archive.h includes of the C library is to stay the C library's, or else its types would be this module's.
#pragma clang module import SwiftGlibc

#include <archive.h>
#include <archive_entry.h>
