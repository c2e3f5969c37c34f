// Loss of some chunks and its derivatives, for scores that are dot products: what `TwhinHead` does for one operator, in one pass
// over memory. A chunk's rows, scores and gradients stay in a core's own cache from first to last.
//
// Letters as in model.py: S chunks, C edges in a chunk, N candidates of a side, G uniform negatives, D embedding dim, R relations.
// Two sides are scored alike. The end of an edge that stays is moved by the operator into a query, and scored against the
// candidates for the other end; `side` names that other, corrupted end.

#include <omp.h>

#include <vector>

#include "vectors.h"

namespace {

enum Operator { kIdentity, kTranslation, kDiagonal, kComplexDiagonal };
enum Loss { kSoftmax, kLogistic, kRanking };

constexpr float kMasked = -1e30f;

int64_t padded(int64_t count) { return (count + kLanes - 1) / kLanes * kLanes; }

}  // namespace

// Mirrored by `_Arguments` in chunk_kernel.py. Rows of a side are [S, C + G, D]: ends of the edges, then negatives.
struct Arguments {
  int64_t num_chunks, size, num_in_batch, num_global, dim;
  int32_t op, loss, num_lanes, num_threads;
  float margin;
  const float *rows[2];         // of left-hand and right-hand sides
  float *by_rows[2];            // out: derivatives by them
  const int64_t *rel;           // [S, C]
  const float *params;          // [R, D]
  const float *inverse;         // [R, D] of the inverse relations, or null: corrupted left-hand sides take the adjoint then
  float *by_params;             // out: [lanes, R, D], to be added up; zeros come in
  float *by_inverse;            // likewise, or null
  int64_t lane_stride;          // floats from one lane of by_params to the next
  const float *weight;          // [S, C]
  const int64_t *masked[2];     // for corrupted left-hand, right-hand sides: ascending flat places in [S, C, N]
  int64_t num_masked[2];
  float *losses;                // out: [S]
  float *positive;              // out: [S, C], forward scores
};

