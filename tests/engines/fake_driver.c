/* What arena.c takes of CUDA's driver, over no memory at all: it counts pages, and faults where the real one fails. */

#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum { PAGE = 65536, PAGES = 64, ROOM = 4 * PAGES, ZONES = 2, NO_MEMORY = 2, INVALID = 1 };

static int taken, handles, faults, ranges;
static unsigned char mapped[ZONES][ROOM], open[ZONES][ROOM];

int fake_mapped(void) {
  int count = 0;
  for (int i = 0; i < ZONES * ROOM; ++i) count += mapped[i / ROOM][i % ROOM];
  return count;
}
int fake_taken(void) { return taken; }
int fake_faults(void) { return faults; }
int fake_handles(void) { return handles; }
static uint64_t start_of(int zone) { return (uint64_t)(zone + 1) << 40; }

/* The place of a page in the ranges that were reserved; NULL and a fault elsewhere. */
static unsigned char *place(unsigned char of[ZONES][ROOM], uint64_t address) {
  for (int i = 0; i < ranges; ++i)
    if (address >= start_of(i) && address < start_of(i) + (uint64_t)ROOM * PAGE)
      return &of[i][(address - start_of(i)) / PAGE];
  ++faults;
  return NULL;
}

/* Whether a kernel may write there. */
int fake_accessible(uint64_t address) { return *place(open, address); }

static int device_get(int *device, int i) { return *device = i, 0; }
static int attribute(int *value, int which, int device) { return *value = which == 102 && device == 0, 0; }
static int total(size_t *bytes, int device) { return (void)device, *bytes = (size_t)PAGES * PAGE, 0; }
static int granularity(size_t *bytes, const void *properties, int option) {
  const int *const words = properties; /* type, handles, where, which */
  faults += words[0] != 1 || words[1] != 0 || words[2] != 1 || words[3] != 0 || option != 0;
  return *bytes = PAGE, 0;
}
static int reserve(uint64_t *address, size_t size, size_t alignment, uint64_t wish, unsigned long long flags) {
  faults += size != (size_t)ROOM * PAGE || alignment != 0 || wish != 0 || flags != 0 || ranges == ZONES;
  return *address = start_of(ranges++), 0;
}
static int create(uint64_t *memory, size_t size, const void *properties, unsigned long long flags) {
  faults += size != PAGE || properties == NULL || flags != 0;
  if (taken == PAGES) return NO_MEMORY;
  ++handles;
  return *memory = (uint64_t)++taken, 0;
}
static int map(uint64_t address, size_t size, size_t offset, uint64_t memory, unsigned long long flags) {
  unsigned char *const page = place(mapped, address);
  faults += size != PAGE || offset != 0 || memory == 0 || flags != 0 || address % PAGE != 0;
  if (page == NULL || *page) return ++faults, INVALID;
  return *page = 1, 0;
}
static int set_access(uint64_t address, size_t size, const int *access, size_t count) {
  faults += size != PAGE || count != 1 || access[0] != 1 || access[1] != 0 || access[2] != 3 || !*place(mapped, address);
  return *place(open, address) = 1, 0;
}
static int unmap(uint64_t address, size_t size) {
  if (size != PAGE || !*place(mapped, address)) return ++faults, INVALID;
  --taken;
  return *place(mapped, address) = *place(open, address) = 0, 0;
}
static int synchronize(void) { return 0; }
static int release(uint64_t memory) { return faults += memory == 0, --handles, 0; }

void *fake_dlopen(const char *name, int flags) { return (void)flags, strcmp(name, "libcuda.so.1") == 0 ? &taken : NULL; }
void *fake_dlsym(void *library, const char *name) {
  static const struct {
    const char *name;
    void *function;
  } functions[] = {
      {"cuDeviceGet", (void *)device_get},
      {"cuDeviceGetAttribute", (void *)attribute},
      {"cuDeviceTotalMem_v2", (void *)total},
      {"cuMemGetAllocationGranularity", (void *)granularity},
      {"cuMemAddressReserve", (void *)reserve},
      {"cuMemCreate", (void *)create},
      {"cuMemMap", (void *)map},
      {"cuMemSetAccess", (void *)set_access},
      {"cuMemUnmap", (void *)unmap},
      {"cuMemRelease", (void *)release},
      {"cuCtxSynchronize", (void *)synchronize},
  };
  for (size_t i = 0; library != NULL && i < sizeof(functions) / sizeof(*functions); ++i)
    if (strcmp(functions[i].name, name) == 0) return functions[i].function;
  return NULL;
}
