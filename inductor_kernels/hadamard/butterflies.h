// The power-of-two part: x (I ⊗ Sylvester), by additions and subtractions of pairs.

namespace torchqx::rotation {

// v[i] for i < R become their sums with the signs of Sylvester(R). With `one`, which is 1.0 but the compiler cannot know,
// half of the results go through the multiply-add units where those are otherwise idle.
template <int L, int R, class One> TORCHQX_INLINE void butterfly(Vec<L> (&v)[R], const One& one) {
#pragma GCC unroll 8
  for (int h = 1; h < R; h *= 2) {
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i) {
      if (i & h) continue;
      const Vec<L> a = v[i], b = v[i + h];
      v[i] = a + b;
      v[i + h] = a * one - b;
    }
  }
}

// Lane i takes lane i xor D.
template <int L, int D> TORCHQX_INLINE Vec<L> exchanged(const Vec<L>& v) {
#if defined(__clang__)
  return [&]<int... I>(std::integer_sequence<int, I...>) {
    return __builtin_shufflevector(v, v, (I ^ D)...);
  }(std::make_integer_sequence<int, L>());
#else
  return [&]<int... I>(std::integer_sequence<int, I...>) {
    return __builtin_shuffle(v, IntVec<L>{(I ^ D)...});
  }(std::make_integer_sequence<int, L>());
#endif
}

// Sylvester(L) over the lanes of one vector.
template <int L, int D = 1> TORCHQX_INLINE Vec<L> within(const Vec<L>& v) {
  if constexpr (D >= L) {
    return v;
  } else {
    const Vec<L> sign = [&]<int... I>(std::integer_sequence<int, I...>) {
      return Vec<L>{(I & D ? -1.0f : 1.0f)...};
    }(std::make_integer_sequence<int, L>());
    return within<L, 2 * D>(v * sign + exchanged<L, D>(v));
  }
}

// Reads n elements and applies Sylvester(L·G) to each run of L·G of them; asks for the n that follow them, which are the
// next block or row: by the time it is their turn, they have come from memory.
template <class T, int L, int G>
void first_stage(const T* x, const float* signs, int64_t n, float* out) {
  for (int64_t i = 0; i < n; i += L * G) {
    Vec<L> v[G];
#pragma GCC unroll 16
    for (int g = 0; g < G; ++g) v[g] = load<L>(x + i + g * L);
    for (int64_t p = 0; p < static_cast<int64_t>(L * G * sizeof(T)); p += 64) {
      __builtin_prefetch(reinterpret_cast<const char*>(x + n + i) + p, 0, 2);
    }
    if (signs) {
#pragma GCC unroll 16
      for (int g = 0; g < G; ++g) v[g] *= load<L>(signs + i + g * L);
    }
    butterfly<L, G>(v, 1.0f);
#pragma GCC unroll 16
    for (int g = 0; g < G; ++g) store<L>(out + i + g * L, within<L>(v[g]));
  }
}

// Applies Sylvester(R) across runs of `stride` elements, in place.
template <int L, int R> void next_stage(float* x, int64_t n, int64_t stride, float one_value) {
  const Vec<L> one = Vec<L>{} + one_value;
  for (int64_t start = 0; start < n; start += R * stride) {
    for (int64_t i = start; i < start + stride; i += L) {
      Vec<L> v[R];
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) v[r] = load<L>(x + i + r * stride);
      butterfly<L, R>(v, one);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) store<L>(x + i + r * stride, v[r]);
    }
  }
}

}  // namespace torchqx::rotation
