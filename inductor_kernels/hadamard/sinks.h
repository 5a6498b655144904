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

// out[i] = value(lanes, i) for a whole row.
template <class T, class Value> TORCHQX_INLINE void write_row(T* out, int64_t k, bool large, const Value& value) {
  int64_t i = 0;
  if (large && reinterpret_cast<uintptr_t>(out) % (16 * sizeof(T)) == 0) {
    for (; i + 16 <= k; i += 16) stream(out + i, value(std::integral_constant<int, 16>(), i));
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
      return clamped<L>(y, qmin, qmax);
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

  template <int L> TORCHQX_INLINE Vec<L> transformed(const Vec<L>& v, int64_t i) const {
    Vec<L> y = v * scale;
    if (shift.values) y -= shift.at<L>(i);
    if (smooth.values) y *= smooth.at<L>(i);
    return y;
  }

  // The range of the row, which zero belongs to; four vectors at a time, as each comparison waits for the one before.
  std::pair<float, float> range(const float* row, int64_t k) const {
    Vec<16> low[4] = {}, high[4] = {};
    int64_t i = 0;
    for (; i + 64 <= k; i += 64) {
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) {
        const Vec<16> y = load<16>(row + i + 16 * j);
        low[j] = y < low[j] ? y : low[j];
        high[j] = y > high[j] ? y : high[j];
      }
    }
    float lowest = 0, highest = 0;
    for (; i < k; ++i) lowest = std::min(lowest, row[i]), highest = std::max(highest, row[i]);
    for (int j = 0; j < 4; ++j) {
      for (int l = 0; l < 16; ++l) lowest = std::min(lowest, low[j][l]), highest = std::max(highest, high[j][l]);
    }
    return {lowest, highest};
  }

  void operator()(float* row, int64_t k) const {
    constexpr float kSmallestScale = 1e-12f;
    const bool in_place = shift.values || smooth.values;
    if (in_place) {
      for_each_vector(0, k, [&]<int L>(std::integral_constant<int, L>, int64_t i) {
        store<L>(row + i, transformed<L>(load<L>(row + i), i));
      });
    }
    const auto [lowest, highest] = range(row, k);
    const float remaining = in_place ? 1 : scale;
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
