// Bases of four by four circulants of order n: each result is a sum of n vectors, not of 4 n.
//
//     y[r, i] = Σ over j of (Σ over c of ± x[c, j]), the signs a function of c, r and i - j mod n
//
// An inner sum is, up to its sign, one of 8, and in Williamson's matrices one of the four with an odd, or of the four
// with an even number of minus signs: of A B C D at a distance i - j of 0 all signs are equal, at any other three of
// the four. So those four are made once for each j, and then added up for five i at a time, all r, in registers. What a
// step adds depends on the first of the i only by the place where it is read.
#include <algorithm>
#include <array>
#include <iterator>
#include <utility>

namespace torchqx::rotation {

constexpr int kTogether = 5;  // i at a time, whose 20 results and four sums the registers hold

// Bit 4 c + r of element d is set where y[r, j + d] takes -x[c, j]; cpu.py defines them from the generated matrices.
template <int N> inline constexpr std::array<uint16_t, N> kCirculants{};
template <> inline constexpr std::array<uint16_t, 23> kCirculants<23>{TORCHQX_CIRCULANTS_92};
template <> inline constexpr std::array<uint16_t, 29> kCirculants<29>{TORCHQX_CIRCULANTS_116};
template <> inline constexpr std::array<uint16_t, 43> kCirculants<43>{TORCHQX_CIRCULANTS_172};

// minus: the sign of x[0]; odd: whether x[3] has not the sign that makes the number of minus signs even. The bits of
// `number`: whether x[1] and x[2] have another sign than x[0].
struct InnerSum { bool minus, odd; int number; };

template <int N, bool Transposed> constexpr InnerSum inner_sum(int r, int distance) {
  const int signs = kCirculants<N>[Transposed ? (N - distance) % N : distance];
  const auto minus = [&](int c) { return signs >> (Transposed ? 4 * r + c : 4 * c + r) & 1; };
  const bool odd = minus(0) ^ minus(1) ^ minus(2) ^ minus(3);
  return {minus(0) != 0, odd, 2 * (minus(2) ^ minus(0)) + (minus(1) ^ minus(0))};
}

// The four of one vector of columns for any distance but 0, by their numbers: [N, 4].
template <int N, bool Transposed, class RowOf>
TORCHQX_INLINE void inner_sums(const RowOf& row, const Vec<16>& one, float* sums) {
  constexpr bool odd = inner_sum<N, Transposed>(0, 1).odd;
  for (int j = 0; j < N; ++j, sums += 4 * 16) {
    const Vec<16> v0 = row(j), v1 = row(N + j), v2 = row(2 * N + j), v3 = row(3 * N + j);
    const Vec<16> a = v0 + v1, b = v0 * one - v1, c = v2 + v3, d = v2 * one - v3;
    store<16>(sums, a + (odd ? d : c));
    store<16>(sums + 16, b + (odd ? c : d));
    store<16>(sums + 2 * 16, a * one - (odd ? d : c));
    store<16>(sums + 3 * 16, b * one - (odd ? c : d));
  }
}

// y[0..3, first..first + kTogether - 1] of one vector of columns. At distance 0 it takes a sum of the other four:
// 2 x[0] minus the one that differs in the signs of all others; and 4 x[0] is the sum of the four.
template <int N, bool Transposed>
void circulant_results(const float* sums, int first, float one_value, float* out, int64_t pitch) {
  const Vec<16> one = Vec<16>{} + one_value;
  Vec<16> total[4 * kTogether] = {};
  const float* at = sums + first * 4 * 16;  // of j, from `first` downwards
  for_each_constant<N>([&]<int Step>(std::integral_constant<int, Step>) TORCHQX_INLINE_LAMBDA {
    Vec<16> sum[4];
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) {
      sum[k] = load<16>(at + k * 16);
      read_once(sum[k]);
    }
    for_each_constant<4 * kTogether>([&]<int T>(std::integral_constant<int, T>) TORCHQX_INLINE_LAMBDA {
      constexpr int distance = (Step + T / 4) % N;
      constexpr InnerSum which = inner_sum<N, Transposed>(T % 4, distance);
      static_assert(which.odd == (inner_sum<N, Transposed>(0, 1).odd ^ (distance == 0)));
      Vec<16> added = sum[which.number];
      if constexpr (distance == 0) added = 0.5f * (sum[0] + sum[1] + sum[2] + sum[3]) - sum[3 - which.number];
      if constexpr (T % 2) total[T] = which.minus ? total[T] - added : total[T] + added;
      else total[T] = which.minus ? total[T] * one - added : total[T] * one + added;
    });
    at = (at == sums ? sums + N * 4 * 16 : at) - 4 * 16;
  });
#pragma GCC unroll 20
  for (int t = 0; t < 4 * kTogether; ++t) store<16>(out + (t % 4 * N + first + t / 4) * pitch, total[t]);
}

// Multiplies a block [4 N, stride] into rows of `out` that are `pitch` elements apart.
template <int N, bool Transposed, class Source>
void circulant_pass(const Source& from, int64_t stride, float* out, int64_t pitch, float one_value, Ahead& ahead) {
  const Vec<16> one = Vec<16>{} + one_value;
  alignas(64) float sums[4 * N * 16];
  for (int64_t i = 0; i < stride; i += 16 * Source::kVectors) {
    for_each_constant<Source::kVectors>([&]<int S>(std::integral_constant<int, S>) TORCHQX_INLINE_LAMBDA {
      ahead(4 * N * 16);
      const auto row = [&](int a) TORCHQX_INLINE_LAMBDA { return from.template at<S>(i + a * stride); };
      inner_sums<N, Transposed>(row, one, sums);
      float* results = out + i + 16 * S;
      for (int done = 0; done < N; done += kTogether) {  // some twice, where N is no multiple: half the code to compile
        const int first = std::min(done, N - kTogether);
        circulant_results<N, Transposed>(sums, first, one_value, results, pitch);
      }
    });
  }
}

// The bases with code of their own.
template <bool Transposed, class Source>
void compiled_base_pass(int64_t base, const Source& from, int64_t stride, float* out, int64_t pitch, float one,
                        Ahead& ahead) {
  switch (base) {
    case 12: return small_base_pass<12, Transposed>(from, stride, out, pitch, one, ahead);
    case 20: return small_base_pass<20, Transposed>(from, stride, out, pitch, one, ahead);
    case 28: return small_base_pass<28, Transposed>(from, stride, out, pitch, one, ahead);
    case 36: return small_base_pass<36, Transposed>(from, stride, out, pitch, one, ahead);
    case 60: return small_base_pass<60, Transposed>(from, stride, out, pitch, one, ahead);
    case 92: return circulant_pass<23, Transposed>(from, stride, out, pitch, one, ahead);
    case 116: return circulant_pass<29, Transposed>(from, stride, out, pitch, one, ahead);
    default: return circulant_pass<43, Transposed>(from, stride, out, pitch, one, ahead);
  }
}

inline bool is_compiled_base(int64_t base) {
  constexpr int64_t kCompiled[] = {12, 20, 28, 36, 60, 92, 116, 172};
  return std::find(std::begin(kCompiled), std::end(kCompiled), base) != std::end(kCompiled);
}

}  // namespace torchqx::rotation
