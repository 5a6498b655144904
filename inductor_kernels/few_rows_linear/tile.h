// Four rows of the weight times up to six rows of x.
#include <algorithm>

namespace torchqx_few_rows {

constexpr int kTileColumns = 4;  // weight rows: each is a column of the result
constexpr int kTileRows = 6;     // 4 x 6 sums, 4 registers of weights and one of x, of 32

// Rows this short (in bytes) share pages, where the processor does not see four streams: the next tile is fetched ahead,
// in the order of memory. Longer rows it follows by itself, and faster.
constexpr int64_t kShortRow = 4096;
constexpr int64_t kLine = 64;

template <class Element>
struct Problem {
  using Value = typename Element::Value;
  int64_t rows, columns, k;
  const Value *x, *weight, *bias;
  Value* out;

  int64_t tiles() const { return (columns + kTileColumns - 1) / kTileColumns; }
  int64_t row_bytes() const { return k * static_cast<int64_t>(sizeof(Value)); }
};

// 16 lanes of each of four sums -> the four sums.
inline __m128 total(const __m512 (&s)[kTileColumns]) {
  const auto pairs = [](__m512 a, __m512 b) { return _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b)); };
  const __m512d low = _mm512_castps_pd(pairs(s[0], s[1])), high = _mm512_castps_pd(pairs(s[2], s[3]));
  const __m512 four = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(low, high)),
                                    _mm512_castpd_ps(_mm512_unpackhi_pd(low, high)));
  const __m256 two = _mm256_add_ps(_mm512_castps512_ps256(four), _mm512_extractf32x8_ps(four, 1));
  return _mm_add_ps(_mm256_castps256_ps128(two), _mm256_extractf128_ps(two, 1));
}

// Results [kRows, 4] from row `row` and column `column` on. Every step moves four times `pace` bytes on
// from `ahead` and fetches what is there.
template <class Element, int kRows>
void tile(const Problem<Element>& p, int64_t row, int64_t column, const char* ahead, int64_t pace) {
  using Value = typename Element::Value;
  const int64_t columns = std::min<int64_t>(kTileColumns, p.columns - column);
  const Value* x = p.x + row * p.k;
  const Value* w[kTileColumns];  // the last row again where there are fewer
  for (int64_t c = 0; c < kTileColumns; ++c) w[c] = p.weight + (column + std::min(c, columns - 1)) * p.k;

  __m512 sums[kRows][kTileColumns];
#pragma GCC unroll 6
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int c = 0; c < kTileColumns; ++c) sums[r][c] = _mm512_setzero_ps();
  const auto step = [&](auto load) __attribute__((always_inline)) {
    __m512i weights[kTileColumns];
#pragma GCC unroll 4
    for (int c = 0; c < kTileColumns; ++c, ahead += pace) {
      weights[c] = load(w[c]);
      _mm_prefetch(ahead, _MM_HINT_T0);
    }
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r) {
      const __m512i values = load(x + r * p.k);
#pragma GCC unroll 4
      for (int c = 0; c < kTileColumns; ++c) sums[r][c] = Element::multiply_add(sums[r][c], weights[c], values);
    }
  };
  int64_t i = 0;
  for (; i + Element::kPerVector <= p.k; i += Element::kPerVector)
    step([i](const Value* v) { return _mm512_loadu_si512(v + i); });
  if (i < p.k) step([&](const Value* v) { return Element::load_first(v + i, p.k - i); });

  float y[kRows][kTileColumns];
#pragma GCC unroll 6
  for (int r = 0; r < kRows; ++r) _mm_storeu_ps(y[r], total(sums[r]));
  for (int64_t c = 0; c < columns; ++c) {
    const float bias = p.bias ? Element::widened(p.bias[column + c]) : 0.0f;
    for (int r = 0; r < kRows; ++r) p.out[(row + r) * p.columns + column + c] = Element::rounded(y[r][c] + bias);
  }
}

template <class Element>
using Tile = void (*)(const Problem<Element>&, int64_t, int64_t, const char*, int64_t);

template <class Element>
constexpr Tile<Element> kTiles[kTileRows] = {tile<Element, 1>, tile<Element, 2>, tile<Element, 3>,
                                             tile<Element, 4>, tile<Element, 5>, tile<Element, 6>};

// Tiles [begin, end) of columns, all rows: block after block of rows meets the weights while they are in the cache, and
// fetches its share of the next ones.
template <class Element>
void run(const Problem<Element>& p, int64_t begin, int64_t end) {
  const int64_t blocks = (p.rows + kTileRows - 1) / kTileRows;
  const int64_t pace = p.row_bytes() < kShortRow ? kLine / blocks : 0;
  const int64_t steps = (p.row_bytes() + kLine - 1) / kLine;
  for (int64_t t = begin; t < end; ++t) {
    const char* next = reinterpret_cast<const char*>(p.weight + (t + (pace > 0)) * kTileColumns * p.k);
    for (int64_t b = 0; b < blocks; ++b, next += steps * kTileColumns * pace) {
      const int64_t row = p.rows * b / blocks, rows = p.rows * (b + 1) / blocks - row;
      kTiles<Element>[rows - 1](p, row, t * kTileColumns, next, pace);
    }
  }
}

}  // namespace torchqx_few_rows
