// One pass over time for the states [P, N] of a head, whose decay is one number per step.
//
// With s_t the sum of the exponents dt A since some step, h_t = 2^s_t h'_t and h'_t = h'_{t-1} + 2^-s_t dt_t x_t B_t:
// the decay costs nothing per element, two multiply-adds remain (update and output). The sum starts anew, and the decay
// is carried out, where 2^-s_t would become large. Scaling by one number per head leaves the relative rounding as it is.
namespace torchqx {

constexpr float kLargestExponent = 20.f;

struct ChunkScan {
  Operand x, dt, a, b, c, d, z, dt_bias, initial;
  Result y;
  float* last = nullptr;
  int64_t batches, steps, heads, width, states, groups;  // x [batches, steps, heads, width]
  bool softplus;
  float shortest, longest;
};

// The decays of one head over a block of steps.
struct Decays {
  float input[kSteps], output[kSteps], restart[kSteps], last;  // dt 2^-s; 2^s; what the state is multiplied by, or 1

  Decays(const Exp2& exp2, const float* dt, int64_t pitch, float rate, int steps) {
    alignas(64) float sums[kSteps + kLanes] = {}, restarts[kSteps + kLanes] = {}, powers[kSteps + kLanes];
    float sum = 0;
    for (int t = 0; t < steps; ++t) {
      sum += dt[t * pitch] * rate;
      if (!(std::abs(sum) <= kLargestExponent)) {
        restarts[t] = sum;
        sum = 0;
      }
      sums[t] = sum;
    }
    const auto power = [&](const float* exponents, float sign, float* out) {
      for (int t = 0; t < steps; t += kLanes) store(powers + t, exp2.inside(bounded(load(exponents + t) * sign)));
      std::copy(powers, powers + steps, out);
    };
    power(sums, -1.f, input);
    power(sums, 1.f, output);
    power(restarts, 1.f, restart);
    for (int t = 0; t < steps; ++t) input[t] *= dt[t * pitch];
    last = output[steps - 1];
  }
};

// h' <- h' + input B and y += h' C for NB states of V vectors of sixteen rows. States of a vector are ``stride`` apart.
template <int V, int NB>
void accumulate(int steps, const Decays& decays, const float* input, const float* b, const float* c, int64_t pitch,
                float* state, int64_t stride, float* y) {
  Floats h[V][NB];
#pragma GCC unroll 2
  for (int v = 0; v < V; ++v)
#pragma GCC unroll 16
    for (int n = 0; n < NB; ++n) h[v][n] = load(state + v * stride + n * kLanes);
  for (int t = 0; t < steps; ++t) {
    if (decays.restart[t] != 1.f) {
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v)
#pragma GCC unroll 16
        for (int n = 0; n < NB; ++n) h[v][n] *= decays.restart[t];
    }
    Floats in[V], even[V], odd[V];
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) {
      in[v] = load(input + (v * kSteps + t) * kLanes);
      even[v] = load(y + (v * kSteps + t) * kLanes);
      odd[v] = Floats{};
    }
#pragma GCC unroll 16
    for (int n = 0; n < NB; ++n) {
      const Floats bn = all(b[t * pitch + n]), cn = all(c[t * pitch + n]);
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) {
        h[v][n] = fma(in[v], bn, h[v][n]);
        Floats& sum = n % 2 ? odd[v] : even[v];
        sum = fma(h[v][n], cn, sum);
      }
    }
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) store(y + (v * kSteps + t) * kLanes, even[v] + odd[v]);
  }
#pragma GCC unroll 2
  for (int v = 0; v < V; ++v)
#pragma GCC unroll 16
    for (int n = 0; n < NB; ++n) store(state + v * stride + n * kLanes, h[v][n] * decays.last);
}

// A run of heads of one group in one batch entry; time is the outer loop, so that B and C are converted once for all.
class ChunkScanRun {
 public:
  ChunkScanRun(const ChunkScan& s, int64_t batch, int64_t first, int64_t count)
      : s_(s), batch_(batch), first_(first), count_(count), pitch_(padded(s.states)), blocks_(blocks(s.width)),
        state_(count * blocks_ * s.states * kLanes), b_(kSteps * pitch_), c_(kSteps * pitch_),
        dt_(kSteps * padded(count)) {}

  void run() {
    begin();
    for (int64_t t = 0; t < s_.steps; t += kSteps) {
      const int steps = static_cast<int>(std::min<int64_t>(kSteps, s_.steps - t));
      rows(s_.b, t, steps, b_.data());
      rows(s_.c, t, steps, c_.data());
      step_lengths(t, steps);
      for (int64_t i = 0; i < count_; ++i) {
        const Decays decays(exp2_, dt_.data() + i, padded(count_), rate_[i], steps);
        for (int64_t block = 0; block < blocks_; block += 2) advance(i, block, t, steps, decays);
      }
    }
    for (int64_t i = 0; i < count_; ++i)
      for (int64_t block = 0; block < blocks_; ++block)
        write_state(state(i, block), s_.states, s_.last + row(i, block) * s_.states, s_.states, lanes(block));
  }

 private:
  int64_t head(int64_t i) const { return first_ + i; }
  int64_t row(int64_t i, int64_t block) const {
    return batch_ * s_.heads * s_.width + channel(i, block);
  }
  int64_t channel(int64_t i, int64_t block) const { return head(i) * s_.width + block * kLanes; }
  int lanes(int64_t block) const { return static_cast<int>(std::min<int64_t>(kLanes, s_.width - block * kLanes)); }
  float* state(int64_t i, int64_t block) { return state_.data() + (i * blocks_ + block) * s_.states * kLanes; }

