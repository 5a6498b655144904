// The two element types of attention, as the inner products see them: 32-bit words that hold one float32, or two
// bfloat16 that one instruction multiplies and adds.
#include <immintrin.h>

#include <cstdint>
#include <initializer_list>

namespace torchqx_attention {

using Word = uint32_t;
constexpr int64_t kLanes = 16;  // words in a register

// The first `count` lanes; none for a negative count, all for a large one.
inline __mmask16 first_lanes(int64_t count) {
  return count <= 0 ? 0 : static_cast<__mmask16>(count >= kLanes ? 0xffff : (1u << count) - 1);
}

inline __m512 widen(__m256i bfloat16s) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bfloat16s), 16));
}

struct Float32 {
  using Value = float;
  static constexpr int64_t kPerWord = 1;

  // Written as assembly because compilers copy and spill the accumulators of the intrinsic.
  static void multiply_add(__m512& sum, __m512 a, __m512 b) {
    asm("vfmadd231ps %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
  }

  // 2^r for r in [0, 1), relative error 1e-8 and the rounding of the steps.
  static __m512 power_of_two(__m512 r) {
    __m512 p = _mm512_set1_ps(2.1690610e-4f);
    for (const float c : {1.2443082e-3f, 9.6784728e-3f, 5.5483524e-2f, 2.4022980e-1f, 6.9314700e-1f, 1.0f})
      p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(c));
    return p;
  }

  // 32 softmax weights as the rows that multiply V.
  static void store_weights(Word* row, __m512 low, __m512 high) {
    _mm512_storeu_ps(row, low);
    _mm512_storeu_ps(row + kLanes, high);
  }

  // 16 words of V: `first` is its row, `second` is not read.
  static __m512i value_words(const Value* first, const Value*, __mmask16 mask) {
    return _mm512_maskz_loadu_epi32(mask, first);
  }

  static void store(Value* out, __mmask16 mask, __m512 y) { _mm512_mask_storeu_ps(out, mask, y); }
};

struct BFloat16 {
  using Value = uint16_t;
  static constexpr int64_t kPerWord = 2;

  static void multiply_add(__m512& sum, __m512 a, __m512 b) {
    asm("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
  }

  // 2^r for r in [0, 1), relative error 3e-6: a 500th of what rounding to bfloat16 adds.
  static __m512 power_of_two(__m512 r) {
    __m512 p = _mm512_set1_ps(1.3520603e-2f);
    for (const float c : {5.2037429e-2f, 2.4142750e-1f, 6.9300663e-1f, 1.0000025f})
      p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(c));
    return p;
  }

  static void store_weights(Word* row, __m512 low, __m512 high) {
    _mm512_storeu_si512(row, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low)));
  }

  // 16 words of V: pairs of `first` and the row after it, or zero where there is none.
  static __m512i value_words(const Value* first, const Value* second, __mmask16 mask) {
    const __m512i low = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, first));
    const __m512i high = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(second ? mask : __mmask16{0}, second));
    return _mm512_or_si512(low, _mm512_slli_epi32(high, 16));
  }

  static void store(Value* out, __mmask16 mask, __m512 y) {
    _mm256_mask_storeu_epi16(out, mask, reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(y)));
  }
};

}  // namespace torchqx_attention
