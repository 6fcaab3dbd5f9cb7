// Kernels for pictures in float16 with their channels last: (pictures, pixels, channels), channels a multiple of 8.
//
// Each thread keeps to eight channels (16 bytes) and goes from pixel to pixel; blockDim = (channels / 8, pixels at a
// time), gridDim = (pieces, pictures). Sums are taken in a fixed order, so that the same input gives the same bits.

struct alignas(16) Eight {
  unsigned int two[4];
};

constexpr int WIDTH = 8;
constexpr int UNROLLED = 4;  // pixels whose loads are under way at once

__device__ void widen(const Eight &from, float (&to)[WIDTH]) {
#pragma unroll
  for (int i = 0; i < 4; ++i)
    asm("{ .reg .f16 low, high; mov.b32 {low, high}, %2; cvt.f32.f16 %0, low; cvt.f32.f16 %1, high; }"
        : "=f"(to[2 * i]), "=f"(to[2 * i + 1])
        : "r"(from.two[i]));
}

__device__ Eight narrow(const float (&from)[WIDTH]) {
  Eight to;
#pragma unroll
  for (int i = 0; i < 4; ++i)
    asm("{ .reg .f16 low, high; cvt.rn.f16.f32 low, %1; cvt.rn.f16.f32 high, %2; mov.b32 %0, {low, high}; }"
        : "=r"(to.two[i])
        : "f"(from[2 * i]), "f"(from[2 * i + 1]));
  return to;
}

__device__ void add(const Eight &terms, float (&to)[WIDTH]) {
  float term[WIDTH];
  widen(terms, term);
#pragma unroll
  for (int i = 0; i < WIDTH; ++i) to[i] += term[i];
}

// What is the same for all pixels of a picture: bias (channels), and embedding (pictures, channels); null is zero.
__device__ void add_terms(const Eight *bias, const Eight *embedding, int column, int columns, float (&to)[WIDTH]) {
  if (bias != nullptr) add(bias[column], to);
  if (embedding != nullptr) add(embedding[(long long)blockIdx.y * columns + column], to);
}

// This thread's pixels of those from `first` to `end`, UNROLLED of them at a time: `load(pixel)` is called for all of
// these before `use(pixel, loaded)` is for the first.
template <typename Loaded, typename Load, typename Use>
__device__ void each_pixel(int first, int end, const Load &load, const Use &use) {
  const int step = blockDim.y;
  for (int pixel = first + threadIdx.y; pixel < end; pixel += UNROLLED * step) {
    Loaded loaded[UNROLLED];
#pragma unroll
    for (int i = 0; i < UNROLLED; ++i)
      if (pixel + i * step < end) loaded[i] = load(pixel + i * step);
#pragma unroll
    for (int i = 0; i < UNROLLED; ++i)
      if (pixel + i * step < end) use(pixel + i * step, loaded[i]);
  }
}

struct Pair {
  Eight x, skip;
};

// Where there is no skip it is zero.
__device__ Pair pair_at(const Eight *__restrict__ x, const Eight *__restrict__ skip, long long place) {
  return Pair{x[place], skip == nullptr ? Eight{} : skip[place]};
}

__device__ float over_warp(float value) {
  for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(~0u, value, step);
  return value;
}

// What each group sums up to over all threads of the block, of values and of squares: to `of_groups`. `shared` has room
// for eight of them from each thread.
__device__ void sum_groups(const float (&sum)[WIDTH], const float (&squares)[WIDTH], float2 *shared, int groups,
                           float2 *__restrict__ of_groups) {
  const int columns = blockDim.x, channels = columns * WIDTH, channels_a_group = channels / groups;
#pragma unroll
  for (int i = 0; i < WIDTH; ++i)
    shared[threadIdx.y * channels + threadIdx.x * WIDTH + i] = make_float2(sum[i], squares[i]);
  __syncthreads();
  const int thread = threadIdx.y * columns + threadIdx.x, lane = thread % 32, warps = columns * blockDim.y / 32;
  if (thread / 32 == warps) return;  // what is left over is no whole warp
  for (int group = thread / 32; group < groups; group += warps) {
    float2 of_group = make_float2(0.f, 0.f);
    for (int i = lane; i < channels_a_group * (int)blockDim.y; i += 32) {
      const float2 one = shared[i / channels_a_group * channels + group * channels_a_group + i % channels_a_group];
      of_group.x += one.x;
      of_group.y += one.y;
    }
    of_group = make_float2(over_warp(of_group.x), over_warp(of_group.y));
    if (lane == 0) of_groups[group] = of_group;
  }
}

// Mean, and one over the standard deviation.
__device__ float2 moments(const float2 &sums, float count, float epsilon) {
  const float mean = sums.x / count;
  return make_float2(mean, rsqrtf(fmaxf(sums.y / count - mean * mean, 0.f) + epsilon));
}

