#pragma once

#include "reactor_io.h"
