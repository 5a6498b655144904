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
      v[r] = clamped<L>(v[r] * load<L>(mul + i + L * r) + load<L>(add + i + L * r), qmin, qmax);
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
  Vec<16> low = {}, high = {};

  template <int L, int R> TORCHQX_INLINE void put(int64_t i, Vec<L> (&v)[R]) {
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) v[r] *= scale;
    if (shift) {
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) v[r] -= load<L>(shift + i + L * r);
    }
    if (smooth) {
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) v[r] *= load<L>(smooth + i + L * r);
    }
    Vec<L> least = v[0], most = v[0];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      store<L>(kept + i + L * r, v[r]);
      least = smaller<L>(v[r], least);
      most = larger<L>(v[r], most);
    }
    if constexpr (L == 16) low = smaller<16>(least, low), high = larger<16>(most, high);
    else low[0] = std::min(low[0], least[0]), high[0] = std::max(high[0], most[0]);
  }

  template <int D> void over_lanes() {
    low = smaller<16>(low, exchanged<16, D>(low));
    high = larger<16>(high, exchanged<16, D>(high));
    if constexpr (D < 8) over_lanes<2 * D>();
  }

  void finish(int64_t k) {
    constexpr float kSmallestScale = 1e-12f;
    over_lanes<1>();
    const float lowest = low[0] * clip_ratio, highest = high[0] * clip_ratio;
    float step, zero;
    if (symmetric) {
      step = std::max(std::max(highest, -lowest) * static_cast<float>(2.0 / (qmax - qmin)), kSmallestScale);
      zero = std::floor((qmin + qmax) / 2);
    } else {
      step = std::max((highest - lowest) * static_cast<float>(1.0 / (qmax - qmin)), kSmallestScale);
      zero = std::clamp(std::nearbyint(qmin - lowest / step), qmin, qmax);
    }
    int64_t i = 0;
    for (; i + 64 <= k; i += 64) quantize<16, 4>(i, 1 / step, zero);
    for (; i + 16 <= k; i += 16) quantize<16, 1>(i, 1 / step, zero);
    for (; i < k; ++i) quantize<1, 1>(i, 1 / step, zero);
    *out_scale = step;
    *out_zero = static_cast<int32_t>(zero);
  }

  // Adding 1.5 · 2^23 rounds to whole numbers; taking it away again also adds the zero point.
  template <int L, int R> TORCHQX_INLINE void quantize(int64_t i, float by, float zero) {
    constexpr float kRounds = 0x1.8p23f;
    Vec<L> v[R];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      v[r] = clamped<L>((load<L>(kept + i + L * r) * by + kRounds) - (kRounds - zero), qmin, qmax);
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
