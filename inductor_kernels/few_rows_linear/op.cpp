// torchqx::few_rows_linear on the CPU: checks, the threads, and the registration.
#include <optional>

namespace torchqx_few_rows {

using torchqx::allocate;
using torchqx::dense;
using torchqx::ScalarType;
using torchqx::Tensor;

constexpr int64_t kWorthAThread = 1 << 17;  // bytes of weights; below, waking a thread costs more

template <class Element>
void launch(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, Tensor& out, int64_t rows) {
  using Value = typename Element::Value;
  const auto values = [](const Tensor& t) { return static_cast<const Value*>(t.const_data_ptr()); };
  const Problem<Element> p{rows, weight.size(0), weight.size(1), values(x), values(weight),
                           bias ? values(*bias) : nullptr, static_cast<Value*>(out.mutable_data_ptr())};
  const int64_t tile_bytes = std::max<int64_t>(1, kTileColumns * p.row_bytes());
  torch::stable::parallel_for(0, p.tiles(), std::max<int64_t>(1, kWorthAThread / tile_bytes),
                              [&p](int64_t begin, int64_t end) { run(p, begin, end); });
}

Tensor few_rows_linear(const Tensor& x_any, const Tensor& weight_any, const std::optional<Tensor>& bias_any) {
  const ScalarType dtype = x_any.scalar_type();
  STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::BFloat16, "few_rows_linear: float32 or bfloat16");
  STD_TORCH_CHECK(weight_any.scalar_type() == dtype && (!bias_any || bias_any->scalar_type() == dtype),
                  "few_rows_linear: x, weight and bias have one dtype");
  STD_TORCH_CHECK(x_any.dim() > 0 && weight_any.dim() == 2 && weight_any.size(1) == x_any.size(-1),
                  "few_rows_linear: rows of x and of the weight have one length");
  STD_TORCH_CHECK(!bias_any || (bias_any->dim() == 1 && bias_any->size(0) == weight_any.size(0)),
                  "few_rows_linear: the bias has one element per row of the weight");
  const Tensor x = dense(x_any), weight = dense(weight_any);
  std::optional<Tensor> bias;
  if (bias_any) bias = dense(*bias_any);

  std::vector<int64_t> sizes = torchqx::sizes_of(x);
  sizes.back() = weight.size(0);
  int64_t rows = 1;
  for (size_t d = 0; d + 1 < sizes.size(); ++d) rows *= sizes[d];
  Tensor out = allocate(sizes, dtype);
  if (rows == 0 || sizes.back() == 0) return out;
  (dtype == ScalarType::Float ? launch<Float32> : launch<BFloat16>)(x, weight, bias, out, rows);
  return out;
}

}  // namespace torchqx_few_rows

STABLE_TORCH_LIBRARY_IMPL(torchqx, CPU, m) { m.impl("few_rows_linear", TORCH_BOX(&torchqx_few_rows::few_rows_linear)); }
