// Loss of some chunks and its derivatives, for scores that are dot products: what `TwhinHead` does for one operator, in one pass
// over memory. A chunk's rows, scores and gradients stay in a core's own cache from first to last.
//
// Letters as in model.py: S chunks, C edges in a chunk, N candidates of a side, G uniform negatives, D embedding dim, R relations.
// Two sides are scored alike. The end of an edge that stays is moved by the operator into a query, and scored against the
// candidates for the other end; `side` names that other, corrupted end.

#include <omp.h>

#include <numeric>
#include <vector>

#include "products.h"

namespace {

enum Operator { kIdentity, kTranslation, kDiagonal, kComplexDiagonal };
enum Loss { kSoftmax, kLogistic, kRanking };
enum Regularizer { kNone, kL2, kN3 };

constexpr float kMasked = -1e30f;

}  // namespace

// Mirrored by `_Arguments` in chunk_kernel.py. Rows of a side are [S, C + G, D]: ends of the edges, then negatives.
struct Arguments {
  int64_t num_chunks, size, num_in_batch, num_global, dim;
  int32_t op, loss, num_lanes, num_threads;
  int32_t max_shared;           // a chunk of at most so many relations makes its in-batch scores once for both sides
  float margin;
  int32_t regularizer;
  float regularization;         // factor of its penalty
  int32_t bfloat16;             // products of bfloat16 numbers, where the processor has them
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

// Adds the derivatives of `factor` times the penalty of regularizers.py for one embedding, and returns that penalty. Where the
// operator is complex, so are embeddings.
float penalty(int kind, int op, const float *x, float *by_x, float factor, int64_t dim) {
  float total = 0;
  if (kind == kL2) {
    for (int64_t i = 0; i < dim; i++) by_x[i] += 2 * factor * x[i];
    total = dot(x, x, dim);
  } else if (op == kComplexDiagonal) {
    const float *im = x + dim / 2;
    float *by_im = by_x + dim / 2;
    for (int64_t i = 0; i < dim / 2; i++) {
      const float modulus = std::sqrt(x[i] * x[i] + im[i] * im[i] + 1e-20f), by_square = 3 * factor * modulus;
      total += modulus * modulus * modulus;
      by_x[i] += by_square * x[i];
      by_im[i] += by_square * im[i];
    }
  } else {
    for (int64_t i = 0; i < dim; i++) {
      const float modulus = std::abs(x[i]);
      total += modulus * modulus * modulus;
      by_x[i] += 3 * factor * modulus * x[i];
    }
  }
  return factor * total;
}

struct EdgeLoss {
  float loss, by_positive;
};

// The losses of losses.py for one edge, times its weight. `score` [N], padded with kMasked, becomes the derivative by it, zero
// where masked.

EdgeLoss softmax(float positive, float *score, int64_t count, float margin, float weight) {
  positive -= margin;
  Floats top = splat(positive), total = splat(0);
  for (int64_t i = 0; i < count; i += kLanes) top = max(load(score + i), top);
  const float most = highest(top);
  for (int64_t i = 0; i < count; i += kLanes) {
    Floats share = exp(load(score + i) - most);
    total += share;
    store(score + i, share);
  }
  const float own = std::exp(positive - most), all = sum(total) + own, scale = weight / all;
  for (int64_t i = 0; i < count; i += kLanes) store(score + i, load(score + i) * scale);
  return {weight * (std::log(all) + most - positive), own * scale - weight};
}

EdgeLoss logistic(float positive, float *score, int64_t count, float, float weight) {
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
  const float share = 1 / std::max(sum(valid), 1.0f), small = std::exp(-std::abs(positive));
  for (int64_t i = 0; i < count; i += kLanes) store(score + i, load(score + i) * (share * weight));
  const float loss = std::max(-positive, 0.0f) + std::log1p(small) + (sum(linear) + logs) * share;
  return {weight * loss, weight * (positive > 0 ? -small / (1 + small) : -1 / (1 + small))};
}

EdgeLoss ranking(float positive, float *score, int64_t count, float margin, float weight) {
  Floats total = splat(0), active = splat(0), valid = splat(0);
  for (int64_t i = 0; i < count; i += kLanes) {
    Floats x = load(score + i), above = x + (margin - positive), hinge = where(above <= 0.0f, splat(0), above);
    valid += where(x > kMasked / 2, splat(1), splat(0));
    total += hinge;
    active += where(hinge > 0.0f, splat(1), splat(0));
    store(score + i, where(hinge > 0.0f, splat(1), splat(0)));
  }
  const float share = weight / std::max(sum(valid), 1.0f);
  for (int64_t i = 0; i < count; i += kLanes) store(score + i, load(score + i) * share);
  return {sum(total) * share, -sum(active) * share};
}

// One side of one chunk: how its candidates are scored, and the memory for it. `kept` ends are moved into queries by the operator;
// `own` are the rows that hold the candidates.
struct Side {
  const float *kept, *own, *params;
  float *by_kept, *by_own, *by_params;
  const int64_t *masked, *masked_end;
  int op;
  float sign;
  bool has_bias;
  std::vector<float> queries, scores, bias, by_positive;
};

// The three products of a side, each of matrices as they lie: of float32 numbers ...
template <class Kind>
struct Products {
  explicit Products(const Arguments &a) : columns(a.dim * padded(a.num_in_batch + a.num_global)) {}

