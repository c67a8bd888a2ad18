#pragma once

#include "reactor_io.h"
#include "file_tree.h"
#include "safe_path.h"
