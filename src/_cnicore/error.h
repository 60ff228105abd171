/* Errors: every function of the core that can fail returns a negative number and
 * fills a struct cni_error. */
#ifndef CNI_ERROR_H
#define CNI_ERROR_H

#include <stdint.h>

struct cni_error {
    int status;     /* an errno value */
    char what[256]; /* what was attempted, on what */
};

/* Fill `err` and return -1, so that a failing call can be one statement. */
int cni_fail(struct cni_error *err, int status, const char *format, ...) __attribute__((format(printf, 3, 4)));

#endif
