// torchqx::state_update on the CPU: its arguments in Mamba's or Mamba2's form, and the registration.
namespace torchqx {

// Mamba2's form has one dimension more, for heads: Mamba's operands get one head.
struct Form {
  bool heads;

  Operand read(const char* name, const Tensor& t, std::vector<int64_t> sizes, size_t dim, const Optional& scale,
               int64_t channels) const {
    if (heads) return operand(name, t, sizes, scale, channels);
    sizes.erase(sizes.begin() + dim);
    Operand o = operand(name, t, sizes, scale, channels);
    o.strides.insert(o.strides.begin() + dim, 0);
    return o;
  }
  Operand read(const char* name, const Optional& t, std::vector<int64_t> sizes, size_t dim, const Optional& scale,
               int64_t channels) const {
    STD_TORCH_CHECK(t || !scale, name, ": a scale without a tensor");
    return t ? read(name, *t, std::move(sizes), dim, scale, channels) : Operand{};
  }
};

Tensor state_update(const Tensor& state, const Tensor& x, const Tensor& dt, const Tensor& a, const Tensor& b,
                    const Tensor& c, const Optional& d, const Optional& z, const Optional& dt_bias, bool dt_softplus,
                    const Optional& x_scale, const Optional& dt_scale, const Optional& a_scale, const Optional& b_scale,
                    const Optional& c_scale, const Optional& d_scale, const Optional& z_scale,
                    const Optional& out_scale, ScalarType out_dtype) {
  if (x.scalar_type() == ScalarType::Double)
    return call_for_tensor("torchqx::state_update_naive", state, x, dt, a, b, c, d, z, dt_bias, dt_softplus, x_scale,
                           dt_scale, a_scale, b_scale, c_scale, d_scale, z_scale, out_scale, out_dtype);
  const Form form{state.dim() == 4};
  STD_TORCH_CHECK((form.heads || state.dim() == 3) && state.is_contiguous() && b.dim() == state.dim() - 1,
                  "state_update: the state must be contiguous, [B, D, N] or [B, H, P, N], B [B, N] or [B, G, N]");
  Update u;
  u.batches = state.size(0), u.heads = form.heads ? state.size(1) : 1;
  u.rows = state.size(-2), u.states = state.size(-1), u.groups = form.heads ? b.size(1) : 1;
  u.softplus = dt_softplus;
  STD_TORCH_CHECK(u.groups > 0 && u.heads % u.groups == 0, "state_update: the groups must divide the heads");
  const int64_t channels = u.heads * u.rows;
  const std::vector<int64_t> step{u.batches, u.heads, u.rows}, parameter{u.heads, u.rows};
  const std::vector<int64_t> grouped{u.batches, u.groups, u.states};
  u.x = form.read("x", x, step, 1, x_scale, channels);
  u.dt = form.read("dt", dt, step, 1, dt_scale, channels);
  u.a = form.read("A", a, {u.heads, u.rows, u.states}, 0, a_scale, 1);
  u.b = form.read("B", b, grouped, 1, b_scale, u.groups);
  u.c = form.read("C", c, grouped, 1, c_scale, u.groups);
  u.d = form.read("D", d, parameter, 0, d_scale, 1);
  u.z = form.read("z", z, step, 1, z_scale, channels);
  u.dt_bias = form.read("dt_bias", dt_bias, parameter, 0, {}, 1);

  const auto sizes = x.sizes();
  Tensor y = allocate({sizes.begin(), sizes.end()}, out_dtype);
  if (y.numel() == 0) return y;
  u.y = result(y, out_scale, channels);
  u.state = state.mutable_data_ptr();
  const auto update = [&]<class T>() {
    torch::stable::parallel_for(0, u.batches * u.heads * blocks(u.rows),
                                std::max<int64_t>(1, kWorthAThread / (kLanes * (u.states + 8))),
                                [&u](int64_t begin, int64_t end) { UpdateRun<T>(u).run(begin, end); });
  };
  switch (state.scalar_type()) {
    case ScalarType::Float: update.template operator()<float>(); break;
    case ScalarType::BFloat16: update.template operator()<BFloat16>(); break;
    default: STD_TORCH_CHECK(false, "state_update: the state must be float32 or bfloat16");
  }
  return y;
}

}  // namespace torchqx

STABLE_TORCH_LIBRARY_IMPL(torchqx, CPU, m) { m.impl("state_update", TORCH_BOX(&torchqx::state_update)); }
