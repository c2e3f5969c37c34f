// Fully connected layers with ReLU and linear outputs, forward and backward: what `dense_kernel.py` in common/modules calls. A block of
// examples goes through all layers while it is in a core's cache; then the derivatives by weights are summed over all examples.
//
// Letters: B examples, X inputs and U units of a layer, O outputs. There is at least one hidden layer.
//
//   sums_l = input_l . weight_l' + bias_l     of hidden layer l, input_0 being the parts side by side
//   input_(l+1) = max(sums_l, 0)
//   outputs = input_last . weight' + bias of the outputs + wide
//
// `wide` are O units more of the first layer, whose sums go to the outputs as they are. Products are of float32 or bfloat16 numbers,
// sums float32. No result depends on the number of threads.

#include <omp.h>

#include <vector>

#include "products.h"

namespace {

constexpr int64_t kBlock = 48;        // examples that go through the layers together: 4 tiles
constexpr int64_t kSumBlock = 256;    // examples of a product that gives derivatives by weights
constexpr int64_t kStrip = 2 * kLanes;

int64_t ceil_div(int64_t count, int64_t unit) { return (count + unit - 1) / unit; }

}  // namespace

// Mirrored by `_Layer` in dense_kernel.py.
struct Layer {
  int64_t num_inputs, num_units;
  const float *weight, *bias;        // [U, X], [U]
  float *by_weight, *by_bias;        // out: derivatives by them
};

// Mirrored by `_Arguments` in dense_kernel.py.
struct Arguments {
  int64_t num_examples;
  int32_t num_parts, num_layers, num_threads;  // layers: the hidden ones, then that of the outputs
  int32_t is_wide;                             // the first layer has as many units more as there are outputs
  const int64_t *widths;                       // columns of each part
  const float *const *parts;                   // [B, width] each
  float *const *by_parts;                      // out: derivatives by them; null where none are asked for
  const Layer *layers;
  float *outputs;                              // out: [B, O]
  const float *by_outputs;                     // [B, O]
  void *memory;                                // tml_dense_bytes() bytes that the backward finds as the forward left them
};

namespace {

template <class Kind>
class Layers {
  using Word = typename Kind::Number;

 public:
  explicit Layers(const Arguments &arguments)
      : a(arguments), num_hidden(a.num_layers - 1), last(a.layers[num_hidden]), num_outputs(last.num_units) {
    Word *next = static_cast<Word *>(a.memory);
    for (int l = 0; l <= num_hidden; l++) {
      inputs.push_back(next);
      next += a.num_examples * words_of_inputs(l);
      stride = std::max(stride, Kind::kPerWord * words_of_inputs(l));
    }
    for (int l = 0; l < num_hidden; l++) {
      by_sums.push_back(next);
      next += ceil_div(a.num_examples, Kind::kPerWord) * padded(a.layers[l].num_units);
      stride = std::max(stride, wide_row(a.layers[l].num_units));
    }
    num_bytes = reinterpret_cast<char *>(next) - static_cast<char *>(a.memory);
  }

  int64_t num_bytes = 0;

  void forward() {
    std::vector<std::vector<Word>> weights;
    std::vector<std::vector<float>> biases;
    for (int l = 0; l < num_hidden; l++) {
      weights.push_back(weight_by_inputs(a.layers[l]));
      biases.emplace_back(padded(a.layers[l].num_units));
      std::copy_n(a.layers[l].bias, a.layers[l].num_units, biases[l].data());
    }
#pragma omp parallel num_threads(a.num_threads)
    {
      std::vector<float> values(kBlock * stride);
#pragma omp for schedule(dynamic, 1)
      for (int64_t first = 0; first < a.num_examples; first += kBlock) {
        const int64_t count = std::min(kBlock, a.num_examples - first);
        keep_parts(first, count, values.data());
        for (int l = 0; l < num_hidden; l++) {
          const int64_t units = padded(a.layers[l].num_units);
          multiply<Kind>(count, units, ceil_div(a.layers[l].num_inputs, Kind::kPerWord), input(l, first), words_of_inputs(l), 1,
                         weights[l].data(), units, values.data(), stride, false);
          rectify(l, first, count, biases[l].data(), values.data());
          keep(l + 1, first, count, values.data());
        }
        add_outputs(first, count, values.data());
      }
    }
  }

