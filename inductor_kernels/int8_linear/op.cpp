// torchqx::int8_linear on the CPU: checks, the threads, and the registration.
#include <optional>
#include <string>

namespace torchqx {

constexpr int64_t kWorthAThread = 1 << 20;  // multiply-adds; below, waking a thread costs more

Finish finish_for(const std::string& activation) {
  if (activation == "none") return finish_tile<Identity>;
  if (activation == "relu") return finish_tile<Relu>;
  if (activation == "gelu") return finish_tile<Gelu>;
  if (activation == "gelu_tanh") return finish_tile<GeluTanh>;
  if (activation == "quick_gelu") return finish_tile<QuickGelu>;
  if (activation == "silu") return finish_tile<Silu>;
  STD_TORCH_CHECK(false, "int8_linear: unknown activation ", activation);
}

const void* checked(const Tensor& t, ScalarType dtype, int64_t elements, const char* name) {
  STD_TORCH_CHECK(t.scalar_type() == dtype && t.numel() == elements && t.is_contiguous(), "int8_linear: ", name,
                  " must be contiguous, of ", elements, " elements and dtype ", torch::headeronly::toString(dtype));
  return t.const_data_ptr();
}

FloatVector checked_floats(const std::optional<Tensor>& t, int64_t elements, bool one_allowed, const char* name) {
  if (!t) return {};
  const bool one = one_allowed && t->numel() == 1;
  const bool bfloat16 = !one && t->scalar_type() == ScalarType::BFloat16;
  return {checked(*t, bfloat16 ? ScalarType::BFloat16 : ScalarType::Float, one ? 1 : elements, name), bfloat16, !one};
}

Tensor int8_linear(const Tensor& x_any, const Tensor& weight, const Tensor& weight_scale, const Tensor& column_sum,
                   const Tensor& x_scale, const Tensor& x_zero_point, const std::optional<Tensor>& bias,
                   const std::string& activation, const std::optional<Tensor>& residual_any,
                   const std::optional<Tensor>& out_mul, const std::optional<Tensor>& out_add, int64_t out_qmin,
                   int64_t out_qmax, ScalarType out_dtype, std::optional<int64_t> gate) {
  STD_TORCH_CHECK(x_any.dim() > 0, "int8_linear: x must have a last dimension");
  const Tensor x = dense(x_any);
  std::optional<Tensor> residual;
  if (residual_any) residual = dense(*residual_any);

  Problem p;
  Epilogue& e = p.epilogue;
  e.gated = gate.has_value();
  e.gate = gate.value_or(0);
  const int64_t parts = 1 + e.gated, weights = weight_scale.numel();
  STD_TORCH_CHECK(0 <= e.gate && e.gate < parts && weights % parts == 0,
                  "int8_linear: a gate is the half 0 or 1 of an even number of columns");
  e.columns = weights / parts;
  p.k = x.size(-1);
  std::vector<int64_t> sizes = sizes_of(x);
  p.rows = 1;
  for (size_t d = 0; d + 1 < sizes.size(); ++d) p.rows *= sizes[d];
  p.x = static_cast<const uint8_t*>(checked(x, ScalarType::Byte, p.rows * p.k, "x"));
  p.weight = static_cast<const int8_t*>(
      checked(weight, ScalarType::Char, parts * p.panels() * p.panel_bytes(), "weight"));
  p.finish = finish_for(activation);

  e.scale_stride = x_scale.numel() != 1;
  e.zero_point_stride = x_zero_point.numel() != 1;
  e.x_scale = static_cast<const float*>(
      checked(x_scale, ScalarType::Float, e.scale_stride ? p.rows : 1, "x_scale"));
  e.x_zero_point = static_cast<const int32_t*>(
      checked(x_zero_point, ScalarType::Int, e.zero_point_stride ? p.rows : 1, "x_zero_point"));
  e.weight_scale = static_cast<const float*>(checked(weight_scale, ScalarType::Float, weights, "weight_scale"));
  e.column_sum = static_cast<const int32_t*>(checked(column_sum, ScalarType::Int, weights, "column_sum"));
  e.bias = checked_floats(bias, weights, false, "bias");
  e.residual = checked_floats(residual, p.rows * e.columns, false, "residual");
  e.out_mul = checked_floats(out_mul, e.columns, true, "out_mul");
  e.out_add = checked_floats(out_add, e.columns, true, "out_add");
  STD_TORCH_CHECK(!out_mul == !out_add, "int8_linear: out_mul and out_add go together");
  STD_TORCH_CHECK(0 <= out_qmin && out_qmin <= out_qmax && out_qmax <= 255, "int8_linear: output codes are uint8");
  e.qmin = static_cast<float>(out_qmin);
  e.qmax = static_cast<float>(out_qmax);
  STD_TORCH_CHECK(out_mul || out_dtype == ScalarType::Float || out_dtype == ScalarType::BFloat16,
                  "int8_linear: the output is float32, bfloat16, or requantized uint8");
  e.output = out_mul ? Output::kUInt8 : out_dtype == ScalarType::Float ? Output::kFloat32 : Output::kBFloat16;

  sizes.back() = e.columns;
  Tensor out = allocate(sizes, out_mul ? ScalarType::Byte : out_dtype);
  if (p.rows == 0 || e.columns == 0) return out;
  e.out = out.mutable_data_ptr();
  const int64_t tiles = p.panels() * p.blocks();
  const int64_t tile_work = parts * kTileColumns * (p.k + 64) * (p.rows / p.blocks() + 2);
  torch::stable::parallel_for(0, tiles, std::max<int64_t>(1, kWorthAThread / tile_work),
                              [&p](int64_t begin, int64_t end) { p.run(begin, end); });
  return out;
}

}  // namespace torchqx

STABLE_TORCH_LIBRARY_IMPL(torchqx, CPU, m) { m.impl("int8_linear", TORCH_BOX(&torchqx::int8_linear)); }
