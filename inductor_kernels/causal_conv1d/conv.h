// A few taps per channel, sixteen channels at once. Rows of inputs lie in scratch, the oldest first.
namespace torchqx {

struct Conv {
  Operand x, history, weight, bias;  // x [batch, channel, time]; history the same, its last step that before the first
  Result y;
  int64_t batches, channels, steps, taps, past;  // past: steps of history that exist
  bool silu;

  static constexpr int64_t kBlock = 64;

  int lanes(int64_t channel) const { return static_cast<int>(std::min<int64_t>(kLanes, channels - channel)); }

  // Inputs of the steps [begin, end) as rows of sixteen; steps before 0 come from the history, or are zero.
  void inputs(int64_t batch, int64_t channel, int64_t begin, int64_t end, float* rows) const {
    const Floats scale = x.scale(channel, lanes(channel), channels);
    const int64_t now = std::clamp<int64_t>(0, begin, end), known = std::clamp(-past, begin, now);
    std::fill(rows, rows + (known - begin) * kLanes, 0.f);
    if (known < now) read(history, batch, channel, past + known, now - known, scale, rows + (known - begin) * kLanes);
    if (now < end) read(x, batch, channel, now, end - now, scale, rows + (now - begin) * kLanes);
  }

  // y of the steps [begin, end), from the rows of inputs that begin taps - 1 steps earlier.
  void outputs(const Exp2& exp2, int64_t batch, int64_t channel, int64_t begin, int64_t end, const float* rows) const {
    std::vector<float> w(taps * kLanes);
    weight.read(weight.block(channel * weight.strides[0], weight.strides[0], lanes(channel), weight.strides[1],
                             static_cast<int>(taps)),
                weight.scale(channel, lanes(channel), channels), w.data());
    alignas(64) float first[kLanes] = {}, out[kBlock * kLanes];
    if (bias) bias.read(bias.block(channel * bias.strides[0], bias.strides[0], lanes(channel), 0, 1), all(1.f), first);
    for (int64_t t = 0; t < end - begin; ++t) {
      Floats sum = load(first);
      for (int64_t k = 0; k < taps; ++k) sum = fma(load(w.data() + k * kLanes), load(rows + (t + k) * kLanes), sum);
      store(out + t * kLanes, silu ? torchqx::silu(exp2, sum) : sum);
    }
    y.write((batch * steps + begin) * channels + channel, channels, lanes(channel), static_cast<int>(end - begin),
            y.inverse(channel, lanes(channel), channels), out);
  }

 private:
  void read(const Operand& o, int64_t batch, int64_t channel, int64_t t, int64_t count, Floats scale,
            float* out) const {
    const Block block = o.block(batch * o.strides[0] + channel * o.strides[1] + t * o.strides[2], o.strides[1],
                                lanes(channel), o.strides[2], static_cast<int>(count));
    o.read(block, scale, out);
  }
};

}  // namespace torchqx
