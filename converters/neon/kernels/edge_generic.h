/* Plain float operators, for what no other kernel covers: slow, and of any shape up to six axes.
 *
 * A view is a place and the number of floats between neighbours on each axis; sizes of axes are int[6], filled with 1
 * in front. Truth values are 0 and 1. */
#pragma once

enum { EDGE_RANK = 6 };

typedef struct {
  float *at; /* sources are only read */
  int step[EDGE_RANK];
} edge_view;

/* Combinations of the positions on the first `axes` axes. */
EDGE_INLINE size_t edge_positions(const int dims[EDGE_RANK], int axes) {
  size_t count = 1;
  for (int axis = 0; axis < axes; axis++) count *= (size_t)dims[axis];
  return count;
}

/* Where the `index`-th combination of positions on the first `axes` axes lies. */
EDGE_INLINE float *edge_place(edge_view view, const int dims[EDGE_RANK], int axes, size_t index) {
  ptrdiff_t offset = 0;
  for (int axis = axes - 1; axis >= 0; axis--) {
    offset += (ptrdiff_t)(index % (size_t)dims[axis]) * view.step[axis];
    index /= (size_t)dims[axis];
  }
  return view.at + offset;
}

/* OUT = EXPRESSION of x, y and z, element by element; sources that EXPRESSION does not need may be any view. */
#define EDGE_MAP(DIMS, OUT, X, Y, Z, EXPRESSION)                                              \
  do {                                                                                        \
    const int *dims_ = DIMS;                                                                  \
    const edge_view out_ = OUT, x_ = X, y_ = Y, z_ = Z;                                       \
    for (size_t row_ = 0; row_ < edge_positions(dims_, EDGE_RANK - 1); row_++) {              \
      float *to_ = edge_place(out_, dims_, EDGE_RANK - 1, row_);                              \
      const float *xs_ = edge_place(x_, dims_, EDGE_RANK - 1, row_);                          \
      const float *ys_ = edge_place(y_, dims_, EDGE_RANK - 1, row_);                          \
      const float *zs_ = edge_place(z_, dims_, EDGE_RANK - 1, row_);                          \
      for (ptrdiff_t at_ = 0; at_ < dims_[EDGE_RANK - 1]; at_++) {                            \
        const float x = xs_[at_ * x_.step[5]], y = ys_[at_ * y_.step[5]], z = zs_[at_ * z_.step[5]]; \
        (void)x, (void)y, (void)z;                                                            \
        to_[at_ * out_.step[5]] = (float)(EXPRESSION);                                        \
      }                                                                                       \
    }                                                                                         \
  } while (0)

/* OUT[kept] = FINISH of x, where x begins as START and becomes COMBINE of x and each y of SOURCE over OVER. */
#define EDGE_REDUCE(KEPT, OVER, OUT, SOURCE, START, COMBINE, FINISH)                          \
  do {                                                                                        \
    const int *kept_ = KEPT, *over_ = OVER;                                                   \
    const edge_view out_ = OUT, source_ = SOURCE;                                             \
    const size_t all_ = edge_positions(over_, EDGE_RANK);                                     \
    const float count = (float)all_;                                                          \
    (void)count;                                                                              \
    for (size_t row_ = 0; row_ < edge_positions(kept_, EDGE_RANK); row_++) {                  \
      const edge_view from_ = {edge_place(source_, kept_, EDGE_RANK, row_), EDGE_STEPS(source_)}; \
      float x = START;                                                                        \
      for (size_t at_ = 0; at_ < all_; at_++) {                                               \
        const float y = *edge_place(from_, over_, EDGE_RANK, at_);                            \
        x = COMBINE;                                                                          \
      }                                                                                       \
      *edge_place(out_, kept_, EDGE_RANK, row_) = FINISH;                                     \
    }                                                                                         \
  } while (0)

#define EDGE_STEPS(V) {(V).step[0], (V).step[1], (V).step[2], (V).step[3], (V).step[4], (V).step[5]}

/* The same elements in the same order in another shape. */
EDGE_KERNEL void edge_reshape(const int *dims, const int *source_dims, edge_view out, edge_view source) {
  for (size_t at = 0; at < edge_positions(dims, EDGE_RANK); at++)
    *edge_place(out, dims, EDGE_RANK, at) = *edge_place(source, source_dims, EDGE_RANK, at);
}

/* int64 inputs as floats. */
EDGE_KERNEL void edge_from_int64(const int *dims, edge_view out, const int64_t *source) {
  for (size_t at = 0; at < edge_positions(dims, EDGE_RANK); at++)
    *edge_place(out, dims, EDGE_RANK, at) = (float)source[at];
}

