// The power-of-two part: x (I ⊗ Sylvester), by additions and subtractions of pairs.

namespace torchqx::rotation {

// One level: each pair of vectors that are H apart becomes its sum and its difference. With `one`, which is 1.0 but the
// compiler cannot know, the differences go through the multiply-add units where those are otherwise idle.
template <int L, int R, int H, class One> TORCHQX_INLINE void level(Vec<L> (&v)[R], const One& one) {
#pragma GCC unroll 16
  for (int i = 0; i < R; ++i) {
    if (i & H) continue;
    const Vec<L> a = v[i], b = v[i + H];
    v[i] = a + b;
    v[i + H] = a * one - b;
  }
}

// v[i] for i < R become their sums with the signs of Sylvester(R).
template <int L, int R, int H = 1, class One> TORCHQX_INLINE void butterfly(Vec<L> (&v)[R], const One& one) {
  if constexpr (H < R) {
    level<L, R, H>(v, one);
    butterfly<L, R, 2 * H>(v, one);
  }
}

// Lane i takes lane i xor D.
template <int L, int D> TORCHQX_INLINE Vec<L> exchanged(const Vec<L>& v) {
#if defined(__clang__)
  return [&]<int... I>(std::integer_sequence<int, I...>) TORCHQX_INLINE_LAMBDA {
    return __builtin_shufflevector(v, v, (I ^ D)...);
  }(std::make_integer_sequence<int, L>());
#else
  return [&]<int... I>(std::integer_sequence<int, I...>) TORCHQX_INLINE_LAMBDA {
    return __builtin_shuffle(v, IntVec<L>{(I ^ D)...});
  }(std::make_integer_sequence<int, L>());
#endif
}

// One level over the lanes of a vector: pairs of lanes that are D apart.
template <int L, int D> TORCHQX_INLINE Vec<L> lane_level(const Vec<L>& v) {
  const Vec<L> sign = [&]<int... I>(std::integer_sequence<int, I...>) TORCHQX_INLINE_LAMBDA {
    return Vec<L>{(I & D ? -1.0f : 1.0f)...};
  }(std::make_integer_sequence<int, L>());
  return v * sign + exchanged<L, D>(v);
}

// Sylvester(L·G) over each G of R vectors. The levels take turns, across vectors on the units that add, across lanes on
// those that shuffle and multiply: all of one kind first would leave the other units idle.
template <int L, int R, int G, int H = 1, int D = 1> TORCHQX_INLINE void butterfly_with_lanes(Vec<L> (&v)[R]) {
  if constexpr (H < G) level<L, R, H>(v, 1.0f);
  if constexpr (D < L) {
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i) v[i] = lane_level<L, D>(v[i]);
  }
  if constexpr (H < G || D < L) butterfly_with_lanes<L, R, G, 2 * H, 2 * D>(v);
}

// Asks for the next block or row while this one is worked on, so that it has come from memory when its turn comes.
// Every pass asks for its share: memory is no faster when asked for all at once, and needs time to answer. A `long_one`
// waits in the second-level cache: in the first it would push out the floats of this one.
struct Ahead {
  const char* asked;
  int64_t share;       // bytes to ask for per element of a pass, times 256
  bool long_one;
  int64_t behind = 0;  // bytes not asked for yet, times 256

  TORCHQX_INLINE void operator()(int64_t elements) {
    for (behind += elements * share; behind > 0; behind -= 64 * 256, asked += 64) {
      if (long_one) __builtin_prefetch(asked, 0, 2);
      else __builtin_prefetch(asked);
    }
  }
};

}  // namespace torchqx::rotation
