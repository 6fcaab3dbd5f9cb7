/* The operators of the domain "edgediffusion" for ONNX Runtime's CUDA provider: they launch the kernels of kernels.cu,
 * which says what they compute. A "?" marks what may be left out.
 *
 * BiasGroupNorm (x, scale, shift, bias?, embedding?, skip?) -> (y, total?, sums): groups, epsilon, activation (1: SiLU).
 * BiasAdd (x, bias, skip?) -> (total).
 * BiasUpsample (x, bias, skip?, like?) -> (y), twice as high and wide, or one less where the picture `like` has that.
 * BiasLayerNorm (x, scale, shift, bias?) -> (y, total): epsilon.
 * BiasGeglu (x, bias) -> (y), half as wide.
 *
 * Pictures are (pictures, height, width, channels) and tokens (pictures, tokens, channels), in float16; scale and shift
 * of BiasGroupNorm are float32; `sums` is memory that it works in. The kernels come as a cubin, given to
 * `edgediffusion_kernels`.
 *
 * Neither CUDA nor ONNX Runtime is needed to compile this: the driver is looked up when the first kernel is launched,
 * and of ONNX Runtime's C interface what is used is declared below, by place: a place keeps its function for good
 * (onnxruntime_c_api.h). */

#include "driver.h"

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

enum { API_VERSION = 18, FAIL = 1, INVALID_ARGUMENT = 2, FLOAT = 1, FLOAT16 = 10, REQUIRED = 0, OPTIONAL = 1 };

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

enum { ADD_AND_SUM, NORMALIZE, ADD_AND_DOUBLE, LAYER_NORM, GEGLU, KERNELS };
enum { MULTIPROCESSORS = 16, WIDTH = 8, THREADS = 512, WARP = 32, MAX_RANK = 4 };
enum { MOST = 1 << 30, MOST_PICTURES = 65535 }; /* what a kernel counts to in one picture; blocks of a grid in y */

static Driver driver;
static const void *cubin;
static void *kernels[KERNELS];
static int multiprocessors;

/* The SHA-256 of all sources of the library and of kernels.cu, to tell a library that was compiled of older ones. */
const char edgediffusion_sources[] = SOURCES;

/* To be called before a session is made, once: `data`, a cubin of kernels.cu for this GPU. 0, or 1 without memory. */
int edgediffusion_kernels(const void *data, size_t size) {
  void *copy = malloc(size);
  if (copy == NULL) return 1;
  cubin = memcpy(copy, data, size);
  return 0;
}

static OrtStatus *find_kernels(const OrtApi *api) {
  static const char *const functions[] = {"cuLibraryLoadData", "cuLibraryGetKernel", "cuLaunchKernel", "cuCtxGetDevice",
                                          "cuDeviceGetAttribute"};
  static const char *const names[KERNELS] = {"add_and_sum", "normalize", "add_and_double", "layer_norm", "geglu"};
  char message[96];
  void *library = NULL;
  int device = 0, status;
  if (multiprocessors != 0) return NULL;
  if (cubin == NULL) return failed(api, FAIL, "edgediffusion's kernels were not given");
  if (!look_up(functions, sizeof(functions) / sizeof(*functions), &driver))
    return failed(api, FAIL, "the NVIDIA driver is missing or older than CUDA 12");
  status = driver.cuLibraryLoadData(&library, cubin, NULL, NULL, 0, NULL, NULL, 0);
  for (int i = 0; i < KERNELS && status == 0; ++i) status = driver.cuLibraryGetKernel(&kernels[i], library, names[i]);
  if (status == 0) status = driver.cuCtxGetDevice(&device);
  if (status == 0) status = driver.cuDeviceGetAttribute(&multiprocessors, MULTIPROCESSORS, device);
  if (status == 0) return NULL;
  snprintf(message, sizeof message, "CUDA cannot load edgediffusion's kernels (status %d)", status);
  return failed(api, FAIL, message);
}

/* What all operators share. */

typedef struct {
  OrtCustomOp interface;
  const char *name;
  const char *inputs, *outputs; /* a letter each: h float16, f float32; H may be left out */
  int norm, grouped;            /* whether it has epsilon; groups and activation */
} Operator;

typedef struct {
  const OrtApi *api;
  int64_t groups, silu;
  float epsilon;
} Kernel;