  // scores [C, N] = queries [C, D] . candidates [N, D]'
  void make_scores(int64_t size, int64_t count, int64_t dim, const float *queries, const float *candidates, float *scores,
                   int64_t stride) {
    transpose(count, dim, candidates, dim, columns.data(), padded(count));
    multiply<Kind>(size, padded(count), dim, queries, dim, 1, columns.data(), padded(count), scores, stride, false);
  }

  // by_queries [C, D] = by_scores [C, N] . candidates, by_candidates += by_scores' . queries
  void derive(int64_t size, int64_t count, int64_t dim, const float *by_scores, int64_t stride, const float *queries,
              const float *candidates, float *by_queries, float *by_candidates) {
    multiply<Kind>(size, dim, count, by_scores, stride, 1, candidates, dim, by_queries, dim, false);
    multiply<Kind>(count, dim, size, by_scores, 1, stride, queries, dim, by_candidates, dim, true);
  }

 private:
  std::vector<float> columns;
};

#ifdef __AVX512BF16__
// ... or of pairs of bfloat16 ones, which are laid out first.
template <>
struct Products<Bfloat16Pair> {
  explicit Products(const Arguments &a)
      : left((std::max(a.size, a.num_in_batch + a.num_global) + 1) * (padded(a.num_in_batch + a.num_global) + padded(a.dim))),
        right((a.size + a.num_in_batch + a.num_global) * padded(a.dim)),
        columns(padded(a.num_in_batch + a.num_global) * padded(a.dim)) {}

  void make_scores(int64_t size, int64_t count, int64_t dim, const float *queries, const float *candidates, float *scores,
                   int64_t stride) {
    const int64_t depth = padded(dim / 2), width = padded(count);
    Bfloat16Pair::pair_columns(count, dim, candidates, dim, right.data(), depth);
    transpose(count, depth, reinterpret_cast<const float *>(right.data()), depth, reinterpret_cast<float *>(columns.data()), width);
    Bfloat16Pair::pair_columns(size, dim, queries, dim, left.data(), depth);
    multiply<Bfloat16Pair>(size, width, depth, left.data(), depth, 1, columns.data(), width, scores, stride, false);
  }

  void derive(int64_t size, int64_t count, int64_t dim, const float *by_scores, int64_t stride, const float *queries,
              const float *candidates, float *by_queries, float *by_candidates) {
    const int64_t pairs = padded((count + 1) / 2), width = padded(count);
    Bfloat16Pair::pair_columns(size, count, by_scores, stride, left.data(), pairs);
    Bfloat16Pair::pair_rows(count, dim, candidates, dim, right.data(), dim);
    multiply<Bfloat16Pair>(size, dim, (count + 1) / 2, left.data(), pairs, 1, right.data(), dim, by_queries, dim, false);
    Bfloat16Pair::pair_rows(size, width, by_scores, stride, left.data(), width);
    Bfloat16Pair::pair_rows(size, dim, queries, dim, right.data(), dim);
    multiply<Bfloat16Pair>(count, dim, (size + 1) / 2, left.data(), 1, width, right.data(), dim, by_candidates, dim, true);
  }

