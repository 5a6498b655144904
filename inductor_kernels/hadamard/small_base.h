// The commonest bases with their signs known to the compiler: sums and results stay in registers.
//
// As in base.h, the 8 sums ± of four rows, up to a sign; each result adds one of them per four rows. Of orders too
// large for the registers the results come in two halves, which both make the sums.
#include <array>
#include <utility>

namespace torchqx::rotation {

// Bit b of row a is set where the matrix has -1; cpu.py defines them from the generated matrices.
template <int N> inline constexpr std::array<uint64_t, N> kRows{};
template <> inline constexpr std::array<uint64_t, 12> kRows<12>{TORCHQX_BASE_12};
template <> inline constexpr std::array<uint64_t, 20> kRows<20>{TORCHQX_BASE_20};
template <> inline constexpr std::array<uint64_t, 28> kRows<28>{TORCHQX_BASE_28};
template <> inline constexpr std::array<uint64_t, 36> kRows<36>{TORCHQX_BASE_36};

template <int N, bool Transposed> constexpr bool negative(int a, int b) {
  return (Transposed ? kRows<N>[b] >> a : kRows<N>[a] >> b) & 1;
}

// Which of the 8 sums of rows a..a+3 result b takes.
template <int N, bool Transposed> constexpr int sum_of(int a, int b) {
  int code = 0;
  for (int j = 1; j < 4; ++j) code = 2 * code + (negative<N, Transposed>(a + j, b) != negative<N, Transposed>(a, b));
  return code;
}

// Adds to results B... what rows A to A + 3 contribute. Every second addition goes through the multiply-add units.
template <int L, int N, bool Transposed, int First, int A, int... B>
TORCHQX_INLINE void add_four(const float* x, int64_t stride, const Vec<L>& one, Vec<L>* total,
                             std::integer_sequence<int, B...>) {
  const float* p = x + A * stride;
  const Vec<L> v0 = load<L>(p), v1 = load<L>(p + stride), v2 = load<L>(p + 2 * stride), v3 = load<L>(p + 3 * stride);
  const Vec<L> a = v0 + v1, b = v0 * one - v1, c = v2 + v3, d = v2 * one - v3;
  const Vec<L> sums[8] = {a + c, a + d, a * one - d, a * one - c, b + c, b + d, b * one - d, b * one - c};
  const auto add = [&]<int R>(std::integral_constant<int, R>) {
    constexpr bool minus = negative<N, Transposed>(A, First + R);
    const Vec<L>& sum = sums[sum_of<N, Transposed>(A, First + R)];
    if constexpr (A == 0) {
      total[R] = minus ? -sum : sum;
    } else if constexpr (R % 2) {
      total[R] = minus ? total[R] - sum : total[R] + sum;
    } else {
      total[R] = minus ? total[R] * one - sum : total[R] * one + sum;
    }
  };
  (add(std::integral_constant<int, B>()), ...);
}

// Results First to First + Count - 1 of one vector of columns.
template <int L, int N, bool Transposed, int First, int Count>
TORCHQX_INLINE void results(const float* x, int64_t stride, const Vec<L>& one, Vec<L> (&total)[Count]) {
  [&]<int... Q>(std::integer_sequence<int, Q...>) {
    (add_four<L, N, Transposed, First, 4 * Q>(x, stride, one, total, std::make_integer_sequence<int, Count>()), ...);
  }(std::make_integer_sequence<int, N / 4>());
}

template <int N, int Half, class Body> TORCHQX_INLINE void for_each_half(const Body& body) {
  body(std::integral_constant<int, 0>());
  if constexpr (Half < N) body(std::integral_constant<int, Half>());
}

// Multiplies a block x [N, stride] in place. For two halves the vectors are copied first: rows a power of two apart
// share so few places in the first-level cache that the second half would not find them there.
template <int N, bool Transposed> void small_base_stage(float* x, int64_t stride, float one_value, Ahead& ahead) {
  constexpr int L = 16, kHalf = N <= 20 ? N : N / 2;
  const Vec<L> one = Vec<L>{} + one_value;
  alignas(64) float copy[N * L];
  for (float* column = x; column < x + stride; column += L) {
    ahead(N * L);
    const float* from = column;
    int64_t apart = stride;
    if constexpr (kHalf < N) {
      for (int a = 0; a < N; ++a) store<L>(copy + a * L, load<L>(column + a * stride));
      from = copy, apart = L;
    }
    for_each_half<N, kHalf>([&]<int First>(std::integral_constant<int, First>) {
      Vec<L> total[kHalf];
      results<L, N, Transposed, First>(from, apart, one, total);
#pragma GCC unroll 20
      for (int b = 0; b < kHalf; ++b) store<L>(column + (First + b) * stride, total[b]);
      asm volatile("" : : "r"(from) : "memory");  // or the second half would keep, in memory, the sums of the first
    });
  }
}

}  // namespace torchqx::rotation
