// The inner products of a tile: up to 6 rows times up to 64 columns.
#include <algorithm>

namespace torchqx_attention {

constexpr int kTileRows = 6;      // 6 x 4 sums, 4 registers of columns and the broadcast fill the 32 registers
constexpr int kTileRegisters = 4;

// Products summed one after another, before the sum joins the sums of others: longer chains lose digits.
constexpr int64_t kChain = 64;

// One chain: out [kRows, 16 kRegisters] (+)= a [kRows, words] b [words, 16 kRegisters]; strides in words.
template <class Element, int kRows, int kRegisters>
void chain(const Word* a, int64_t a_stride, const Word* b, int64_t b_stride, int64_t words, float* out,
           int64_t out_stride, bool accumulate) {
  __m512 sums[kRows][kRegisters];
#pragma GCC unroll 6
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < kRegisters; ++v) sums[r][v] = _mm512_setzero_ps();
  for (int64_t i = 0; i < words; ++i, ++a, b += b_stride) {
    __m512 columns[kRegisters];
#pragma GCC unroll 4
    for (int v = 0; v < kRegisters; ++v) columns[v] = _mm512_loadu_ps(b + kLanes * v);
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r) {
      __m512 spread;
      asm("vbroadcastss %1, %0" : "=v"(spread) : "m"(a[r * a_stride]));
#pragma GCC unroll 4
      for (int v = 0; v < kRegisters; ++v) Element::multiply_add(sums[r][v], spread, columns[v]);
    }
  }
#pragma GCC unroll 6
  for (int r = 0; r < kRows; ++r, out += out_stride)
#pragma GCC unroll 4
    for (int v = 0; v < kRegisters; ++v) {
      const __m512 before = accumulate ? _mm512_loadu_ps(out + kLanes * v) : _mm512_setzero_ps();
      _mm512_storeu_ps(out + kLanes * v, _mm512_add_ps(before, sums[r][v]));
    }
}

using Chain = void (*)(const Word*, int64_t, const Word*, int64_t, int64_t, float*, int64_t, bool);

template <class Element, int kRegisters>
constexpr Chain kChains[kTileRows] = {chain<Element, 1, kRegisters>, chain<Element, 2, kRegisters>,
                                      chain<Element, 3, kRegisters>, chain<Element, 4, kRegisters>,
                                      chain<Element, 5, kRegisters>, chain<Element, 6, kRegisters>};

// out [rows, 16 registers] (+)= a [rows, words] b [words, 16 registers].
template <class Element>
void product(int64_t rows, int64_t registers, const Word* a, int64_t a_stride, const Word* b, int64_t b_stride,
             int64_t words, float* out, int64_t out_stride, bool accumulate) {
  static constexpr const Chain* kWidths[kTileRegisters] = {kChains<Element, 1>, kChains<Element, 2>,
                                                           kChains<Element, 3>, kChains<Element, 4>};
  const Chain run = kWidths[registers - 1][rows - 1];
  for (int64_t i = 0; i < words; i += kChain, accumulate = true)
    run(a + i, a_stride, b + i * b_stride, b_stride, std::min(kChain, words - i), out, out_stride, accumulate);
}

}  // namespace torchqx_attention