typedef struct {
  int64_t shape[MAX_RANK];
  size_t rank;
} Shape;

static OrtStatus *read_shape(const OrtApi *api, const void *value, Shape *shape) {
  void *info = NULL;
  TRY(CALL(api, TENSOR_SHAPE, const void *, void **)(value, &info));
  OrtStatus *status = CALL(api, DIMENSIONS_COUNT, const void *, size_t *)(info, &shape->rank);
  int fits = status == NULL && shape->rank > 0 && shape->rank <= MAX_RANK;
  if (fits) status = CALL(api, DIMENSIONS, const void *, int64_t *, size_t)(info, shape->shape, shape->rank);
  ((void (*)(void *))api->function[RELEASE_SHAPE])(info);
  if (status == NULL && !fits) return failed(api, INVALID_ARGUMENT, "edgediffusion's operators take 1 to 4 dimensions");
  return status;
}

/* The product of the dimensions from `first` to `end`. */
static int64_t product(const Shape *shape, size_t first, size_t end) {
  int64_t of = 1;
  for (size_t i = first; i < end; ++i) of *= shape->shape[i];
  return of;
}

static int64_t channels_of(const Shape *shape) { return shape->shape[shape->rank - 1]; }

/* Of what size an input is: that of x, or with an entry for each channel, or for each picture and channel. */
enum { LIKE_X = 'x', A_CHANNEL = 'c', A_PICTURE = 'p' };

static int has_size(const Shape *shape, char size, const Shape *x) {
  const size_t bytes = x->rank * sizeof *x->shape;
  if (size == LIKE_X) return shape->rank == x->rank && memcmp(shape->shape, x->shape, bytes) == 0;
  if (size == A_CHANNEL) return shape->rank == 1 && channels_of(shape) == channels_of(x);
  return channels_of(shape) == channels_of(x) && product(shape, 0, shape->rank - 1) == x->shape[0];
}

/* Null where it is left out. */
static OrtStatus *read_input(const OrtApi *api, void *context, size_t i, const void **value) {
  size_t count = 0;
  *value = NULL;
  TRY(CALL(api, INPUT_COUNT, const void *, size_t *)(context, &count));
  return i < count ? CALL(api, INPUT, const void *, size_t, const void **)(context, i, value) : NULL;
}

/* The addresses of the inputs, null for those that are left out, and the shape of the first. `sizes`: a letter each. */
static OrtStatus *read_inputs(const OrtApi *api, void *context, const char *sizes, void **data, Shape *x) {
  for (size_t i = 0; sizes[i] != '\0'; ++i) {
    const void *value;
    Shape shape;
    data[i] = NULL;
    TRY(read_input(api, context, i, &value));
    if (value == NULL) continue;
    TRY(read_shape(api, value, &shape));
    if (i == 0) *x = shape;
    if (!has_size(&shape, sizes[i], x))
      return failed(api, INVALID_ARGUMENT,
                    sizes[i] == LIKE_X ? "edgediffusion's operators add terms of one shape"
                                       : "edgediffusion's operators take terms for as many channels as x has");
    TRY(CALL(api, TENSOR_DATA, const void *, void **)(value, &data[i]));
  }
  if (x->rank < 3) return failed(api, INVALID_ARGUMENT, "edgediffusion's operators take pictures or tokens");
  if (channels_of(x) < WIDTH || channels_of(x) % WIDTH != 0)
    return failed(api, INVALID_ARGUMENT, "edgediffusion's operators take a multiple of 8 channels");
  return find_kernels(api);
}

static OrtStatus *output(const OrtApi *api, void *context, size_t index, const Shape *shape, void **data) {
  void *value = NULL;
  *data = NULL;
  TRY(CALL(api, OUTPUT, void *, size_t, const int64_t *, size_t, void **)(context, index, shape->shape, shape->rank,
                                                                          &value));
  if (value != NULL) TRY(CALL(api, TENSOR_DATA, void *, void **)(value, data));
  return NULL;
}

typedef struct {
  unsigned grid[2], block[2], shared;
} Launch;