 private:
  std::vector<int32_t> left, right, columns;
};
#endif

template <class Kind>
class Chunk {
 public:
  explicit Chunk(const Arguments &arguments)
      : a(arguments),
        count(a.num_in_batch + a.num_global),
        width(padded(count)),
        stride(width + 2 * kLanes),
        skipped(a.size - a.num_in_batch),
        kind_of(a.size),
        square(padded(a.size) * padded(a.size)),
        difference(a.max_shared * padded(a.size)),
        translations(a.max_shared * a.dim),
        by_end(a.size),
        products(a),
        by_queries(a.size * a.dim) {
    for (Side &side : sides) {
      side.queries.resize(a.size * a.dim);
      side.scores.resize(padded(a.size) * stride);
      side.bias.resize(a.size);
      side.by_positive.resize(a.size);
    }
  }

  // The chunk's loss; adds the derivatives by relations, and fills those by rows.
  float loss(int64_t number, float *by_params, float *by_inverse) {
    const int64_t nodes = (a.size + a.num_global) * a.dim;
    rel = a.rel + number * a.size;
    weight = a.weight + number * a.size;
    for (float *by_rows : a.by_rows) std::fill_n(by_rows + number * nodes, nodes, 0.0f);
    sort_relations();
    const bool once = static_cast<int64_t>(kinds.size()) <= a.max_shared;
    for (int corrupted : {0, 1}) set_up(number, corrupted, once, by_params, by_inverse);
    Side &lhs = sides[0], &rhs = sides[1];
    const int64_t first = once ? a.size : 0;
    move_ends(rhs);
    move_ends(lhs);
    score(rhs, 0);
    if (once) share_scores(lhs, rhs);
    score(lhs, first);
    float total = edge_losses(rhs, a.positive + number * a.size);
    total += edge_losses(lhs, nullptr);
    if (once) share_derivatives(lhs, rhs);
    derive(rhs, 0);
    derive(lhs, first);
    return a.regularizer == kNone ? total : total + penalties(number);
  }

 private:
  void set_up(int64_t number, int corrupted, bool once, float *by_params, float *by_inverse) {
    const int64_t nodes = (a.size + a.num_global) * a.dim, places = a.size * count;
    Side &side = sides[corrupted];
    side.kept = a.rows[1 - corrupted] + number * nodes;
    side.own = a.rows[corrupted] + number * nodes;
    side.by_kept = a.by_rows[1 - corrupted] + number * nodes;
    side.by_own = a.by_rows[corrupted] + number * nodes;
    const int64_t *masked = a.masked[corrupted], *masked_end = masked + a.num_masked[corrupted];
    side.masked = std::lower_bound(masked, masked_end, number * places);
    side.masked_end = std::lower_bound(side.masked, masked_end, (number + 1) * places);
    masked_before = number * places;
    const bool adjoint = corrupted == 0 && !a.inverse, translated = adjoint && a.op == kTranslation;
    side.params = corrupted == 0 && a.inverse ? a.inverse : a.params;
    side.by_params = corrupted == 0 && a.inverse ? by_inverse : by_params;
    side.op = translated ? kIdentity : a.op;
    side.sign = adjoint ? -1.0f : 1.0f;
    // (x + t) . y = x . y + t . y: the last term may be left out where a loss is of differences between an edge's scores, but
    // not where some of these come from the other side.
    side.has_bias = translated && (once || a.loss == kLogistic);
  }

  void move_ends(Side &side) {
    for (int64_t i = 0; i < a.size; i++) {
      const float *kept = side.kept + i * a.dim, *params = side.params + rel[i] * a.dim;
      move(side.op, kept, params, side.sign, side.queries.data() + i * a.dim, a.dim);
      side.bias[i] = side.has_bias ? dot(params, kept, a.dim) : 0.0f;
    }
  }

  // Scores of the candidates from `first` on.
  void score(Side &side, int64_t first) {
    const float *candidates = side.own + (skipped + first) * a.dim, *queries = side.queries.data();
    float *scores = side.scores.data();
    products.make_scores(a.size, count - first, a.dim, queries, candidates, scores + first, stride);
    if (side.has_bias)
      for (int64_t i = 0; i < a.size; i++)
        for (int64_t j = first; j < count; j++) scores[i * stride + j] += side.bias[i];
  }

  // The relations of the chunk, and each edge's place among them.
  void sort_relations() {
    kinds.clear();
    for (int64_t i = 0; i < a.size; i++) {
      const auto found = std::find(kinds.begin(), kinds.end(), rel[i]);
      kind_of[i] = found - kinds.begin();
      if (found == kinds.end()) kinds.push_back(rel[i]);
    }
  }

