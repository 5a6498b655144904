// What becomes of a rotated row, still unscaled in float32 and in cache: written in the output's dtype, or quantized.
#include <algorithm>

namespace torchqx::rotation {

// One value per element of a row, or one for all, or none.
struct Parameter {
  const float* values = nullptr;
  bool per_element = false;

  template <int L> TORCHQX_INLINE Vec<L> at(int64_t i) const {
    return per_element ? load<L>(values + i) : Vec<L>{} + *values;
  }
};

// body(lanes, i) for all of a row: 16 at a time, and what is left one by one.
template <class Body> TORCHQX_INLINE void for_each_vector(int64_t begin, int64_t end, const Body& body) {
  int64_t i = begin;
  for (; i + 16 <= end; i += 16) body(std::integral_constant<int, 16>(), i);
  for (; i < end; ++i) body(std::integral_constant<int, 1>(), i);
}

// Past the caches: a large output would only push out what others still need. `p` is a whole, aligned cache line.
template <class T> TORCHQX_INLINE void stream_line(T* p, const T* line) {
#if defined(__AVX512F__)
  _mm512_stream_si512(reinterpret_cast<__m512i*>(p), read<__m512i>(line));
#else
  std::memcpy(p, line, 64);
#endif
}

// out[i] = value(lanes, i) for a whole row.
template <class T, class Value> TORCHQX_INLINE void write_row(T* out, int64_t k, bool large, const Value& value) {
  constexpr int kLine = 64 / sizeof(T);
  int64_t i = 0;
  if (large && reinterpret_cast<uintptr_t>(out) % 64 == 0) {
    for (; i + kLine <= k; i += kLine) {
      alignas(64) T line[kLine];
#pragma GCC unroll 4
      for (int j = 0; j < kLine; j += 16) store<16>(line + j, value(std::integral_constant<int, 16>(), i + j));
      stream_line(out + i, line);
    }
  }
  for_each_vector(i, k, [&](auto lanes, int64_t at) { store<decltype(lanes)::value>(out + at, value(lanes, at)); });
}

template <class T> struct Plain {
  T* out;
  bool large;  // all of the output, for the caches
  float scale;
  const float* signs;

  void operator()(const float* row, int64_t k) const {
    write_row(out, k, large, [&]<int L>(std::integral_constant<int, L>, int64_t i) {
      const Vec<L> v = load<L>(row + i) * scale;
      return signs ? v * load<L>(signs + i) : v;
    });
  }
};

struct Static {
  uint8_t* out;
  bool large;
  float scale;
  Parameter mul, add;
  float qmin, qmax;

  void operator()(const float* row, int64_t k) const {
    write_row(out, k, large, [&]<int L>(std::integral_constant<int, L>, int64_t i) {
      const Vec<L> y = load<L>(row + i) * scale * mul.at<L>(i) + add.at<L>(i);
      return rounded<L>(clamped<L>(y, qmin, qmax));
    });
  }
};

struct PerToken {
  uint8_t* codes;
  bool large;
  float* out_scale;
  int32_t* out_zero;
  float scale;
  Parameter smooth, shift;
  float qmin, qmax;
  bool symmetric;

  // Shifts and smooths the row in place, where asked to; returns its range, which zero belongs to.
  std::pair<float, float> prepare(float* row, int64_t k) const {
    const bool transformed = shift.values || smooth.values;
    Vec<16> low = {}, high = {};
    for_each_vector(0, k, [&]<int L>(std::integral_constant<int, L>, int64_t i) {
      Vec<L> y = load<L>(row + i);
      if (transformed) {
        y *= scale;
        if (shift.values) y -= shift.at<L>(i);
        if (smooth.values) y *= smooth.at<L>(i);
        store<L>(row + i, y);
      }
      if constexpr (L == 16) {
        low = y < low ? y : low;
        high = y > high ? y : high;
      } else {
        low[0] = std::min(low[0], y[0]);
        high[0] = std::max(high[0], y[0]);
      }
    });
    for (int l = 1; l < 16; ++l) low[0] = std::min(low[0], low[l]), high[0] = std::max(high[0], high[l]);
    return {low[0], high[0]};
  }

  void operator()(float* row, int64_t k) const {
    constexpr float kSmallestScale = 1e-12f;
    const auto [lowest, highest] = prepare(row, k);
    const float remaining = shift.values || smooth.values ? 1 : scale;
    const float low = lowest * remaining, high = highest * remaining;
    float step, zero;
    if (symmetric) {
      step = std::max(std::max(high, -low) * static_cast<float>(2.0 / (qmax - qmin)), kSmallestScale);
      zero = std::floor((qmin + qmax) / 2);
    } else {
      step = std::max((high - low) * static_cast<float>(1.0 / (qmax - qmin)), kSmallestScale);
      zero = std::clamp(std::nearbyint(qmin - low / step), qmin, qmax);
    }
    const float inverse = 1 / step;
    write_row(codes, k, large, [&]<int L>(std::integral_constant<int, L>, int64_t i) {
      return clamped<L>(rounded<L>(load<L>(row + i) * remaining * inverse) + zero, qmin, qmax);
    });
    *out_scale = step;
    *out_zero = static_cast<int32_t>(zero);
  }
};

}  // namespace torchqx::rotation
