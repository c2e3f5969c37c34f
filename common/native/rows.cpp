// Rows of a table: look-up, and an update of just the rows that were looked up, each once. See row_kernel.py in common/modules.
//
// Letters: V rows of the table, K ids, D floats of a row.

#include <omp.h>

#include <utility>
#include <vector>

#include "vectors.h"

namespace {

enum Rule { kSgd, kAdagrad, kRowwiseAdagrad };

// Rows are read in an order that no processor can guess: ask for those of some ids later, so many that the answers are on the way, and
// so few that they do not push each other out of the cache.
int64_t ids_ahead(int64_t dim) { return std::max(int64_t{6}, 384 / dim); }

void prefetch(const float *row, int64_t dim) {
  for (int64_t i = 0; i < dim; i += 16) __builtin_prefetch(row + i);
}

// An id and its place in the look-up, in one word: the id in the upper half.
using Key = uint64_t;
int64_t id_of(Key key) { return static_cast<int64_t>(key >> 32); }
int64_t place_of(Key key) { return static_cast<int64_t>(key & 0xffffffffu); }

// The keys of all ids, by id, and within an id by place: a stable sort by digits of the id, each thread with a share of the keys.
std::vector<Key> sorted_keys(const int64_t *ids, const int64_t *offsets, int64_t num_bags, int64_t num_rows, int num_threads) {
  int bits = 1;
  while ((int64_t{1} << bits) < num_rows) bits++;
  const int passes = (bits + 11) / 12, digit_bits = (bits + passes - 1) / passes;
  const int64_t num_digits = int64_t{1} << digit_bits, count = offsets[num_bags];
  std::vector<Key> keys(count), other(count);
  std::vector<uint32_t> next(num_threads * num_digits);  // where each thread puts its next key with each digit
#pragma omp parallel num_threads(num_threads)
  {
    const int64_t thread = omp_get_thread_num(), threads = omp_get_num_threads();
    const int64_t begin = count * thread / threads, end = count * (thread + 1) / threads;
    uint32_t *own = next.data() + thread * num_digits;
#pragma omp for schedule(static)
    for (int64_t bag = 0; bag < num_bags; bag++)
      if (offsets[bag] < offsets[bag + 1]) keys[offsets[bag]] = static_cast<Key>(ids[offsets[bag]]) << 32 | bag;
    for (int pass = 0; pass < passes; pass++) {
      const int shift = 32 + pass * digit_bits;
      const uint64_t mask = num_digits - 1;
      std::fill_n(own, num_digits, 0);
      for (int64_t at = begin; at < end; at++) own[keys[at] >> shift & mask]++;
#pragma omp barrier
#pragma omp single
      {
        uint32_t total = 0;
        for (int64_t digit = 0; digit < num_digits; digit++)
          for (int64_t from = 0; from < threads; from++)
            total += std::exchange(next[from * num_digits + digit], total);
      }
      for (int64_t at = begin; at < end; at++) other[own[keys[at] >> shift & mask]++] = keys[at];
#pragma omp barrier
#pragma omp single
      keys.swap(other);
    }
  }
  return keys;
}

// Inline: a call for each row of a few floats takes longer than the row.
void copy(const float *from, float *to, int64_t dim) {
  int64_t i = 0;
  for (; i + kLanes <= dim; i += kLanes) store(to + i, load(from + i));
  for (; i < dim; i++) to[i] = from[i];
}

void add(float *total, const float *more, int64_t dim) {
  int64_t i = 0;
  for (; i + kLanes <= dim; i += kLanes) store(total + i, load(total + i) + load(more + i));
  for (; i < dim; i++) total[i] += more[i];
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

// One step for every id among keys [at, end).
template <Rule rule>
void update_some(float *table, float *state, int64_t dim, const std::vector<Key> &keys, int64_t at, int64_t end,
                 const float *gradient, float rate, float eps, float *sum) {
  const int64_t ahead = ids_ahead(dim), state_dim = rule == kAdagrad ? dim : rule == kRowwiseAdagrad;
  while (at < end) {
    const int64_t id = id_of(keys[at]);
    const float *total = gradient + place_of(keys[at]) * dim;
    if (at + ahead < end) {
      prefetch(gradient + place_of(keys[at + ahead]) * dim, dim);
      prefetch(table + id_of(keys[at + ahead]) * dim, dim);
      if (state_dim) prefetch(state + id_of(keys[at + ahead]) * state_dim, state_dim);
    }
    if (++at < end && id_of(keys[at]) == id) {
      copy(total, sum, dim);
      for (; at < end && id_of(keys[at]) == id; at++) {
        if (at + ahead < end) prefetch(gradient + place_of(keys[at + ahead]) * dim, dim);
        add(sum, gradient + place_of(keys[at]) * dim, dim);
      }
      total = sum;
    }
    step<rule>(table + id * dim, state + id * state_dim, total, dim, rate, eps);
  }
}

template <Rule rule>
void update(float *table, float *state, int64_t dim, const std::vector<Key> &keys, const float *gradient, float rate, float eps,
            int num_threads) {
  // More shares than threads: one that the system has stopped for a while keeps the others waiting for less.
  const int64_t count = static_cast<int64_t>(keys.size()), num_shares = num_threads == 1 ? 1 : 8 * num_threads;
  // A share begins with the first new id in it, so an id belongs to one thread.
  auto begin_of = [&](int64_t share) {
    int64_t at = count * share / num_shares;
    while (at > 0 && at < count && id_of(keys[at]) == id_of(keys[at - 1])) at++;
    return at;
  };
#pragma omp parallel num_threads(num_threads)
  {
    std::vector<float> sum(dim);
#pragma omp for schedule(dynamic, 1)
    for (int64_t share = 0; share < num_shares; share++)
      update_some<rule>(table, state, dim, keys, begin_of(share), begin_of(share + 1), gradient, rate, eps, sum.data());
  }
}

}  // namespace

extern "C" {

// rows [B, D] = the table's row of each bag's id, zeros for an empty bag. Bags hold one id or none: offsets [B + 1].
void tml_look_up(const float *table, int64_t dim, const int64_t *ids, const int64_t *offsets, int64_t num_bags, float *rows,
                 int num_threads) {
  const int64_t ahead = ids_ahead(dim);
#pragma omp parallel for num_threads(num_threads) schedule(dynamic, 1024)
  for (int64_t bag = 0; bag < num_bags; bag++) {
    if (bag + ahead < num_bags && offsets[bag + ahead] < offsets[num_bags])
      prefetch(table + ids[offsets[bag + ahead]] * dim, dim);
    if (offsets[bag] < offsets[bag + 1])
      copy(table + ids[offsets[bag]] * dim, rows + bag * dim, dim);
    else
      std::fill_n(rows + bag * dim, dim, 0.0f);
  }
}

// One step of the rule for every row that was looked up, with the sum of its gradients [B, D] in the order of their bags.
// Results do not depend on the number of threads. `state`: [V, D] for Adagrad, [V] for row-wise Adagrad, unused for SGD.
void tml_update(int rule, float *table, float *state, int64_t num_rows, int64_t dim, const int64_t *ids, const int64_t *offsets,
                int64_t num_bags, const float *gradient, float rate, float eps, int num_threads) {
  const std::vector<Key> keys = sorted_keys(ids, offsets, num_bags, num_rows, num_threads);
  auto run = rule == kSgd ? update<kSgd> : rule == kAdagrad ? update<kAdagrad> : update<kRowwiseAdagrad>;
  run(table, state, dim, keys, gradient, rate, eps, num_threads);
}
}
