// torchqx::hadamard and its quantizing variants on the CPU: checks, the split of rows over threads, the registration.
#include <algorithm>
#include <optional>
#include <tuple>

namespace torchqx::rotation {

volatile float one = 1;                     // see butterfly(); volatile, so that it is not folded away
constexpr int64_t kLarge = 8 << 20;         // bytes of output beyond which it is not kept in the caches
constexpr int64_t kWorthAThread = 1 << 15;  // elements; below, waking a thread costs more

// The passes for a block; its factors and signs come from Python the first time.
const Plan& plan_for(const Tensor& x, int64_t block, bool transpose) {
  static std::map<std::pair<int64_t, bool>, std::unique_ptr<Plan>> plans;
  static std::mutex turn;
  const std::pair key(block, transpose);
  {
    const std::lock_guard lock(turn);
    if (const auto found = plans.find(key); found != plans.end()) return *found->second;
  }
  const Tensor bases = call_for_tensor("torchqx::hadamard_bases", x, block);  // Python: not under the lock
  const auto* orders = static_cast<const int64_t*>(bases.const_data_ptr());
  auto made = std::make_unique<Plan>(block, std::vector<int64_t>(orders, orders + bases.numel()), transpose);
  if (made->needs_table()) {
    const Tensor signs = call_for_tensor("torchqx::hadamard_base", x, block);
    made->make_table(static_cast<const int8_t*>(signs.const_data_ptr()));
  }
  const std::lock_guard lock(turn);
  auto& plan = plans[key];
  if (!plan) plan = std::move(made);
  return *plan;
}

// Where the rows of a tensor begin; any strides but that of the last dimension, which is 1.
struct RowOffsets {
  std::vector<int64_t> sizes, strides;

