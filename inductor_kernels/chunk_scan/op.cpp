// torchqx::chunk_scan on the CPU: its arguments, the split over threads, and the registration.
namespace torchqx {

std::tuple<Tensor, Tensor> chunk_scan(
    const Tensor& x, const Tensor& dt, const Tensor& a, const Tensor& b, const Tensor& c, const Optional& d,
    const Optional& z, const Optional& dt_bias, const Optional& initial_states, bool dt_softplus,
    const std::optional<double>& dt_min, const std::optional<double>& dt_max, const Optional& x_scale,
    const Optional& dt_scale, const Optional& a_scale, const Optional& b_scale, const Optional& c_scale,
    const Optional& d_scale, const Optional& z_scale, const Optional& out_scale,
    ScalarType out_dtype) {
  if (x.scalar_type() == ScalarType::Double) {
    const auto stack = call<2>("torchqx::chunk_scan_naive", x, dt, a, b, c, d, z, dt_bias, initial_states, dt_softplus,
                               dt_min, dt_max, x_scale, dt_scale, a_scale, b_scale, c_scale, d_scale, z_scale,
                               out_scale, out_dtype);
    return {torch::stable::detail::to<Tensor>(stack[0]), torch::stable::detail::to<Tensor>(stack[1])};
  }
  STD_TORCH_CHECK(x.dim() == 4 && b.dim() == 4, "chunk_scan: x must be [B, L, H, P] and B [B, L, G, N]");
  ChunkScan s;
  s.batches = x.size(0), s.steps = x.size(1), s.heads = x.size(2), s.width = x.size(3);
  s.groups = b.size(2), s.states = b.size(3);
  s.softplus = dt_softplus;
  s.shortest = static_cast<float>(dt_min.value_or(-HUGE_VAL));
  s.longest = static_cast<float>(dt_max.value_or(HUGE_VAL));
  STD_TORCH_CHECK(s.groups > 0 && s.heads % s.groups == 0, "chunk_scan: the groups must divide the heads");
  const std::vector<int64_t> sequence{s.batches, s.steps, s.heads, s.width};
  const std::vector<int64_t> grouped{s.batches, s.steps, s.groups, s.states};
  s.x = operand("x", x, sequence, x_scale, s.heads * s.width);
  s.dt = operand("dt", dt, {s.batches, s.steps, s.heads}, dt_scale, s.heads);
  s.a = operand("A", a, {s.heads}, a_scale);
  s.b = operand("B", b, grouped, b_scale, s.groups);
  s.c = operand("C", c, grouped, c_scale, s.groups);
  s.z = operand("z", z, sequence, z_scale, s.heads * s.width);
  s.dt_bias = operand("dt_bias", dt_bias, {s.heads});
  s.initial = operand("initial_states", initial_states, {s.batches, s.heads, s.width, s.states});
  const bool per_head = d && d->dim() == 1;
  s.d = operand("D", d, per_head ? std::vector{s.heads} : std::vector{s.heads, s.width}, d_scale);
  if (per_head) s.d.strides.push_back(0);

  Tensor y = allocate(sequence, out_dtype);
  Tensor last = allocate({s.batches, s.heads, s.width, s.states}, ScalarType::Float);
  if (last.numel() + y.numel() == 0) return {y, last};
  s.y = result(y, out_scale, s.heads * s.width);
  s.last = static_cast<float*>(last.mutable_data_ptr());

  const int64_t group_heads = s.heads / s.groups, elements = std::max<int64_t>(1, padded(s.width) * s.states);
  const int64_t longest = std::max<int64_t>(1, kScratchBytes / (elements * static_cast<int64_t>(sizeof(float))));
  const int64_t work = elements * std::max<int64_t>(1, s.steps);
  torch::stable::parallel_for(
      0, s.batches * s.heads, std::max<int64_t>(1, kWorthAThread / work), [&](int64_t item, int64_t end) {
        while (item < end) {
          const int64_t first = item % s.heads;
          const int64_t count = std::min({end - item, group_heads - first % group_heads, longest});
          ChunkScanRun(s, item / s.heads, first, count).run();
          item += count;
        }
      });
  return {y, last};
}

}  // namespace torchqx

STABLE_TORCH_LIBRARY_IMPL(torchqx, CPU, m) { m.impl("chunk_scan", TORCH_BOX(&torchqx::chunk_scan)); }
