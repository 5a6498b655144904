// Sixteen floats at a time: one register with AVX-512, several elsewhere. GCC and clang split a vector of this size
// into what the machine has, so only what the language has no operator for is written twice.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#ifdef __AVX512DQ__
#include <immintrin.h>
#endif

namespace torchqx {

constexpr int kLanes = 16;
typedef float Floats __attribute__((vector_size(64)));
typedef int32_t Ints __attribute__((vector_size(64)));
#define TORCHQX_INLINE inline __attribute__((always_inline))

TORCHQX_INLINE Floats all(float x) { return x - Floats{}; }
TORCHQX_INLINE Ints bits(Floats x) { return reinterpret_cast<Ints>(x); }
TORCHQX_INLINE Floats from_bits(Ints x) { return reinterpret_cast<Floats>(x); }

// A NaN in x passes through both.
TORCHQX_INLINE Floats at_least(Floats x, float bound) {
#ifdef __AVX512DQ__
  return _mm512_max_ps(all(bound), x);
#else
  return x < bound ? all(bound) : x;
#endif
}
TORCHQX_INLINE Floats at_most(Floats x, float bound) {
#ifdef __AVX512DQ__
  return _mm512_min_ps(all(bound), x);
#else
  return x > bound ? all(bound) : x;
#endif
}

// False if a lane is NaN.
TORCHQX_INLINE bool all_below(Floats x, float bound) {
#ifdef __AVX512DQ__
  return _mm512_cmp_ps_mask(x, all(bound), _CMP_LT_OQ) == 0xffff;
#else
  bool below = true;
  for (int i = 0; i < kLanes; ++i) below &= x[i] < bound;
  return below;
#endif
}

// a * b + c, rounded once where the machine can.
TORCHQX_INLINE Floats fma(Floats a, Floats b, Floats c) {
#ifdef __AVX512DQ__
  return _mm512_fmadd_ps(a, b, c);
#else
  return a * b + c;
#endif
}

TORCHQX_INLINE Floats load(const float* p) {
  Floats x;
  std::memcpy(&x, p, sizeof x);
  return x;
}
TORCHQX_INLINE void store(float* p, Floats x) { std::memcpy(p, &x, sizeof x); }

// rows[i][j] <-> rows[j][i]
inline void transpose(Floats (&rows)[kLanes]) {
#ifdef __AVX512DQ__
  __m512 a[16], b[16];
  for (int i = 0; i < 16; i += 2) {  // pairs of rows, then of pairs, inside each quarter of a register
    a[i] = _mm512_unpacklo_ps(rows[i], rows[i + 1]);
    a[i + 1] = _mm512_unpackhi_ps(rows[i], rows[i + 1]);
  }
  for (int i = 0; i < 16; i += 4)
    for (int j = 0; j < 2; ++j) {
      const __m512d low = _mm512_castps_pd(a[i + j]), high = _mm512_castps_pd(a[i + j + 2]);
      b[i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(low, high));
      b[i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low, high));
    }
  for (int j = 0; j < 4; ++j) {  // then the quarters themselves: b[4 i + j] holds column 4 q + j in quarter q
    const __m512 even = _mm512_shuffle_f32x4(b[j], b[4 + j], 0x88), odd = _mm512_shuffle_f32x4(b[j], b[4 + j], 0xdd);
    const __m512 even2 = _mm512_shuffle_f32x4(b[8 + j], b[12 + j], 0x88);
    const __m512 odd2 = _mm512_shuffle_f32x4(b[8 + j], b[12 + j], 0xdd);
    rows[j] = _mm512_shuffle_f32x4(even, even2, 0x88);
    rows[4 + j] = _mm512_shuffle_f32x4(odd, odd2, 0x88);
    rows[8 + j] = _mm512_shuffle_f32x4(even, even2, 0xdd);
    rows[12 + j] = _mm512_shuffle_f32x4(odd, odd2, 0xdd);
  }
#else
  for (int i = 0; i < kLanes; ++i)
    for (int j = 0; j < i; ++j) {
      const float x = rows[i][j];
      rows[i][j] = rows[j][i];
      rows[j][i] = x;
    }
#endif
}

}  // namespace torchqx
