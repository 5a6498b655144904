// One pass over time for sixteen channels at once: the state of a channel is a lane of N registers.
namespace torchqx {

struct Scan {
  Operand u, delta, a, b, c, d, z, delta_bias, initial;
  Result y;
  float* last = nullptr;
  int64_t batches, channels, steps, states, groups;
  bool softplus;
};

// The larger of a and |x|, or NaN if either is.
TORCHQX_INLINE Floats larger(Floats a, Floats x) {
  const Floats size = x < 0 ? -x : x;
  return a >= size ? a : size + (a - a);
}

// h <- exp(delta A) h + delta u B and y += h C for NB states, whose rows begin at a, state, b and c.
// ``is_bounded`` says that no exponent leaves the range of exp2.
template <int NB, bool is_bounded>
void advance(const Exp2& exp2, int steps, const float* delta, const float* delta_u, const float* a,
                            const float* b, const float* c, int64_t pitch, float* state, float* y) {
  Floats h[NB];
#pragma GCC unroll 16
  for (int n = 0; n < NB; ++n) h[n] = load(state + n * kLanes);
  for (int t = 0; t < steps; ++t) {
    const Floats step = load(delta + t * kLanes), input = load(delta_u + t * kLanes);
    Floats even = load(y + t * kLanes), odd = {};
#pragma GCC unroll 16
    for (int n = 0; n < NB; ++n) {
      const Floats exponent = step * load(a + n * kLanes);
      const Floats decay = exp2.inside(is_bounded ? exponent : bounded(exponent));
      h[n] = fma(decay, h[n], input * all(b[t * pitch + n]));
      Floats& sum = n % 2 ? odd : even;
      sum = fma(h[n], all(c[t * pitch + n]), sum);
    }
    store(y + t * kLanes, even + odd);
  }
#pragma GCC unroll 16
  for (int n = 0; n < NB; ++n) store(state + n * kLanes, h[n]);
}

// A run of channel blocks of one group in one batch entry. Time is the outer loop: B and C are converted once for all
// blocks, and neighbouring blocks share the cache lines of u, delta, z and y.
class ScanRun {
 public:
  ScanRun(const Scan& s, int64_t batch, int64_t group, int64_t first, int64_t count)
      : s_(s), batch_(batch), group_(group), first_(first), count_(count), pitch_(padded(s.states)),
        state_(count * s.states * kLanes), rate_(count * s.states * kLanes), fastest_(count * kLanes),
        b_(kSteps * pitch_), c_(kSteps * pitch_) {}

  void run() {
    for (int64_t i = 0; i < count_; ++i) begin(i);
    for (int64_t t = 0; t < s_.steps; t += kSteps) {
      const int steps = static_cast<int>(std::min<int64_t>(kSteps, s_.steps - t));
      rows(s_.b, t, steps, b_.data());
      rows(s_.c, t, steps, c_.data());
      for (int64_t i = 0; i < count_; ++i) advance_block(i, t, steps);
    }
    for (int64_t i = 0; i < count_; ++i)
      write_state(state(i), s_.states, s_.last + (batch_ * s_.channels + channel(i)) * s_.states, s_.states, lanes(i));
  }

 private:
  int64_t group_channels() const { return s_.channels / s_.groups; }
  int64_t channel(int64_t i) const { return group_ * group_channels() + (first_ + i) * kLanes; }
  int lanes(int64_t i) const {
    return static_cast<int>(std::min<int64_t>(kLanes, group_channels() - (first_ + i) * kLanes));
  }
  float* state(int64_t i) { return state_.data() + i * s_.states * kLanes; }
  float* rate(int64_t i) { return rate_.data() + i * s_.states * kLanes; }

  // B or C [batch, group, N, time] -> [steps][pitch]
  void rows(const Operand& o, int64_t t, int steps, float* out) const {
    const Floats scale = o.scale(group_, 1, s_.groups);
    for (int64_t n = 0; n < s_.states; n += kLanes)
      o.read(o.block(batch_ * o.strides[0] + group_ * o.strides[1] + n * o.strides[2] + t * o.strides[3], o.strides[2],
                     static_cast<int>(std::min<int64_t>(kLanes, s_.states - n)), o.strides[3], steps),
             all(scale[0]), out + n, pitch_);
  }

