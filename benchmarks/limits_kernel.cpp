// What memory allows for rows at random places of a large table: read them, or read, change and write them.
//
// Every thread has its share of the places. Rows some places ahead are asked for early, so that several are under way.

#include <cstdint>

namespace {
constexpr int64_t kAhead = 8;
constexpr int64_t kLine = 16;  // floats

inline void ask_for(const float* row, int64_t dim, bool to_write) {
  for (int64_t i = 0; i < dim; i += kLine) {
    if (to_write) {
      __builtin_prefetch(row + i, 1);
    } else {
      __builtin_prefetch(row + i, 0);
    }
  }
}
}  // namespace

extern "C" {

// out[k] = table[places[k]]
void tml_probe_gather(const float* table, const int64_t* places, float* out, int64_t count, int64_t dim, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t k = 0; k < count; ++k) {
    if (k + kAhead < count) ask_for(table + places[k + kAhead] * dim, dim, false);
    const float* row = table + places[k] * dim;
    float* to = out + k * dim;
    for (int64_t i = 0; i < dim; ++i) to[i] = row[i];
  }
}

// table[places[k]] += change[k]; no place appears twice.
void tml_probe_update(float* table, const int64_t* places, const float* change, int64_t count, int64_t dim,
                      int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t k = 0; k < count; ++k) {
    if (k + kAhead < count) ask_for(table + places[k + kAhead] * dim, dim, true);
    float* row = table + places[k] * dim;
    const float* by = change + k * dim;
    for (int64_t i = 0; i < dim; ++i) row[i] += by[i];
  }
}
}
