// The passes over a block: a first one from the input, across runs of elements, and a last one along them.

namespace torchqx::rotation {

// Calls body with 0 to N - 1, each known to the compiler.
template <int N, class Body> TORCHQX_INLINE void for_each_constant(const Body& body) {
  [&]<int... I>(std::integer_sequence<int, I...>) TORCHQX_INLINE_LAMBDA {
    (body(std::integral_constant<int, I>()), ...);
  }(std::make_integer_sequence<int, N>());
}

// What a pass reads: at<S>(i) has the elements from i on, and kVectors vectors stand for as many times 16 elements.
template <class T> struct Rows {
  static constexpr int kVectors = 1;
  const T* x;
  const float* signs;

  template <int S> TORCHQX_INLINE Vec<16> at(int64_t i) const { return load<16>(x + i) * load<16>(signs + i); }
};

struct Floats {
  static constexpr int kVectors = 1;
  const float* x;

  template <int S> TORCHQX_INLINE Vec<16> at(int64_t i) const { return load<16>(x + i); }
};

// Of 32 elements first the even ones, then the odd ones: a shift or a mask makes a float of a bfloat16. They stay apart
// until the last pass, where the level between them needs no exchange of lanes.
struct Pairs {
  static constexpr int kVectors = 2;
  const bfloat16* x;
  const uint16_t* flips;  // the signs, as the highest bits

  template <int S> TORCHQX_INLINE Vec<16> at(int64_t i) const {
    static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__);
    const IntVec<16> both = read<IntVec<16>>(x + i) ^ read<IntVec<16>>(flips + i);
    return bits_as<Vec<16>>(S ? both & -65536 : both << 16);
  }
};

// Applies Sylvester(R) across R runs of `stride` elements; R = 1 only converts.
template <int R, class Source>
void radix_pass(const Source& from, int64_t stride, float* out, float one_value, Ahead& ahead) {
  const Vec<16> one = Vec<16>{} + one_value;
  for (int64_t i = 0; i < stride; i += 16 * Source::kVectors) {
    for_each_constant<Source::kVectors>([&]<int S>(std::integral_constant<int, S>) TORCHQX_INLINE_LAMBDA {
      Vec<16> v[R];
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) v[r] = from.template at<S>(i + r * stride);
      ahead(16 * R);
      butterfly<16, R>(v, one);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) store<16>(out + i + 16 * S + r * stride, v[r]);
    });
  }
}

template <class Source>
void any_radix_pass(int radix, const Source& from, int64_t stride, float* out, float one, Ahead& ahead) {
  switch (radix) {
    case 16: return radix_pass<16>(from, stride, out, one, ahead);
    case 8: return radix_pass<8>(from, stride, out, one, ahead);
    case 4: return radix_pass<4>(from, stride, out, one, ahead);
    case 2: return radix_pass<2>(from, stride, out, one, ahead);
    default: return radix_pass<1>(from, stride, out, one, ahead);
  }
}

// The even and the odd elements become the first and the second 16.
TORCHQX_INLINE void interleave(Vec<16>& even, Vec<16>& odd) {
  const IntVec<16> low{0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23};
#if defined(__clang__)
  const Vec<16> first = __builtin_shufflevector(even, odd, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  odd = __builtin_shufflevector(even, odd, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
#else
  const Vec<16> first = __builtin_shuffle(even, odd, low);
  odd = __builtin_shuffle(even, odd, low + 8);
#endif
  even = first;
}

// R vectors: each G of them times Sylvester(16·G), in order again, and to the sink as the elements from `at` on.
template <int R, int G, bool Paired, class Sink>
TORCHQX_INLINE void last_vectors(const float* x, int64_t at, Sink& sink) {
  Vec<16> v[R];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) v[r] = load<16>(x + 16 * r);
  butterfly_with_lanes<16, R, G>(v);
  if constexpr (Paired) {
#pragma GCC unroll 16
    for (int r = 0; r < R; r += 2) interleave(v[r], v[r + 1]);
  }
  sink.template put<16, R>(at, v);
}

// Runs of 16·G elements, n in all; short ones several at a time, for whole cache lines of output.
template <int G, bool Paired, class Sink>
void last_pass(const float* x, int64_t n, int64_t at, Sink& sink, Ahead& ahead) {
  constexpr int R = G < 4 ? 4 : G;
  int64_t i = 0;
  for (; i + 16 * R <= n; i += 16 * R) {
    ahead(16 * R);
    last_vectors<R, G, Paired>(x + i, at + i, sink);
  }
  for (; i < n; i += 16 * G) last_vectors<G, G, Paired>(x + i, at + i, sink);
}

template <bool Paired, class Sink>
void any_last_pass(int group, const float* x, int64_t n, int64_t at, Sink& sink, Ahead& ahead) {
  switch (group) {
    case 16: return last_pass<16, Paired>(x, n, at, sink, ahead);
    case 8: return last_pass<8, Paired>(x, n, at, sink, ahead);
    case 4: return last_pass<4, Paired>(x, n, at, sink, ahead);
    case 2: return last_pass<2, Paired>(x, n, at, sink, ahead);
    default: break;
  }
  if constexpr (!Paired) last_pass<1, false>(x, n, at, sink, ahead);
}

// Sylvester(power) of runs shorter than a vector, in place.
inline void short_runs(float* x, int64_t n, int64_t power) {
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) {
    Vec<16> v = load<16>(x + i);
    if (power > 1) v = lane_level<16, 1>(v);
    if (power > 2) v = lane_level<16, 2>(v);
    if (power > 4) v = lane_level<16, 4>(v);
    store<16>(x + i, v);
  }
  for (int64_t h = 1; h < power; h *= 2) {
    for (int64_t j = i; j < n; ++j) {
      if (j & h) continue;
      const float a = x[j], b = x[j + h];
      x[j] = a + b, x[j + h] = a - b;
    }
  }
}

}  // namespace torchqx::rotation
