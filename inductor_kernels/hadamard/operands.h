// What the operators on rows share: checks of their operands, the split of rows over threads, per-token results.
#include <algorithm>
#include <optional>
#include <tuple>
#include <vector>

namespace torchqx::rotation {

constexpr int64_t kLarge = 8 << 20;         // bytes of output beyond which it is not kept in the caches
constexpr int64_t kWorthAThread = 1 << 15;  // elements; below, waking a thread costs more

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
  STD_TORCH_CHECK(t->scalar_type() == ScalarType::Float && fits && t->is_contiguous(), name,
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

// body(data, offsets, begin, end) for ranges of the rows of a tensor, on several threads.
template <class Body> void over_rows(const Tensor& any, const Body& body) {
  const Tensor x = any.stride(any.dim() - 1) == 1 ? any : torch::stable::contiguous(any);
  const auto sizes = x.sizes(), strides = x.strides();
  const RowOffsets offsets{{sizes.begin(), sizes.end()}, {strides.begin(), strides.end()}};
  const int64_t k = sizes.back();
  const auto run = [&](const auto* data) {
    torch::stable::parallel_for(0, x.numel() / k, std::max<int64_t>(1, kWorthAThread / k),
                                [&](int64_t begin, int64_t end) {
      body(data, offsets, begin, end);
#if defined(__AVX512F__)
      _mm_sfence();  // orders streamed lines before what tells the other threads that this one is done
#endif
    });
  };
  switch (x.scalar_type()) {
    case ScalarType::Float: return run(static_cast<const float*>(x.const_data_ptr()));
    case ScalarType::BFloat16: return run(static_cast<const bfloat16*>(x.const_data_ptr()));
    case ScalarType::Half: return run(static_cast<const float16*>(x.const_data_ptr()));
    default: STD_TORCH_CHECK(false, "rows are float32, bfloat16 or float16");
  }
}

bool is_large(const Tensor& t) { return t.numel() * static_cast<int64_t>(t.element_size()) >= kLarge; }

// uint8, or int8 where codes may be negative.
ScalarType code_dtype(int64_t qmin, int64_t qmax) {
  STD_TORCH_CHECK(-128 <= qmin && qmin < qmax && qmax <= (qmin < 0 ? 127 : 255), "hadamard: codes are 8 bits");
  return qmin < 0 ? ScalarType::Char : ScalarType::Byte;
}

// Codes, scales and zero points of rows, and the sinks that write them.
class PerTokenResult {
 public:
  // scale: what all elements are to be multiplied by, before shift and smooth.
  PerTokenResult(const Tensor& x, const std::optional<Tensor>& smooth, const std::optional<Tensor>& shift, float scale,
                 int64_t qmin, int64_t qmax, bool symmetric, double clip_ratio)
      : k_(x.size(x.dim() - 1)), codes_(allocate(sizes_of(x), code_dtype(qmin, qmax))),
        scales_(allocate(one_per_row(x), ScalarType::Float)), zeros_(allocate(one_per_row(x), ScalarType::Int)),
        smooth_(expanded(smooth, "smooth")), shift_(expanded(shift, "shift")) {
    sink_ = {static_cast<uint8_t*>(codes_.mutable_data_ptr()), is_large(codes_), nullptr,
             static_cast<float*>(scales_.mutable_data_ptr()), static_cast<int32_t*>(zeros_.mutable_data_ptr()), scale,
             smooth ? smooth_.data() : nullptr, shift ? shift_.data() : nullptr, static_cast<float>(qmin),
             static_cast<float>(qmax), symmetric, static_cast<float>(clip_ratio)};
  }

  // For a row; kept: room for it.
  PerToken sink(float* kept, int64_t row) const {
    PerToken sink = sink_;
    sink.kept = kept;
    sink.out += row * k_, sink.out_scale += row, sink.out_zero += row;
    return sink;
  }

  std::tuple<Tensor, Tensor, Tensor> tensors() const { return {codes_, scales_, zeros_}; }

 private:
  static std::vector<int64_t> one_per_row(const Tensor& x) {
    std::vector<int64_t> sizes = sizes_of(x);
    sizes.back() = 1;
    return sizes;
  }

  std::vector<float> expanded(const std::optional<Tensor>& t, const char* name) const {
    return t ? per_element(*t, k_, 1, name) : std::vector<float>();
  }

  int64_t k_;
  Tensor codes_, scales_, zeros_;
  std::vector<float> smooth_, shift_;
  PerToken sink_;
};

}  // namespace torchqx::rotation
