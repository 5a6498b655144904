// Tensors of several types and any strides, read as floats in blocks of sixteen lanes by a few steps.
#include <initializer_list>
#include <optional>
#include <string>
#include <type_traits>

namespace torchqx {

using Optional = std::optional<Tensor>;

struct BFloat16 { uint16_t bits; };
struct Half { uint16_t bits; };

template <class T>
constexpr bool kIsCode = sizeof(T) == 1;

template <class Narrow>
TORCHQX_INLINE Ints widen(const void* p) {
  typedef Narrow Vector __attribute__((vector_size(kLanes * sizeof(Narrow))));
  Vector x;
  std::memcpy(&x, p, sizeof x);
  return __builtin_convertvector(x, Ints);
}
TORCHQX_INLINE Floats widen(const float* p) { return load(p); }
TORCHQX_INLINE Floats widen(const BFloat16* p) { return from_bits(widen<uint16_t>(p) << 16); }
#ifdef __AVX512DQ__  // GCC 12 takes the sixteen bytes apart
template <>
TORCHQX_INLINE Ints widen<int8_t>(const void* p) {
  return (Ints)_mm512_cvtepi8_epi32(_mm_loadu_si128(static_cast<const __m128i*>(p)));
}
template <>
TORCHQX_INLINE Ints widen<uint8_t>(const void* p) {
  return (Ints)_mm512_cvtepu8_epi32(_mm_loadu_si128(static_cast<const __m128i*>(p)));
}
#endif
TORCHQX_INLINE Floats widen(const int8_t* p) { return __builtin_convertvector(widen<int8_t>(p), Floats); }
TORCHQX_INLINE Floats widen(const uint8_t* p) { return __builtin_convertvector(widen<uint8_t>(p) - 128, Floats); }
// The exponent moves by 112; a subnormal becomes normal when its missing leading bit is taken off as a float.
TORCHQX_INLINE Floats widen(const Half* p) {
  const Ints half = widen<uint16_t>(p), shifted = (half & 0x7fff) << 13, exponent = shifted & (0x7c00 << 13);
  const Floats smallest = from_bits(Ints{} + (113 << 23));
  const Ints normal = shifted + (112 << 23) + (exponent == (0x7c00 << 13) ? Ints{} + (112 << 23) : Ints{});
  const Ints subnormal = bits(from_bits(shifted + (113 << 23)) - smallest);
  return from_bits((exponent == 0 ? subnormal : normal) | (half & 0x8000) << 16);
}

// The first ``lanes`` of sixteen elements that are ``stride`` apart; zero in the others.
template <class T>
TORCHQX_INLINE Floats widen(const T* p, int64_t stride, int lanes) {
  if (stride == 1 && lanes == kLanes) return widen(p);
  T buffer[kLanes];
  std::memset(buffer, std::is_same_v<T, uint8_t> ? 128 : 0, sizeof buffer);
  for (int i = 0; i < lanes; ++i) buffer[i] = p[i * stride];
  return widen(buffer);
}

// A rectangle of a tensor: element (step, lane) is data[step * step_stride + lane * lane_stride].
struct Block {
  const char* data;
  int64_t lane_stride, step_stride;
  int lanes, steps;

  // Then it pays to read along time and to turn the result.
  bool time_runs_fastest() const { return step_stride == 1 && lane_stride != 1 && steps >= kLanes / 2; }

