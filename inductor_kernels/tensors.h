// Tensors in every CPU kernel here; load_operators() puts this in front.
// Only the stable C interface of torch is included: it compiles in a second where ATen's headers take eight.
#define TORCH_TARGET_VERSION (((0ULL + 2) << 56) | ((0ULL + 11) << 48))
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <vector>

namespace torchqx {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Straight through the C interface: torch::stable::new_empty would go through the dispatcher, a microsecond more.
inline Tensor allocate(const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides, ScalarType dtype) {
  const int32_t code = torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype));
  AtenTensorHandle handle;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(sizes.size(), sizes.data(), strides.data(), code,
                                                  aoti_torch_device_type_cpu(), 0, &handle));
  return Tensor(handle);
}

inline Tensor allocate(const std::vector<int64_t>& sizes, ScalarType dtype) {
  std::vector<int64_t> strides(sizes.size(), 1);
  for (size_t d = sizes.size() - 1; d > 0; --d) strides[d - 1] = strides[d] * std::max<int64_t>(sizes[d], 1);
  return allocate(sizes, strides, dtype);
}

inline std::vector<int64_t> sizes_of(const Tensor& t) { return {t.sizes().begin(), t.sizes().end()}; }

inline Tensor dense(const Tensor& t) { return t.is_contiguous() ? t : torch::stable::contiguous(t); }

// Calls an operator that was defined in Python, by name. The stack holds its arguments before and its results after.
template <size_t results, class... Args>
auto call(const char* name, const Args&... args) {
  std::array<StableIValue, std::max(sizeof...(Args), results)> stack{torch::stable::detail::from(args)...};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(name, "", stack.data(), TORCH_ABI_VERSION));
  return stack;
}

template <class... Args> Tensor call_for_tensor(const char* name, const Args&... args) {
  return torch::stable::detail::to<Tensor>(call<1>(name, args...)[0]);
}

}  // namespace torchqx
