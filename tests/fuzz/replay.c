/*
 * replay.c: main() of a harness where libFuzzer is not: runs it once on each file given, or on each file in the folders
 * given. What the sanitizers of any compiler, and a debugger, look at.
 */
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>

#include "fuzz.h"

#define INPUT_BYTES_MAX (1u << 20)

static void replay_file(const char *path) {
    FILE *file = fopen(path, "rb");
    CHECK(file != NULL);
    uint8_t *bytes = malloc(INPUT_BYTES_MAX);
    CHECK(bytes != NULL);
    size_t length = fread(bytes, 1, INPUT_BYTES_MAX, file);
    fclose(file);
    uint8_t *exact = malloc(length > 0 ? length : 1);
    CHECK(exact != NULL);
    memcpy(exact, bytes, length);
    free(bytes);
    LLVMFuzzerTestOneInput(exact, length);
    free(exact);
}

static unsigned replay(const char *path) {
    struct stat found;
    CHECK(stat(path, &found) == 0);
    if (!S_ISDIR(found.st_mode)) return replay_file(path), 1;
    unsigned files = 0;
    DIR *folder = opendir(path);
    CHECK(folder != NULL);
    for (struct dirent *entry = readdir(folder); entry != NULL; entry = readdir(folder)) {
        if (entry->d_name[0] == '.') continue;
        char inner[4096];
        CHECK(snprintf(inner, sizeof inner, "%s/%s", path, entry->d_name) < (int)sizeof inner);
        files += replay(inner);
    }
    closedir(folder);
    return files;
}

int main(int argc, char **argv) {
    unsigned files = 0;
    for (int i = 1; i < argc; i++) files += replay(argv[i]);
    printf("%u inputs\n", files);
    return files > 0 ? 0 : 1;
}
