#pragma once

#include "file_tree.h"
#include "reactor_io.h"
#include "spawn.h"
