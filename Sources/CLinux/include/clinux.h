#pragma once

#include "copy_tree.h"
#include "device_numbers.h"
#include "directory_page.h"
#include "extended_attribute.h"
#include "file_tree.h"
#include "find_bytes.h"
#include "reactor_io.h"
#include "safe_path.h"
#include "spawn.h"
#include "tree_walk.h"
#include "utf8_locale.h"
