// What becomes of a rotated row, vector by vector, unscaled in float32: written in the output's dtype, or quantized.
#include <algorithm>

namespace torchqx::rotation {

template <class T> struct Plain {
  T* out;
  bool large;  // all of the output, for the caches
  float scale;
  const float* signs;

  template <int L, int R> TORCHQX_INLINE void put(int64_t i, Vec<L> (&v)[R]) {
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) v[r] *= scale;
    if (signs) {
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) v[r] *= load<L>(signs + i + L * r);
    }
    store_all<T, L, R>(out + i, v, large);
  }

  void finish(int64_t) {}
};

struct Static {
  uint8_t* out;
  bool large;
  const float *mul, *add;  // one per element of a row
  float qmin, qmax;

  template <int L, int R> TORCHQX_INLINE void put(int64_t i, Vec<L> (&v)[R]) {
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      v[r] = as_code<L>(v[r] * load<L>(mul + i + L * r) + load<L>(add + i + L * r), qmin, qmax, 0);
    }
    store_all<uint8_t, L, R>(out + i, v, large);
  }

  void finish(int64_t) {}
};

// Keeps the row, and its range, which zero belongs to, until all of it is there.
struct PerToken {
  uint8_t* out;
  bool large;
  float* kept;
  float* out_scale;
  int32_t* out_zero;
  float scale;
  const float *smooth, *shift;  // one per element of a row, or none
  float qmin, qmax;
  bool symmetric;
  float clip_ratio;  // the share of the range that codes cover
  // Bits of the largest element and of the largest negated one, compared as integers: as floats, both would need the
  // units for multiplication. Zero belongs to the range, so that the order of negative floats does not matter.
  IntVec<16> highest = {}, lowest = {};

  template <int L, int R> TORCHQX_INLINE void put(int64_t i, Vec<L> (&v)[R]) {
    if (smooth || shift) transform<L, R>(i, v);
    IntVec<L> most{}, least{};
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      store<L>(kept + i + L * r, v[r]);
      most = larger<L>(bits_as<IntVec<L>>(v[r]), most);
      least = larger<L>(bits_as<IntVec<L>>(v[r]) ^ INT32_MIN, least);
    }
    if constexpr (L == 16) highest = larger<16>(most, highest), lowest = larger<16>(least, lowest);
    else highest[0] = std::max(highest[0], most[0]), lowest[0] = std::max(lowest[0], least[0]);
  }

  template <int L, int R> TORCHQX_INLINE void transform(int64_t i, Vec<L> (&v)[R]) {
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      v[r] *= scale;
      if (shift) v[r] -= load<L>(shift + i + L * r);
      if (smooth) v[r] *= load<L>(smooth + i + L * r);
    }
  }

  static float largest(const IntVec<16>& bits) {
    int32_t most = 0;
    for (int l = 0; l < 16; ++l) most = std::max(most, bits[l]);
    return bits_as<float>(most);
  }

  void finish(int64_t k) {
    constexpr float kSmallestScale = 1e-12f;
    const float factor = smooth || shift ? 1 : scale;  // of what is kept
    const float low = -largest(lowest) * factor * clip_ratio, high = largest(highest) * factor * clip_ratio;
    float step, zero;
    if (symmetric) {
      const float most = largest(larger<16>(highest, lowest)) * factor * clip_ratio;  // NaN of either sign is
      step = std::max(most * static_cast<float>(2.0 / (qmax - qmin)), kSmallestScale);
      zero = std::floor((qmin + qmax) / 2);
    } else {
      step = std::max((high - low) * static_cast<float>(1.0 / (qmax - qmin)), kSmallestScale);
      zero = std::clamp(std::nearbyint(qmin - low / step), qmin, qmax);
    }
    int64_t i = 0;
    for (; i + 64 <= k; i += 64) quantize<16, 4>(i, factor / step, zero);
    for (; i + 16 <= k; i += 16) quantize<16, 1>(i, factor / step, zero);
    for (; i < k; ++i) quantize<1, 1>(i, factor / step, zero);
    *out_scale = step;
    *out_zero = static_cast<int32_t>(zero);
  }

  template <int L, int R> TORCHQX_INLINE void quantize(int64_t i, float by, float zero) {
    Vec<L> v[R];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      v[r] = as_code<L>(load<L>(kept + i + L * r) * by, qmin - zero, qmax - zero, static_cast<int32_t>(zero));
    }
    store_all<uint8_t, L, R>(out + i, v, large);
  }
};

// A row that passes without vectors of 16 left in memory.
template <class Sink> void put_row(const float* x, int64_t n, int64_t at, Sink& sink) {
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) {
    Vec<16> v[1] = {load<16>(x + i)};
    sink.template put<16, 1>(at + i, v);
  }
  for (; i < n; ++i) {
    Vec<1> v[1] = {load<1>(x + i)};
    sink.template put<1, 1>(at + i, v);
  }
}

}  // namespace torchqx::rotation
