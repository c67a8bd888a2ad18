#pragma once

#include "reactor_io.h"
#include "file_tree.h"
