// Writing sixteen floats as float32, bfloat16, float16 or codes.
namespace torchqx {

TORCHQX_INLINE void narrow(float* p, Floats x) { store(p, x); }
TORCHQX_INLINE void narrow(BFloat16* p, Floats x) {  // to the nearest, ties to even; NaN keeps its quiet bit
  typedef uint16_t Vector __attribute__((vector_size(32)));
  const Ints b = bits(x), rounded = (b + 0x7fff + ((b >> 16) & 1)) >> 16;
  const Vector y = __builtin_convertvector(x == x ? rounded : Ints{} + 0x7fc0, Vector);
  std::memcpy(p, &y, sizeof y);
}
TORCHQX_INLINE void narrow(Half* p, Floats x) {
  for (int i = 0; i < kLanes; ++i) {
    const _Float16 y = static_cast<_Float16>(x[i]);
    std::memcpy(p + i, &y, sizeof y);
  }
}
template <class Code>
TORCHQX_INLINE void narrow_code(Code* p, Floats x, int zero_point) {
  typedef Code Vector __attribute__((vector_size(kLanes)));
  const Floats rounded = at_most(at_least(x, -127.f), 127.f) + 12582912.f;  // its low bits hold the nearest integer
  const Vector y = __builtin_convertvector(bits(rounded) - (0x4b400000 - zero_point), Vector);
  std::memcpy(p, &y, sizeof y);
}
TORCHQX_INLINE void narrow(int8_t* p, Floats x) { narrow_code(p, x, 0); }
TORCHQX_INLINE void narrow(uint8_t* p, Floats x) { narrow_code(p, x, 128); }

template <class T>
void write(char* data, int64_t step_stride, int lanes, int steps, const float* in, Floats inverse) {
  for (int step = 0; step < steps; ++step) {
    T* p = reinterpret_cast<T*>(data) + step * step_stride;
    const Floats x = load(in + step * kLanes) * (kIsCode<T> ? inverse : all(1.f));
    if (lanes == kLanes) {
      narrow(p, x);
    } else {
      T buffer[kLanes];
      narrow(buffer, x);
      std::memcpy(p, buffer, lanes * sizeof(T));
    }
  }
}

// The output: contiguous along its channels. With scales, codes clamp(round(y / scale), -127, 127).
struct Result {
  char* data = nullptr;
  int64_t element_size = 0;
  const float* scales = nullptr;
  int64_t scale_count = 1;
  void (*writer)(char*, int64_t, int, int, const float*, Floats) = nullptr;

  // One over the scales of ``lanes`` channels of ``channels``.
  Floats inverse(int64_t channel, int lanes, int64_t channels) const {
    if (!scales) return all(1.f);
    return 1.f / (scale_count == 1 ? all(*scales) : spread(scales, scale_count, channel, lanes, channels));
  }

  // Rows of sixteen floats, of which ``lanes`` are written.
  void write(int64_t offset, int64_t step_stride, int lanes, int steps, Floats inverse, const float* in) const {
    writer(data + offset * element_size, step_stride, lanes, steps, in, inverse);
  }
};

inline Result result(const Tensor& t, const Optional& scale, int64_t channels) {
  Result r;
  r.data = static_cast<char*>(t.mutable_data_ptr());
  r.element_size = t.element_size();
  switch (t.scalar_type()) {
    case ScalarType::Float: r.writer = write<float>; break;
    case ScalarType::BFloat16: r.writer = write<BFloat16>; break;
    case ScalarType::Half: r.writer = write<Half>; break;
    case ScalarType::Char: r.writer = write<int8_t>; break;
    case ScalarType::Byte: r.writer = write<uint8_t>; break;
    default: STD_TORCH_CHECK(false, "the output must be float32, bfloat16, float16, int8 or uint8");
  }
  STD_TORCH_CHECK((r.element_size == 1) == scale.has_value(), "codes are written with out_scale, floats without");
  if (scale) {
    r.scale_count = scale->numel();
    STD_TORCH_CHECK(scale->scalar_type() == ScalarType::Float && scale->is_contiguous() && r.scale_count > 0 &&
                        channels % r.scale_count == 0,
                    "out_scale must be contiguous float32, one or a number that divides ", channels);
    r.scales = static_cast<const float*>(scale->const_data_ptr());
  }
  return r;
}

}  // namespace torchqx
