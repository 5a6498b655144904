// What happens to a tile of int32 sums while it is still in the first-level cache.
#include <algorithm>

namespace torchqx {

constexpr int64_t kTileColumns = 64;

// A vector that may have one element for all positions, stored as float32 or bfloat16.
struct FloatVector {
  const void* data = nullptr;
  bool is_bfloat16 = false;
  int64_t stride = 1;

  explicit operator bool() const { return data != nullptr; }

  __m512 load(int64_t index, __mmask16 mask) const {
    if (stride == 0) return _mm512_set1_ps(*static_cast<const float*>(data));
    if (!is_bfloat16) return _mm512_maskz_loadu_ps(mask, static_cast<const float*>(data) + index);
    const __m256i half = _mm256_maskz_loadu_epi16(mask, static_cast<const uint16_t*>(data) + index);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
  }

  __m512 load_or_zero(int64_t index, __mmask16 mask) const { return data ? load(index, mask) : _mm512_setzero_ps(); }
};

enum class Output { kFloat32, kBFloat16, kUInt8 };

struct Epilogue {
  const float* x_scale;
  const int32_t* x_zero_point;
  int64_t scale_stride;       // 0: one for the tensor, 1: one per row
  int64_t zero_point_stride;  // likewise
  const float* weight_scale;
  const int32_t* column_sum;
  FloatVector bias, residual, out_mul, out_add;
  float qmin, qmax;
  Output output;
  void* out;
  int64_t columns;
};

inline void store_bfloat16(uint16_t* out, __mmask16 mask, __m512 y) {
  const __m512i bits = _mm512_castps_si512(y);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
  const __mmask16 nan = _mm512_cmp_ps_mask(y, y, _CMP_UNORD_Q);
  rounded = _mm512_mask_mov_epi32(rounded, nan, _mm512_set1_epi32(0x7fc0));
  _mm256_mask_storeu_epi16(out, mask, _mm512_cvtepi32_epi16(rounded));
}

inline void store_codes(uint8_t* out, __mmask16 mask, __m512 y, float qmin, float qmax) {
  y = _mm512_min_ps(_mm512_max_ps(y, _mm512_set1_ps(qmin)), _mm512_set1_ps(qmax));
  _mm_mask_storeu_epi8(out, mask, _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(y)));  // rounds half to even
}

// sums: [rows, 64] of x q^T for the tile whose first element is (row, column) of the output.
template <class Activation>
void finish_tile(const int32_t* sums, int64_t rows, int64_t row, int64_t column, const Epilogue& e) {
  const Activation activation;
  const int64_t left = std::min(e.columns - column, kTileColumns);
  const uint64_t inside = ~uint64_t{0} >> (kTileColumns - left);
  Floats y;
  for (int64_t r = 0; r < rows; ++r, ++row, sums += kTileColumns) {
    const __m512i zero_point = _mm512_set1_epi32(e.x_zero_point[row * e.zero_point_stride]);
    const __m512 x_scale = _mm512_set1_ps(e.x_scale[row * e.scale_stride]);
    TORCHQX_EACH {
      const auto mask = static_cast<__mmask16>(inside >> 16 * v);
      const int64_t c = column + 16 * v;
      const __m512i column_sum = _mm512_maskz_loadu_epi32(mask, e.column_sum + c);
      const __m512i sum = _mm512_sub_epi32(_mm512_load_si512(sums + 16 * v), _mm512_mullo_epi32(zero_point, column_sum));
      const __m512 scale = _mm512_mul_ps(x_scale, _mm512_maskz_loadu_ps(mask, e.weight_scale + c));
      y[v] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), scale, e.bias.load_or_zero(c, mask));
    }
    activation(y);
    TORCHQX_EACH {
      const auto mask = static_cast<__mmask16>(inside >> 16 * v);
      const int64_t c = column + 16 * v, at = row * e.columns + c;
      if (e.residual) y[v] = _mm512_add_ps(y[v], e.residual.load(at, mask));
      if (e.output == Output::kFloat32) {
        _mm512_mask_storeu_ps(static_cast<float*>(e.out) + at, mask, y[v]);
      } else if (e.output == Output::kBFloat16) {
        store_bfloat16(static_cast<uint16_t*>(e.out) + at, mask, y[v]);
      } else {
        y[v] = _mm512_fmadd_ps(y[v], e.out_mul.load(c, mask), e.out_add.load(c, mask));
        store_codes(static_cast<uint8_t*>(e.out) + at, mask, y[v], e.qmin, e.qmax);
      }
    }
  }
}

}  // namespace torchqx
