// torchqx::attention on the CPU: checks, the split of the rows among threads, and the registration.
#include <optional>

namespace torchqx_attention {

using torchqx::allocate;
using torchqx::ScalarType;
using torchqx::Tensor;

constexpr int64_t kWorthAThread = 1 << 20;  // multiply-adds; below, waking a thread costs more

Tensor dense_rows(const Tensor& t) {
  return t.size(-1) <= 1 || t.stride(t.dim() - 1) == 1 ? t : torch::stable::contiguous(t);
}

Operand operand(const Tensor& t, int64_t bytes = 1) {
  const auto stride = [&](int64_t d) { return t.size(d) == 1 ? 0 : t.stride(d) * bytes; };
  return {t.const_data_ptr(), stride(0), stride(1), stride(2)};
}

Parameter parameter(const std::optional<Tensor>& t, int64_t elements, const char* name) {
  if (!t) return {};
  const bool single = t->numel() == 1;
  STD_TORCH_CHECK(t->scalar_type() == ScalarType::Float && (single || t->numel() == elements) && t->is_contiguous(),
                  "attention: ", name, " must be contiguous float32, of one element or ", elements);
  return {static_cast<const float*>(t->const_data_ptr()), single};
}

template <class Element, Mask kMask>
void run(const Problem& p) {
  const int64_t items = p.batch * p.kv_heads * Worker<Element, kMask>::blocks(p);
  const int64_t work = 2 * p.keys * p.width * std::min(p.rows(), kBlockRows);
  torch::stable::parallel_for(0, items, std::max<int64_t>(1, kWorthAThread / std::max<int64_t>(1, work)),
                              [&p](int64_t begin, int64_t end) {
                                Worker<Element, kMask> worker(p);
                                for (int64_t item = begin; item < end; ++item) worker.run(item);
                              });
}

template <class Element>
void run(const Problem& p, Mask mask) {
  switch (mask) {
    case Mask::kNone: return run<Element, Mask::kNone>(p);
    case Mask::kBool: return run<Element, Mask::kBool>(p);
    case Mask::kFloat32: return run<Element, Mask::kFloat32>(p);
    case Mask::kBFloat16: return run<Element, Mask::kBFloat16>(p);
  }
}

Tensor attention(const Tensor& q_any, const Tensor& k_any, const Tensor& v_any, const std::optional<Tensor>& mask_any,
                 double scale, bool causal, const std::optional<Tensor>& out_mul, const std::optional<Tensor>& out_add,
                 int64_t qmin, int64_t qmax) {
  STD_TORCH_CHECK(q_any.dim() == 4 && k_any.dim() == 4 && v_any.dim() == 4, "attention: q, k and v have 4 dimensions");
  const Tensor q = dense_rows(q_any), k = dense_rows(k_any), v = dense_rows(v_any);
  Problem p{.batch = q.size(0), .heads = q.size(1), .kv_heads = k.size(1), .queries = q.size(2), .keys = k.size(2),
            .width = q.size(3)};
  const ScalarType dtype = q.scalar_type();
  STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::BFloat16, "attention: float32 or bfloat16");
  STD_TORCH_CHECK(k.scalar_type() == dtype && v.scalar_type() == dtype, "attention: q, k and v have one dtype");
  STD_TORCH_CHECK(p.width % 8 == 0, "attention: the width of a head must be a multiple of 8, not ", p.width);
  for (int64_t d = 0; d < 4; ++d)
    STD_TORCH_CHECK(k.size(d) == v.size(d) && (d == 1 || d == 2 || k.size(d) == q.size(d)),
                    "attention: the shapes of q, k and v do not fit");
  STD_TORCH_CHECK(p.heads == 0 || (p.kv_heads > 0 && p.heads % p.kv_heads == 0),
                  "attention: ", p.heads, " heads do not share ", p.kv_heads);
  STD_TORCH_CHECK(scale > 0, "attention: the scale must be positive");
  STD_TORCH_CHECK(!out_mul == !out_add, "attention: out_mul and out_add go together");
  STD_TORCH_CHECK(0 <= qmin && qmin <= qmax && qmax <= 255, "attention: output codes are uint8");
  p.q = operand(q);
  p.k = operand(k);
  p.v = operand(v);
  p.scale = static_cast<float>(scale);
  p.causal = causal;
  p.out_mul = parameter(out_mul, p.heads * p.width, "out_mul");
  p.out_add = parameter(out_add, p.heads * p.width, "out_add");
  p.qmin = static_cast<float>(qmin);
  p.qmax = static_cast<float>(qmax);

  Mask kind = Mask::kNone;
  std::optional<Tensor> mask;
  if (mask_any) {
    STD_TORCH_CHECK(mask_any->dim() == 4, "attention: the mask has 4 dimensions");
    mask = dense_rows(*mask_any);
    const int64_t wanted[] = {p.batch, p.heads, p.queries, p.keys};
    for (int64_t d = 0; d < 4; ++d)
      STD_TORCH_CHECK(mask->size(d) == wanted[d] || (mask->size(d) == 1 && d < 3), "attention: the mask does not fit");
    const ScalarType type = mask->scalar_type();
    STD_TORCH_CHECK(type == ScalarType::Bool || type == ScalarType::Float || type == ScalarType::BFloat16,
                    "attention: the mask is bool, float32 or bfloat16");
    kind = type == ScalarType::Bool ? Mask::kBool : type == ScalarType::Float ? Mask::kFloat32 : Mask::kBFloat16;
    p.mask_bytes = type == ScalarType::Bool ? 1 : type == ScalarType::Float ? 4 : 2;
    p.mask = operand(*mask, p.mask_bytes);
  }
  Tensor out = allocate({p.batch, p.heads, p.queries, p.width},
                        {p.queries * p.heads * p.width, p.width, p.heads * p.width, 1},
                        out_mul ? ScalarType::Byte : dtype);
  if (p.batch == 0 || p.rows() == 0 || p.width == 0) return out;
  p.out = out.mutable_data_ptr();
  dtype == ScalarType::Float ? run<Float32>(p, kind) : run<BFloat16>(p, kind);
  return out;
}

}  // namespace torchqx_attention

STABLE_TORCH_LIBRARY_IMPL(torchqx, CPU, m) { m.impl("attention", TORCH_BOX(&torchqx_attention::attention)); }
