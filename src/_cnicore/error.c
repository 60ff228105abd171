#include "error.h"

#include <stdarg.h>
#include <stdio.h>

int cni_fail(struct cni_error *err, int status, const char *format, ...)
{
    va_list arguments;

    err->status = status;
    va_start(arguments, format);
    vsnprintf(err->what, sizeof err->what, format, arguments);
    va_end(arguments);
    return -1;
}
