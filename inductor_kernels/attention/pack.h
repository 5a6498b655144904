// Keys and values in the order in which the inner products read them, made once for all rows that attend to them.
#include <algorithm>

namespace torchqx_attention {

constexpr int64_t kPanelKeys = kLanes * kTileRegisters;

// 16 rows of 16 words, transposed.
inline void transpose(__m512i (&r)[16]) {
  __m512i t[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
  for (int i = 0; i < 16; i += 4)
    for (int j = 0; j < 2; ++j) {
      r[i + 2 * j] = _mm512_unpacklo_epi64(t[i + j], t[i + j + 2]);
      r[i + 2 * j + 1] = _mm512_unpackhi_epi64(t[i + j], t[i + j + 2]);
    }
  for (int i = 0; i < 16; i += 8)
    for (int j = 0; j < 4; ++j) {
      t[i + j] = _mm512_shuffle_i32x4(r[i + j], r[i + j + 4], 0x88);
      t[i + j + 4] = _mm512_shuffle_i32x4(r[i + j], r[i + j + 4], 0xdd);
    }
  for (int j = 0; j < 8; ++j) {
    r[j] = _mm512_shuffle_i32x4(t[j], t[j + 8], 0x88);
    r[j + 8] = _mm512_shuffle_i32x4(t[j], t[j + 8], 0xdd);
  }
}

// keys: rows of `words` words, `stride` values apart -> panels [words, 64] of 64 keys, the missing ones zero.
template <class Element>
void pack_keys(const typename Element::Value* keys, int64_t stride, int64_t count, int64_t words, Word* out) {
  for (int64_t key = 0; key < count; key += kLanes) {
    Word* column = out + key / kPanelKeys * kPanelKeys * words + key % kPanelKeys;
    for (int64_t w = 0; w < words; w += kLanes) {
      const __mmask16 inside = first_lanes(words - w);
      __m512i block[16];
#pragma GCC unroll 16
      for (int64_t i = 0; i < kLanes; ++i) {
        const auto* row = keys + std::min(key + i, count - 1) * stride + w * Element::kPerWord;
        block[i] = _mm512_maskz_loadu_epi32(key + i < count ? inside : __mmask16{0}, row);
      }
      transpose(block);
      const int64_t rows = std::min(kLanes, words - w);
      for (int64_t i = 0; i < rows; ++i) _mm512_storeu_si512(column + (w + i) * kPanelKeys, block[i]);
    }
  }
}

// values: rows of `width` values, `stride` apart -> words of consecutive rows' values, [ceil(count / kPerWord), padded]
template <class Element>
void pack_values(const typename Element::Value* values, int64_t stride, int64_t count, int64_t width, int64_t padded,
                 Word* out) {
  for (int64_t row = 0; row < count; row += Element::kPerWord, out += padded)
    for (int64_t c = 0; c < padded; c += kLanes) {
      const auto* first = values + row * stride + c;
      const auto* second = row + 1 < count ? first + stride : nullptr;
      _mm512_storeu_si512(out + c, Element::value_words(first, second, first_lanes(width - c)));
    }
}

}  // namespace torchqx_attention
