// torchqx::quantize_rows on the CPU: the sink of a rotation that quantizes, fed with rows as they are.

namespace torchqx::rotation {

template <int R, class T> TORCHQX_INLINE void put_vectors(const T* x, int64_t i, PerToken& sink) {
  Vec<16> v[R];
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) v[r] = load<16>(x + i + 16 * r);
  sink.put<16, R>(i, v);
}

template <class T> void quantize_row(const T* x, int64_t k, PerToken sink) {
  int64_t i = 0;
  for (; i + 64 <= k; i += 64) put_vectors<4>(x, i, sink);
  for (; i + 16 <= k; i += 16) put_vectors<1>(x, i, sink);
  for (; i < k; ++i) {
    Vec<1> v[1] = {load<1>(x + i)};
    sink.put<1, 1>(i, v);
  }
  sink.finish(k);
}

std::tuple<Tensor, Tensor, Tensor> quantize_rows(const Tensor& x, const std::optional<Tensor>& inv_smooth,
                                                 const std::optional<Tensor>& shift, int64_t qmin, int64_t qmax,
                                                 bool symmetric, double clip_ratio) {
  STD_TORCH_CHECK(x.dim() > 0, "quantize_rows: a number has no rows");
  const PerTokenResult result(x, inv_smooth, shift, 1, qmin, qmax, symmetric, clip_ratio);
  const int64_t k = x.size(x.dim() - 1);
  if (x.numel() > 0) {
    over_rows(x, [&](const auto* data, const RowOffsets& offsets, int64_t begin, int64_t end) {
      std::vector<float> kept(k);
      for (int64_t r = begin; r < end; ++r) quantize_row(data + offsets(r), k, result.sink(kept.data(), r));
    });
  }
  return result.tensors();
}

}  // namespace torchqx::rotation

STABLE_TORCH_LIBRARY_IMPL(torchqx, CPU, m) {
  m.impl("quantize_rows", TORCH_BOX(&torchqx::rotation::quantize_rows));
}
