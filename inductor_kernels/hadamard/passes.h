// The passes over a block: a first one from the input, across runs of elements, and a last one along them.
#include <vector>

namespace torchqx::rotation {

// Calls body with 0 to N - 1, each known to the compiler.
template <int N, class Body> TORCHQX_INLINE void for_each_constant(const Body& body) {
  [&]<int... I>(std::integer_sequence<int, I...>) TORCHQX_INLINE_LAMBDA {
    (body(std::integral_constant<int, I>()), ...);
  }(std::make_integer_sequence<int, N>());
}

// The signs of a row, a bit each: they take no room in the caches.
struct Signs {
  std::vector<uint16_t> bits;  // set where the sign is -1

  Signs(const float* signs, int64_t k) : bits(k / 16 + 2) {
    for (int64_t i = 0; signs && i < k; ++i) bits[i / 16] |= std::signbit(signs[i]) << i % 16;
  }

  float of(int64_t i) const { return bits[i / 16] >> i % 16 & 1 ? -1.0f : 1.0f; }
};

// v, negated where bits has Step · lane + First set.
template <int Step, int First> TORCHQX_INLINE Vec<16> signed_by(uint32_t bits, const Vec<16>& v) {
#if defined(__AVX512F__)
  if constexpr (Step == 1) {
    const __m512i flipped = bits_as<__m512i>(v);
    return bits_as<Vec<16>>(_mm512_mask_xor_epi32(flipped, bits, flipped, _mm512_set1_epi32(INT32_MIN)));
  }
#endif
  const IntVec<16> lane = [&]<int... I>(std::integer_sequence<int, I...>) TORCHQX_INLINE_LAMBDA {
    return IntVec<16>{static_cast<int32_t>(1u << (Step * I + First))...};
  }(std::make_integer_sequence<int, 16>());
  const IntVec<16> chosen = ((IntVec<16>{} + static_cast<int32_t>(bits)) & lane) != 0;
  return bits_as<Vec<16>>(bits_as<IntVec<16>>(v) ^ (chosen & INT32_MIN));
}

// What a pass reads: at<S>(i) has the elements from i on, and kVectors vectors stand for as many times 16 elements.
template <class T> struct Rows {
  static constexpr int kVectors = 1;
  const T* x;
  const uint16_t* bits;

  template <int S> TORCHQX_INLINE Vec<16> at(int64_t i) const { return signed_by<1, 0>(bits[i / 16], load<16>(x + i)); }
};

struct Floats {
  static constexpr int kVectors = 1;
  const float* x;

  template <int S> TORCHQX_INLINE Vec<16> at(int64_t i) const { return load<16>(x + i); }
};

// Of 32 elements first the sums of neighbours, then their differences. They stay apart until the last pass, which then
// has no level of neighbouring lanes; one instruction makes floats of bfloat16, applies the signs and adds
// (subnormal numbers count as zero).
struct Pairs {
  static constexpr int kVectors = 2;
  const bfloat16* x;
  const uint16_t* bits;

  template <int S> TORCHQX_INLINE Vec<16> at(int64_t i) const {
    static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__);
    const uint32_t flips = read<uint32_t>(bits + i / 16);
#if defined(__AVX512BF16__)
    constexpr int32_t kSigns = S ? static_cast<int32_t>(0xbf803f80) : 0x3f803f80;  // bfloat16 1, and 1 or -1
    const __m512i signs = _mm512_mask_blend_epi16(flips, _mm512_set1_epi32(kSigns),
                                                  _mm512_set1_epi32(kSigns ^ static_cast<int32_t>(0x80008000)));
    return bits_as<Vec<16>>(_mm512_dpbf16_ps(_mm512_setzero_ps(), read<__m512bh>(x + i), bits_as<__m512bh>(signs)));
#else
    const IntVec<16> both = read<IntVec<16>>(x + i);
    const Vec<16> even = signed_by<2, 0>(flips, bits_as<Vec<16>>(both << 16));
    const Vec<16> odd = signed_by<2, 1>(flips, bits_as<Vec<16>>(both & -65536));
    return S ? even - odd : even + odd;
#endif
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
  butterfly_with_lanes<16, R, G, Paired ? 2 : 1>(v);
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