// What becomes of `from`: scaled and shifted, then its SiLU if `silu`.
__device__ Eight scaled(const Eight &from, const float (&factor)[WIDTH], const float (&term)[WIDTH], int silu) {
  float value[WIDTH];
  widen(from, value);
#pragma unroll
  for (int i = 0; i < WIDTH; ++i) {
    value[i] = value[i] * factor[i] + term[i];
    if (silu) value[i] = __fdividef(value[i], 1.f + __expf(-value[i]));
  }
  return narrow(value);
}

// x + skip + terms, rounded.
__device__ Eight added(const Pair &loaded, const float (&terms)[WIDTH]) {
  float value[WIDTH];
  widen(loaded.x, value);
  add(loaded.skip, value);
#pragma unroll
  for (int i = 0; i < WIDTH; ++i) value[i] += terms[i];
  return narrow(value);
}

__device__ void count_in(const Eight &from, float (&sum)[WIDTH], float (&squares)[WIDTH]) {
  float value[WIDTH];
  widen(from, value);
#pragma unroll
  for (int i = 0; i < WIDTH; ++i) {
    sum[i] += value[i];
    squares[i] += value[i] * value[i];
  }
}

// total = x + bias + embedding + skip, and what a group normalisation of it has to know.
//
// x, skip, total: (pictures, pixels, channels); bias: (channels); embedding: (pictures, channels). All but x may be null.
// sums: (pictures, pieces, groups), of the values and of their squares over a piece of `pixels_a_piece` pixels; null if
// they are not wanted. Shared memory: a float2 for each channel and pixel at a time.
extern "C" __global__ void __launch_bounds__(512)
    add_and_sum(const Eight *__restrict__ x, const Eight *__restrict__ bias, const Eight *__restrict__ embedding,
                const Eight *__restrict__ skip, Eight *__restrict__ total, float2 *__restrict__ sums, int pixels,
                int pixels_a_piece, int groups) {
  extern __shared__ float2 shared[];
  const int columns = blockDim.x, column = threadIdx.x;
  const int first = blockIdx.x * pixels_a_piece, end = min(first + pixels_a_piece, pixels);
  const long long picture = (long long)blockIdx.y * pixels;
  float terms[WIDTH] = {}, sum[WIDTH] = {}, squares[WIDTH] = {};
  add_terms(bias, embedding, column, columns, terms);
  const auto load = [&](int pixel) { return pair_at(x, skip, (picture + pixel) * columns + column); };
  each_pixel<Pair>(first, end, load, [&](int pixel, const Pair &loaded) {
    const Eight rounded = added(loaded, terms);
    if (total != nullptr) total[(picture + pixel) * columns + column] = rounded;
    count_in(rounded, sum, squares);
  });
  if (sums == nullptr) return;
  sum_groups(sum, squares, shared, groups, sums + ((long long)blockIdx.y * gridDim.x + blockIdx.x) * groups);
}

// y = x + bias + skip, where each pixel becomes four: twice as high and wide. x and skip have rows of `width` pixels, y
// has `y_height` rows of `y_width`: where these are odd, what would be the last one is left out.
extern "C" __global__ void __launch_bounds__(512)
    add_and_double(const Eight *__restrict__ x, const Eight *__restrict__ bias, const Eight *__restrict__ skip,
                   Eight *__restrict__ y, int pixels, int pixels_a_piece, int width, int y_height, int y_width) {
  const int columns = blockDim.x, column = threadIdx.x;
  const int first = blockIdx.x * pixels_a_piece, end = min(first + pixels_a_piece, pixels);
  const long long picture = (long long)blockIdx.y * pixels;
  float terms[WIDTH] = {};
  add_terms(bias, nullptr, column, columns, terms);
  const auto load = [&](int pixel) { return pair_at(x, skip, (picture + pixel) * columns + column); };
  each_pixel<Pair>(first, end, load, [&](int pixel, const Pair &loaded) {
    const Eight rounded = added(loaded, terms);
    const int row = pixel / width * 2, place = pixel % width * 2;
    const bool below = row + 1 < y_height, right = place + 1 < y_width;
    Eight *upper = y + ((blockIdx.y * (long long)y_height + row) * y_width + place) * columns + column;
    Eight *lower = upper + (long long)y_width * columns;
    upper[0] = rounded;
    if (right) upper[columns] = rounded;
    if (below) lower[0] = rounded;
    if (below && right) lower[columns] = rounded;
  });
}

