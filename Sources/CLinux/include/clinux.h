#pragma once

#include "copy_tree.h"
#include "file_tree.h"
#include "reactor_io.h"
#include "spawn.h"