static OrtStatus *launch(const OrtApi *api, void *context, int kernel, const Launch *how, void **arguments) {
  char message[64];
  void *stream = NULL;
  if (how->grid[0] == 0 || how->grid[1] == 0) return NULL; /* nothing to do */
  TRY(CALL(api, STREAM, const void *, void **)(context, &stream));
  int status = driver.cuLaunchKernel(kernels[kernel], how->grid[0], how->grid[1], 1, how->block[0], how->block[1], 1,
                                     how->shared, stream, arguments, NULL);
  if (status == 0) return NULL;
  snprintf(message, sizeof message, "CUDA cannot launch a kernel (status %d)", status);
  return failed(api, FAIL, message);
}

/* How pictures are shared out: a block for each of the pieces of a picture, as many blocks as multiprocessors. */
typedef struct {
  Launch how;
  int pixels, pixels_a_piece;
} Pieces;

static OrtStatus *share_out(const OrtApi *api, const Shape *shape, Pieces *to) {
  int64_t columns = channels_of(shape) / WIDTH, pixels = product(shape, 1, shape->rank - 1);
  if (columns > THREADS) return failed(api, INVALID_ARGUMENT, "edgediffusion's operators take at most 4096 channels");
  if (shape->shape[0] > MOST_PICTURES || pixels > MOST)
    return failed(api, INVALID_ARGUMENT, "edgediffusion's operators take at most 65535 pictures of 2^30 pixels");
  int rows = THREADS / (int)columns, pictures = (int)shape->shape[0], pieces = pictures ? multiprocessors / pictures : 0;
  int most = (int)((pixels + rows - 1) / rows);
  pieces = pieces < 1 ? 1 : pieces < most ? pieces : most;
  to->pixels = (int)pixels;
  to->pixels_a_piece = pieces ? (int)((pixels + pieces - 1) / pieces) : 0;
  to->how = (Launch){{(unsigned)pieces, (unsigned)pictures}, {(unsigned)columns, (unsigned)rows}, 0};
  return NULL;
}

/* Each operator. */

static OrtStatus *group_norm(void *made, void *context) {
  const Kernel *kernel = made;
  const OrtApi *api = kernel->api;
  enum { X, SCALE, SHIFT, BIAS, EMBEDDING, SKIP, INPUTS };
  void *in[INPUTS], *y, *total, *sums, *none = NULL;
  int groups = (int)kernel->groups, silu = (int)kernel->silu;
  float epsilon = kernel->epsilon;
  Shape shape;
  Pieces pieces;
  TRY(read_inputs(api, context, "xcccpx", in, &shape));
  TRY(share_out(api, &shape, &pieces));
  if (groups < 1 || groups > THREADS / 2 || channels_of(&shape) % groups)
    return failed(api, INVALID_ARGUMENT, "BiasGroupNorm: the groups do not fit the channels");
  const Shape of_sums = {{shape.shape[0], pieces.how.grid[0], groups, 2}, 4};
  TRY(output(api, context, 0, &shape, &y));
  TRY(output(api, context, 1, &shape, &total));
  TRY(output(api, context, 2, &of_sums, &sums));
  if (in[SKIP] != NULL && total == NULL)
    return failed(api, INVALID_ARGUMENT, "BiasGroupNorm: with a skip it has to give the total");
  void *sum[] = {&in[X],         &in[BIAS],           &in[EMBEDDING],         &in[SKIP], &total,
                 &sums,          &pieces.pixels,      &pieces.pixels_a_piece, &groups};
  pieces.how.shared = pieces.how.block[0] * WIDTH * pieces.how.block[1] * 2 * sizeof(float);
  TRY(launch(api, context, ADD_AND_SUM, &pieces.how, sum));
  int whole = total != NULL; /* then all is added already */
  void *norm[] = {whole ? &total : &in[X], whole ? &none : &in[BIAS], whole ? &none : &in[EMBEDDING], &in[SCALE],
                  &in[SHIFT],              &sums,                     &y,                             &pieces.pixels,
                  &pieces.pixels_a_piece,  &groups,                   &epsilon,                       &silu};
  pieces.how.shared = THREADS * 2 * sizeof(float);
  return launch(api, context, NORMALIZE, &pieces.how, norm);
}

