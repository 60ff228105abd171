/* Files by the descriptor of their folder (or AT_FDCWD), each in one call.
 *
 * The last part of a name is never followed where it is a link, and nobody is
 * waited for: not for who would open the other end of a FIFO. */
#ifndef CNI_FILES_H
#define CNI_FILES_H

#include <stddef.h>

#include "error.h"

/* All that a regular file holds, to be freed. */
int cni_file_read(int folder, const char *name, char **data, size_t *length, struct cni_error *err);

/* Write the file, made of mode 0600 where it is missing: anew, or `append` to what it holds. */
int cni_file_write(int folder, const char *name, const char *data, size_t length, int append, struct cni_error *err);

/* Make the file, or replace it, whole or not at all: it is written as `temporary` and renamed.
 * What is left of that by a failure is taken away. */
int cni_file_replace(int folder, const char *name, const char *temporary, const char *data, size_t length,
                     struct cni_error *err);

#endif
