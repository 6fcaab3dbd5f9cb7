/* Memory of the GPU for all of ONNX Runtime's sessions in a process, as its external allocator takes it.
 *
 * Each of two zones is a range of addresses, several times as many as the GPU has memory for; pages of memory are mapped
 * there as they are needed, so that what is free grows together again, whatever the sizes were. What stays as long as
 * its session (weights) goes to the one, and what a run works in to the other: runs come one after the other, so all
 * sessions share that, and a captured graph of launches, which writes where it once did, finds nothing there that another
 * session keeps. What is handed over as DLPack's tensors (dlpack.h) is freed with the last of those who hold it. */

#include "driver.h"

#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
  int type, handles;
  struct {
    int type, id;
  } location;
  void *unused;
  unsigned char flags[8];
} Properties; /* CUmemAllocationProp */

typedef struct {
  int type, id, flags;
} Access; /* CUmemAccessDesc */

static struct {
  int (*cuDeviceGet)(int *, int);
  int (*cuDeviceGetAttribute)(int *, int, int);
  int (*cuDeviceTotalMem)(size_t *, int);
  int (*cuMemGetAllocationGranularity)(size_t *, const Properties *, int);
  int (*cuMemAddressReserve)(uint64_t *, size_t, size_t, uint64_t, unsigned long long);
  int (*cuMemCreate)(uint64_t *, size_t, const Properties *, unsigned long long);
  int (*cuMemMap)(uint64_t, size_t, size_t, uint64_t, unsigned long long);
  int (*cuMemSetAccess)(uint64_t, size_t, const Access *, size_t);
  int (*cuMemUnmap)(uint64_t, size_t);
  int (*cuMemRelease)(uint64_t);
  int (*cuCtxSynchronize)(void);
} driver;

enum { PINNED = 1, DEVICE = 1, READ_WRITE = 3, VIRTUAL_MEMORY = 102, NO_DRIVER = 100, NO_MEMORY = 2, UNSUPPORTED = 801 };
enum { ALIGNMENT = 512, ROOM = 4 }; /* bytes; how many times the memory there are addresses for */

/* Blocks follow one another without a gap, and no two free ones do. */
enum { FREE, USED, SETTLED };
typedef struct Block {
  uint64_t start, size;
  int state;
  struct Block *before, *after;
} Block;

typedef struct {
  uint64_t start, size, used;
  Block *first;
  unsigned char *mapped; /* for each page, whether memory is there */
} Zone;

enum { KEPT, RUN, ZONES };

/* DLManagedTensor, with its shape behind it. */
typedef struct Tensor {
  void *data;
  int32_t device, index, rank;
  uint8_t code, bits;
  uint16_t lanes;
  int64_t *shape, *strides;
  uint64_t offset;
  void *context;
  void (*deleter)(struct Tensor *);
  int64_t sizes[];
} Tensor;

enum { CUDA = 2 };

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static Properties properties = {.type = PINNED, .location = {DEVICE, 0}};
static Zone zones[ZONES];
static size_t page;
static int zone_now = RUN;

static int find_driver(void) {
  static const char *const names[] = {"cuDeviceGet",
                                      "cuDeviceGetAttribute",
                                      "cuDeviceTotalMem_v2",
                                      "cuMemGetAllocationGranularity",
                                      "cuMemAddressReserve",
                                      "cuMemCreate",
                                      "cuMemMap",
                                      "cuMemSetAccess",
                                      "cuMemUnmap",
                                      "cuMemRelease",
                                      "cuCtxSynchronize"};
  return look_up(names, sizeof(names) / sizeof(*names), &driver) ? 0 : NO_DRIVER;
}

/* To be called once, before the other functions and after cuInit: for the first GPU. 0, or the driver's status. */
int edgediffusion_arena(void) {
  size_t memory = 0;
  int device = 0, supported = 0, status = find_driver();
  if (status == 0) status = driver.cuDeviceGet(&device, 0);
  if (status == 0) status = driver.cuDeviceGetAttribute(&supported, VIRTUAL_MEMORY, device);
  if (status == 0 && !supported) status = UNSUPPORTED;
  if (status == 0) status = driver.cuDeviceTotalMem(&memory, device);
  properties.location.id = device;
  if (status == 0) status = driver.cuMemGetAllocationGranularity(&page, &properties, 0);
  for (int i = 0; i < ZONES && status == 0; ++i) {
    const size_t pages = ROOM * ((memory + page - 1) / page);
    Block *all = calloc(1, sizeof *all);
    zones[i].mapped = calloc(pages, 1);
    if (all == NULL || zones[i].mapped == NULL) return NO_MEMORY;
    status = driver.cuMemAddressReserve(&zones[i].start, pages * page, 0, 0, 0);
    *all = (Block){.start = zones[i].start, .size = pages * page};
    zones[i].size = all->size;
    zones[i].first = all;
  }
  return status;
}

/* Whether what is allocated from now on stays as long as its session, or no longer than the run. */
void edgediffusion_keep(int keep) { zone_now = keep ? KEPT : RUN; }

/* Bytes in use of what stays. */
size_t edgediffusion_kept(void) { return zones[KEPT].used; }

/* How many blocks are in use that were not to stay, beyond those counted before. */
int edgediffusion_settle(void) {
  int count = 0;
  for (Block *block = zones[RUN].first; block != NULL; block = block->after)
    if (block->state == USED) block->state = SETTLED, ++count;
  return count;
}

