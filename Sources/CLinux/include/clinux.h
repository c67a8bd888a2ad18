#pragma once

#include "file_tree.h"
#include "reactor_io.h"
#include "safe_path.h"
#include "spawn.h"