  // B or C [batch, time, group, N] -> [steps][pitch]
  void rows(const Operand& o, int64_t t, int steps, float* out) const {
    const int64_t group = first_ * s_.groups / s_.heads;
    const Floats scale = o.scale(group, 1, s_.groups);
    for (int64_t n = 0; n < s_.states; n += kLanes)
      o.read(o.block(batch_ * o.strides[0] + t * o.strides[1] + group * o.strides[2] + n * o.strides[3], o.strides[3],
                     static_cast<int>(std::min<int64_t>(kLanes, s_.states - n)), o.strides[1], steps),
             all(scale[0]), out + n, pitch_);
  }

  // One value per head, sixteen heads from ``i``.
  Floats of_heads(const Operand& o, int64_t i) const {
    alignas(64) float out[kLanes] = {};
    const int lanes = static_cast<int>(std::min<int64_t>(kLanes, count_ - i));
    if (o) o.read(o.block(head(i) * o.strides[0], o.strides[0], lanes, 0, 1), o.scale(0, 1, 1), out);
    return load(out);
  }

  void begin() {
    rate_.resize(padded(count_));
    for (int64_t i = 0; i < count_; i += kLanes) store(rate_.data() + i, decay_rate(exp2_, s_.a, of_heads(s_.a, i)));
    if (!s_.initial) return;
    const auto& strides = s_.initial.strides;  // [batch, head, width, N]
    for (int64_t i = 0; i < count_; ++i)
      for (int64_t block = 0; block < blocks_; ++block)
        s_.initial.read(s_.initial.block(batch_ * strides[0] + head(i) * strides[1] + block * kLanes * strides[2],
                                         strides[2], lanes(block), strides[3], static_cast<int>(s_.states)),
                        all(1.f), state(i, block));
  }

  // dt [batch, time, head] -> clamp(softplus(dt + bias)) as [steps][heads of the run]
  void step_lengths(int64_t t, int steps) {
    const int64_t pitch = padded(count_);
    for (int64_t i = 0; i < count_; i += kLanes) {
      const int lanes = static_cast<int>(std::min<int64_t>(kLanes, count_ - i));
      const auto& strides = s_.dt.strides;
      s_.dt.read(s_.dt.block(batch_ * strides[0] + t * strides[1] + head(i) * strides[2], strides[2], lanes, strides[1],
                             steps),
                 s_.dt.scale(head(i), lanes, s_.heads), dt_.data() + i, pitch);
      const Floats bias = of_heads(s_.dt_bias, i);
      for (int j = 0; j < steps; ++j) {
        float* p = dt_.data() + j * pitch + i;
        Floats step = load(p) + bias;
        if (s_.softplus) step = softplus(exp2_, step);
        store(p, at_most(at_least(step, s_.shortest), s_.longest));
      }
    }
  }

  // x or z [batch, time, head, width]
  void read(const Operand& o, int64_t i, int64_t block, int64_t t, int steps, float* out) const {
    o.read(o.block(batch_ * o.strides[0] + t * o.strides[1] + head(i) * o.strides[2] + block * kLanes * o.strides[3],
                   o.strides[3], lanes(block), o.strides[1], steps),
           o.scale(channel(i, block), lanes(block), s_.heads * s_.width), out);
  }

  // Two blocks of sixteen rows, or the last one alone.
  void advance(int64_t i, int64_t block, int64_t t, int steps, const Decays& decays) {
    constexpr int kBlock = kSteps * kLanes;
    alignas(64) float x[2 * kBlock], input[2 * kBlock], y[2 * kBlock] = {};
    const int vectors = block + 1 < blocks_ ? 2 : 1;
    for (int v = 0; v < vectors; ++v) {
      read(s_.x, i, block + v, t, steps, x + v * kBlock);
      for (int j = 0; j < steps; ++j)
        store(input + v * kBlock + j * kLanes, load(x + v * kBlock + j * kLanes) * decays.input[j]);
    }
    int64_t n = 0;
    const auto states = [&]<int NB>() {
      for (; s_.states - n >= NB; n += NB)
        (vectors == 2 ? accumulate<2, NB> : accumulate<1, NB>)(steps, decays, input, b_.data() + n, c_.data() + n,
                                                               pitch_, state(i, block) + n * kLanes,
                                                               s_.states * kLanes, y);
    };
    states.template operator()<8>();
    states.template operator()<1>();
    for (int v = 0; v < vectors; ++v) finish(i, block + v, t, steps, decays, x + v * kBlock, y + v * kBlock);
  }

  void finish(int64_t i, int64_t block, int64_t t, int steps, const Decays& decays, const float* x, float* y) const {
    alignas(64) float skip[kLanes] = {}, gate[kSteps * kLanes];
    if (s_.d)
      s_.d.read(s_.d.block(head(i) * s_.d.strides[0] + block * kLanes * s_.d.strides[1], s_.d.strides[1], lanes(block),
                           0, 1),
                s_.d.scale(0, 1, 1), skip);
    if (s_.z) read(s_.z, i, block, t, steps, gate);
    for (int j = 0; j < steps; ++j) {
      Floats out = fma(load(skip), load(x + j * kLanes), load(y + j * kLanes) * decays.output[j]);
      if (s_.z) out *= silu(exp2_, load(gate + j * kLanes));
      store(y + j * kLanes, out);
    }
    const int64_t channels = s_.heads * s_.width, first = channel(i, block);
    s_.y.write((batch_ * s_.steps + t) * channels + first, channels, lanes(block), steps,
               s_.y.inverse(first, lanes(block), channels), y);
  }

  const ChunkScan& s_;
  const int64_t batch_, first_, count_, pitch_, blocks_;
  const Exp2 exp2_;
  std::vector<float> state_, b_, c_, dt_, rate_;
};

}  // namespace torchqx
