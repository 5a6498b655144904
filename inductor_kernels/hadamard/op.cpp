// torchqx::hadamard and its quantizing variants on the CPU: the plans, the rotation of all rows, the registration.

namespace torchqx::rotation {

volatile float one = 1;  // see butterfly(); volatile, so that it is not folded away

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

// Rotates every row into the sink that sink_for(row, number) makes, with a type of x that tells its element type.
template <class SinkFor> void rotate_rows(const Tensor& x, const std::optional<Tensor>& signs, int64_t block,
                                          bool transpose, const SinkFor& sink_for) {
  const int64_t k = x.size(x.dim() - 1);
  const Plan& plan = plan_for(x, block, transpose);
  const float* sign_values = checked(signs, k, false, "signs");
  const Signs before(transpose ? nullptr : sign_values, k);
  const Rotation rotation{&plan, &before, k, one};
  over_rows(x, [&](const auto* data, const RowOffsets& offsets, int64_t begin, int64_t end) {
    const Scratch scratch(plan, k);
    for (int64_t r = begin; r < end; ++r) {
      auto sink = sink_for(data, scratch.row, r);
      rotation(data + offsets(r), scratch, sink);
      sink.finish(k);
    }
  });
}

int64_t checked_rows(const Tensor& x, int64_t block) {
  STD_TORCH_CHECK(x.dim() > 0 && block > 0 && x.size(x.dim() - 1) % block == 0,
                  "hadamard: rows must have a multiple of ", block, " elements");
  return x.size(x.dim() - 1);
}

float scale_of(int64_t block) { return static_cast<float>(1 / std::sqrt(static_cast<double>(block))); }

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
  checked_rows(x, block);
  PerTokenResult result(x, smooth, shift, scale_of(block), qmin, qmax, symmetric, clip_ratio);
  if (x.numel() > 0) {
    rotate_rows(x, signs, block, false, [&](const auto*, float* row, int64_t r) { return result.sink(row, r); });
  }
  return result.tensors();
}

}  // namespace torchqx::rotation

STABLE_TORCH_LIBRARY_IMPL(torchqx, CPU, m) {
  m.impl("hadamard", TORCH_BOX(&torchqx::rotation::hadamard));
  m.impl("hadamard_quantize_static", TORCH_BOX(&torchqx::rotation::hadamard_quantize_static));
  m.impl("hadamard_quantize_per_token", TORCH_BOX(&torchqx::rotation::hadamard_quantize_per_token));
}