static OrtStatus *bias_add(void *made, void *context) {
  const OrtApi *api = ((const Kernel *)made)->api;
  enum { X, BIAS, SKIP, INPUTS };
  void *in[INPUTS], *total, *none = NULL;
  int no_groups = 0;
  Shape shape;
  Pieces pieces;
  TRY(read_inputs(api, context, "xcx", in, &shape));
  TRY(share_out(api, &shape, &pieces));
  TRY(output(api, context, 0, &shape, &total));
  void *arguments[] = {&in[X], &in[BIAS],      &none,                  &in[SKIP],  &total,
                       &none,  &pieces.pixels, &pieces.pixels_a_piece, &no_groups};
  return launch(api, context, ADD_AND_SUM, &pieces.how, arguments);
}

static OrtStatus *bias_upsample(void *made, void *context) {
  const OrtApi *api = ((const Kernel *)made)->api;
  enum { X, BIAS, SKIP, INPUTS, LIKE = INPUTS };
  void *in[INPUTS], *y;
  const void *like;
  Shape shape, of_like;
  Pieces pieces;
  TRY(read_inputs(api, context, "xcx", in, &shape));
  TRY(share_out(api, &shape, &pieces));
  if (shape.rank != 4) return failed(api, INVALID_ARGUMENT, "BiasUpsample takes pictures");
  int width = (int)shape.shape[2];
  TRY(read_input(api, context, LIKE, &like));
  if (like != NULL) TRY(read_shape(api, like, &of_like));
  for (size_t i = 1; i < 3; ++i) {
    const int64_t twice = 2 * shape.shape[i], wanted = like == NULL ? twice : of_like.shape[i];
    if (like != NULL && (of_like.rank != 4 || wanted > twice || wanted < twice - 1))
      return failed(api, INVALID_ARGUMENT, "BiasUpsample makes twice the height and width, or one less");
    shape.shape[i] = wanted;
  }
  TRY(output(api, context, 0, &shape, &y));
  int y_height = (int)shape.shape[1], y_width = (int)shape.shape[2];
  void *arguments[] = {&in[X], &in[BIAS], &in[SKIP], &y,      &pieces.pixels, &pieces.pixels_a_piece,
                       &width, &y_height, &y_width};
  return launch(api, context, ADD_AND_DOUBLE, &pieces.how, arguments);
}

/* Tokens and eights of channels. */
static OrtStatus *count(const OrtApi *api, const Shape *shape, int *tokens, int *columns) {
  const int64_t all = product(shape, 0, shape->rank - 1), eights = channels_of(shape) / WIDTH;
  if (all > MOST || eights > MOST)
    return failed(api, INVALID_ARGUMENT, "edgediffusion's operators take at most 2^30 tokens");
  *tokens = (int)all;
  *columns = (int)eights;
  return NULL;
}

static OrtStatus *layer_norm(void *made, void *context) {
  const Kernel *kernel = made;
  const OrtApi *api = kernel->api;
  enum { X, SCALE, SHIFT, BIAS, INPUTS };
  void *in[INPUTS], *y, *total;
  int tokens, columns;
  float epsilon = kernel->epsilon;
  Shape shape;
  TRY(read_inputs(api, context, "xccc", in, &shape));
  TRY(count(api, &shape, &tokens, &columns));
  if (columns > 8 * WARP) return failed(api, INVALID_ARGUMENT, "BiasLayerNorm takes at most 2048 channels");
  TRY(output(api, context, 0, &shape, &y));
  TRY(output(api, context, 1, &shape, &total));
  const unsigned at_once = 4;
  const Launch how = {{((unsigned)tokens + at_once - 1) / at_once, 1}, {WARP, at_once}, 0};
  void *arguments[] = {&in[X], &in[BIAS], &in[SCALE], &in[SHIFT], &y, &total, &tokens, &columns, &epsilon};
  return launch(api, context, LAYER_NORM, &how, arguments);
}

static OrtStatus *geglu(void *made, void *context) {
  const OrtApi *api = ((const Kernel *)made)->api;
  enum { X, BIAS, INPUTS };
  void *in[INPUTS], *y;
  int tokens, columns;
  Shape shape;
  TRY(read_inputs(api, context, "xc", in, &shape));
  if (channels_of(&shape) % (2 * WIDTH) != 0)
    return failed(api, INVALID_ARGUMENT, "BiasGeglu takes a multiple of 16 channels");
  shape.shape[shape.rank - 1] /= 2;
  TRY(count(api, &shape, &tokens, &columns));
  TRY(output(api, context, 0, &shape, &y));
  const int64_t blocks = ((int64_t)tokens * columns + THREADS - 1) / THREADS, most = 16 * multiprocessors;
  const Launch how = {{(unsigned)(blocks < most ? blocks : most), 1}, {THREADS, 1}, 0};
  void *arguments[] = {&in[X], &in[BIAS], &y, &tokens, &columns};
  return launch(api, context, GEGLU, &how, arguments);
}

