// Rows of a table: look-up, and an update of just the rows that were looked up, each once. See row_kernel.py in common/modules.
//
// Letters: V rows of the table, K ids, D floats of a row.

#include <omp.h>

#include <utility>
#include <vector>

#include "vectors.h"

namespace {

enum Rule { kSgd, kAdagrad, kRowwiseAdagrad };

// Rows are read in an order that no processor can guess: ask for those of a few ids later.
constexpr int64_t kAhead = 6;

void prefetch(const float *row, int64_t dim) {
  for (int64_t i = 0; i < dim; i += 16) __builtin_prefetch(row + i);
}

// An id and its place in the look-up, in one word: the id in the upper half.
using Key = uint64_t;
int64_t id_of(Key key) { return static_cast<int64_t>(key >> 32); }
int64_t place_of(Key key) { return static_cast<int64_t>(key & 0xffffffffu); }

// Sorts by id, and within an id by place. Keys come in the order of their places, so a stable sort by digits of the id does.
void sort_keys(std::vector<Key> &keys, int64_t num_rows) {
  int bits = 1;
  while ((int64_t{1} << bits) < num_rows) bits++;
  int passes = (bits + 11) / 12, digit_bits = (bits + passes - 1) / passes;
  std::vector<Key> other(keys.size());
  std::vector<uint32_t> first(size_t{1} << digit_bits);
  for (int pass = 0; pass < passes; pass++) {
    int shift = 32 + pass * digit_bits;
    uint64_t mask = first.size() - 1;
    std::fill(first.begin(), first.end(), 0);
    for (Key key : keys) first[key >> shift & mask]++;
    uint32_t total = 0;
    for (uint32_t &count : first) total += std::exchange(count, total);
    for (Key key : keys) other[first[key >> shift & mask]++] = key;
    keys.swap(other);
  }
}

template <Rule rule>
void step(float *row, float *state, const float *gradient, int64_t dim, float rate, float eps) {
  if constexpr (rule == kRowwiseAdagrad) {
    *state += dot(gradient, gradient, dim) / static_cast<float>(dim);
    rate /= std::sqrt(*state) + eps;
  }
  for (int64_t i = 0; i < dim; i++) {
    if constexpr (rule == kAdagrad) {
      state[i] += gradient[i] * gradient[i];
      row[i] -= rate * gradient[i] / (std::sqrt(state[i]) + eps);
    } else {
      row[i] -= rate * gradient[i];
    }
  }
}

template <Rule rule>
void update(float *table, float *state, int64_t dim, const std::vector<Key> &keys, const float *gradient, float rate, float eps,
            int num_threads) {
  const int64_t count = static_cast<int64_t>(keys.size()), state_dim = rule == kAdagrad ? dim : rule == kRowwiseAdagrad;
#pragma omp parallel num_threads(num_threads)
  {
    // A share begins with the first new id in it, so an id belongs to one thread.
    auto begin_of = [&](int64_t share) {
      int64_t at = count * share / omp_get_num_threads();
      while (at > 0 && at < count && id_of(keys[at]) == id_of(keys[at - 1])) at++;
      return at;
    };
    const int64_t end = begin_of(omp_get_thread_num() + 1);
    std::vector<float> sum(dim);
    for (int64_t at = begin_of(omp_get_thread_num()); at < end;) {
      const int64_t id = id_of(keys[at]);
      const float *total = gradient + place_of(keys[at]) * dim;
      if (at + kAhead < end) {
        prefetch(gradient + place_of(keys[at + kAhead]) * dim, dim);
        prefetch(table + id_of(keys[at + kAhead]) * dim, dim);
        if (state_dim) prefetch(state + id_of(keys[at + kAhead]) * state_dim, state_dim);
      }
      if (++at < end && id_of(keys[at]) == id) {
        std::copy(total, total + dim, sum.data());
        for (; at < end && id_of(keys[at]) == id; at++) {
          const float *more = gradient + place_of(keys[at]) * dim;
          for (int64_t i = 0; i < dim; i++) sum[i] += more[i];
        }
        total = sum.data();
      }
      step<rule>(table + id * dim, state + id * state_dim, total, dim, rate, eps);
    }
  }
}

}  // namespace

extern "C" {

// rows [B, D] = the table's row of each bag's id, zeros for an empty bag. Bags hold one id or none: offsets [B + 1].
void tml_look_up(const float *table, int64_t dim, const int64_t *ids, const int64_t *offsets, int64_t num_bags, float *rows,
                 int num_threads) {
#pragma omp parallel for num_threads(num_threads) schedule(static)
  for (int64_t bag = 0; bag < num_bags; bag++) {
    if (bag + kAhead < num_bags && offsets[bag + kAhead] < offsets[num_bags])
      prefetch(table + ids[offsets[bag + kAhead]] * dim, dim);
    if (offsets[bag] < offsets[bag + 1])
      std::copy_n(table + ids[offsets[bag]] * dim, dim, rows + bag * dim);
    else
      std::fill_n(rows + bag * dim, dim, 0.0f);
  }
}

// One step of the rule for every row that was looked up, with the sum of its gradients [B, D] in the order of their bags.
// Results do not depend on the number of threads. `state`: [V, D] for Adagrad, [V] for row-wise Adagrad, unused for SGD.
void tml_update(int rule, float *table, float *state, int64_t num_rows, int64_t dim, const int64_t *ids, const int64_t *offsets,
                int64_t num_bags, const float *gradient, float rate, float eps, int num_threads) {
  std::vector<Key> keys;
  keys.reserve(offsets[num_bags]);
  for (int64_t bag = 0; bag < num_bags; bag++)
    if (offsets[bag] < offsets[bag + 1]) keys.push_back(static_cast<Key>(ids[offsets[bag]]) << 32 | bag);
  sort_keys(keys, num_rows);
  auto run = rule == kSgd ? update<kSgd> : rule == kAdagrad ? update<kAdagrad> : update<kRowwiseAdagrad>;
  run(table, state, dim, keys, gradient, rate, eps, num_threads);
}
}
