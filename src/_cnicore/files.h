/* Files by the descriptor of their folder (or AT_FDCWD), each in one call.
 *
 * A name's last component is not followed if it is a link, and no call blocks, not
 * even at a FIFO that has no other end. */
#ifndef CNI_FILES_H
#define CNI_FILES_H

#include <stddef.h>

#include "error.h"

/* Read a regular file. The caller frees `data`. */
int cni_file_read(int folder, const char *name, char **data, size_t *length, struct cni_error *err);

/* Overwrite the file, or `append` to it. A missing one is created with mode 0600. */
int cni_file_write(int folder, const char *name, const char *data, size_t length, int append, struct cni_error *err);

/* Create or replace the file atomically: it is written as `temporary` and renamed.
 * A failure removes `temporary`. */
int cni_file_replace(int folder, const char *name, const char *temporary, const char *data, size_t length,
                     struct cni_error *err);

#endif
