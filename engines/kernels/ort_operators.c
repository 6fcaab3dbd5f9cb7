/* The operators of the domain "edgediffusion" for ONNX Runtime's CUDA provider: they launch the kernels of kernels.cu.
 *
 * BiasGroupNorm (x, scale, shift, bias?, embedding?, skip?) -> (y, total?, sums): groups, epsilon, activation.
 * BiasAdd (x, bias, skip?) -> (total).
 *
 * kernels.cu says what these are; `sums` is memory that BiasGroupNorm works in. Pictures are float16, (pictures, height,
 * width, channels); scale and shift are float32. The kernels come as a cubin, given to `edgediffusion_kernels`.
 *
 * Neither CUDA nor ONNX Runtime is needed to compile this: the driver is looked up when the first kernel is made, and of
 * ONNX Runtime's C interface what is used is declared below, by place: places are never taken again
 * (onnxruntime_c_api.h). */

#include <dlfcn.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ONNX Runtime's C interface. */

typedef void OrtStatus;
typedef struct OrtApi {
  void *function[300];
} OrtApi;
typedef struct {
  const OrtApi *(*GetApi)(uint32_t version);
  const char *(*GetVersionString)(void);
} OrtApiBase;

enum { API_VERSION = 18, INVALID_ARGUMENT = 2, FAIL = 1, FLOAT = 1, FLOAT16 = 10, REQUIRED = 0, OPTIONAL = 1 };

/* Places in OrtApi. */
enum {
  CREATE_STATUS = 0,
  CREATE_DOMAIN = 26,
  DOMAIN_ADD = 27,
  ADD_DOMAIN = 28,
  TENSOR_DATA = 51,
  DIMENSIONS_COUNT = 61,
  DIMENSIONS = 62,
  TENSOR_SHAPE = 65,
  ATTRIBUTE_FLOAT = 85,
  ATTRIBUTE_INT = 86,
  INPUT_COUNT = 88,
  OUTPUT_COUNT = 89,
  INPUT = 90,
  OUTPUT = 91,
  RELEASE_SHAPE = 99,
  STREAM = 193,
};

#define CALL(api, place, ...) ((OrtStatus * (*)(__VA_ARGS__)) (api)->function[place])
#define TRY(call)                       \
  do {                                  \
    OrtStatus *status_ = (call);        \
    if (status_ != NULL) return status_; \
  } while (0)

typedef struct OrtCustomOp {
  uint32_t version;
  void *(*create_v1)(const struct OrtCustomOp *, const OrtApi *, const void *info);
  const char *(*name)(const struct OrtCustomOp *);
  const char *(*provider)(const struct OrtCustomOp *);
  int (*input_type)(const struct OrtCustomOp *, size_t);
  size_t (*input_count)(const struct OrtCustomOp *);
  int (*output_type)(const struct OrtCustomOp *, size_t);
  size_t (*output_count)(const struct OrtCustomOp *);
  void (*compute_v1)(void *kernel, void *context);
  void (*destroy)(void *kernel);
  int (*input_is)(const struct OrtCustomOp *, size_t);
  int (*output_is)(const struct OrtCustomOp *, size_t);
  int (*input_memory)(const struct OrtCustomOp *, size_t);
  int (*variadic[4])(const struct OrtCustomOp *);
  OrtStatus *(*create)(const struct OrtCustomOp *, const OrtApi *, const void *info, void **kernel);
  OrtStatus *(*compute)(void *kernel, void *context);
  OrtStatus *(*infer_shape)(const struct OrtCustomOp *, void *context);
  int (*version_range[2])(const struct OrtCustomOp *);
  void *in_place[4];
} OrtCustomOp;

static OrtStatus *failed(const OrtApi *api, int code, const char *message) {
  return ((OrtStatus * (*)(int, const char *)) api->function[CREATE_STATUS])(code, message);
}

/* CUDA's driver. */

typedef struct {
  int (*cuLibraryLoadData)(void **, const void *, void *, void **, unsigned, void *, void **, unsigned);
  int (*cuLibraryGetKernel)(void **, void *, const char *);
  int (*cuLaunchKernel)(void *, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void *, void **,
                        void **);
  int (*cuCtxGetDevice)(int *);
  int (*cuDeviceGetAttribute)(int *, int, int);
} Driver;

