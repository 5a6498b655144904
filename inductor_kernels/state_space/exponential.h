// exp2, exp, softplus and SiLU of sixteen floats, each within a few units in the last place.
#include <array>

namespace torchqx {

constexpr float kLog2E = 1.44269504f, kLog2ERest = 1.925963033e-8f;  // log2(e) in two parts

#ifdef __AVX512DQ__
// 2^x = 2^k · 2^(j/32) · 2^r with |r| <= 1/64: the middle factor is looked up in two registers, so that two terms of
// a series suffice (5e-8). It takes 3 operations of the multiplier, a polynomial on [-1/2, 1/2] takes 6.
struct Exp2 {
  static constexpr int kBits = 5;
  static constexpr float kMagic = 12582912.f / (1 << kBits);  // adding it leaves round(32 x) in the lowest bits

  // The exponent of 2^(k + j/32) is added as (32 k + j) << 18; the entry takes off what j adds there.
  static std::array<int32_t, 32> build() {
    std::array<int32_t, 32> table;
    for (int j = 0; j < 32; ++j) {
      const float value = static_cast<float>(std::exp2(j / 32.0));
      std::memcpy(&table[j], &value, sizeof value);
      table[j] -= j << (23 - kBits);
    }
    return table;
  }

  Ints low, high;

  Exp2() {
    static const std::array<int32_t, 32> table = build();
    std::memcpy(&low, table.data(), sizeof low);
    std::memcpy(&high, table.data() + 16, sizeof high);
  }

  // For -126 <= x < 128, and r moved by ``rest``: a part of x that was lost in rounding.
  TORCHQX_INLINE Floats inside(Floats x, Floats rest) const {
    return scaled(x, _mm512_reduce_ps(x, kBits << 4) + rest);
  }
  TORCHQX_INLINE Floats inside(Floats x) const { return scaled(x, _mm512_reduce_ps(x, kBits << 4)); }

 private:
  TORCHQX_INLINE Floats scaled(Floats x, Floats r) const {
    const Ints nearest = bits(x + kMagic);
    const Floats p = fma(r, fma(r, all(0.24022651f), all(0.69315734f)), all(1.f));
    const __m512i entry = _mm512_permutex2var_epi32((__m512i)low, (__m512i)nearest, (__m512i)high);
    return from_bits((nearest << (23 - kBits)) + (Ints)entry) * p;
  }
};
#else
// 2^x = 2^k · 2^r with |r| <= 1/2 and the series of 2^r up to the sixth power (2e-8).
struct Exp2 {
  TORCHQX_INLINE Floats inside(Floats x, Floats rest = Floats{}) const {
    constexpr float kMagic = 12582912.f;
    const Floats shifted = x + kMagic, r = x - (shifted - kMagic) + rest;
    Floats p = all(1.54353e-4f);
    for (const float c : {1.33335581e-3f, 9.61812911e-3f, 5.55041087e-2f, 0.240226507f, 0.693147181f, 1.f})
      p = fma(p, r, all(c));
    return from_bits((bits(shifted) << 23) + bits(p));
  }
};
#endif

constexpr float kLowest = -126.f, kHighest = 127.9f;  // powers of two outside become those of the bounds
TORCHQX_INLINE Floats bounded(Floats x) { return at_most(at_least(x, kLowest), kHighest); }

TORCHQX_INLINE Floats exp(const Exp2& exp2, Floats x) {
  x = at_most(at_least(x, -87.3f), 88.6f);
  const Floats product = x * kLog2E;
  return exp2.inside(product, fma(x, all(kLog2ERest), fma(x, all(kLog2E), -product)));
}

// log(1 + exp(x)) = max(x, 0) + log(1 + e), e = exp(-|x|); log(1 + e) = 2 artanh(s), s = e / (2 + e) <= 1/3: a relative
// error of 3e-7 also where the result is tiny.
TORCHQX_INLINE Floats softplus(const Exp2& exp2, Floats x) {
  const Floats e = exp(exp2, x > 0 ? -x : x);
  const Floats s = e / (e + 2.f), q = s * s;
  Floats p = all(2.f / 13);
  for (const float c : {2.f / 11, 2.f / 9, 2.f / 7, 2.f / 5, 2.f / 3, 2.f}) p = fma(p, q, all(c));
  return fma(s, p, at_least(x, 0.f));
}

TORCHQX_INLINE Floats silu(const Exp2& exp2, Floats x) {
  return x / (exp(exp2, -x) + 1.f);
}

}  // namespace torchqx