  // In-batch scores of corrupted left-hand sides from those of corrupted right-hand sides. With translations s and t of edges j
  // and i: (x + t) . y = (x + s) . y - s . y + t . y, for x of edge j and y of edge i.
  void share_scores(Side &lhs, const Side &rhs) {
    const int64_t size = a.size, width = padded(size);
    if (has_differences())
      for (size_t kind = 0; kind < kinds.size(); kind++) {
        std::copy_n(a.params + kinds[kind] * a.dim, a.dim, translations.data() + kind * a.dim);
        for (int64_t i = 0; i < size; i++)
          difference[kind * width + i] = lhs.bias[i] - dot(translations.data() + kind * a.dim, lhs.kept + i * a.dim, a.dim);
      }
    for (int64_t j = 0; j < size; j++) {
      const float *from = rhs.scores.data() + j * stride, *more = difference.data() + kind_of[j] * width;
      float *to = square.data() + j * width;
      for (int64_t i = 0; i < size; i++) to[i] = has_differences() ? from[i] + more[i] : from[i];
    }
    transpose(size, width, square.data(), width, lhs.scores.data(), stride);
  }

  // The derivatives by these scores go where the scores came from.
  void share_derivatives(const Side &lhs, Side &rhs) {
    const int64_t size = a.size, width = padded(size);
    transpose(size, width, lhs.scores.data(), stride, square.data(), width);
    for (int64_t j = 0; j < size; j++) {
      const float *from = square.data() + j * width;
      float *to = rhs.scores.data() + j * stride;
      for (int64_t i = 0; i < size; i++) to[i] += from[i];
    }
    if (!has_differences()) return;
    // What `difference` was: edge i's own translation's product, less that of edge j's.
    std::vector<float> &by_product = difference;
    std::fill(by_product.begin(), by_product.end(), 0.0f);
    std::fill(by_end.begin(), by_end.end(), 0.0f);
    for (int64_t j = 0; j < size; j++) {
      const float *from = square.data() + j * width;
      float *by_kind = by_product.data() + kind_of[j] * width;
      for (int64_t i = 0; i < size; i++) by_kind[i] -= from[i], by_end[i] += from[i];
    }
    for (int64_t i = 0; i < size; i++) by_product[kind_of[i] * width + i] += by_end[i];
    const int64_t num_kinds = kinds.size();
    multiply<Float32>(size, a.dim, num_kinds, by_product.data(), 1, width, translations.data(), a.dim, lhs.by_kept, a.dim, true);
    multiply<Float32>(num_kinds, a.dim, size, by_product.data(), width, 1, lhs.kept, a.dim, translations.data(), a.dim, false);
    for (int64_t kind = 0; kind < num_kinds; kind++)
      for (int64_t d = 0; d < a.dim; d++) lhs.by_params[kinds[kind] * a.dim + d] += translations[kind * a.dim + d];
  }

  bool has_differences() const { return kinds.size() > 1 && a.op == kTranslation; }

  // The weighted losses of the edges; their derivatives by the scores take the scores' place.
  float edge_losses(Side &side, float *positives) {
    float *scores = side.scores.data(), total = 0;
    // Where every end is a candidate, the scores hold the positive ones on their diagonal.
    for (int64_t i = 0; i < a.size; i++) {
      float *score = scores + i * stride;
      const float *query = side.queries.data() + i * a.dim;
      side.by_positive[i] = skipped ? dot(query, side.own + i * a.dim, a.dim) + side.bias[i] : score[i];
      std::fill(score + count, score + stride, kMasked);
    }
    if (positives) std::copy(side.by_positive.begin(), side.by_positive.end(), positives);
    for (const int64_t *at = side.masked; at < side.masked_end; at++)
      scores[(*at - masked_before) / count * stride + (*at - masked_before) % count] = kMasked;
    const auto edge_loss = a.loss == kSoftmax ? softmax : a.loss == kLogistic ? logistic : ranking;
    for (int64_t i = 0; i < a.size; i++) {
      float *score = scores + i * stride;
      const EdgeLoss edge = edge_loss(side.by_positive[i], score, width, a.margin, weight[i]);
      total += edge.loss;
      side.by_positive[i] = edge.by_positive;
      if (!skipped) score[i] = edge.by_positive;
      std::fill(score + width, score + stride, 0.0f);
    }
    return total;
  }

