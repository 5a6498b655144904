// torchqx::causal_conv1d and torchqx::causal_conv1d_update on the CPU: arguments, threads, registration.
namespace torchqx {

constexpr int64_t kConvWorthAThread = 1 << 14;  // outputs; below, waking a thread costs more

bool is_silu(const std::string& activation) {
  STD_TORCH_CHECK(activation == "silu" || activation == "none", "causal_conv1d: unknown activation ", activation);
  return activation == "silu";
}

Conv arguments(const Tensor& x, const Tensor& weight, const Optional& bias, const Optional& history,
               const std::string& activation, const Optional& x_scale, const Optional& weight_scale) {
  STD_TORCH_CHECK(x.dim() == 3 && weight.dim() == 2, "causal_conv1d: x must be [B, D, L] and the weight [D, W]");
  Conv conv;
  conv.batches = x.size(0), conv.channels = x.size(1), conv.steps = x.size(2), conv.taps = weight.size(1);
  conv.past = history ? history->size(-1) : 0;
  conv.silu = is_silu(activation);
  conv.x = operand("x", x, {conv.batches, conv.channels, conv.steps}, x_scale, conv.channels);
  conv.weight = operand("weight", weight, {conv.channels, conv.taps}, weight_scale, conv.channels);
  conv.bias = operand("bias", bias, {conv.channels});
  if (!history) return conv;
  STD_TORCH_CHECK(history->scalar_type() == x.scalar_type(), "causal_conv1d: the state must be of x's type");
  conv.history = operand("the state", *history, {conv.batches, conv.channels, conv.past}, x_scale, conv.channels);
  return conv;
}

Tensor output(Conv& conv, const Optional& out_scale, ScalarType out_dtype) {
  Tensor y = allocate({conv.batches, conv.channels, conv.steps}, {conv.channels * conv.steps, 1, conv.channels},
                      out_dtype);
  conv.y = result(y, out_scale, conv.channels);
  return y;
}

Tensor causal_conv1d(const Tensor& x, const Tensor& weight, const Optional& bias, const Optional& initial_states,
                     const std::string& activation, const Optional& x_scale, const Optional& weight_scale,
                     const Optional& out_scale, ScalarType out_dtype) {
  if (x.scalar_type() == ScalarType::Double)
    return call_for_tensor("torchqx::causal_conv1d_naive", x, weight, bias, initial_states, activation, x_scale,
                           weight_scale, out_scale, out_dtype);
  Conv conv = arguments(x, weight, bias, initial_states, activation, x_scale, weight_scale);
  Tensor y = output(conv, out_scale, out_dtype);
  if (y.numel() == 0) return y;
  // Blocks of channels follow each other, then blocks of time: neighbours share cache lines.
  const int64_t across = blocks(conv.channels), along = (conv.steps + Conv::kBlock - 1) / Conv::kBlock;
  torch::stable::parallel_for(
      0, conv.batches * along * across, kConvWorthAThread / (Conv::kBlock * kLanes), [&](int64_t item, int64_t last) {
        const Exp2 exp2;
        std::vector<float> rows((Conv::kBlock + conv.taps - 1) * kLanes);
        for (; item < last; ++item) {
          const int64_t channel = item % across * kLanes, batch = item / across / along;
          const int64_t begin = item / across % along * Conv::kBlock, end = std::min(begin + Conv::kBlock, conv.steps);
          conv.inputs(batch, channel, begin - conv.taps + 1, end, rows.data());
          conv.outputs(exp2, batch, channel, begin, end, rows.data());
        }
      });
  return y;
}

// The last ``past`` inputs, of the lanes' channels, become the state. Their bits are moved: codes stay codes.
template <class Bits>
void shift_state(const Conv& conv, void* state, int64_t batch, int64_t channel) {
  const int64_t kept = std::max<int64_t>(0, conv.past - conv.steps), *strides = conv.x.strides.data();
  for (int64_t c = channel; c < channel + conv.lanes(channel); ++c) {
    Bits* row = static_cast<Bits*>(state) + (batch * conv.channels + c) * conv.past;
    const Bits* x = reinterpret_cast<const Bits*>(conv.x.data) + batch * strides[0] + c * strides[1];
    for (int64_t i = 0; i < kept; ++i) row[i] = row[i + conv.past - kept];
    for (int64_t i = kept; i < conv.past; ++i) row[i] = x[(conv.steps - conv.past + i) * strides[2]];
  }
}

Tensor causal_conv1d_update(const Tensor& x, const Tensor& state, const Tensor& weight, const Optional& bias,
                            const std::string& activation, const Optional& x_scale, const Optional& weight_scale,
                            const Optional& out_scale, ScalarType out_dtype) {
  if (x.scalar_type() == ScalarType::Double)
    return call_for_tensor("torchqx::causal_conv1d_update_naive", x, state, weight, bias, activation, x_scale,
                           weight_scale, out_scale, out_dtype);
  Conv conv = arguments(x, weight, bias, state, activation, x_scale, weight_scale);
  STD_TORCH_CHECK(state.is_contiguous(), "causal_conv1d_update: the state must be contiguous");
  Tensor y = output(conv, out_scale, out_dtype);
  if (y.numel() == 0) return y;
  void* const moved = state.mutable_data_ptr();
  const auto shift = conv.x.element_size == 4 ? shift_state<int32_t>
                     : conv.x.element_size == 2 ? shift_state<int16_t> : shift_state<int8_t>;
  const int64_t across = blocks(conv.channels);
  torch::stable::parallel_for(
      0, conv.batches * across, std::max<int64_t>(1, kConvWorthAThread / (conv.steps * kLanes)),
      [&](int64_t item, int64_t last) {
        const Exp2 exp2;
        std::vector<float> rows((Conv::kBlock + conv.taps - 1) * kLanes);
        for (; item < last; ++item) {
          const int64_t batch = item / across, channel = item % across * kLanes;
          for (int64_t begin = 0; begin < conv.steps; begin += Conv::kBlock) {
            const int64_t end = std::min(begin + Conv::kBlock, conv.steps);
            conv.inputs(batch, channel, begin - conv.taps + 1, end, rows.data());
            conv.outputs(exp2, batch, channel, begin, end, rows.data());
          }
          shift(conv, moved, batch, channel);
        }
      });
  return y;
}

}  // namespace torchqx

STABLE_TORCH_LIBRARY_IMPL(torchqx, CPU, m) {
  m.impl("causal_conv1d", TORCH_BOX(&torchqx::causal_conv1d));
  m.impl("causal_conv1d_update", TORCH_BOX(&torchqx::causal_conv1d_update));
}
