#pragma once

// gnu_dev_major and gnu_dev_minor, which Swift's module of the C library leaves out.
#include <sys/sysmacros.h>