// y = the group normalisation of total (arXiv:1803.08494), scaled and shifted channel by channel; its SiLU if `silu`.
//
// total is x + bias + embedding, as above; sums: what `add_and_sum` left, in as many pieces as this launch has;
// scale, shift: (channels), in float32. Shared memory: a float2 for each thread.
extern "C" __global__ void __launch_bounds__(512)
    normalize(const Eight *__restrict__ x, const Eight *__restrict__ bias, const Eight *__restrict__ embedding,
              const float *__restrict__ scale, const float *__restrict__ shift, const float2 *__restrict__ sums,
              Eight *__restrict__ y, int pixels, int pixels_a_piece, int groups, float epsilon, int silu) {
  extern __shared__ float2 shared[];
  const int columns = blockDim.x, column = threadIdx.x, thread = threadIdx.y * columns + column, pieces = gridDim.x;
  const int channels_a_group = columns * WIDTH / groups, at_once = columns * blockDim.y / groups;
  const int first = blockIdx.x * pixels_a_piece, end = min(first + pixels_a_piece, pixels);
  const long long picture = (long long)blockIdx.y * pixels;
  float2 of_group = make_float2(0.f, 0.f);
  if (thread < at_once * groups) {
    const float2 *of_picture = sums + (long long)blockIdx.y * pieces * groups;
#pragma unroll UNROLLED
    for (int i = thread; i < pieces * groups; i += at_once * groups) {
      of_group.x += of_picture[i].x;
      of_group.y += of_picture[i].y;
    }
    shared[thread] = of_group;
  }
  __syncthreads();
  if (thread < groups) {
    for (int i = 1; i < at_once; ++i) {
      of_group.x += shared[i * groups + thread].x;
      of_group.y += shared[i * groups + thread].y;
    }
    shared[thread] = moments(of_group, (float)channels_a_group * pixels, epsilon);
  }
  __syncthreads();
  float factor[WIDTH], term[WIDTH] = {};
  add_terms(bias, embedding, column, columns, term);
#pragma unroll
  for (int i = 0; i < WIDTH; ++i) {
    const int channel = column * WIDTH + i;
    const float2 group = shared[channel / channels_a_group];
    factor[i] = scale[channel] * group.y;
    term[i] = (term[i] - group.x) * factor[i] + shift[channel];
  }
  const auto load = [&](int pixel) { return x[(picture + pixel) * columns + column]; };
  each_pixel<Eight>(first, end, load, [&](int pixel, const Eight &loaded) {
    y[(picture + pixel) * columns + column] = scaled(loaded, factor, term, silu);
  });
}

// total = x + bias, and its layer normalisation y (arXiv:1607.06450): (tokens, channels), at most 2048 channels; bias,
// which may be null, scale, shift: (channels), in float16. A warp takes a token; blockDim = (32, tokens at a time).
extern "C" __global__ void layer_norm(const Eight *__restrict__ x, const Eight *__restrict__ bias,
                                      const Eight *__restrict__ scale, const Eight *__restrict__ shift,
                                      Eight *__restrict__ y, Eight *__restrict__ total, int tokens, int columns,
                                      float epsilon) {
  constexpr int MOST = 8;  // eights of channels that a thread holds
  const int token = blockIdx.x * blockDim.y + threadIdx.y;
  if (token >= tokens) return;
  const long long first = (long long)token * columns;
  float value[MOST][WIDTH], sum = 0.f, squares = 0.f;
#pragma unroll
  for (int i = 0; i < MOST; ++i) {
    const int column = threadIdx.x + 32 * i;
    if (column >= columns) break;
    widen(x[first + column], value[i]);
    if (bias != nullptr) add(bias[column], value[i]);
    const Eight rounded = narrow(value[i]);
    total[first + column] = rounded;
    widen(rounded, value[i]);
#pragma unroll
    for (int k = 0; k < WIDTH; ++k) sum += value[i][k];
  }
  const float mean = over_warp(sum) / (columns * WIDTH);
#pragma unroll
  for (int i = 0; i < MOST; ++i)
    if (threadIdx.x + 32 * i < columns)
#pragma unroll
      for (int k = 0; k < WIDTH; ++k) squares += (value[i][k] - mean) * (value[i][k] - mean);
  const float factor = rsqrtf(over_warp(squares) / (columns * WIDTH) + epsilon);
#pragma unroll
  for (int i = 0; i < MOST; ++i) {
    const int column = threadIdx.x + 32 * i;
    if (column >= columns) break;
    float scales[WIDTH], shifts[WIDTH];
    widen(scale[column], scales);
    widen(shift[column], shifts);
#pragma unroll
    for (int k = 0; k < WIDTH; ++k) shifts[k] += (value[i][k] - mean) * factor * scales[k];
    y[first + column] = narrow(shifts);
  }
}

// y = left * gelu(right) (arXiv:2002.05202) of the halves of x + bias; x: (tokens, 2 columns), bias: (2 columns).
extern "C" __global__ void geglu(const Eight *__restrict__ x, const Eight *__restrict__ bias,
                                 Eight *__restrict__ y, int tokens, int columns) {
  const long long count = (long long)tokens * columns, step = (long long)gridDim.x * blockDim.x;
  for (long long place = (long long)blockIdx.x * blockDim.x + threadIdx.x; place < count; place += step) {
    const int column = place % columns;
    const long long first = (place - column) * 2 + column;
    float left[WIDTH], right[WIDTH];
    widen(x[first], left);
    widen(x[first + columns], right);
    add(bias[column], left);
    add(bias[column + columns], right);
#pragma unroll
    for (int i = 0; i < WIDTH; ++i) left[i] *= right[i] * 0.5f * (1.f + erff(right[i] * 0.70710678f));
    y[place] = narrow(left);
  }
}
