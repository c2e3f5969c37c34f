// Which candidates of a chunk are no negatives, see masks.py: the same places, found on every core.
//
// Letters: S chunks, C edges in a chunk, N candidates of a side.

#include <omp.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

struct Edges {
  int64_t size, num_candidates;
  const int64_t *other, *rel, *own;  // [S, C]
  const uint8_t *filled;             // [S, C]
  const int64_t *candidates;         // [S, N]
  const uint8_t *valid;              // [S, N]
};

// Appends the places of one chunk. `is_masked` has room for N bytes, rounded up to words.
void append_places(const Edges &edges, int64_t chunk, std::vector<uint64_t> &is_masked, std::vector<int64_t> &places) {
  const int64_t size = edges.size, count = edges.num_candidates;
  const int64_t *other = edges.other + chunk * size, *rel = edges.rel + chunk * size, *own = edges.own + chunk * size;
  const int64_t *candidates = edges.candidates + chunk * count;
  const uint8_t *filled = edges.filled + chunk * size, *valid = edges.valid + chunk * count;
  uint8_t *masked = reinterpret_cast<uint8_t *>(is_masked.data());
  for (int64_t edge = 0; edge < size; edge++) {
    for (int64_t j = 0; j < count; j++) masked[j] = !valid[j];
    for (int64_t twin = 0; filled[edge] && twin < size; twin++) {
      if (other[twin] != other[edge] || rel[twin] != rel[edge] || !filled[twin]) continue;
      const int64_t positive = own[twin];
      for (int64_t j = 0; j < count; j++) masked[j] |= candidates[j] == positive;
    }
    // Few are masked: eight at a time are looked at.
    for (size_t word = 0; word < is_masked.size(); word++)
      for (int64_t j = 8 * word; is_masked[word] && j < std::min<int64_t>(8 * word + 8, count); j++)
        if (masked[j]) places.push_back((chunk * size + edge) * count + j);
  }
}

}  // namespace

// The number of places; they are written to `places`, ascending, unless they are more than `capacity`.
extern "C" int64_t tml_masked_places(int64_t num_chunks, int64_t size, int64_t num_candidates, const int64_t *other,
                                     const int64_t *rel, const int64_t *own, const uint8_t *filled, const int64_t *candidates,
                                     const uint8_t *valid, int64_t *places, int64_t capacity, int num_threads) {
  const Edges edges{size, num_candidates, other, rel, own, filled, candidates, valid};
  std::vector<std::vector<int64_t>> found(num_threads);
#pragma omp parallel for num_threads(num_threads) schedule(static, 1)
  for (int part = 0; part < num_threads; part++) {
    std::vector<uint64_t> is_masked((num_candidates + 7) / 8, 0);
    for (int64_t chunk = num_chunks * part / num_threads; chunk < num_chunks * (part + 1) / num_threads; chunk++)
      append_places(edges, chunk, is_masked, found[part]);
  }
  int64_t total = 0;
  for (const auto &part : found) total += static_cast<int64_t>(part.size());
  if (total <= capacity)
    for (const auto &part : found) places = std::copy(part.begin(), part.end(), places);
  return total;
}