EDGE_KERNEL void edge_from_float(const int *dims, edge_view out, const float *source) {
  for (size_t at = 0; at < edge_positions(dims, EDGE_RANK); at++) *edge_place(out, dims, EDGE_RANK, at) = source[at];
}

/* out = data at the places `index` of an axis with `size` elements `step` apart; places below 0 count from its end, and
 * what lies outside is its nearest element. */
EDGE_KERNEL void edge_gather(const int *dims, edge_view out, edge_view data, edge_view index, int size, int step) {
  for (size_t at = 0; at < edge_positions(dims, EDGE_RANK); at++) {
    float place = *edge_place(index, dims, EDGE_RANK, at);
    if (place < 0.0f) place += (float)size;
    place = fminf(fmaxf(place, 0.0f), (float)(size - 1));
    *edge_place(out, dims, EDGE_RANK, at) = edge_place(data, dims, EDGE_RANK, at)[(ptrdiff_t)place * step];
  }
}

/* The place of the largest (first) element. */
EDGE_KERNEL void edge_argmax(const int *kept, const int *over, edge_view out, edge_view source) {
  for (size_t row = 0; row < edge_positions(kept, EDGE_RANK); row++) {
    const edge_view from = {edge_place(source, kept, EDGE_RANK, row), EDGE_STEPS(source)};
    size_t best = 0;
    for (size_t at = 1; at < edge_positions(over, EDGE_RANK); at++)
      if (*edge_place(from, over, EDGE_RANK, at) > *edge_place(from, over, EDGE_RANK, best)) best = at;
    *edge_place(out, kept, EDGE_RANK, row) = (float)best;
  }
}

/* Along an axis of `size` elements, `step` and `out_step` apart. */
EDGE_KERNEL void edge_softmax(const int *kept, edge_view out, edge_view source, int size, int step, int out_step) {
  for (size_t row = 0; row < edge_positions(kept, EDGE_RANK); row++) {
    const float *x = edge_place(source, kept, EDGE_RANK, row);
    float *y = edge_place(out, kept, EDGE_RANK, row), most = x[0], total = 0.0f;
    for (ptrdiff_t at = 1; at < size; at++) most = fmaxf(most, x[at * step]);
    for (ptrdiff_t at = 0; at < size; at++) total += y[at * out_step] = expf(x[at * step] - most);
    for (ptrdiff_t at = 0; at < size; at++) y[at * out_step] /= total;
  }
}

EDGE_KERNEL void edge_normalize(const int *kept, const int *over, edge_view out, edge_view source, edge_view weight,
                                edge_view bias, float epsilon) {
  const size_t count = edge_positions(over, EDGE_RANK);
  for (size_t row = 0; row < edge_positions(kept, EDGE_RANK); row++) {
    const edge_view from = {edge_place(source, kept, EDGE_RANK, row), EDGE_STEPS(source)};
    const edge_view to = {edge_place(out, kept, EDGE_RANK, row), EDGE_STEPS(out)};
    float mean = 0.0f, square = 0.0f;
    for (size_t at = 0; at < count; at++) mean += *edge_place(from, over, EDGE_RANK, at);
    mean /= (float)count;
    for (size_t at = 0; at < count; at++) {
      const float apart = *edge_place(from, over, EDGE_RANK, at) - mean;
      square += apart * apart;
    }
    const float inverse = 1.0f / sqrtf(square / (float)count + epsilon);
    for (size_t at = 0; at < count; at++) {
      const float value = (*edge_place(from, over, EDGE_RANK, at) - mean) * inverse;
      *edge_place(to, over, EDGE_RANK, at) =
          value * *edge_place(weight, over, EDGE_RANK, at) + *edge_place(bias, over, EDGE_RANK, at);
    }
  }
}

/* out [.., m, n] = a [.., m, inner] b [.., inner, n]; `dims` are those of out. */
EDGE_KERNEL void edge_matmul(const int *dims, edge_view out, edge_view a, edge_view b, int inner) {
  const int rows = dims[4], columns = dims[5];
  for (size_t batch = 0; batch < edge_positions(dims, 4); batch++) {
    float *to = edge_place(out, dims, 4, batch);
    const float *left = edge_place(a, dims, 4, batch), *right = edge_place(b, dims, 4, batch);
    for (ptrdiff_t row = 0; row < rows; row++) {
      float *line = to + row * out.step[4];
      for (ptrdiff_t column = 0; column < columns; column++) line[column * out.step[5]] = 0.0f;
      for (ptrdiff_t k = 0; k < inner; k++) {
        const float factor = left[row * a.step[4] + k * a.step[5]];
        for (ptrdiff_t column = 0; column < columns; column++)
          line[column * out.step[5]] += factor * right[k * b.step[4] + column * b.step[5]];
      }
    }
  }
}
