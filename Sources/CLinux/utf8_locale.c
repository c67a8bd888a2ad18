#define _GNU_SOURCE
#include "utf8_locale.h"

#include <locale.h>
#include <pthread.h>
#include <stddef.h>

static locale_t utf8;

static void make_locale(void) { utf8 = newlocale(LC_CTYPE_MASK, "C.UTF-8", (locale_t)0); }

void *clinux_enter_utf8(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, make_locale);
    return utf8 == (locale_t)0 ? NULL : (void *)uselocale(utf8);
}

void clinux_leave_utf8(void *previous)
{
    if (previous != NULL) uselocale((locale_t)previous);
}
