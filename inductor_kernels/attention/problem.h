// One call: operands by address and stride, and what becomes of the result.

namespace torchqx_attention {

// [batch, heads, rows, ...], the last dimension dense; strides in elements.
struct Operand {
  const void* data = nullptr;
  int64_t batch = 0, head = 0, row = 0;

  template <class Value>
  const Value* at(int64_t b, int64_t h, int64_t r) const {
    return static_cast<const Value*>(data) + b * batch + h * head + r * row;
  }
};

// float32, one for each of a row's H * D elements or one for all.
struct Parameter {
  const float* data = nullptr;
  bool single = false;

  __m512 load(int64_t index, __mmask16 inside) const {
    return single ? _mm512_set1_ps(*data) : _mm512_maskz_loadu_ps(inside, data + index);
  }
};

struct Problem {
  int64_t batch, heads, kv_heads, queries, keys, width;
  Operand q, k, v, mask;
  int64_t mask_bytes = 0;  // of one element
  float scale;
  bool causal;
  void* out;  // [batch, queries, heads, width]
  Parameter out_mul, out_add;  // where given, the result is codes
  float qmin, qmax;

  int64_t group() const { return heads / kv_heads; }
  int64_t rows() const { return queries * group(); }  // that share one head of keys and values
  int64_t padded_width() const { return (width + kLanes - 1) / kLanes * kLanes; }

  int64_t visible(int64_t query) const { return causal ? std::min(keys, query + 1) : keys; }

  const void* mask_at(int64_t b, int64_t h, int64_t query, int64_t key) const {
    return mask.data ? mask.at<char>(b, h, query) + key * mask_bytes : nullptr;
  }

  // sums: the row's weighted values before the division by the sum of its weights.
  template <class Element>
  void finish(int64_t b, int64_t h, int64_t query, const float* sums, float weight) const {
    const __m512 inverse = _mm512_set1_ps(weight == 0.f ? 0.f : 1.f / weight);  // 0: the row sees no key
    const int64_t at = ((b * queries + query) * heads + h) * width;
    for (int64_t c = 0; c < width; c += kLanes) {
      const __mmask16 inside = first_lanes(width - c);
      __m512 y = _mm512_mul_ps(_mm512_loadu_ps(sums + c), inverse);
      if (!out_mul.data) {
        Element::store(static_cast<typename Element::Value*>(out) + at + c, inside, y);
        continue;
      }
      y = _mm512_fmadd_ps(y, out_mul.load(h * width + c, inside), out_add.load(h * width + c, inside));
      y = _mm512_min_ps(_mm512_max_ps(y, _mm512_set1_ps(qmin)), _mm512_set1_ps(qmax));
      _mm_mask_storeu_epi8(static_cast<uint8_t*>(out) + at + c, inside, _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(y)));
    }
  }
};

}  // namespace torchqx_attention
