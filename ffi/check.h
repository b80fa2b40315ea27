/* check.h: assertions that stay on in release builds: a replica that is wrong stops rather than goes on. */
#ifndef MUSIDECAR_CHECK_H
#define MUSIDECAR_CHECK_H

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>

static inline void check_that(bool holds, const char *what, const char *file, int line) {
    if (__builtin_expect(!holds, 0)) {
        fprintf(stderr, "musidecar: assertion failed: %s (%s:%d)\n", what, file, line);
        abort();
    }
}
#define CHECK(condition) check_that((condition), #condition, __FILE__, __LINE__)

#endif
