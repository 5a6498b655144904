// The factor that is no power of two: x (H_base ⊗ I), a product with a small matrix of signs.
//
// Rows are taken four at a time. Their 8 sums ±, up to a sign, are computed once; then each result adds one of them per
// four rows instead of four rows: a quarter of the additions, all of them with an operand from the first-level cache.
#include <algorithm>
#include <vector>

namespace torchqx::rotation {

constexpr int kSums = 8;
constexpr int64_t kTableBytes = 24 * 1024;  // of sums, so that they stay in the first-level cache

// Which sums each result adds and subtracts: byte offsets in the table.
struct Combination {
  int64_t order = 1;
  std::vector<uint32_t> offsets;  // of result 0: added, subtracted; of result 1: ...
  std::vector<uint16_t> counts;   // added, subtracted; ...

  // From signs [order, order]: result b is the sum over a of x[a] · signs[a, b].
  Combination(const int8_t* signs, int64_t n, bool transpose, int64_t vector_bytes) : order(n) {
    for (int64_t b = 0; b < n; ++b) {
      const auto sign = [&](int64_t a) { return transpose ? signs[b * n + a] : signs[a * n + b]; };
      for (const int wanted : {1, -1}) {
        const size_t before = offsets.size();
        for (int64_t a = 0; a < n; a += 4) {
          if (sign(a) != wanted) continue;
          int64_t code = 0;
          for (int j = 1; j < 4; ++j) code = 2 * code + (sign(a + j) != wanted);
          offsets.push_back(static_cast<uint32_t>((a / 4 * kSums + code) * vector_bytes));
        }
        counts.push_back(static_cast<uint16_t>(offsets.size() - before));
      }
    }
  }
};

// W vectors at a time, `apart` elements from each other; over[4] rows of `stride` elements. With `mixed`, the W vectors
// are also one Sylvester(W): the last levels of the power-of-two part.
template <int L, int W>
TORCHQX_INLINE void sums_of_four(const float* x, int64_t stride, int64_t apart, bool mixed, const Vec<L>& one,
                                 float* table) {
  Vec<L> v[4][W];
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
#pragma GCC unroll 4
    for (int w = 0; w < W; ++w) v[j][w] = load<L>(x + j * stride + w * apart);
    if (mixed) butterfly<L, W>(v[j], one);
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

// Multiplies a block x [order, stride] in place, W vectors of its columns at a time.
template <int L, int W>
void base_stage(float* x, const Combination& combination, int64_t stride, int64_t apart, bool mixed, float one_value,
                float* table) {
  const Vec<L> one = Vec<L>{} + one_value;
  const int64_t columns = mixed ? apart : stride, step = mixed ? L : W * L;
  for (int64_t i = 0; i < columns; i += step) {
    for (int64_t a = 0; a < combination.order; a += 4) {
      sums_of_four<L, W>(x + a * stride + i, stride, apart, mixed, one, table + a / 4 * kSums * W * L);
    }
    const char* sums = reinterpret_cast<const char*>(table);
    const uint32_t* at = combination.offsets.data();
    const uint16_t* count = combination.counts.data();
    for (int64_t b = 0; b < combination.order; ++b, count += 2) {
      const auto sum = [&](Vec<L> (&total)[W], int terms) {
        for (const uint32_t* end = at + terms; at != end; ++at) {
#pragma GCC unroll 4
          for (int w = 0; w < W; ++w) total[w] += read<Vec<L>>(sums + *at + w * sizeof(Vec<L>));
        }
      };
      Vec<L> added[W] = {}, subtracted[W] = {};
      sum(added, count[0]);
      sum(subtracted, count[1]);
#pragma GCC unroll 4
      for (int w = 0; w < W; ++w) store<L>(x + b * stride + i + w * apart, added[w] - subtracted[w]);
    }
  }
}

}  // namespace torchqx::rotation