  void backward() {
    std::vector<std::vector<Word>> weights;
    for (int l = 0; l < num_hidden; l++) weights.push_back(weight_by_units(a.layers[l]));
    // Embeddings come first, and numbers have no derivatives: the product can write where it is wanted.
    const bool is_first_alone = a.by_parts[0] && num_asked_columns() == a.widths[0];
#pragma omp parallel num_threads(a.num_threads)
    {
      std::vector<float> by(kBlock * stride), by_input(kBlock * stride);
      std::vector<Word> left(kBlock * stride);
#pragma omp for schedule(dynamic, 1)
      for (int64_t first = 0; first < a.num_examples; first += kBlock) {
        const int64_t count = std::min(kBlock, a.num_examples - first);
        derive_outputs(first, count, by_input.data());
        for (int l = num_hidden - 1; l >= 0; l--) {
          by.swap(by_input);
          const int64_t units = padded(a.layers[l].num_units), columns = l ? padded(a.layers[l].num_inputs) : num_asked_columns();
          mask(l, first, count, by.data());
          Kind::pair_rows(count, units, by.data(), stride, by_sums[l] + first / Kind::kPerWord * units, units);
          Kind::pair_columns(count, units, by.data(), stride, left.data(), stride);
          const bool direct = l == 0 && is_first_alone;
          multiply<Kind>(count, columns, ceil_div(a.layers[l].num_units, Kind::kPerWord), left.data(), stride, 1, weights[l].data(),
                         padded(a.layers[l].num_inputs), direct ? a.by_parts[0] + first * columns : by_input.data(),
                         direct ? columns : stride, false);
        }
        if (!is_first_alone) split_parts(first, count, by_input.data());
      }
      derive_weights();
    }
  }

 private:
  int64_t words_of_inputs(int l) const { return padded(ceil_div(a.layers[l].num_inputs, Kind::kPerWord)); }
  static int64_t wide_row(int64_t columns) { return Kind::kPerWord * padded(ceil_div(columns, Kind::kPerWord)); }
  Word *input(int l, int64_t first) const { return inputs[l] + first * words_of_inputs(l); }

  // Units of a hidden layer that the next one takes.
  int64_t num_rectified(int l) const { return a.layers[l + 1].num_inputs; }

  // Some rows of a weight, of `row` floats each, zeros at their end and below the last one.
  static void copy_units(const Layer &layer, int64_t first, int64_t count, float *to, int64_t row) {
    std::fill_n(to, count * row, 0.0f);
    for (int64_t unit = first; unit < std::min(first + count, layer.num_units); unit++)
      std::copy_n(layer.weight + unit * layer.num_inputs, layer.num_inputs, to + (unit - first) * row);
  }

  // [X, padded(U)], words along the inputs.
  std::vector<Word> weight_by_inputs(const Layer &layer) const {
    const int64_t words = padded(ceil_div(layer.num_inputs, Kind::kPerWord)), row = words * Kind::kPerWord;
    std::vector<Word> turned(words * padded(layer.num_units));
#pragma omp parallel num_threads(a.num_threads)
    {
      std::vector<float> weight(kLanes * row);
      std::vector<Word> pairs(kLanes * words);
#pragma omp for
      for (int64_t unit = 0; unit < layer.num_units; unit += kLanes) {
        copy_units(layer, unit, kLanes, weight.data(), row);
        Kind::pair_columns(kLanes, row, weight.data(), row, pairs.data(), words);
        transpose(kLanes, words, reinterpret_cast<const float *>(pairs.data()), words, reinterpret_cast<float *>(turned.data() + unit),
                  padded(layer.num_units));
      }
    }
    return turned;
  }

  // [U, padded(X)], words along the units.
  std::vector<Word> weight_by_units(const Layer &layer) const {
    const int64_t row = padded(layer.num_inputs);
    std::vector<Word> pairs(ceil_div(layer.num_units, Kind::kPerWord) * row);
#pragma omp parallel num_threads(a.num_threads)
    {
      std::vector<float> weight(Kind::kPerWord * row);
#pragma omp for
      for (int64_t unit = 0; unit < layer.num_units; unit += Kind::kPerWord) {
        copy_units(layer, unit, Kind::kPerWord, weight.data(), row);
        Kind::pair_rows(Kind::kPerWord, row, weight.data(), row, pairs.data() + unit / Kind::kPerWord * row, row);
      }
    }
    return pairs;
  }

  // The parts side by side as the first layer's input. Parts that fill whole vectors go there at once, the others by way of `values`.
  void keep_parts(int64_t first, int64_t count, float *values) const {
    Word *to = input(0, first);
    const int64_t words = words_of_inputs(0), end = Kind::kPerWord * words;
    int part = 0;
    int64_t column = 0;
    for (; part < a.num_parts && a.widths[part] % kStrip == 0; column += a.widths[part++])
      Kind::pair_columns(count, a.widths[part], a.parts[part] + first * a.widths[part], a.widths[part], to + column / Kind::kPerWord, words);
    for (int64_t i = 0; i < count; i++) {
      float *next = values + i * stride + column;
      for (int other = part; other < a.num_parts; other++)
        next = std::copy_n(a.parts[other] + (first + i) * a.widths[other], a.widths[other], next);
      std::fill(next, values + i * stride + end, 0.0f);
    }
    Kind::pair_columns(count, end - column, values + column, stride, to + column / Kind::kPerWord, words);
  }