/* How many of these pages had memory. */
static int unmap(Zone *zone, size_t first, size_t end) {
  int count = 0;
  for (size_t i = first; i < end; ++i)
    if (zone->mapped[i] && driver.cuMemUnmap(zone->start + i * page, page) == 0) zone->mapped[i] = 0, ++count;
  return count;
}

static int map(Zone *zone, size_t i) {
  const Access access = {DEVICE, properties.location.id, READ_WRITE};
  const uint64_t start = zone->start + i * page;
  uint64_t memory;
  if (driver.cuMemCreate(&memory, page, &properties, 0) != 0) return 0;
  zone->mapped[i] = driver.cuMemMap(start, page, 0, memory, 0) == 0;
  driver.cuMemRelease(memory); /* it stays while it is mapped */
  if (zone->mapped[i] && driver.cuMemSetAccess(start, page, &access, 1) != 0) unmap(zone, i, i + 1);
  return zone->mapped[i];
}

/* Whether there is memory for so much of a block. */
static int map_block(Zone *zone, const Block *block, uint64_t size) {
  const uint64_t start = block->start - zone->start;
  for (size_t i = start / page; i * page < start + size; ++i)
    if (!zone->mapped[i] && !map(zone, i)) return 0;
  return 1;
}

/* The smallest that is large enough. */
static Block *find_free(const Zone *zone, uint64_t size) {
  Block *best = NULL;
  for (Block *block = zone->first; block != NULL; block = block->after)
    if (block->state == FREE && block->size >= size && (best == NULL || block->size < best->size)) best = block;
  return best;
}

/* What is left of a free block when `size` of it is taken becomes a block of its own. */
static int split(Block *block, uint64_t size) {
  if (block->size == size) return 1;
  Block *rest = malloc(sizeof *rest);
  if (rest == NULL) return 0;
  *rest = (Block){block->start + size, block->size - size, FREE, block, block->after};
  if (rest->after != NULL) rest->after->before = rest;
  block->after = rest;
  block->size = size;
  return 1;
}

static void join_after(Block *block) {
  Block *after = block->after;
  block->size += after->size;
  block->after = after->after;
  if (block->after != NULL) block->after->before = block;
  free(after);
}

/* Null where there is no memory. */
void *edgediffusion_allocate(size_t bytes) {
  const uint64_t size = ((uint64_t)bytes / ALIGNMENT + 1) * ALIGNMENT;
  pthread_mutex_lock(&mutex);
  Zone *zone = &zones[zone_now];
  Block *block = size < bytes ? NULL : find_free(zone, size);
  int found = block != NULL && map_block(zone, block, size) && split(block, size);
  if (found) {
    block->state = USED;
    zone->used += size;
  }
  pthread_mutex_unlock(&mutex);
  return found ? (void *)(uintptr_t)block->start : NULL;
}

static Block *find_used(const Zone *zone, uint64_t start) {
  for (Block *block = zone->first; block != NULL; block = block->after)
    if (block->start == start) return block->state == FREE ? NULL : block;
  return NULL;
}

void edgediffusion_free(void *memory) {
  const uint64_t start = (uintptr_t)memory;
  pthread_mutex_lock(&mutex);
  Zone *zone = &zones[start - zones[RUN].start < zones[RUN].size ? RUN : KEPT];
  Block *block = find_used(zone, start);
  if (block != NULL) {
    block->state = FREE;
    zone->used -= block->size;
    if (block->after != NULL && block->after->state == FREE) join_after(block);
    if (block->before != NULL && block->before->state == FREE) join_after(block->before);
  }
  pthread_mutex_unlock(&mutex);
}

static void delete_tensor(Tensor *tensor) {
  edgediffusion_free(tensor->data);
  free(tensor);
}

/* Null where there is no memory. `code` and `bits` say what the numbers are, as DLPack has it. */
Tensor *edgediffusion_tensor(size_t bytes, int code, int bits, int rank, const int64_t *shape) {
  Tensor *tensor = malloc(sizeof *tensor + (size_t)rank * sizeof *shape);
  void *data = tensor == NULL ? NULL : edgediffusion_allocate(bytes);
  if (data == NULL) return free(tensor), NULL;
  *tensor = (Tensor){.data = data, .device = CUDA, .rank = rank, .code = (uint8_t)code, .bits = (uint8_t)bits};
  tensor->lanes = 1;
  tensor->shape = memcpy(tensor->sizes, shape, (size_t)rank * sizeof *shape);
  tensor->deleter = delete_tensor;
  return tensor;
}

/* Gives back the pages that nothing is in: of what stays, and unless `graphs` may write there, of what runs work in.
 * How many pages that runs worked in were given back. */
int edgediffusion_trim(int graphs) {
  int count = 0;
  driver.cuCtxSynchronize(); /* nothing is to be at work there */
  pthread_mutex_lock(&mutex);
  for (int i = 0; i < (graphs ? RUN : ZONES); ++i)
    for (const Block *block = zones[i].first; block != NULL; block = block->after)
      if (block->state == FREE) {
        const uint64_t start = block->start - zones[i].start;
        const int pages = unmap(&zones[i], (start + page - 1) / page, (start + block->size) / page);
        if (i == RUN) count += pages;
      }
  pthread_mutex_unlock(&mutex);
  return count;
}
