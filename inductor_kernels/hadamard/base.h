// The factor that is no power of two: x (H_base ⊗ I), a product with a small matrix of signs.
//
// The way for every base; small_base.h and circulants.h have faster ones for some. Rows are taken four at a time. Their
// 8 sums ±, up to a sign, are computed once; then each result adds one of them per four rows instead of four rows: a
// quarter of the additions, all of them with an operand from the first-level cache.
#include <algorithm>
#include <vector>

namespace torchqx::rotation {

constexpr int kSums = 8;
constexpr int64_t kTableBytes = 48 * 1024;  // of sums: what the first-level cache nearly holds

// Which sums each result adds and subtracts. Results with equal counts stand together, so that the ends of the loops
// over their sums are foreseen; one wrong guess costs as much as fifteen sums.
struct Combination {
  struct Result { int64_t row; int added, subtracted; };

  int64_t order = 1;
  std::vector<Result> results;
  std::vector<uint32_t> offsets;  // in the table, in bytes; in the order of results, first the added ones

  // From signs [order, order]: result b is the sum over a of x[a] · signs[a, b].
  Combination(const int8_t* signs, int64_t n, bool transpose, int64_t vector_bytes) : order(n) {
    const auto sign = [&](int64_t a, int64_t b) { return transpose ? signs[b * n + a] : signs[a * n + b]; };
    for (int64_t b = 0; b < n; ++b) {
      int added = 0;
      for (int64_t a = 0; a < n; a += 4) added += sign(a, b) > 0;
      results.push_back({b, added, static_cast<int>(n / 4 - added)});
    }
    std::stable_sort(results.begin(), results.end(), [](auto& p, auto& q) { return p.added < q.added; });
    for (const Result& result : results) {
      for (const int wanted : {1, -1}) {
        for (int64_t a = 0; a < n; a += 4) {
          if (sign(a, result.row) != wanted) continue;
          int64_t code = 0;
          for (int j = 1; j < 4; ++j) code = 2 * code + (sign(a + j, result.row) != wanted);
          offsets.push_back(static_cast<uint32_t>((a / 4 * kSums + code) * vector_bytes));
        }
      }
    }
  }
};

// W vectors at a time, of four rows of `stride` elements.
template <int L, int W>
TORCHQX_INLINE void sums_of_four(const float* x, int64_t stride, const Vec<L>& one, float* table) {
  Vec<L> v[4][W];
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
#pragma GCC unroll 4
    for (int w = 0; w < W; ++w) v[j][w] = load<L>(x + j * stride + w * L);
  }
#pragma GCC unroll 4
  for (int w = 0; w < W; ++w) {
    const Vec<L> a[2] = {v[0][w] + v[1][w], v[0][w] * one - v[1][w]};
    const Vec<L> c = v[2][w] + v[3][w], d = v[2][w] * one - v[3][w];
    for (int s = 0; s < 2; ++s) {
      float* out = table + (4 * s * W + w) * L;
      store<L>(out, a[s] + c);
      store<L>(out + W * L, a[s] + d);
      store<L>(out + 2 * W * L, a[s] * one - d);
      store<L>(out + 3 * W * L, a[s] * one - c);
    }
  }
}

// The sums at `count` offsets, W vectors each: several additions at a time, as each has to wait for the one before.
template <int L, int W>
TORCHQX_INLINE void sum_at(const char* sums, const uint32_t* at, int count, Vec<L> (&total)[W]) {
  constexpr int kChains = 4 / W;
  Vec<L> part[kChains][W] = {};
  int i = 0;
  for (; i + kChains <= count; i += kChains) {
#pragma GCC unroll 4
    for (int c = 0; c < kChains; ++c) {
#pragma GCC unroll 4
      for (int w = 0; w < W; ++w) part[c][w] += read<Vec<L>>(sums + at[i + c] + w * sizeof(Vec<L>));
    }
  }
  for (; i < count; ++i) {
#pragma GCC unroll 4
    for (int w = 0; w < W; ++w) part[0][w] += read<Vec<L>>(sums + at[i] + w * sizeof(Vec<L>));
  }
#pragma GCC unroll 4
  for (int w = 0; w < W; ++w) {
    total[w] = part[0][w];
#pragma GCC unroll 4
    for (int c = 1; c < kChains; ++c) total[w] += part[c][w];
  }
}

// Multiplies a block x [order, stride] in place, W vectors of its columns at a time.
template <int L, int W>
void base_stage(float* x, const Combination& combination, int64_t stride, float one_value, float* table,
                Ahead& ahead) {
  const Vec<L> one = Vec<L>{} + one_value;
  const char* sums = reinterpret_cast<const char*>(table);
  for (int64_t i = 0; i < stride; i += W * L) {
    for (int64_t a = 0; a < combination.order; a += 4) {
      sums_of_four<L, W>(x + a * stride + i, stride, one, table + a / 4 * kSums * W * L);
    }
    ahead(combination.order * W * L);
    const uint32_t* at = combination.offsets.data();
    for (const auto& result : combination.results) {
      float* out = x + result.row * stride + i;
      Vec<L> added[W], subtracted[W];
      sum_at<L, W>(sums, at, result.added, added);
      sum_at<L, W>(sums, at + result.added, result.subtracted, subtracted);
      at += result.added + result.subtracted;
#pragma GCC unroll 4
      for (int w = 0; w < W; ++w) store<L>(out + w * L, added[w] - subtracted[w]);
    }
  }
}

}  // namespace torchqx::rotation
