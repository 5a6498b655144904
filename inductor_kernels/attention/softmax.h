// Scores of a row against one block of keys -> weights exp(score - maximum). As blocks pass, the row keeps its maximum
// and sum, and tells by which factor what was summed with the maximum before has to shrink.
#include <algorithm>
#include <cmath>
#include <limits>

namespace torchqx_attention {

constexpr float kLog2E = 1.44269504f;
constexpr float kHidden = -std::numeric_limits<float>::infinity();

enum class Mask { kNone, kBool, kFloat32, kBFloat16 };

struct Row {
  int64_t query, head;
  float maximum = kHidden, sum = 0, correction = 1;

  // Takes in the maximum of more scores: what was summed so far shrinks by `correction`.
  void raise(float highest, float exponent) {
    const float before = maximum;
    maximum = std::max(before, highest);
    correction = before == maximum ? 1.f : std::exp2((before - maximum) * exponent);
  }
};

// A float mask is added to the scaled scores. Else scores stay as they are, and the scale joins the exponential's
// factor: it is positive, so the maximum is the same.
template <Mask kMask>
struct Masking {
  static constexpr bool kAdds = kMask == Mask::kFloat32 || kMask == Mask::kBFloat16;

  static float exponent(float scale) { return kAdds ? kLog2E : scale * kLog2E; }

  static __m512 apply(__m512 scores, float scale, const void* mask, int64_t key, __mmask16 inside) {
    const __m512 hidden = _mm512_set1_ps(kHidden);
    if constexpr (kMask == Mask::kNone) return _mm512_mask_mov_ps(hidden, inside, scores);
    if constexpr (kMask == Mask::kBool) {
      const __m128i keep = _mm_maskz_loadu_epi8(inside, static_cast<const char*>(mask) + key);
      return _mm512_mask_mov_ps(hidden, _mm_test_epi8_mask(keep, keep), scores);
    }
    if constexpr (kAdds) {
      __m512 term;
      if constexpr (kMask == Mask::kFloat32)
        term = _mm512_maskz_loadu_ps(inside, static_cast<const float*>(mask) + key);
      else
        term = widen(_mm256_maskz_loadu_epi16(inside, static_cast<const uint16_t*>(mask) + key));
      return _mm512_mask_mov_ps(hidden, inside, _mm512_fmadd_ps(scores, _mm512_set1_ps(scale), term));
    }
  }
};

// Whether a bool mask hides one of the keys: most rows of most masks hide none.
inline bool hides_any(const void* mask, int64_t keys) {
  __mmask64 hidden = 0;
  for (int64_t key = 0; key < keys; key += 64) {
    const __mmask64 inside = keys - key >= 64 ? ~__mmask64{0} : (__mmask64{1} << (keys - key)) - 1;
    const __m512i keep = _mm512_maskz_loadu_epi8(inside, static_cast<const char*>(mask) + key);
    hidden |= _mm512_mask_testn_epi8_mask(inside, keep, keep);
  }
  return hidden != 0;
}

// Scores of one row, `padded` of them, a multiple of 32, of which `keys` count: the others and the masked ones become
// -infinity. Returns what is left of their maximum to reduce.
template <Mask kMask>
__m512 hide(float* scores, int64_t keys, int64_t padded, float scale, const void* mask) {
  const bool masked = kMask == Mask::kBool ? hides_any(mask, keys) : kMask != Mask::kNone;
  __m512 highest = _mm512_set1_ps(kHidden);
  for (int64_t key = 0; key < padded; key += kLanes) {
    __m512 s = _mm512_loadu_ps(scores + key);
    if (masked || key + kLanes > keys) {
      s = Masking<kMask>::apply(s, scale, mask, key, first_lanes(keys - key));
      _mm512_storeu_ps(scores + key, s);
    }
    highest = _mm512_max_ps(highest, s);
  }
  return highest;
}

// The weights of one row, not yet divided by their sum, take the place of its scores, as words. Returns what is left
// of their sum to reduce. A row whose maximum is -infinity sees no key yet: all its weights are 0.
template <class Element>
__m512 weigh(float* scores, int64_t padded, float maximum, float exponent) {
  // Subtracted before the product, which would overflow where a mask adds the lowest number.
  const __m512 shift = _mm512_set1_ps(maximum == kHidden ? 0.f : maximum), factor = _mm512_set1_ps(exponent);
  const auto weight = [&](int64_t key) {
    const __m512 x = _mm512_mul_ps(_mm512_sub_ps(_mm512_loadu_ps(scores + key), shift), factor);
    const __m512 fraction = _mm512_reduce_ps(x, 1);               // x - floor(x)
    return _mm512_scalef_ps(Element::power_of_two(fraction), x);  // times 2^floor(x)
  };
  __m512 low_sum = _mm512_setzero_ps(), high_sum = _mm512_setzero_ps();
  auto* words = reinterpret_cast<Word*>(scores);
  for (int64_t key = 0; key < padded; key += 2 * kLanes) {
    const __m512 low = weight(key), high = weight(key + kLanes);
    low_sum = _mm512_add_ps(low_sum, low);
    high_sum = _mm512_add_ps(high_sum, high);
    Element::store_weights(words + key / Element::kPerWord, low, high);
  }
  return _mm512_add_ps(low_sum, high_sum);
}

}  // namespace torchqx_attention