namespace {

// What an operator does to one embedding. `sign` is -1 for the adjoint of a complex product, the product with the conjugate;
// a translation's adjoint is the identity (and a bias), the others' are themselves.
void move(int op, const float *x, const float *p, float sign, float *q, int64_t dim) {
  const int64_t half = dim / 2;
  switch (op) {
    case kIdentity:
      std::copy_n(x, dim, q);
      break;
    case kTranslation:
      for (int64_t i = 0; i < dim; i++) q[i] = x[i] + p[i];
      break;
    case kDiagonal:
      for (int64_t i = 0; i < dim; i++) q[i] = x[i] * p[i];
      break;
    case kComplexDiagonal:
      for (int64_t i = 0; i < half; i++) {
        q[i] = x[i] * p[i] - sign * x[half + i] * p[half + i];
        q[half + i] = sign * x[i] * p[half + i] + x[half + i] * p[i];
      }
  }
}

// Adds the derivatives by embedding and parameters, given those by the moved embedding.
void move_back(int op, const float *x, const float *p, float sign, const float *by_q, float *by_x, float *by_p, int64_t dim) {
  const int64_t half = dim / 2;
  switch (op) {
    case kIdentity:
      for (int64_t i = 0; i < dim; i++) by_x[i] += by_q[i];
      break;
    case kTranslation:
      for (int64_t i = 0; i < dim; i++) by_x[i] += by_q[i], by_p[i] += by_q[i];
      break;
    case kDiagonal:
      for (int64_t i = 0; i < dim; i++) by_x[i] += by_q[i] * p[i], by_p[i] += by_q[i] * x[i];
      break;
    case kComplexDiagonal:
      for (int64_t i = 0; i < half; i++) {
        by_x[i] += by_q[i] * p[i] + sign * by_q[half + i] * p[half + i];
        by_x[half + i] += by_q[half + i] * p[i] - sign * by_q[i] * p[half + i];
        by_p[i] += by_q[i] * x[i] + by_q[half + i] * x[half + i];
        by_p[half + i] += sign * (by_q[half + i] * x[i] - by_q[i] * x[half + i]);
      }
  }
}

struct EdgeLoss {
  float loss, by_positive;
};

// The losses of losses.py for one edge. `score` [N], padded with kMasked, becomes the derivative by it, zero where masked.

EdgeLoss softmax(float positive, float *score, int64_t count, float margin) {
  positive -= margin;
  Floats top = splat(positive), total = splat(0);
  for (int64_t i = 0; i < count; i += kLanes) top = max(load(score + i), top);
  float highest = positive;
  for (int lane = 0; lane < kLanes; lane++) highest = std::max(highest, top[lane]);
  for (int64_t i = 0; i < count; i += kLanes) {
    Floats share = exp(load(score + i) - highest);
    total += share;
    store(score + i, share);
  }
  const float own = std::exp(positive - highest), all = sum(total) + own, scale = 1 / all;
  for (int64_t i = 0; i < count; i += kLanes) store(score + i, load(score + i) * scale);
  return {std::log(all) + highest - positive, own * scale - 1};
}

EdgeLoss logistic(float positive, float *score, int64_t count, float) {
  Floats linear = splat(0), valid = splat(0);
  float logs = 0;
  for (int64_t start = 0; start < count; start += 64 * kLanes) {
    Floats product = splat(1);  // of up to 64 factors of at most 2: one logarithm for all
    for (int64_t i = start; i < std::min(count, start + 64 * kLanes); i += kLanes) {
      Floats x = load(score + i), small = exp(max(-x, x) * -1.0f), sigmoid = 1.0f / (1.0f + small);
      Ints is_valid = ~(x <= kMasked / 2);  // NaN is no mask
      linear += where(is_valid, max(x, splat(0)), splat(0));
      product *= where(is_valid, 1.0f + small, splat(1));
      valid += where(is_valid, splat(1), splat(0));
      store(score + i, where(is_valid, where(x > 0.0f, sigmoid, 1.0f - sigmoid), splat(0)));
    }
    for (int lane = 0; lane < kLanes; lane++) logs += std::log(product[lane]);
  }
  const float weight = 1 / std::max(sum(valid), 1.0f), small = std::exp(-std::abs(positive));
  for (int64_t i = 0; i < count; i += kLanes) store(score + i, load(score + i) * weight);
  const float loss = std::max(-positive, 0.0f) + std::log1p(small) + (sum(linear) + logs) * weight;
  return {loss, positive > 0 ? -small / (1 + small) : -1 / (1 + small)};
}

EdgeLoss ranking(float positive, float *score, int64_t count, float margin) {
  Floats total = splat(0), active = splat(0), valid = splat(0);
  for (int64_t i = 0; i < count; i += kLanes) {
    Floats x = load(score + i), above = x + (margin - positive), hinge = where(above <= 0.0f, splat(0), above);
    valid += where(x > kMasked / 2, splat(1), splat(0));
    total += hinge;
    active += where(hinge > 0.0f, splat(1), splat(0));
    store(score + i, where(hinge > 0.0f, splat(1), splat(0)));
  }
  const float weight = 1 / std::max(sum(valid), 1.0f);
  for (int64_t i = 0; i < count; i += kLanes) store(score + i, load(score + i) * weight);
  return {sum(total) * weight, -sum(active) * weight};
}

// One thread's memory for a side of a chunk.
struct Space {
  std::vector<float> queries, by_queries, columns, scores, bias;
  explicit Space(const Arguments &a)
      : queries(a.size * a.dim),
        by_queries(a.size * a.dim),
        columns(a.dim * padded(a.num_in_batch + a.num_global)),
        scores(a.size * padded(a.num_in_batch + a.num_global)),
        bias(a.size) {}
};

// Everything that corrupting one side of a chunk adds to the loss and the derivatives.
float side_loss(const Arguments &a, int64_t chunk, int side, float *by_params, float *by_inverse, Space &space) {
  const int64_t size = a.size, dim = a.dim, num_rows = a.size + a.num_global, count = a.num_in_batch + a.num_global;
  const int64_t width = padded(count), skipped = size - a.num_in_batch;
  const float *kept = a.rows[1 - side] + chunk * num_rows * dim, *own = a.rows[side] + chunk * num_rows * dim;
  float *by_kept = a.by_rows[1 - side] + chunk * num_rows * dim, *by_own = a.by_rows[side] + chunk * num_rows * dim;
  const float *candidates = own + skipped * dim;
  float *by_candidates = by_own + skipped * dim, *scores = space.scores.data();
  const int64_t *rel = a.rel + chunk * size;
  const float *weight = a.weight + chunk * size;

  const bool forward = side == 1, adjoint = !forward && !a.inverse;
  const float *params = forward || adjoint ? a.params : a.inverse;
  float *by_p = forward || adjoint ? by_params : by_inverse;
  const int op = adjoint && a.op == kTranslation ? kIdentity : a.op;
  const float sign = adjoint ? -1.0f : 1.0f;
  // (x + t) . y = x . y + t . y: the last term counts where a loss is not of differences between scores.
  const bool has_bias = adjoint && a.op == kTranslation && a.loss == kLogistic;

  for (int64_t i = 0; i < size; i++) move(op, kept + i * dim, params + rel[i] * dim, sign, space.queries.data() + i * dim, dim);
  transpose(count, dim, candidates, dim, space.columns.data(), width);
  multiply(size, width, dim, space.queries.data(), dim, 1, space.columns.data(), width, scores, width, false);

  for (int64_t i = 0; i < size; i++) {
    space.bias[i] = has_bias ? dot(params + rel[i] * dim, kept + i * dim, dim) : 0.0f;
    // Where every end is a candidate, the scores hold the positive ones on their diagonal.
    float positive = skipped ? dot(space.queries.data() + i * dim, own + i * dim, dim) : scores[i * width + i];
    if (forward) a.positive[chunk * size + i] = positive;
    for (int64_t j = 0; j < width; j++) scores[i * width + j] = j < count ? scores[i * width + j] + space.bias[i] : kMasked;
    space.bias[i] += positive;
  }
  const int64_t first_place = chunk * size * count, *places = a.masked[side], *places_end = places + a.num_masked[side];
  for (const int64_t *at = std::lower_bound(places, places_end, first_place);
       at < places_end && *at < first_place + size * count; at++)
    scores[(*at - first_place) / count * width + (*at - first_place) % count] = kMasked;

  const auto edge_loss = a.loss == kSoftmax ? softmax : a.loss == kLogistic ? logistic : ranking;
  float *by_queries = space.by_queries.data();
  float total = 0;
  std::fill_n(by_queries, size * dim, 0.0f);
  for (int64_t i = 0; i < size; i++) {
    float *score = scores + i * width;
    const EdgeLoss edge = edge_loss(space.bias[i], score, width, a.margin);
    total += edge.loss * weight[i];
    for (int64_t j = 0; j < width; j++) score[j] *= weight[i];
    const float by_positive = edge.by_positive * weight[i];
    if (has_bias) {
      float by_bias = by_positive;
      for (int64_t j = 0; j < width; j++) by_bias += score[j];
      for (int64_t d = 0; d < dim; d++) {
        by_kept[i * dim + d] += by_bias * params[rel[i] * dim + d];
        by_p[rel[i] * dim + d] += by_bias * kept[i * dim + d];
      }
    }
    if (skipped) {
      for (int64_t d = 0; d < dim; d++) {
        by_queries[i * dim + d] += by_positive * own[i * dim + d];
        by_own[i * dim + d] += by_positive * space.queries[i * dim + d];
      }
    } else {
      score[i] = by_positive;
    }
  }
  multiply(size, dim, count, scores, width, 1, candidates, dim, by_queries, dim, true);
  multiply(count, dim, size, scores, 1, width, space.queries.data(), dim, by_candidates, dim, true);
  for (int64_t i = 0; i < size; i++)
    move_back(op, kept + i * dim, params + rel[i] * dim, sign, by_queries + i * dim, by_kept + i * dim, by_p + rel[i] * dim, dim);
  return total;
}

}  // namespace

// Chunks are dealt to lanes and lanes to threads: sums over chunks then do not depend on the number of threads.
extern "C" void tml_chunk_losses(const Arguments *arguments) {
  const Arguments &a = *arguments;
  const int64_t side_floats = (a.size + a.num_global) * a.dim;
#pragma omp parallel num_threads(a.num_threads)
  {
    Space space(a);
#pragma omp for schedule(dynamic, 1)
    for (int lane = 0; lane < a.num_lanes; lane++) {
      float *by_params = a.by_params + lane * a.lane_stride;
      float *by_inverse = a.by_inverse ? a.by_inverse + lane * a.lane_stride : nullptr;
      for (int64_t chunk = a.num_chunks * lane / a.num_lanes; chunk < a.num_chunks * (lane + 1) / a.num_lanes; chunk++) {
        for (float *by_rows : a.by_rows) std::fill_n(by_rows + chunk * side_floats, side_floats, 0.0f);
        const float rhs = side_loss(a, chunk, 1, by_params, by_inverse, space);
        a.losses[chunk] = rhs + side_loss(a, chunk, 0, by_params, by_inverse, space);
      }
    }
  }
}
