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
  int64_t columns;  // of the output
  bool gated;       // the weight has twice as many columns
  int64_t gate;     // the half of them that the activation takes
};

// What turns a panel's sums into numbers, read once for all its rows: padded, so that no row needs masks for it.
struct Dequantizer {
  alignas(64) int32_t offset[kTileColumns];  // times a row's zero point, if rows have their own
  alignas(64) float scale[kTileColumns], bias[kTileColumns];

  Dequantizer() = default;

  Dequantizer(const Epilogue& e, int64_t first, uint64_t inside) {
    const __m512i zero_point = _mm512_set1_epi32(e.zero_point_stride ? 1 : *e.x_zero_point);
    const __m512 x_scale = _mm512_set1_ps(e.scale_stride ? 1 : *e.x_scale);
    for (int v = 0; v < 4; ++v) {
      const auto mask = static_cast<__mmask16>(inside >> 16 * v);
      const int64_t c = first + 16 * v;
      const __m512i sum = _mm512_maskz_loadu_epi32(mask, e.column_sum + c);
      _mm512_store_si512(offset + 16 * v, _mm512_mullo_epi32(sum, zero_point));
      _mm512_store_ps(scale + 16 * v, _mm512_mul_ps(_mm512_maskz_loadu_ps(mask, e.weight_scale + c), x_scale));
      _mm512_store_ps(bias + 16 * v, e.bias.load_or_zero(c, mask));
    }
  }

  // y: 64 numbers of the output's row `row`.
  void operator()(const int32_t* sums, int64_t row, const Epilogue& e, Floats& y) const {
    __m512i shift[4];
    Floats factor;
    TORCHQX_EACH shift[v] = _mm512_load_si512(offset + 16 * v);
    TORCHQX_EACH factor[v] = _mm512_load_ps(scale + 16 * v);
    if (e.zero_point_stride) {
      const __m512i zero_point = _mm512_set1_epi32(e.x_zero_point[row]);
      TORCHQX_EACH shift[v] = _mm512_mullo_epi32(shift[v], zero_point);
    }
    if (e.scale_stride) {
      const __m512 x_scale = _mm512_set1_ps(e.x_scale[row]);
      TORCHQX_EACH factor[v] = _mm512_mul_ps(factor[v], x_scale);
    }
    TORCHQX_EACH y[v] = _mm512_cvtepi32_ps(_mm512_sub_epi32(_mm512_load_si512(sums + 16 * v), shift[v]));
    TORCHQX_EACH y[v] = _mm512_fmadd_ps(y[v], factor[v], _mm512_load_ps(bias + 16 * v));
  }
};

// The parameters of 64 columns of the output.
struct Columns {
  int64_t first;
  uint64_t inside;  // bit c: column first + c exists
  Dequantizer product, partner;  // of what the activation takes, and of what a gate multiplies
  alignas(64) float mul[kTileColumns], add[kTileColumns];

  Columns(const Epilogue& e, int64_t first)
      : first(first), inside(~uint64_t{0} >> (kTileColumns - std::min(e.columns - first, kTileColumns))),
        product(e, e.gate * e.columns + first, inside) {
    if (e.gated) partner = Dequantizer(e, (1 - e.gate) * e.columns + first, inside);
    if (e.output != Output::kUInt8) return;
    for (int v = 0; v < 4; ++v) {
      const auto mask = static_cast<__mmask16>(inside >> 16 * v);
      _mm512_store_ps(mul + 16 * v, e.out_mul.load(first + 16 * v, mask));
      _mm512_store_ps(add + 16 * v, e.out_add.load(first + 16 * v, mask));
    }
  }
};

// The nearest, ties to even. (The instruction takes numbers below 1e-38 for zero.)
inline __m256i to_bfloat16(__m512 y) {
#ifdef __AVX512BF16__
  return reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(y));
#else
  const __m512i bits = _mm512_castps_si512(y);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
  const __mmask16 nan = _mm512_cmp_ps_mask(y, y, _CMP_UNORD_Q);
  rounded = _mm512_mask_mov_epi32(rounded, nan, _mm512_set1_epi32(0x7fc0));
  return _mm512_cvtepi32_epi16(rounded);
#endif
}

// 64 codes. The saturating packs clamp to [0, 255] on their way; the bound before the conversion keeps what is too
// large for int32 from turning negative. Each pack works within the quarters of a register, hence the permutation.
inline __m512i to_codes(Floats& y, const Epilogue& e) {
  __m512i code[4];
  TORCHQX_EACH code[v] = _mm512_cvtps_epi32(_mm512_min_ps(_mm512_set1_ps(e.qmax), y[v]));  // rounds half to even
  __m512i codes = _mm512_packus_epi16(_mm512_packs_epi32(code[0], code[1]), _mm512_packs_epi32(code[2], code[3]));
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  codes = _mm512_permutexvar_epi32(order, codes);
  return _mm512_max_epu8(codes, _mm512_set1_epi8(static_cast<char>(e.qmin)));
}

// sums: [rows, 64] of x q^T from the output's row `row` on; partner: likewise, of what a gate multiplies.
template <class Activation>
void finish_tile(const int32_t* sums, const int32_t* partner, int64_t rows, int64_t row, const Columns& columns,
                 const Epilogue& e) {
  const Activation activation;
  Floats y, factor;
  for (int64_t r = 0; r < rows; ++r, ++row, sums += kTileColumns, partner += kTileColumns) {
    columns.product(sums, row, e, y);
    activation(y);
    if (e.gated) {
      columns.partner(partner, row, e, factor);
      TORCHQX_EACH y[v] = _mm512_mul_ps(y[v], factor[v]);
    }
    const int64_t at = row * e.columns + columns.first;
    if (e.residual)
      TORCHQX_EACH y[v] = _mm512_add_ps(y[v], e.residual.load(at + 16 * v, columns.inside >> 16 * v));
    if (e.output == Output::kFloat32) {
      TORCHQX_EACH _mm512_mask_storeu_ps(static_cast<float*>(e.out) + at + 16 * v, columns.inside >> 16 * v, y[v]);
    } else if (e.output == Output::kBFloat16) {
      uint16_t* out = static_cast<uint16_t*>(e.out) + at;
      TORCHQX_EACH _mm256_mask_storeu_epi16(out + 16 * v, columns.inside >> 16 * v, to_bfloat16(y[v]));
    } else {
      Floats add;
      TORCHQX_EACH add[v] = _mm512_load_ps(columns.add + 16 * v);
      TORCHQX_EACH y[v] = _mm512_fmadd_ps(y[v], _mm512_load_ps(columns.mul + 16 * v), add[v]);
      _mm512_mask_storeu_epi8(static_cast<uint8_t*>(e.out) + at, columns.inside, to_codes(y, e));
    }
  }
}

}  // namespace torchqx
