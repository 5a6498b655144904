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
  float maximum = kHidden, sum = 0, correction = 0;
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

// scores: `padded` floats, a multiple of 32, of which `keys` count; the weights take their place, rows of words.
template <class Element, Mask kMask>
void weigh(float* scores, int64_t keys, int64_t padded, float scale, const void* mask, Row& row) {
  __m512 highest = _mm512_set1_ps(kHidden);
  for (int64_t key = 0; key < padded; key += kLanes) {
    __m512 s = _mm512_loadu_ps(scores + key);
    if (kMask != Mask::kNone || key + kLanes > keys) {
      s = Masking<kMask>::apply(s, scale, mask, key, first_lanes(keys - key));
      _mm512_storeu_ps(scores + key, s);
    }
    highest = _mm512_max_ps(highest, s);
  }
  const float maximum = std::max(row.maximum, _mm512_reduce_max_ps(highest));
  const float from = maximum == kHidden ? 0.f : maximum;  // a row that sees no key yet: all its weights are 0
  const float exponent = Masking<kMask>::exponent(scale);
  row.correction = row.maximum == maximum ? 1.f : std::exp2((row.maximum - from) * exponent);
  row.maximum = maximum;

  const __m512 shift = _mm512_set1_ps(from), factor = _mm512_set1_ps(exponent);
  const auto weight = [&](int64_t key) {
    const __m512 x = _mm512_mul_ps(_mm512_sub_ps(_mm512_loadu_ps(scores + key), shift), factor);
    const __m512 fraction = _mm512_reduce_ps(x, 1);                        // x - floor(x)
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
  row.sum = row.sum * row.correction + _mm512_reduce_add_ps(_mm512_add_ps(low_sum, high_sum));
}

}  // namespace torchqx_attention