  void split_parts(int64_t first, int64_t count, const float *by_input) const {
    for (int64_t i = 0; i < count; i++) {
      const float *from = by_input + i * stride;
      for (int part = 0; part < a.num_parts; from += a.widths[part++])
        if (a.by_parts[part]) std::copy_n(from, a.widths[part], a.by_parts[part] + (first + i) * a.widths[part]);
    }
  }

  // Columns of the input up to the last whose derivative is asked for.
  int64_t num_asked_columns() const {
    int64_t end = 0, asked = 0;
    for (int part = 0; part < a.num_parts; part++) {
      end += a.widths[part];
      if (a.by_parts[part]) asked = end;
    }
    return padded(asked);
  }

  void keep(int l, int64_t first, int64_t count, const float *values) const {
    Kind::pair_columns(count, Kind::kPerWord * words_of_inputs(l), values, stride, input(l, first), words_of_inputs(l));
  }

  // Sums become the next layer's input, zeros at its end; those of the wide units go to the outputs.
  void rectify(int l, int64_t first, int64_t count, const float *bias, float *values) const {
    const int64_t units = padded(a.layers[l].num_units), end = Kind::kPerWord * words_of_inputs(l + 1);
    for (int64_t i = 0; i < count; i++) {
      float *row = values + i * stride;
      if (l == 0)
        for (int64_t o = 0; o < num_outputs; o++) {
          const int64_t unit = num_rectified(0) + o;
          a.outputs[(first + i) * num_outputs + o] = a.is_wide ? row[unit] + bias[unit] : 0.0f;
        }
      // NaN must come through: it is not below zero.
      for (int64_t unit = 0; unit < units; unit += kLanes) {
        Floats x = load(row + unit) + load(bias + unit);
        store(row + unit, where(x < 0.0f, splat(0), x));
      }
      std::fill(row + num_rectified(l), row + end, 0.0f);
    }
  }

  void add_outputs(int64_t first, int64_t count, const float *values) const {
    for (int64_t i = 0; i < count; i++)
      for (int64_t o = 0; o < num_outputs; o++) {
        float &output = a.outputs[(first + i) * num_outputs + o];
        output += dot(values + i * stride, last.weight + o * last.num_inputs, last.num_inputs) + last.bias[o];
      }
  }

  // By the input of the last layer.
  void derive_outputs(int64_t first, int64_t count, float *by_input) const {
    for (int64_t i = 0; i < count; i++)
      for (int64_t o = 0; o < num_outputs; o++) {
        const float by_output = a.by_outputs[(first + i) * num_outputs + o], *weight = last.weight + o * last.num_inputs;
        float *row = by_input + i * stride;
        for (int64_t x = 0; x < last.num_inputs; x++) row[x] = by_output * weight[x] + (o ? row[x] : 0.0f);
      }
  }

  // From derivatives by a layer's rectified units to those by its sums, zeros at their end.
  void mask(int l, int64_t first, int64_t count, float *by) const {
    const int64_t units = num_rectified(l), end = wide_row(a.layers[l].num_units);
    for (int64_t i = 0; i < count; i++) {
      const Word *value = input(l + 1, first + i);
      float *row = by + i * stride;
      std::fill(row + units, row + end, 0.0f);
      for (int64_t unit = 0; unit < units; unit += kLanes)
        store(row + unit, where(Kind::numbers(value, unit) > 0.0f, load(row + unit), splat(0)));
      if (l == 0 && a.is_wide) std::copy_n(a.by_outputs + (first + i) * num_outputs, num_outputs, row + units);
    }
  }

  // Columns of weights are dealt to the threads; every sum runs over the examples in their order.
  void derive_weights() const {
    struct Task {
      int layer;
      int64_t column, num_columns;
    };
    std::vector<Task> tasks;
    for (int l = 0; l < num_hidden; l++) {
      const int64_t columns = wide_row(a.layers[l].num_inputs);
      // More tasks than threads: one that the system has stopped for a while keeps the others waiting for less.
      const int64_t parts = a.num_threads == 1 ? 1 : 2 * a.num_threads;
      const int64_t width = ceil_div(ceil_div(columns, parts), kStrip) * kStrip;
      for (int64_t column = 0; column < columns; column += width) tasks.push_back({l, column, std::min(width, columns - column)});
    }
    const int64_t num_tasks = static_cast<int64_t>(tasks.size());
#pragma omp for schedule(dynamic, 1)
    for (int64_t number = 0; number < num_tasks + a.num_layers; number++)
      if (number < num_tasks)
        derive_columns(tasks[number].layer, tasks[number].column, tasks[number].num_columns);
      else if (number < num_tasks + num_hidden)
        derive_bias(static_cast<int>(number - num_tasks));
      else
        derive_last();
  }

