/* Functions of CUDA's driver, looked up when they are needed: neither CUDA nor its headers are wanted to compile this. */

#include <dlfcn.h>
#include <stddef.h>
#include <string.h>

/* Fills a structure of pointers to functions, in the order of their names. 0 where one is missing. */
static int look_up(const char *const *names, size_t count, void *functions) {
  void *library = dlopen("libcuda.so.1", RTLD_NOW);
  for (size_t i = 0; i < count; ++i) {
    void *found = library == NULL ? NULL : dlsym(library, names[i]);
    if (found == NULL) return 0;
    memcpy((char *)functions + i * sizeof found, &found, sizeof found);
  }
  return 1;
}
