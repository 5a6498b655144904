// torchqx::selective_scan on the CPU: its arguments, the split over threads, and the registration.
namespace torchqx {

std::vector<int64_t> with_group(const Tensor& t) {  // sizes of B or C as [batch, group, N, time]
  const auto sizes = t.sizes();
  if (sizes.size() == 4) return {sizes.begin(), sizes.end()};
  STD_TORCH_CHECK(sizes.size() == 3, "selective_scan: B and C must be [B, N, L] or [B, G, N, L]");
  return {sizes[0], 1, sizes[1], sizes[2]};
}

Operand grouped(const char* name, const Tensor& t, std::vector<int64_t> sizes, const Optional& scale) {
  if (t.dim() == 4) return operand(name, t, sizes, scale, sizes[1]);
  STD_TORCH_CHECK(sizes[1] == 1, "selective_scan: B and C must have the same number of groups");
  Operand o = operand(name, t, {sizes[0], sizes[2], sizes[3]}, scale, 1);
  o.strides.insert(o.strides.begin() + 1, 0);
  return o;
}

std::tuple<Tensor, Tensor> selective_scan(
    const Tensor& u, const Tensor& delta, const Tensor& a, const Tensor& b, const Tensor& c, const Optional& d,
    const Optional& z, const Optional& delta_bias, const Optional& initial_state, bool delta_softplus,
    const Optional& u_scale, const Optional& delta_scale, const Optional& a_scale, const Optional& b_scale,
    const Optional& c_scale, const Optional& d_scale, const Optional& z_scale, const Optional& out_scale,
    ScalarType out_dtype) {
  if (u.scalar_type() == ScalarType::Double) {
    const auto stack = call<2>("torchqx::selective_scan_naive", u, delta, a, b, c, d, z, delta_bias, initial_state,
                               delta_softplus, u_scale, delta_scale, a_scale, b_scale, c_scale, d_scale, z_scale,
                               out_scale, out_dtype);
    return {torch::stable::detail::to<Tensor>(stack[0]), torch::stable::detail::to<Tensor>(stack[1])};
  }
  STD_TORCH_CHECK(u.dim() == 3 && a.dim() == 2, "selective_scan: u must be [B, D, L] and A [D, N]");
  const auto group_sizes = with_group(b);
  Scan s;
  s.batches = u.size(0), s.channels = u.size(1), s.steps = u.size(2), s.states = a.size(1), s.groups = group_sizes[1];
  s.softplus = delta_softplus;
  STD_TORCH_CHECK(s.groups > 0 && s.channels % s.groups == 0, "selective_scan: the groups must divide the channels");
  const std::vector<int64_t> sequence{s.batches, s.channels, s.steps};
  s.u = operand("u", u, sequence, u_scale, s.channels);
  s.delta = operand("delta", delta, sequence, delta_scale, s.channels);
  s.a = operand("A", a, {s.channels, s.states}, a_scale);
  s.b = grouped("B", b, {s.batches, s.groups, s.states, s.steps}, b_scale);
  s.c = grouped("C", c, {s.batches, s.groups, s.states, s.steps}, c_scale);
  s.d = operand("D", d, {s.channels}, d_scale);
  s.z = operand("z", z, sequence, z_scale, s.channels);
  s.delta_bias = operand("delta_bias", delta_bias, {s.channels});
  s.initial = operand("initial_state", initial_state, {s.batches, s.channels, s.states});

  Tensor y = allocate(sequence, {s.channels * s.steps, 1, s.channels}, out_dtype);
  Tensor last = allocate({s.batches, s.channels, s.states}, ScalarType::Float);
  if (last.numel() + y.numel() == 0) return {y, last};
  s.y = result(y, out_scale, s.channels);
  s.last = static_cast<float*>(last.mutable_data_ptr());

  const int64_t group_blocks = blocks(s.channels / s.groups);
  const int64_t block_bytes = 2 * kLanes * sizeof(float) * std::max<int64_t>(1, s.states);
  const int64_t longest = std::max<int64_t>(1, kScratchBytes / block_bytes);
  const int64_t work = kLanes * (s.states + 8) * std::max<int64_t>(1, s.steps);
  torch::stable::parallel_for(
      0, s.batches * s.groups * group_blocks, std::max<int64_t>(1, kWorthAThread / work),
      [&](int64_t item, int64_t end) {
        while (item < end) {
          const int64_t group = item / group_blocks, first = item % group_blocks;
          const int64_t count = std::min({end - item, group_blocks - first, longest});
          ScanRun(s, group / s.groups, group % s.groups, first, count).run();
          item += count;
        }
      });
  return {y, last};
}

}  // namespace torchqx

STABLE_TORCH_LIBRARY_IMPL(torchqx, CPU, m) { m.impl("selective_scan", TORCH_BOX(&torchqx::selective_scan)); }
