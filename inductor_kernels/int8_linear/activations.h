// Activation functions on four vectors of 16 floats. Each step is done for all four before the next: the chain of
// one vector is long, and the processor's own reordering does not reach far enough to overlap two of them.
#include <immintrin.h>

#include <array>
#include <cmath>
#include <cstdint>

namespace torchqx {

using Floats = __m512[4];
#define TORCHQX_EACH _Pragma("GCC unroll 4") for (int v = 0; v < 4; ++v)

struct Identity {
  void operator()(Floats&) const {}
};

struct Relu {
  void operator()(Floats& x) const {
    TORCHQX_EACH x[v] = _mm512_max_ps(_mm512_setzero_ps(), x[v]);  // NaN passes as the second operand
  }
};

// x * Phi(x) = max(x, 0) - |x| * Q(|x|) with Q = 1 - Phi: one cubic per interval of |x|, looked up in registers. That
// is both shorter and more precise (2e-7) than the usual exp-based approximations of erf.
struct Gelu {
  static constexpr int kIntervals = 32;  // interval i is centred on i * kWidth; the last one holds the constant 0
  static constexpr int kDegree = 3;
  static constexpr double kWidth = 5.4 / (kIntervals - 1.5);
  using Table = std::array<std::array<float, kIntervals>, kDegree + 1>;

  // Interpolation at Chebyshev nodes: Newton's divided differences, expanded to powers of the distance to the centre.
  static Table build() {
    Table table{};
    for (int i = 0; i < kIntervals - 1; ++i) {
      double node[kDegree + 1], value[kDegree + 1], power[kDegree + 1] = {};
      for (int j = 0; j <= kDegree; ++j) {
        node[j] = -0.5 * kWidth * std::cos(M_PI * (2 * j + 1) / (2 * (kDegree + 1)));
        value[j] = 0.5 * std::erfc((i * kWidth + node[j]) * M_SQRT1_2);
      }
      for (int step = 1; step <= kDegree; ++step)
        for (int j = kDegree; j >= step; --j) value[j] = (value[j] - value[j - 1]) / (node[j] - node[j - step]);
      for (int j = kDegree; j >= 0; --j) {
        for (int d = kDegree; d > 0; --d) power[d] = power[d - 1] - node[j] * power[d];
        power[0] = value[j] - node[j] * power[0];
      }
      for (int d = 0; d <= kDegree; ++d) table[d][i] = static_cast<float>(power[d]);
    }
    return table;
  }

  __m512 low[kDegree + 1], high[kDegree + 1];

  Gelu() {
    static const Table table = build();
    for (int d = 0; d <= kDegree; ++d) {
      low[d] = _mm512_loadu_ps(table[d].data());
      high[d] = _mm512_loadu_ps(table[d].data() + 16);
    }
  }

  void operator()(Floats& x) const {
    constexpr float kToInteger = 3 << 22;  // added to a small float, it leaves the nearest integer in the low bits
    Floats size, interval, t, p;
    TORCHQX_EACH size[v] = _mm512_min_ps(_mm512_abs_ps(x[v]), _mm512_set1_ps((kIntervals - 1) * kWidth));
    TORCHQX_EACH interval[v] = _mm512_fmadd_ps(size[v], _mm512_set1_ps(1 / kWidth), _mm512_set1_ps(kToInteger));
    TORCHQX_EACH t[v] = _mm512_sub_ps(interval[v], _mm512_set1_ps(kToInteger));
    TORCHQX_EACH t[v] = _mm512_fnmadd_ps(t[v], _mm512_set1_ps(kWidth), size[v]);
    const auto look_up = [&](int d, int v) {
      return _mm512_permutex2var_ps(low[d], _mm512_castps_si512(interval[v]), high[d]);
    };
    TORCHQX_EACH p[v] = look_up(kDegree, v);
#pragma GCC unroll 8
    for (int d = kDegree - 1; d >= 0; --d) TORCHQX_EACH p[v] = _mm512_fmadd_ps(p[v], t[v], look_up(d, v));
    TORCHQX_EACH x[v] = _mm512_max_ps(_mm512_setzero_ps(), x[v]);  // NaN passes as the second operand
    TORCHQX_EACH x[v] = _mm512_fnmadd_ps(size[v], p[v], x[v]);
  }
};

// x / (1 + exp(-gate))
inline void times_sigmoid(Floats& x, Floats& gate) {
  Floats n, p;
  // The bound keeps 1 + exp finite; NaN passes because it is the second operand.
  TORCHQX_EACH gate[v] = _mm512_max_ps(_mm512_set1_ps(-88.f), gate[v]);
  TORCHQX_EACH gate[v] = _mm512_min_ps(_mm512_set1_ps(88.f), gate[v]);
  TORCHQX_EACH n[v] = _mm512_roundscale_ps(_mm512_mul_ps(gate[v], _mm512_set1_ps(-1.44269504f)), 0);
  TORCHQX_EACH gate[v] = _mm512_fmadd_ps(n[v], _mm512_set1_ps(0.693359375f), gate[v]);  // ln 2 in two parts,
  TORCHQX_EACH gate[v] = _mm512_fmadd_ps(n[v], _mm512_set1_ps(-2.12194440e-4f), gate[v]);  // the first one exact
  TORCHQX_EACH p[v] = _mm512_set1_ps(1.f / 720);  // exp(-r), |r| <= ln 2 / 2: the next term of the series is 1.2e-7
#pragma GCC unroll 8
  for (const float c : {-1.f / 120, 1.f / 24, -1.f / 6, 1.f / 2, -1.f, 1.f})
    TORCHQX_EACH p[v] = _mm512_fmadd_ps(p[v], gate[v], _mm512_set1_ps(c));
  TORCHQX_EACH p[v] = _mm512_add_ps(_mm512_scalef_ps(p[v], n[v]), _mm512_set1_ps(1.f));
  TORCHQX_EACH n[v] = _mm512_rcp14_ps(p[v]);  // 14 bits, doubled by one Newton step
  TORCHQX_EACH p[v] = _mm512_fnmadd_ps(p[v], n[v], _mm512_set1_ps(2.f));
  TORCHQX_EACH x[v] = _mm512_mul_ps(x[v], _mm512_mul_ps(n[v], p[v]));
}

struct GeluTanh {
  void operator()(Floats& x) const {  // (1 + tanh z) / 2 = sigmoid(2 z)
    constexpr float kScale = 2 * 0.7978845608f;
    Floats gate;
    TORCHQX_EACH gate[v] = _mm512_mul_ps(x[v], x[v]);
    TORCHQX_EACH gate[v] = _mm512_fmadd_ps(gate[v], _mm512_set1_ps(kScale * 0.044715f), _mm512_set1_ps(kScale));
    TORCHQX_EACH gate[v] = _mm512_mul_ps(x[v], gate[v]);
    times_sigmoid(x, gate);
  }
};

// x * sigmoid(kThousandths / 1000 * x)
template <int kThousandths> struct Swish {
  void operator()(Floats& x) const {
    Floats gate;
    TORCHQX_EACH gate[v] = _mm512_mul_ps(x[v], _mm512_set1_ps(kThousandths / 1000.f));
    times_sigmoid(x, gate);
  }
};

using Silu = Swish<1000>;
using QuickGelu = Swish<1702>;

}  // namespace torchqx
