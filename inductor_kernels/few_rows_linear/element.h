// The element types of a linear, as its inner products see them: 64 bytes of two rows, multiplied and added to 16 sums.
#include <immintrin.h>

#include <bit>
#include <cstdint>

namespace torchqx_few_rows {

struct Float32 {
  using Value = float;
  static constexpr int64_t kPerVector = 16;

  static __m512i load_first(const Value* p, int64_t count) {
    return _mm512_maskz_loadu_epi32(static_cast<__mmask16>((1u << count) - 1), p);
  }
  static __m512 multiply_add(__m512 sum, __m512i a, __m512i b) {
    return _mm512_fmadd_ps(_mm512_castsi512_ps(a), _mm512_castsi512_ps(b), sum);
  }
  static float widened(Value v) { return v; }
  static Value rounded(float y) { return y; }
};

struct BFloat16 {
  using Value = uint16_t;
  static constexpr int64_t kPerVector = 32;

  static __m512i load_first(const Value* p, int64_t count) {
    return _mm512_maskz_loadu_epi16(static_cast<__mmask32>((1ull << count) - 1), p);
  }
#ifdef __AVX512BF16__
  static __m512 multiply_add(__m512 sum, __m512i a, __m512i b) {
    return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
  }
#else  // widened, and multiplied as float32
  static __m512 even(__m512i pairs) { return _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16)); }
  static __m512 odd(__m512i pairs) {
    return _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
  }
  static __m512 multiply_add(__m512 sum, __m512i a, __m512i b) {
    return _mm512_fmadd_ps(odd(a), odd(b), _mm512_fmadd_ps(even(a), even(b), sum));
  }
#endif
  static float widened(Value v) { return std::bit_cast<float>(static_cast<uint32_t>(v) << 16); }
  static Value rounded(float y) {
    const uint32_t bits = std::bit_cast<uint32_t>(y);
    return y != y ? 0x7fc0 : static_cast<Value>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
  }
};

}  // namespace torchqx_few_rows
