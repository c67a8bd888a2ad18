#pragma once

/// Makes the calling thread read and write names of files as UTF-8, whatever the locale of the process is. Returns
/// what `clinux_leave_utf8` takes to go back, or NULL if nothing was changed.
void *clinux_enter_utf8(void);
void clinux_leave_utf8(void *previous);