enum { MULTIPROCESSORS = 16, WIDTH = 8, THREADS = 512, RANK = 4 };

static Driver driver;
static void *cubin, *add_and_sum, *normalize;

/* To be called before a session is made, once: `data`, a cubin of kernels.cu for this GPU. 0, or 1 without memory. */
int edgediffusion_kernels(const void *data, size_t size) {
  void *copy = malloc(size);
  if (copy == NULL) return 1;
  cubin = memcpy(copy, data, size);
  return 0;
}

static OrtStatus *find_kernels(const OrtApi *api) {
  static const char *const names[] = {"cuLibraryLoadData", "cuLibraryGetKernel", "cuLaunchKernel", "cuCtxGetDevice",
                                      "cuDeviceGetAttribute"};
  char message[96];
  void *library = NULL, *handle;
  if (normalize != NULL) return NULL;
  if (cubin == NULL) return failed(api, FAIL, "edgediffusion's kernels were not given");
  handle = dlopen("libcuda.so.1", RTLD_NOW);
  for (size_t i = 0; i < sizeof(names) / sizeof(*names); ++i) {
    void *found = handle == NULL ? NULL : dlsym(handle, names[i]);
    if (found == NULL) return failed(api, FAIL, "the NVIDIA driver is missing or older than CUDA 12");
    memcpy((char *)&driver + i * sizeof found, &found, sizeof found);
  }
  int status = driver.cuLibraryLoadData(&library, cubin, NULL, NULL, 0, NULL, NULL, 0);
  if (status == 0) status = driver.cuLibraryGetKernel(&add_and_sum, library, "add_and_sum");
  if (status == 0) status = driver.cuLibraryGetKernel(&normalize, library, "normalize");
  if (status == 0) return NULL;
  snprintf(message, sizeof message, "CUDA cannot load edgediffusion's kernels (status %d)", status);
  return failed(api, FAIL, message);
}

/* What both operators do. */

typedef struct {
  const OrtApi *api;
  int64_t groups, silu; /* groups is 0 for BiasAdd */
  float epsilon;
} Kernel;

typedef struct {
  void *x, *scale, *shift, *bias, *embedding, *skip; /* null where there is none */
  int64_t shape[RANK];
} Inputs;

static OrtStatus *read_shape(const OrtApi *api, const void *value, int64_t *shape) {
  void *info = NULL;
  size_t rank = 0;
  TRY(CALL(api, TENSOR_SHAPE, const void *, void **)(value, &info));
  OrtStatus *status = CALL(api, DIMENSIONS_COUNT, const void *, size_t *)(info, &rank);
  if (status == NULL && rank == RANK) status = CALL(api, DIMENSIONS, const void *, int64_t *, size_t)(info, shape, rank);
  ((void (*)(void *))api->function[RELEASE_SHAPE])(info);
  if (status == NULL && rank != RANK) return failed(api, INVALID_ARGUMENT, "pictures have 4 dimensions");
  return status;
}

static OrtStatus *read_inputs(const OrtApi *api, void *context, void *const *places[], size_t wanted, Inputs *inputs) {
  size_t count = 0;
  TRY(CALL(api, INPUT_COUNT, const void *, size_t *)(context, &count));
  for (size_t i = 0; i < count && i < wanted; ++i) {
    const void *value = NULL;
    TRY(CALL(api, INPUT, const void *, size_t, const void **)(context, i, &value));
    if (value == NULL) continue;
    if (i == 0) TRY(read_shape(api, value, inputs->shape));
    TRY(CALL(api, TENSOR_DATA, const void *, void **)(value, (void **)places[i]));
  }
  if (inputs->shape[3] % WIDTH != 0 || inputs->shape[3] / WIDTH > THREADS)
    return failed(api, INVALID_ARGUMENT, "channels are a multiple of 8, at most 4096");
  return NULL;
}

static OrtStatus *output(const OrtApi *api, void *context, size_t index, const int64_t *shape, size_t rank, void **data) {
  void *value = NULL;
  TRY(CALL(api, OUTPUT, void *, size_t, const int64_t *, size_t, void **)(context, index, shape, rank, &value));
  if (value != NULL) TRY(CALL(api, TENSOR_DATA, void *, void **)(value, data));
  return NULL;
}

/* How a picture is shared out: a block of `columns` x `rows` threads for each of `pieces` of `pixels_a_piece` pixels,
 * one block a multiprocessor. */
