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

// x * Phi(x) = x/2 + |x| * P(|x|) with P = Phi - 1/2, one polynomial per interval. A lookup in registers is both
// shorter and more precise (1e-7) than the usual exp-based approximations of erf.
struct Gelu {
  static constexpr int kIntervals = 15;  // a 16th holds the constant 1/2, so that large negative x gives exactly 0
  static constexpr int kDegree = 4;
  static constexpr double kEnd = 5.4;
  using Table = std::array<std::array<float, 16>, kDegree + 1>;

  // Interpolation at Chebyshev nodes: Newton's divided differences, expanded to powers of t in [0, 1).
  static Table build() {
    Table table{};
    for (int i = 0; i < kIntervals; ++i) {
      double node[kDegree + 1], value[kDegree + 1], power[kDegree + 1] = {};
      for (int j = 0; j <= kDegree; ++j) {
        node[j] = 0.5 - 0.5 * std::cos(M_PI * (2 * j + 1) / (2 * (kDegree + 1)));
        value[j] = 0.5 * std::erf((i + node[j]) * kEnd / kIntervals * M_SQRT1_2);
      }
      for (int step = 1; step <= kDegree; ++step)
        for (int j = kDegree; j >= step; --j) value[j] = (value[j] - value[j - 1]) / (node[j] - node[j - step]);
      for (int j = kDegree; j >= 0; --j) {
        for (int d = kDegree; d > 0; --d) power[d] = power[d - 1] - node[j] * power[d];
        power[0] = value[j] - node[j] * power[0];
      }
      for (int d = 0; d <= kDegree; ++d) table[d][i] = static_cast<float>(power[d]);
    }
    table[0][kIntervals] = 0.5f;
    return table;
  }

  __m512 coefficient[kDegree + 1];

  Gelu() {
    static const Table table = build();
    for (int d = 0; d <= kDegree; ++d) coefficient[d] = _mm512_loadu_ps(table[d].data());
  }

  void operator()(Floats& x) const {
    Floats size, t, p;
    __m512i interval[4];
    TORCHQX_EACH size[v] = _mm512_abs_ps(x[v]);
    TORCHQX_EACH t[v] = _mm512_mul_ps(size[v], _mm512_set1_ps(kIntervals / kEnd));
    TORCHQX_EACH t[v] = _mm512_min_ps(t[v], _mm512_set1_ps(kIntervals));
    TORCHQX_EACH interval[v] = _mm512_cvttps_epi32(t[v]);
    TORCHQX_EACH p[v] = _mm512_permutexvar_ps(interval[v], coefficient[kDegree]);
    TORCHQX_EACH t[v] = _mm512_sub_ps(t[v], _mm512_cvtepi32_ps(interval[v]));
#pragma GCC unroll 8
    for (int d = kDegree - 1; d >= 0; --d)
      TORCHQX_EACH p[v] = _mm512_fmadd_ps(p[v], t[v], _mm512_permutexvar_ps(interval[v], coefficient[d]));
    TORCHQX_EACH x[v] = _mm512_mul_ps(x[v], _mm512_set1_ps(0.5f));
    TORCHQX_EACH x[v] = _mm512_fmadd_ps(size[v], p[v], x[v]);
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

struct Silu {
  void operator()(Floats& x) const {
    Floats gate;
    TORCHQX_EACH gate[v] = x[v];
    times_sigmoid(x, gate);
  }
};

}  // namespace torchqx