  // Asks for its cache lines, which are too far apart for the processor to foresee them. They go to the second level:
  // with rows a multiple of 2 KiB apart, the first has room for a few only.
  void prefetch(int64_t element_size) const {
    const bool turned = time_runs_fastest();
    const int64_t rows = turned ? lanes : steps, pitch = (turned ? lane_stride : step_stride) * element_size;
    const int64_t length = turned ? steps * element_size : lane_stride == 1 ? lanes * element_size : 1;
    for (int64_t row = 0; row < rows; ++row)
      for (int64_t byte = 0; byte < length; byte += 64) __builtin_prefetch(data + row * pitch + byte, 0, 2);
  }
};

template <class T>
void read(const Block& block, Floats scale, float* out, int64_t pitch) {
  const T* data = reinterpret_cast<const T*>(block.data);
  const auto put = [&](int step, Floats x) { store(out + step * pitch, kIsCode<T> ? x * scale : x); };
  if (!block.time_runs_fastest()) {
    for (int step = 0; step < block.steps; ++step)
      put(step, widen(data + step * block.step_stride, block.lane_stride, block.lanes));
    return;
  }
  for (int first = 0; first < block.steps; first += kLanes) {
    const int steps = std::min(kLanes, block.steps - first);
    Floats rows[kLanes] = {};
    for (int lane = 0; lane < block.lanes; ++lane)
      rows[lane] = widen(data + lane * block.lane_stride + first, 1, steps);
    transpose(rows);
    for (int step = 0; step < steps; ++step) put(first + step, rows[step]);
  }
}

// The scales of ``lanes`` channels of ``channels``, equally many neighbours having one of ``count``; 1 in other lanes.
// Not inlined: the loops around its calls would grow.
__attribute__((noinline)) inline Floats spread(const float* scales, int64_t count, int64_t channel, int lanes,
                                               int64_t channels) {
  if (count == channels && lanes == kLanes) return load(scales + channel);
  const int64_t each = channels / count, first = channel / each;
  if (channel + lanes <= (first + 1) * each) return all(scales[first]);
  Floats out = all(1.f);
  for (int i = 0; i < lanes; ++i) out[i] = scales[(channel + i) / each];
  return out;
}

// A tensor argument, float or int8 codes with scales. uint8 codes have zero point 128: what the int8 matmuls read.
struct Operand {
  const char* data = nullptr;
  int64_t element_size = 0;
  std::vector<int64_t> strides;
  const float* scales = nullptr;
  int64_t scale_count = 1;
  void (*reader)(const Block&, Floats, float*, int64_t) = nullptr;

  explicit operator bool() const { return data != nullptr; }
  bool is_code() const { return scales != nullptr; }

  Floats scale(int64_t channel, int lanes, int64_t channels) const {
    if (!is_code()) return all(1.f);
    return scale_count == 1 ? all(*scales) : spread(scales, scale_count, channel, lanes, channels);
  }

  Block block(int64_t offset, int64_t lane_stride, int lanes, int64_t step_stride, int steps) const {
    return {data + offset * element_size, lane_stride, step_stride, lanes, steps};
  }

  // Rows of sixteen floats, ``pitch`` apart.
  void read(const Block& block, Floats scale, float* out, int64_t pitch = kLanes) const {
    reader(block, scale, out, pitch);
  }
};

inline Operand operand(const char* name, const Tensor& t, std::vector<int64_t> sizes, const Optional& scale = {},
                       int64_t channels = 1) {
  const auto actual = t.sizes();
  STD_TORCH_CHECK(std::equal(actual.begin(), actual.end(), sizes.begin(), sizes.end()), name, " has a wrong shape");
  Operand o;
  o.data = static_cast<const char*>(t.const_data_ptr());
  const auto strides = t.strides();
  o.strides.assign(strides.begin(), strides.end());
  o.element_size = t.element_size();
  switch (t.scalar_type()) {
    case ScalarType::Float: o.reader = read<float>; break;
    case ScalarType::BFloat16: o.reader = read<BFloat16>; break;
    case ScalarType::Half: o.reader = read<Half>; break;
    case ScalarType::Char: o.reader = read<int8_t>; break;
    case ScalarType::Byte: o.reader = read<uint8_t>; break;
    default: STD_TORCH_CHECK(false, name, " must be float32, bfloat16, float16, int8 or uint8");
  }
  STD_TORCH_CHECK((o.element_size == 1) == scale.has_value(), name, ": codes come with a scale, floats without");
  if (scale) {
    o.scale_count = scale->numel();
    STD_TORCH_CHECK(scale->scalar_type() == ScalarType::Float && scale->is_contiguous() && o.scale_count > 0 &&
                        channels % o.scale_count == 0,
                    name, ": its scales must be contiguous float32, one or a number that divides ", channels);
    o.scales = static_cast<const float*>(scale->const_data_ptr());
  }
  return o;
}

inline Operand operand(const char* name, const Optional& t, std::vector<int64_t> sizes, const Optional& scale = {},
                       int64_t channels = 1) {
  STD_TORCH_CHECK(t || !scale, name, ": a scale without a tensor");
  return t ? operand(name, *t, std::move(sizes), scale, channels) : Operand{};
}

}  // namespace torchqx
