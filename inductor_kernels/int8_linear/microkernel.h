// The inner product: up to 6 rows of u8 activations times one panel of 64 packed s8 columns.
#include <cstring>

namespace torchqx {

constexpr int kTileRows = 6;  // 6 x 4 accumulators, 4 registers of weights and the broadcast fill the 32 registers
constexpr int64_t kStepBytes = 4 * kTileColumns;

// Written as assembly because compilers copy and spill the accumulators of the intrinsic (half the speed).
inline void multiply_add(__m512i& sum, __m512i x, __m512i weight) {
  asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(x), "v"(weight));
}

// x: kRows rows of k bytes, `stride` apart. weight: [ceil(k / 4), 64, 4], zero-padded. out: [kRows, 64].
template <int kRows>
void multiply_tile(const uint8_t* x, int64_t stride, const int8_t* weight, int64_t k, int32_t* out) {
  __m512i sums[kRows][4];
#pragma GCC unroll 6
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) sums[r][v] = _mm512_setzero_si512();

  // The bytes after the last whole step, copied so that nothing behind a row is read. Its partner in the weight
  // is padding, so what fills the rest of the four bytes has no effect.
  uint8_t tail[kRows][4] = {};
  for (int r = 0; r < kRows; ++r) std::memcpy(tail[r], x + r * stride + k / 4 * 4, k % 4);

  int64_t steps = k / 4;
  for (int64_t left = (k + 3) / 4; left > 0; left -= steps, steps = left, x = tail[0], stride = 4) {
    for (int64_t i = 0; i < steps; ++i, x += 4, weight += kStepBytes) {
      __m512i w[4];
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) w[v] = _mm512_loadu_si512(weight + 64 * v);
#pragma GCC unroll 6
      for (int r = 0; r < kRows; ++r) {
        __m512i four;
        asm("vpbroadcastd %1, %0" : "=v"(four) : "m"(*reinterpret_cast<const uint32_t*>(x + r * stride)));
#pragma GCC unroll 4
        for (int v = 0; v < 4; ++v) multiply_add(sums[r][v], four, w[v]);
      }
    }
  }
#pragma GCC unroll 6
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) _mm512_store_si512(out + r * kTileColumns + v * 16, sums[r][v]);
}

using Multiply = void (*)(const uint8_t*, int64_t, const int8_t*, int64_t, int32_t*);
constexpr Multiply kMultiply[kTileRows] = {multiply_tile<1>, multiply_tile<2>, multiply_tile<3>,
                                           multiply_tile<4>, multiply_tile<5>, multiply_tile<6>};

}  // namespace torchqx