  // by_weight [U, X] = by_sums' [U, B] . input [B, X], for some columns.
  void derive_columns(int l, int64_t column, int64_t num_columns) const {
    const Layer &layer = a.layers[l];
    const int64_t units = padded(layer.num_units), words = words_of_inputs(l);
    std::vector<Word> right(kSumBlock / Kind::kPerWord * num_columns);
    std::vector<float> by_weight(layer.num_units * num_columns);
    for (int64_t first = 0; first < a.num_examples; first += kSumBlock) {
      const int64_t count = std::min(kSumBlock, a.num_examples - first);
      Kind::pair_rows_again(count, num_columns / Kind::kPerWord, input(l, first) + column / Kind::kPerWord, words, right.data(),
                            num_columns);
      multiply<Kind>(layer.num_units, num_columns, ceil_div(count, Kind::kPerWord), by_sums[l] + first / Kind::kPerWord * units, 1,
                     units, right.data(), num_columns, by_weight.data(), num_columns, true);
    }
    const int64_t wanted = std::min(num_columns, layer.num_inputs - column);
    for (int64_t unit = 0; unit < layer.num_units && wanted > 0; unit++)
      std::copy_n(by_weight.data() + unit * num_columns, wanted, layer.by_weight + unit * layer.num_inputs + column);
  }

  void derive_bias(int l) const {
    const Layer &layer = a.layers[l];
    const int64_t units = padded(layer.num_units), words = ceil_div(a.num_examples, Kind::kPerWord);
    const float ones[2 * kLanes] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
    Word one[kLanes];
    Kind::pair_columns(1, kLanes * Kind::kPerWord, ones, 0, one, 0);
    std::vector<float> total(units);
    for (int64_t word = 0; word < words; word++)
      for (int64_t unit = 0; unit < units; unit += kLanes)
        store(total.data() + unit, Kind::multiply_add(load(total.data() + unit), Kind::load(one),
                                                      Kind::load(by_sums[l] + word * units + unit)));
    std::copy_n(total.data(), layer.num_units, layer.by_bias);
  }

  void derive_last() const {
    const int64_t columns = wide_row(last.num_inputs);
    std::vector<float> by_weight(num_outputs * columns), by_bias(num_outputs);
    for (int64_t i = 0; i < a.num_examples; i++)
      for (int64_t o = 0; o < num_outputs; o++) {
        const float by_output = a.by_outputs[i * num_outputs + o];
        by_bias[o] += by_output;
        float *row = by_weight.data() + o * columns;
        for (int64_t x = 0; x < columns; x += kLanes)
          store(row + x, load(row + x) + by_output * Kind::numbers(input(num_hidden, i), x));
      }
    std::copy_n(by_bias.data(), num_outputs, last.by_bias);
    for (int64_t o = 0; o < num_outputs; o++)
      std::copy_n(by_weight.data() + o * columns, last.num_inputs, last.by_weight + o * last.num_inputs);
  }

  const Arguments &a;
  const int num_hidden;
  const Layer &last;
  const int64_t num_outputs;
  int64_t stride = 0;  // floats of a row of a block
  std::vector<Word *> inputs, by_sums;  // [B, words] of each layer, words along the columns; [B, padded(U)], along the rows
};

// Runs `use(Layers<Kind>)` for the kind of number that is asked for.
template <class Use>
auto with_kind(const Arguments &arguments, bool bfloat16, Use use) {
#ifdef __AVX512BF16__
  if (bfloat16) return use(Layers<Bfloat16Pair>(arguments));
#endif
  return use(Layers<Float32>(arguments));
}

}  // namespace

extern "C" {

int64_t tml_dense_bytes(const Arguments *arguments, int bfloat16) {
  return with_kind(*arguments, bfloat16, [](auto layers) { return layers.num_bytes; });
}

void tml_dense_forward(const Arguments *arguments, int bfloat16) {
  with_kind(*arguments, bfloat16, [](auto layers) { layers.forward(); });
}

// After the forward of the same arguments.
void tml_dense_backward(const Arguments *arguments, int bfloat16) {
  with_kind(*arguments, bfloat16, [](auto layers) { layers.backward(); });
}

}