typedef struct {
  void *stream;
  int pictures, pixels, columns, rows, pieces, pixels_a_piece;
} Launch;

static OrtStatus *plan(const OrtApi *api, void *context, const int64_t *shape, Launch *to) {
  int device = 0, multiprocessors = 0;
  TRY(find_kernels(api));
  TRY(CALL(api, STREAM, const void *, void **)(context, &to->stream));
  if (driver.cuCtxGetDevice(&device) || driver.cuDeviceGetAttribute(&multiprocessors, MULTIPROCESSORS, device))
    return failed(api, FAIL, "CUDA does not say how many multiprocessors there are");
  to->pictures = (int)shape[0];
  to->pixels = (int)(shape[1] * shape[2]);
  to->columns = (int)(shape[3] / WIDTH);
  to->rows = THREADS / to->columns;
  int most = (to->pixels + to->rows - 1) / to->rows, wanted = multiprocessors / (to->pictures > 0 ? to->pictures : 1);
  to->pieces = wanted < 1 ? 1 : wanted < most ? wanted : most;
  to->pixels_a_piece = to->pieces > 0 ? (to->pixels + to->pieces - 1) / to->pieces : 0;
  return NULL;
}

static OrtStatus *launch(const OrtApi *api, const Launch *plan, void *kernel, size_t shared, void **arguments) {
  char message[64];
  int status = driver.cuLaunchKernel(kernel, plan->pieces, plan->pictures, 1, plan->columns, plan->rows, 1,
                                     (unsigned)shared, plan->stream, arguments, NULL);
  if (status == 0) return NULL;
  snprintf(message, sizeof message, "CUDA cannot launch a kernel (status %d)", status);
  return failed(api, FAIL, message);
}

static OrtStatus *launch_add_and_sum(const Kernel *kernel, Launch *plan, Inputs *in, void *total, void *sums) {
  int groups = (int)kernel->groups;
  size_t shared = sums == NULL ? 0 : (size_t)plan->columns * WIDTH * plan->rows * 2 * sizeof(float);
  void *arguments[] = {&in->x,       &in->bias,       &in->embedding,          &in->skip, &total, &sums,
                       &plan->pixels, &plan->pixels_a_piece, &groups};
  return launch(kernel->api, plan, add_and_sum, shared, arguments);
}

static OrtStatus *create(const OrtCustomOp *op, const OrtApi *api, const void *info, void **to) {
  Kernel made = {api, 0, 0, 0.f};
  if (op->input_count(op) > 3) {
    TRY(CALL(api, ATTRIBUTE_INT, const void *, const char *, int64_t *)(info, "groups", &made.groups));
    TRY(CALL(api, ATTRIBUTE_INT, const void *, const char *, int64_t *)(info, "activation", &made.silu));
    TRY(CALL(api, ATTRIBUTE_FLOAT, const void *, const char *, float *)(info, "epsilon", &made.epsilon));
  }
  Kernel *kernel = malloc(sizeof made);
  if (kernel == NULL) return failed(api, FAIL, "no memory for an operator");
  *kernel = made;
  *to = kernel;
  return NULL;
}

static OrtStatus *compute_group_norm(void *made, void *context) {
  Kernel *kernel = made;
  const OrtApi *api = kernel->api;
  Inputs in = {0};
  void *const *places[] = {&in.x, &in.scale, &in.shift, &in.bias, &in.embedding, &in.skip};
  Launch plan_;
  void *y = NULL, *total = NULL, *sums = NULL;
  TRY(read_inputs(api, context, places, 6, &in));
  int groups = (int)kernel->groups, silu = (int)kernel->silu;
  if (groups < 1 || groups > 256 || in.shape[3] % groups) return failed(api, INVALID_ARGUMENT, "groups do not fit");
  TRY(plan(api, context, in.shape, &plan_));
  const int64_t size[] = {plan_.pictures, plan_.pieces, groups, 2};
  TRY(output(api, context, 0, in.shape, RANK, &y));
  TRY(output(api, context, 1, in.shape, RANK, &total));
  TRY(output(api, context, 2, size, 4, &sums));
  if (plan_.pictures == 0 || plan_.pixels == 0) return NULL;
  if (in.skip != NULL && total == NULL) return failed(api, INVALID_ARGUMENT, "with a skip BiasGroupNorm gives the total");
  TRY(launch_add_and_sum(kernel, &plan_, &in, total, sums));
  void *none = NULL, **x = total == NULL ? &in.x : &total;
  void *arguments[] = {x,         total == NULL ? &in.bias : &none,
                       total == NULL ? &in.embedding : &none, &in.scale, &in.shift, &sums, &y, &plan_.pixels,
                       &plan_.pixels_a_piece, &groups, &kernel->epsilon, &silu};
  return launch(api, &plan_, normalize, THREADS * 2 * sizeof(float), arguments);
}

