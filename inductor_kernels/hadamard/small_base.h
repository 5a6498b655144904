// The commonest bases with their signs known to the compiler: sums and results stay in registers.
//
// As in base.h, the 8 sums ± of four rows, up to a sign; each result adds one of them per four rows. Of orders too
// large for the registers the results come in two or three parts, which all make the sums.
#include <array>
#include <utility>

namespace torchqx::rotation {

// Bit b of row a is set where the matrix has -1; cpu.py defines them from the generated matrices.
template <int N> inline constexpr std::array<uint64_t, N> kRows{};
template <> inline constexpr std::array<uint64_t, 12> kRows<12>{TORCHQX_BASE_12};
template <> inline constexpr std::array<uint64_t, 20> kRows<20>{TORCHQX_BASE_20};
template <> inline constexpr std::array<uint64_t, 28> kRows<28>{TORCHQX_BASE_28};
template <> inline constexpr std::array<uint64_t, 36> kRows<36>{TORCHQX_BASE_36};
template <> inline constexpr std::array<uint64_t, 60> kRows<60>{TORCHQX_BASE_60};

template <int N, bool Transposed> constexpr bool negative(int a, int b) {
  return (Transposed ? kRows<N>[b] >> a : kRows<N>[a] >> b) & 1;
}

// Which of the 8 sums of rows a..a+3 result b takes.
template <int N, bool Transposed> constexpr int sum_of(int a, int b) {
  int code = 0;
  for (int j = 1; j < 4; ++j) code = 2 * code + (negative<N, Transposed>(a + j, b) != negative<N, Transposed>(a, b));
  return code;
}

// x[0] + x[1], x[0] - x[1], x[2] + x[3] and x[2] - x[3].
template <int L> struct PairSums { Vec<L> a, b, c, d; };

// Adds to results B... what rows A to A + 3 contribute. Every second addition goes through the multiply-add units.
template <int L, int N, bool Transposed, int First, int A, class PairsOf, int... B>
TORCHQX_INLINE void add_four(const PairsOf& pairs, const Vec<L>& one, Vec<L>* total, std::integer_sequence<int, B...>) {
  const auto [a, b, c, d] = pairs(A);
  const Vec<L> sums[8] = {a + c, a + d, a * one - d, a * one - c, b + c, b + d, b * one - d, b * one - c};
  const auto add = [&]<int R>(std::integral_constant<int, R>) TORCHQX_INLINE_LAMBDA {
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
template <int L, int N, bool Transposed, int First, int Count, class PairsOf>
TORCHQX_INLINE void results(const PairsOf& pairs, const Vec<L>& one, Vec<L> (&total)[Count]) {
  [&]<int... Q>(std::integer_sequence<int, Q...>) TORCHQX_INLINE_LAMBDA {
    (add_four<L, N, Transposed, First, 4 * Q>(pairs, one, total, std::make_integer_sequence<int, Count>()), ...);
  }(std::make_integer_sequence<int, N / 4>());
}

// Multiplies a block [N, stride] into rows of `out` that are `pitch` elements apart. For several parts the sums
// of pairs are kept, apart from the rows: those are a power of two apart and share so few places in the first-level
// cache that the next part would not find them there.
template <int N, bool Transposed, class Source>
void small_base_pass(const Source& from, int64_t stride, float* out, int64_t pitch, float one_value, Ahead& ahead) {
  constexpr int L = 16, kParts = (N + 19) / 20, kPart = N / kParts;
  const Vec<L> one = Vec<L>{} + one_value;
  alignas(64) float kept[kParts > 1 ? N * L : L];
  for (int64_t i = 0; i < stride; i += L * Source::kVectors) {
    for_each_constant<Source::kVectors>([&]<int S>(std::integral_constant<int, S>) TORCHQX_INLINE_LAMBDA {
      ahead(N * L);
      const auto sums = [&](int a) TORCHQX_INLINE_LAMBDA {
        const auto row = [&](int r) TORCHQX_INLINE_LAMBDA { return from.template at<S>(i + (a + r) * stride); };
        const Vec<L> v0 = row(0), v1 = row(1), v2 = row(2), v3 = row(3);
        return PairSums<L>{v0 + v1, v0 * one - v1, v2 + v3, v2 * one - v3};
      };
      if constexpr (kParts > 1) {
        for (int a = 0; a < N; a += 4) write(kept + a * L, sums(a));
      }
      for_each_constant<kParts>([&]<int P>(std::integral_constant<int, P>) TORCHQX_INLINE_LAMBDA {
        Vec<L> total[kPart];
        results<L, N, Transposed, P * kPart>([&](int a) TORCHQX_INLINE_LAMBDA {
          if constexpr (kParts > 1) return read<PairSums<L>>(kept + a * L);
          else return sums(a);
        }, one, total);
#pragma GCC unroll 20
        for (int b = 0; b < kPart; ++b) store<L>(out + i + L * S + (P * kPart + b) * pitch, total[b]);
        asm volatile("" : : "r"(kept) : "memory");  // or the next part would keep, in memory, the sums of this one
      });
    });
  }
}

}  // namespace torchqx::rotation