  // An edge counts twice, as itself and as an edge of the inverse relation; which has the same parameters, or its own.
  float penalties(int64_t number) {
    const int64_t nodes = (a.size + a.num_global) * a.dim;
    float total = 0;
    for (int64_t i = 0; i < a.size; i++) {
      const float factor = a.regularization * weight[i];
      const auto add = [&](const float *x, float *by_x, float times) {
        total += penalty(a.regularizer, a.op, x, by_x, times * factor, a.dim);
      };
      for (int side : {0, 1}) {
        add(a.rows[side] + number * nodes + i * a.dim, a.by_rows[side] + number * nodes + i * a.dim, 2);
        // The right-hand side's parameters are the relation's own, the left-hand side's those of the inverse.
        if (a.op != kIdentity)
          add((side == 0 && a.inverse ? a.inverse : a.params) + rel[i] * a.dim, sides[side].by_params + rel[i] * a.dim, 1);
      }
    }
    return total;
  }

  // Derivatives by rows and relations, from those by the scores of the candidates from `first` on.
  void derive(Side &side, int64_t first) {
    const int64_t dim = a.dim;
    const float *candidates = side.own + (skipped + first) * dim, *scores = side.scores.data() + first;
    float *by_candidates = side.by_own + (skipped + first) * dim;
    products.derive(a.size, count - first, dim, scores, stride, side.queries.data(), candidates, by_queries.data(), by_candidates);
    for (int64_t i = 0; i < a.size; i++) {
      const float *kept = side.kept + i * dim, *params = side.params + rel[i] * dim;
      float *by_query = by_queries.data() + i * dim, *by_params = side.by_params + rel[i] * dim;
      if (skipped) {
        const float *query = side.queries.data() + i * dim, *own = side.own + i * dim;
        for (int64_t d = 0; d < dim; d++) by_query[d] += side.by_positive[i] * own[d];
        for (int64_t d = 0; d < dim; d++) side.by_own[i * dim + d] += side.by_positive[i] * query[d];
      }
      move_back(side.op, kept, params, side.sign, by_query, side.by_kept + i * dim, by_params, dim);
      if (side.has_bias) {
        const float *by_score = scores + i * stride;
        const float by_bias = std::accumulate(by_score, by_score + count - first, skipped ? side.by_positive[i] : 0.0f);
        for (int64_t d = 0; d < dim; d++) side.by_kept[i * dim + d] += by_bias * params[d];
        for (int64_t d = 0; d < dim; d++) by_params[d] += by_bias * kept[d];
      }
    }
  }

  const Arguments &a;
  const int64_t count, width, stride, skipped;  // candidates of a side; with padding; floats of a row; ends that are none
  int64_t masked_before = 0;
  const int64_t *rel = nullptr;
  const float *weight = nullptr;
  Side sides[2];
  std::vector<int64_t> kinds, kind_of;
  std::vector<float> square, difference, translations, by_end;  // for in-batch scores that both sides share
  Products<Kind> products;
  std::vector<float> by_queries;
};

// Chunks are dealt to lanes and lanes to threads: sums over chunks then do not depend on the number of threads.
template <class Kind>
void chunk_losses(const Arguments &a) {
#pragma omp parallel num_threads(a.num_threads)
  {
    Chunk<Kind> chunk(a);
#pragma omp for schedule(dynamic, 1)
    for (int lane = 0; lane < a.num_lanes; lane++) {
      float *by_params = a.by_params + lane * a.lane_stride;
      float *by_inverse = a.by_inverse ? a.by_inverse + lane * a.lane_stride : nullptr;
      for (int64_t number = a.num_chunks * lane / a.num_lanes; number < a.num_chunks * (lane + 1) / a.num_lanes; number++)
        a.losses[number] = chunk.loss(number, by_params, by_inverse);
    }
  }
}

}  // namespace

extern "C" void tml_chunk_losses(const Arguments *arguments) {
#ifdef __AVX512BF16__
  if (arguments->bfloat16) return chunk_losses<Bfloat16Pair>(*arguments);
#endif
  chunk_losses<Float32>(*arguments);
}

extern "C" int tml_has_bfloat16() { return kHasBfloat16; }
