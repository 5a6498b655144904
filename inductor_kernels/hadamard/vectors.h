// Vectors of L floats by the compiler's vector extensions: AVX-512, AVX2, or NEON, whatever the target has.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#if defined(__AVX512F__) || defined(__F16C__)
#include <immintrin.h>
#endif

#pragma GCC diagnostic ignored "-Wpsabi"
#define TORCHQX_INLINE inline __attribute__((always_inline))
#define TORCHQX_INLINE_LAMBDA __attribute__((always_inline))  // large functions would run out of the compiler's budget

namespace torchqx::rotation {

struct bfloat16 { uint16_t bits; };
struct float16 { uint16_t bits; };

template <int L> struct Lanes {
  typedef float Float __attribute__((vector_size(4 * L)));
  typedef int32_t Int __attribute__((vector_size(4 * L)));
  typedef uint16_t Short __attribute__((vector_size(2 * L)));
  typedef uint8_t Byte __attribute__((vector_size(L)));
};
template <int L> using Vec = typename Lanes<L>::Float;
template <int L> using IntVec = typename Lanes<L>::Int;

template <class To, class From> TORCHQX_INLINE To bits_as(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

template <class V> TORCHQX_INLINE V read(const void* p) {
  V v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}

template <class V> TORCHQX_INLINE void write(void* p, const V& v) { std::memcpy(p, &v, sizeof(v)); }

// What is read once stays in a register, where the compiler would read it again for each of many uses.
TORCHQX_INLINE void read_once([[maybe_unused]] Vec<16>& v) {
#if defined(__AVX512F__)
  asm("" : "+v"(v));
#endif
}

// One float16 at a time, where the target has no instruction for a vector of them.
inline float widened(uint16_t h) {
  const uint32_t sign = (h & 0x8000u) << 16, rest = h & 0x7fffu;
  if (rest >= 0x7c00u) return bits_as<float>(sign | 0x7f800000u | (rest & 0x3ffu) << 13);
  return bits_as<float>(sign | bits_as<uint32_t>(bits_as<float>(rest << 13) * 0x1p112f));
}

inline uint16_t narrowed(float f) {
  const uint32_t all = bits_as<uint32_t>(f), sign = all >> 16 & 0x8000u, rest = all & 0x7fffffffu;
  if (rest > 0x7f800000u) return sign | 0x7e00u;
  if (rest >= 0x477ff000u) return sign | 0x7c00u;                             // rounds to infinity
  if (rest < 0x38800000u) return sign | static_cast<uint32_t>(std::nearbyint(bits_as<float>(rest) * 0x1p24f));
  return sign | ((rest + 0xfffu + (rest >> 13 & 1)) >> 13) - (112u << 10);
}

template <int L, class T> TORCHQX_INLINE Vec<L> load(const T* p) {
  if constexpr (std::is_same_v<T, float>) {
    return read<Vec<L>>(p);
  } else if constexpr (std::is_same_v<T, bfloat16>) {
#if defined(__AVX512F__)
    if constexpr (L == 16) return bits_as<Vec<L>>(_mm512_slli_epi32(_mm512_cvtepu16_epi32(read<__m256i>(p)), 16));
#endif
    return bits_as<Vec<L>>(__builtin_convertvector(read<typename Lanes<L>::Short>(p), IntVec<L>) << 16);
  } else {
#if defined(__AVX512F__)
    if constexpr (L == 16) return bits_as<Vec<L>>(_mm512_cvtph_ps(read<__m256i>(p)));
#endif
    Vec<L> v;
    for (int i = 0; i < L; ++i) v[i] = widened(p[i].bits);
    return v;
  }
}

template <int L> TORCHQX_INLINE typename Lanes<L>::Short rounded_to_bfloat16(const Vec<L>& v) {
  const IntVec<L> all = bits_as<IntVec<L>>(v);
  const IntVec<L> rounded = (all + 0x7fff + (all >> 16 & 1)) >> 16;          // to nearest, ties to even
  const IntVec<L> quiet = v != v;                                            // a NaN must not round to infinity
  return __builtin_convertvector((rounded & ~quiet) | (0x7fc0 & quiet), typename Lanes<L>::Short);
}

#if defined(__AVX512F__)
// 16 floats in their stored form.
template <class T> TORCHQX_INLINE auto packed(const Vec<16>& vec) {
  const __m512 v = bits_as<__m512>(vec);
  if constexpr (std::is_same_v<T, float>) {
    return v;
  } else if constexpr (std::is_same_v<T, uint8_t>) {
    return _mm512_cvtepi32_epi8(bits_as<__m512i>(v));
  } else if constexpr (std::is_same_v<T, float16>) {
    return _mm512_cvtps_ph(v, 0);
  } else {
#if defined(__AVX512BF16__)
    return bits_as<__m256i>(_mm512_cvtneps_pbh(v));
#else
    return bits_as<__m256i>(rounded_to_bfloat16<16>(vec));
#endif
  }
}
#endif

// As uint8_t, only the lowest 8 bits of each float are stored: see as_code().
template <int L, class T> TORCHQX_INLINE void store(T* p, const Vec<L>& v) {
#if defined(__AVX512F__)
  if constexpr (L == 16) return write(p, packed<T>(v));
#endif
  if constexpr (std::is_same_v<T, float>) {
    write(p, v);
  } else if constexpr (std::is_same_v<T, uint8_t>) {
    write(p, __builtin_convertvector(bits_as<IntVec<L>>(v), typename Lanes<L>::Byte));
  } else if constexpr (std::is_same_v<T, bfloat16>) {
    write(p, rounded_to_bfloat16<L>(v));
  } else {
    for (int i = 0; i < L; ++i) p[i].bits = narrowed(v[i]);
  }
}

#if defined(__AVX512VBMI__)
constexpr bool kPicksBytes = true;
#else
constexpr bool kPicksBytes = false;
#endif

#if defined(__AVX512F__)
// A cache line of T: one, two or four vectors.
template <class T> TORCHQX_INLINE __m512i packed_line(const Vec<16>* v) {
  if constexpr (std::is_same_v<T, float>) {
    return bits_as<__m512i>(v[0]);
#if defined(__AVX512VBMI__)
  } else if constexpr (std::is_same_v<T, uint8_t>) {
    const __m512i fourths = _mm512_setr_epi32(0x0c080400, 0x1c181410, 0x2c282420, 0x3c383430, 0x4c484440, 0x5c585450,
                                              0x6c686460, 0x7c787470, 0, 0, 0, 0, 0, 0, 0, 0);
    const auto bytes = [&](const Vec<16>& a, const Vec<16>& b) {
      return _mm512_permutex2var_epi8(bits_as<__m512i>(a), fourths, bits_as<__m512i>(b));
    };
    return _mm512_inserti64x4(bytes(v[0], v[1]), _mm512_castsi512_si256(bytes(v[2], v[3])), 1);
#endif
  } else {
#if defined(__AVX512BF16__)
    if constexpr (std::is_same_v<T, bfloat16>) {
      return bits_as<__m512i>(_mm512_cvtne2ps_pbh(bits_as<__m512>(v[1]), bits_as<__m512>(v[0])));
    }
#endif
    return _mm512_inserti64x4(_mm512_castsi256_si512(packed<T>(v[0])), packed<T>(v[1]), 1);
  }
}
#endif

// R vectors in a row. Of a `large` output whole cache lines go past the caches, where the target can: they would only
// push out what others still need.
template <class T, int L, int R> TORCHQX_INLINE void store_all(T* p, const Vec<L> (&v)[R], bool large) {
#if defined(__AVX512F__)
  constexpr int kLine = 4 / sizeof(T);
  if constexpr (L == 16 && R % kLine == 0 && (sizeof(T) > 1 || kPicksBytes)) {
    const bool past = large && reinterpret_cast<uintptr_t>(p) % 64 == 0;
#pragma GCC unroll 16
    for (int r = 0; r < R; r += kLine) {
      const __m512i line = packed_line<T>(v + r);
      if (past) _mm512_stream_si512(reinterpret_cast<__m512i*>(p + 16 * r), line);
      else write(p + 16 * r, line);
    }
    return;
  }
#endif
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) store<L>(p + L * r, v[r]);
}

// Element by element; one instruction, where a comparison and a choice are two.
template <int L> TORCHQX_INLINE IntVec<L> smaller(const IntVec<L>& a, const IntVec<L>& b) {
#if defined(__AVX512F__)
  if constexpr (L == 16) return bits_as<IntVec<L>>(_mm512_min_epi32(bits_as<__m512i>(a), bits_as<__m512i>(b)));
#endif
  return a < b ? a : b;
}

template <int L> TORCHQX_INLINE IntVec<L> larger(const IntVec<L>& a, const IntVec<L>& b) {
#if defined(__AVX512F__)
  if constexpr (L == 16) return bits_as<IntVec<L>>(_mm512_max_epi32(bits_as<__m512i>(a), bits_as<__m512i>(b)));
#endif
  return a > b ? a : b;
}

// v to the nearest integer, ties to even, between low and high, plus `more`: in the lowest bits, for store<uint8_t>.
// Floats near 1.5 · 2^23 have whole numbers there, and all floats are on the same side of those as integers too, which
// are compared where nothing else has to be done.
template <int L> TORCHQX_INLINE Vec<L> as_code(const Vec<L>& v, float low, float high, int32_t more) {
  constexpr float kRounds = 0x1.8p23f;
  const auto bits = [](const Vec<L>& f) { return bits_as<IntVec<L>>(f); };
  const IntVec<L> above = larger<L>(bits(v + kRounds), bits(Vec<L>{} + (kRounds + low)));
  return bits_as<Vec<L>>(smaller<L>(above, bits(Vec<L>{} + (kRounds + high))) + more);
}

}  // namespace torchqx::rotation