static OrtStatus *compute_bias_add(void *made, void *context) {
  Kernel *kernel = made;
  Inputs in = {0};
  void *const *places[] = {&in.x, &in.bias, &in.skip};
  Launch plan_;
  void *total = NULL;
  TRY(read_inputs(kernel->api, context, places, 3, &in));
  TRY(plan(kernel->api, context, in.shape, &plan_));
  TRY(output(kernel->api, context, 0, in.shape, RANK, &total));
  if (plan_.pictures == 0 || plan_.pixels == 0) return NULL;
  return launch_add_and_sum(kernel, &plan_, &in, total, NULL);
}

/* What they are like. */

static const char *group_norm_name(const OrtCustomOp *op) { return (void)op, "BiasGroupNorm"; }
static const char *bias_add_name(const OrtCustomOp *op) { return (void)op, "BiasAdd"; }
static const char *cuda(const OrtCustomOp *op) { return (void)op, "CUDAExecutionProvider"; }
static size_t one(const OrtCustomOp *op) { return (void)op, 1; }
static size_t three(const OrtCustomOp *op) { return (void)op, 3; }
static size_t six(const OrtCustomOp *op) { return (void)op, 6; }
static int half(const OrtCustomOp *op, size_t i) { return (void)op, (void)i, FLOAT16; }
static int norm_input(const OrtCustomOp *op, size_t i) { return (void)op, i == 1 || i == 2 ? FLOAT : FLOAT16; }
static int norm_output(const OrtCustomOp *op, size_t i) { return (void)op, i == 2 ? FLOAT : FLOAT16; }
static int norm_input_is(const OrtCustomOp *op, size_t i) { return (void)op, i < 3 ? REQUIRED : OPTIONAL; }
static int norm_output_is(const OrtCustomOp *op, size_t i) { return (void)op, i == 1 ? OPTIONAL : REQUIRED; }
static int add_input_is(const OrtCustomOp *op, size_t i) { return (void)op, i < 2 ? REQUIRED : OPTIONAL; }
static int add_output_is(const OrtCustomOp *op, size_t i) { return (void)op, (void)i, REQUIRED; }
static int on_device(const OrtCustomOp *op, size_t i) { return (void)op, (void)i, 0; }
static int no(const OrtCustomOp *op) { return (void)op, 0; }

static const OrtCustomOp operators[] = {
    {.version = API_VERSION, .name = group_norm_name, .provider = cuda, .input_type = norm_input, .input_count = six,
     .output_type = norm_output, .output_count = three, .destroy = free, .input_is = norm_input_is,
     .output_is = norm_output_is, .input_memory = on_device, .variadic = {no, no, no, no}, .create = create,
     .compute = compute_group_norm},
    {.version = API_VERSION, .name = bias_add_name, .provider = cuda, .input_type = half, .input_count = three,
     .output_type = half, .output_count = one, .destroy = free, .input_is = add_input_is, .output_is = add_output_is,
     .input_memory = on_device, .variadic = {no, no, no, no}, .create = create, .compute = compute_bias_add},
};

/* What ONNX Runtime calls when it is told of this library. */
OrtStatus *RegisterCustomOps(void *options, const OrtApiBase *base) {
  static void *domain; /* kept as long as the process lives, as ONNX Runtime asks of whoever makes one */
  const OrtApi *api = base->GetApi(API_VERSION);
  if (domain == NULL) {
    TRY(CALL(api, CREATE_DOMAIN, const char *, void **)("edgediffusion", &domain));
    for (size_t i = 0; i < sizeof(operators) / sizeof(*operators); ++i)
      TRY(CALL(api, DOMAIN_ADD, void *, const OrtCustomOp *)(domain, &operators[i]));
  }
  return CALL(api, ADD_DOMAIN, void *, void *)(options, domain);
}