  int64_t operator()(int64_t row) const {
    int64_t offset = 0;
    for (size_t d = sizes.size() - 1; d-- > 0; row /= sizes[d]) offset += row % sizes[d] * strides[d];
    return offset;
  }
};

const float* checked(const std::optional<Tensor>& t, int64_t k, bool one_allowed, const char* name) {
  if (!t) return nullptr;
  const bool fits = t->numel() == k || (one_allowed && t->numel() == 1);
  STD_TORCH_CHECK(t->scalar_type() == ScalarType::Float && fits && t->is_contiguous(), "hadamard: ", name,
                  " must be contiguous float32 of ", k, one_allowed ? " elements, or one" : " elements");
  return static_cast<const float*>(t->const_data_ptr());
}

// factor · t for each element of a row, of a tensor with one value for all too.
std::vector<float> per_element(const Tensor& t, int64_t k, float factor, const char* name) {
  const float* values = checked(t, k, true, name);
  std::vector<float> all(k, factor * *values);
  if (t.numel() == k) std::transform(values, values + k, all.begin(), [&](float v) { return factor * v; });
  return all;
}

// Rotates every row into the sink that sink_for(row, number) makes, with a type of x that tells its element type.
template <class SinkFor> void rotate_rows(const Tensor& any, const std::optional<Tensor>& signs, int64_t block,
                                          bool transpose, const SinkFor& sink_for) {
  const Tensor x = any.stride(any.dim() - 1) == 1 ? any : torch::stable::contiguous(any);
  const auto sizes = x.sizes(), strides = x.strides();
  const RowOffsets offsets{{sizes.begin(), sizes.end()}, {strides.begin(), strides.end()}};
  const int64_t k = sizes.back();
  const Plan& plan = plan_for(x, block, transpose);
  const float* sign_values = checked(signs, k, false, "signs");
  const Signs before(transpose ? nullptr : sign_values, k);
  const auto run = [&]<class T>(const T* data) {
    const Rotation rotation{&plan, &before, k, one};
    torch::stable::parallel_for(0, x.numel() / k, std::max<int64_t>(1, kWorthAThread / k),
                                [&](int64_t begin, int64_t end) {
      const Scratch scratch(plan, k);
      for (int64_t r = begin; r < end; ++r) {
        auto sink = sink_for(data, scratch.row, r);
        rotation(data + offsets(r), scratch, sink);
        sink.finish(k);
      }
#if defined(__AVX512F__)
      _mm_sfence();  // orders streamed lines before what tells the other threads that this one is done
#endif
    });
  };
  switch (x.scalar_type()) {
    case ScalarType::Float: return run(static_cast<const float*>(x.const_data_ptr()));
    case ScalarType::BFloat16: return run(static_cast<const bfloat16*>(x.const_data_ptr()));
    case ScalarType::Half: return run(static_cast<const float16*>(x.const_data_ptr()));
    default: STD_TORCH_CHECK(false, "hadamard: rows are float32, bfloat16 or float16");
  }
}

int64_t checked_rows(const Tensor& x, int64_t block) {
  STD_TORCH_CHECK(x.dim() > 0 && block > 0 && x.size(x.dim() - 1) % block == 0,
                  "hadamard: rows must have a multiple of ", block, " elements");
  return x.size(x.dim() - 1);
}

bool is_large(const Tensor& t) { return t.numel() * static_cast<int64_t>(t.element_size()) >= kLarge; }

float scale_of(int64_t block) { return static_cast<float>(1 / std::sqrt(static_cast<double>(block))); }

// uint8, or int8 where codes may be negative.
ScalarType code_dtype(int64_t qmin, int64_t qmax) {
  STD_TORCH_CHECK(-128 <= qmin && qmin < qmax && qmax <= (qmin < 0 ? 127 : 255), "hadamard: codes are 8 bits");
  return qmin < 0 ? ScalarType::Char : ScalarType::Byte;
}

Tensor hadamard(const Tensor& x, const std::optional<Tensor>& signs, int64_t block, bool transpose) {
  if (x.scalar_type() == ScalarType::Double) {
    return call_for_tensor("torchqx::hadamard_aten", x, signs, block, transpose);
  }
  const int64_t k = checked_rows(x, block);
  Tensor out = allocate(sizes_of(x), x.scalar_type());
  if (x.numel() == 0) return out;
  const float* after = transpose ? checked(signs, k, false, "signs") : nullptr;
  const bool large = is_large(out);
  void* results = out.mutable_data_ptr();
  rotate_rows(x, signs, block, transpose, [&]<class T>(const T*, float*, int64_t r) {
    return Plain<T>{static_cast<T*>(results) + r * k, large, scale_of(block), after};
  });
  return out;
}

Tensor hadamard_quantize_static(const Tensor& x, const std::optional<Tensor>& signs, int64_t block, const Tensor& mul,
                                const Tensor& add, int64_t qmin, int64_t qmax) {
  const int64_t k = checked_rows(x, block);
  Tensor out = allocate(sizes_of(x), code_dtype(qmin, qmax));
  if (x.numel() == 0) return out;
  const bool large = is_large(out);
  auto* codes = static_cast<uint8_t*>(out.mutable_data_ptr());
  const auto by = per_element(mul, k, scale_of(block), "mul"), plus = per_element(add, k, 1, "add");
  rotate_rows(x, signs, block, false, [&](const auto*, float*, int64_t r) {
    return Static{codes + r * k, large, by.data(), plus.data(), static_cast<float>(qmin), static_cast<float>(qmax)};
  });
  return out;
}

std::tuple<Tensor, Tensor, Tensor> hadamard_quantize_per_token(
    const Tensor& x, const std::optional<Tensor>& signs, int64_t block, const std::optional<Tensor>& smooth,
    const std::optional<Tensor>& shift, int64_t qmin, int64_t qmax, bool symmetric, double clip_ratio) {
  const int64_t k = checked_rows(x, block);
  std::vector<int64_t> per_row = sizes_of(x);
  per_row.back() = 1;
  Tensor codes = allocate(sizes_of(x), code_dtype(qmin, qmax)), scales = allocate(per_row, ScalarType::Float),
         zeros = allocate(per_row, ScalarType::Int);
  if (x.numel() == 0) return {codes, scales, zeros};
  const bool large = is_large(codes);
  auto* out = static_cast<uint8_t*>(codes.mutable_data_ptr());
  auto* scale = static_cast<float*>(scales.mutable_data_ptr());
  auto* zero = static_cast<int32_t*>(zeros.mutable_data_ptr());
  const auto expanded = [&](const std::optional<Tensor>& t, const char* name) {
    return t ? per_element(*t, k, 1, name) : std::vector<float>();
  };
  const auto by = expanded(smooth, "smooth"), minus = expanded(shift, "shift");
  rotate_rows(x, signs, block, false, [&](const auto*, float* row, int64_t r) {
    return PerToken{out + r * k, large, row, scale + r, zero + r, scale_of(block), smooth ? by.data() : nullptr,
                    shift ? minus.data() : nullptr, static_cast<float>(qmin), static_cast<float>(qmax), symmetric,
                    static_cast<float>(clip_ratio)};
  });
  return {codes, scales, zeros};
}

}  // namespace torchqx::rotation

STABLE_TORCH_LIBRARY_IMPL(torchqx, CPU, m) {
  m.impl("hadamard", TORCH_BOX(&torchqx::rotation::hadamard));
  m.impl("hadamard_quantize_static", TORCH_BOX(&torchqx::rotation::hadamard_quantize_static));
  m.impl("hadamard_quantize_per_token", TORCH_BOX(&torchqx::rotation::hadamard_quantize_per_token));
}