  void begin(int64_t i) {
    const int n = static_cast<int>(s_.states);
    s_.a.read(s_.a.block(channel(i) * s_.a.strides[0], s_.a.strides[0], lanes(i), s_.a.strides[1], n),
              s_.a.scale(0, 1, 1), rate(i));
    Floats fastest = {};
    for (int j = 0; j < n; ++j) {
      const Floats rate_j = decay_rate(exp2_, s_.a, load(rate(i) + j * kLanes));
      store(rate(i) + j * kLanes, rate_j);
      fastest = larger(fastest, rate_j);
    }
    store(fastest_.data() + i * kLanes, fastest);
    if (s_.initial) {
      const auto& strides = s_.initial.strides;
      const int64_t offset = batch_ * strides[0] + channel(i) * strides[1];
      s_.initial.read(s_.initial.block(offset, strides[1], lanes(i), strides[2], n), all(1.f), state(i));
    }
  }

  Block sequence(const Operand& o, int64_t i, int64_t t, int steps) const {
    return o.block(batch_ * o.strides[0] + channel(i) * o.strides[1] + t * o.strides[2], o.strides[1], lanes(i),
                   o.strides[2], steps);
  }

  void read(const Operand& o, int64_t i, int64_t t, int steps, float* out) const {
    o.read(sequence(o, i, t, steps), o.scale(channel(i), lanes(i), s_.channels), out);
    if (i + 1 < count_) sequence(o, i + 1, t, steps).prefetch(o.element_size);
  }

  // One value per channel: D or the bias of delta.
  Floats vector(const Operand& o, int64_t i) const {
    alignas(64) float out[kLanes] = {};
    if (o) o.read(o.block(channel(i) * o.strides[0], o.strides[0], lanes(i), 0, 1), o.scale(0, 1, 1), out);
    return load(out);
  }

  void advance_block(int64_t i, int64_t t, int steps) {
    alignas(64) float delta[kSteps * kLanes], input[kSteps * kLanes], y[kSteps * kLanes], gate[kSteps * kLanes];
    read(s_.delta, i, t, steps, delta);
    read(s_.u, i, t, steps, input);
    const Floats bias = vector(s_.delta_bias, i), d = vector(s_.d, i);
    Floats longest = {};
    for (int j = 0; j < steps * kLanes; j += kLanes) {
      Floats step = load(delta + j) + bias;
      if (s_.softplus) step = softplus(exp2_, step);
      const Floats u = load(input + j);
      longest = larger(longest, step);
      store(delta + j, step);
      store(input + j, step * u);
      store(y + j, d * u);
    }
    const bool is_bounded = all_below(longest * load(fastest_.data() + i * kLanes), -kLowest);
    int64_t n = 0;
    const auto states = [&]<int NB>() {
      for (; s_.states - n >= NB; n += NB)
        (is_bounded ? advance<NB, true> : advance<NB, false>)(exp2_, steps, delta, input, rate(i) + n * kLanes,
                                                              b_.data() + n, c_.data() + n, pitch_,
                                                              state(i) + n * kLanes, y);
    };
    states.template operator()<16>();
    states.template operator()<4>();
    states.template operator()<1>();
    if (s_.z) {
      read(s_.z, i, t, steps, gate);
      for (int j = 0; j < steps * kLanes; j += kLanes) store(y + j, load(y + j) * silu(exp2_, load(gate + j)));
    }
    s_.y.write((batch_ * s_.steps + t) * s_.channels + channel(i), s_.channels, lanes(i), steps,
               s_.y.inverse(channel(i), lanes(i), s_.channels), y);
  }

  const Scan& s_;
  const int64_t batch_, group_, first_, count_, pitch_;
  const Exp2 exp2_;
  std::vector<float> state_, rate_, fastest_, b_, c_;
};

}  // namespace torchqx