/* What ONNX Runtime asks of an operator. */

#define OF(op) ((const Operator *)(op))

static OrtStatus *create(const OrtCustomOp *op, const OrtApi *api, const void *info, void **to) {
  Kernel made = {api, 0, 0, 0.f};
  if (OF(op)->norm) TRY(CALL(api, ATTRIBUTE_FLOAT, const void *, const char *, float *)(info, "epsilon", &made.epsilon));
  if (OF(op)->grouped) {
    TRY(CALL(api, ATTRIBUTE_INT, const void *, const char *, int64_t *)(info, "groups", &made.groups));
    TRY(CALL(api, ATTRIBUTE_INT, const void *, const char *, int64_t *)(info, "activation", &made.silu));
  }
  Kernel *kernel = malloc(sizeof made);
  if (kernel == NULL) return failed(api, FAIL, "no memory for an operator");
  *kernel = made;
  *to = kernel;
  return NULL;
}

static const char *name(const OrtCustomOp *op) { return OF(op)->name; }
static const char *provider(const OrtCustomOp *op) { return (void)op, "CUDAExecutionProvider"; }
static int type(char letter) { return letter == 'f' ? FLOAT : FLOAT16; }
static int input_type(const OrtCustomOp *op, size_t i) { return type(OF(op)->inputs[i]); }
static int output_type(const OrtCustomOp *op, size_t i) { return type(OF(op)->outputs[i]); }
static size_t input_count(const OrtCustomOp *op) { return strlen(OF(op)->inputs); }
static size_t output_count(const OrtCustomOp *op) { return strlen(OF(op)->outputs); }
static int input_is(const OrtCustomOp *op, size_t i) { return OF(op)->inputs[i] == 'H' ? OPTIONAL : REQUIRED; }
static int output_is(const OrtCustomOp *op, size_t i) { return OF(op)->outputs[i] == 'H' ? OPTIONAL : REQUIRED; }
static int on_device(const OrtCustomOp *op, size_t i) { return (void)op, (void)i, 0; }
static int no(const OrtCustomOp *op) { return (void)op, 0; }

#define OPERATOR(compute_, ...)                                                                                       \
  {{.version = API_VERSION,         .name = name,               .provider = provider,       .input_type = input_type, \
    .input_count = input_count,     .output_type = output_type, .output_count = output_count, .destroy = free,        \
    .input_is = input_is,           .output_is = output_is,     .input_memory = on_device,                            \
    .variadic = {no, no, no, no},   .create = create,           .compute = compute_},                                 \
   __VA_ARGS__}

static const Operator operators[] = {
    OPERATOR(group_norm, "BiasGroupNorm", "hffHHH", "hHf", 1, 1),
    OPERATOR(bias_add, "BiasAdd", "hhH", "h", 0, 0),
    OPERATOR(bias_upsample, "BiasUpsample", "hhHH", "h", 0, 0),
    OPERATOR(layer_norm, "BiasLayerNorm", "hhhH", "hh", 1, 0),
    OPERATOR(geglu, "BiasGeglu", "hh", "h", 0, 0),
};

/* What ONNX Runtime calls when it is told of this library. */
OrtStatus *RegisterCustomOps(void *options, const OrtApiBase *base) {
  static void *domain; /* kept as long as the process lives, as ONNX Runtime asks of whoever makes one */
  const OrtApi *api = base->GetApi(API_VERSION);
  if (domain == NULL) {
    TRY(CALL(api, CREATE_DOMAIN, const char *, void **)("edgediffusion", &domain));
    for (size_t i = 0; i < sizeof(operators) / sizeof(*operators); ++i)
      TRY(CALL(api, DOMAIN_ADD, void *, const OrtCustomOp *)(domain, &operators[i].interface));
  }
  return CALL(api, ADD_DOMAIN, void *, void *)(options, domain);
}
