// torchqx::quantize_norm on the CPU: a row's statistics, its norm, and the codes of that, by the sink of a rotation that
// quantizes.

namespace torchqx::rotation {

constexpr int64_t kTogether = 4;  // rows whose statistics are found together: each waits long for its own

// An operand of any of the three dtypes, in float32.
std::vector<float> widened(const std::optional<Tensor>& t, int64_t k, const char* name) {
  if (!t) return {};
  STD_TORCH_CHECK(t->numel() == k && t->is_contiguous(), "quantize_norm: ", name, " must be contiguous, of ", k,
                  " elements");
  std::vector<float> all(k);
  const auto copy = [&](const auto* values) {
    for (int64_t i = 0; i < k; ++i) all[i] = load<1>(values + i)[0];
  };
  switch (t->scalar_type()) {
    case ScalarType::Float: copy(static_cast<const float*>(t->const_data_ptr())); break;
    case ScalarType::BFloat16: copy(static_cast<const bfloat16*>(t->const_data_ptr())); break;
    case ScalarType::Half: copy(static_cast<const float16*>(t->const_data_ptr())); break;
    default: STD_TORCH_CHECK(false, "quantize_norm: ", name, " must be float32, bfloat16 or float16");
  }
  return all;
}

// Half by half: one after another, 16 additions would wait for each other.
TORCHQX_INLINE float sum_of(const Vec<16>& v) {
  const Vec<8> eight = read<Vec<8>>(&v) + read<Vec<8>>(reinterpret_cast<const float*>(&v) + 8);
  const Vec<4> four = read<Vec<4>>(&eight) + read<Vec<4>>(reinterpret_cast<const float*>(&eight) + 4);
  return (four[0] + four[2]) + (four[1] + four[3]);
}

// Sum over the row of each(element), in four chains.
template <class T, class Each> TORCHQX_INLINE float sum_over(const T* x, int64_t k, const Each& each) {
  Vec<16> sums[4] = {};
  int64_t i = 0;
  for (; i + 64 <= k; i += 64) {
#pragma GCC unroll 4
    for (int r = 0; r < 4; ++r) sums[r] += each(load<16>(x + i + 16 * r));
  }
  for (; i + 16 <= k; i += 16) sums[0] += each(load<16>(x + i));
  float sum = sum_of((sums[0] + sums[1]) + (sums[2] + sums[3]));
  for (; i < k; ++i) sum += each(load<1>(x + i))[0];
  return sum;
}

template <class T> struct NormalizedRow {
  const T* x;
  T* kept;  // or none
  bool large;
  const float *weight, *bias;  // or none
  float mean, factor;
  Static codes;

  template <int L, int R> TORCHQX_INLINE void put(int64_t i) {
    Vec<L> v[R];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      v[r] = (load<L>(x + i + L * r) - mean) * factor;
      if (weight) v[r] *= load<L>(weight + i + L * r);
      if (bias) v[r] += load<L>(bias + i + L * r);
    }
    if (kept) store_all<T, L, R>(kept + i, v, large);
    codes.put<L, R>(i, v);
  }

  float sum(int64_t k) const {
    return sum_over(x, k, [](const auto& v) TORCHQX_INLINE_LAMBDA { return v; });
  }

  float squares(int64_t k) const {
    return sum_over(x, k, [this](const auto& v) TORCHQX_INLINE_LAMBDA { return (v - mean) * (v - mean); });
  }

  void put_all(int64_t k) {
    int64_t i = 0;
    for (; i + 64 <= k; i += 64) put<16, 4>(i);
    for (; i + 16 <= k; i += 16) put<16, 1>(i);
    for (; i < k; ++i) put<1, 1>(i);
  }
};

std::tuple<Tensor, Tensor> quantize_norm(const Tensor& x, const std::optional<Tensor>& weight,
                                         const std::optional<Tensor>& bias, double eps, const Tensor& mul, const Tensor& add,
                                         int64_t qmin, int64_t qmax, bool keep) {
  STD_TORCH_CHECK(x.dim() > 0, "quantize_norm: a number has no rows");
  const int64_t k = x.size(x.dim() - 1);
  const std::vector<float> weights = widened(weight, k, "weight"), biases = widened(bias, k, "bias");
  const std::vector<float> muls = per_element(mul, k, 1, "mul"), adds = per_element(add, k, 1, "add");
  Tensor y = allocate(keep ? sizes_of(x) : std::vector<int64_t>{0}, x.scalar_type());
  Tensor codes = allocate(sizes_of(x), code_dtype(qmin, qmax));
  if (x.numel() == 0) return {y, codes};
  void* kept = y.mutable_data_ptr();
  const float add_to_variance = static_cast<float>(eps);
  const Static sink{static_cast<uint8_t*>(codes.mutable_data_ptr()), is_large(codes), muls.data(), adds.data(),
                    static_cast<float>(qmin), static_cast<float>(qmax)};
  over_rows(x, [&](const auto* data, const RowOffsets& offsets, int64_t begin, int64_t end) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(data)>>;
    const bool large = keep && is_large(y);
    for (int64_t first = begin; first < end; first += kTogether) {
      const int64_t count = std::min(kTogether, end - first);
      NormalizedRow<T> rows[kTogether];
      for (int64_t r = 0; r < count; ++r) {
        rows[r] = {data + offsets(first + r), keep ? static_cast<T*>(kept) + (first + r) * k : nullptr, large,
                   weight ? weights.data() : nullptr, bias ? biases.data() : nullptr, 0, 0, sink};
        rows[r].codes.out += (first + r) * k;
      }
      for (int64_t r = 0; r < count; ++r) rows[r].mean = rows[r].sum(k) / k;
      for (int64_t r = 0; r < count; ++r) rows[r].factor = 1 / std::sqrt(rows[r].squares(k) / k + add_to_variance);
      for (int64_t r = 0; r < count; ++r) rows[r].put_all(k);
    }
  });
  return {y, codes};
}

}  // namespace torchqx::rotation

STABLE_TORCH_LIBRARY_IMPL(torchqx, CPU, m) {
  m.impl("quantize_norm", TORCH_BOX(&torchqx::rotation::quantize_norm));
}
