// One step of the recurrence, in place on states [batch, head, row, N]. Lanes run along N, as the states lie in memory;
// what belongs to a row (dt, x, D, z, the sum over N) is computed for sixteen rows at once.
namespace torchqx {

struct Update {
  Operand x, dt, a, b, c, d, z, dt_bias;
  Result y;
  void* state = nullptr;
  int64_t batches, heads, rows, states, groups;
  bool softplus;
};

template <class T>
TORCHQX_INLINE Floats load_state(const T* p, int lanes) { return widen(p, 1, lanes); }
template <class T>
TORCHQX_INLINE void store_state(T* p, int lanes, Floats x) {
  if (lanes == kLanes) return narrow(p, x);
  T buffer[kLanes];
  narrow(buffer, x);
  std::memcpy(p, buffer, lanes * sizeof(T));
}

// Blocks of sixteen rows; B and C are converted once per batch entry and group.
template <class T>
class UpdateRun {
 public:
  explicit UpdateRun(const Update& u) : u_(u), b_(padded(u.states)), c_(padded(u.states)) {}

  void run(int64_t begin, int64_t end) {
    const int64_t row_blocks = blocks(u_.rows);
    int64_t loaded = -1;
    for (int64_t item = begin; item < end; ++item) {
      const int64_t head = item / row_blocks % u_.heads, batch = item / row_blocks / u_.heads;
      const int64_t group = head * u_.groups / u_.heads;
      if (loaded != batch * u_.groups + group) {
        vector(u_.b, batch, group, b_.data());
        vector(u_.c, batch, group, c_.data());
        loaded = batch * u_.groups + group;
      }
      block(batch, head, item % row_blocks * kLanes);
    }
  }

 private:
  void vector(const Operand& o, int64_t batch, int64_t group, float* out) const {  // [batch, group, N]
    for (int64_t n = 0; n < u_.states; n += kLanes)
      o.read(o.block(batch * o.strides[0] + group * o.strides[1] + n * o.strides[2], o.strides[2], lanes(n, u_.states),
                     0, 1),
             all(o.scale(group, 1, u_.groups)[0]), out + n);
  }

  static int lanes(int64_t first, int64_t count) { return static_cast<int>(std::min<int64_t>(kLanes, count - first)); }

  int64_t channel(int64_t head, int64_t row) const { return head * u_.rows + row; }

  // Sixteen rows of x, dt or z [batch, head, row].
  Floats rows(const Operand& o, int64_t batch, int64_t head, int64_t row) const {
    alignas(64) float out[kLanes] = {};
    const int count = lanes(row, u_.rows);
    o.read(o.block(batch * o.strides[0] + head * o.strides[1] + row * o.strides[2], o.strides[2], count, 0, 1),
           o.scale(channel(head, row), count, u_.heads * u_.rows), out);
    return load(out);
  }

  Floats parameters(const Operand& o, int64_t head, int64_t row) const {  // D or dt_bias [head, row]
    alignas(64) float out[kLanes] = {};
    if (o)
      o.read(o.block(head * o.strides[0] + row * o.strides[1], o.strides[1], lanes(row, u_.rows), 0, 1),
             o.scale(0, 1, 1), out);
    return load(out);
  }

  void block(int64_t batch, int64_t head, int64_t row) {
    const int count = lanes(row, u_.rows);
    Floats dt = rows(u_.dt, batch, head, row) + parameters(u_.dt_bias, head, row);
    if (u_.softplus) dt = softplus(exp2_, dt);
    const Floats x = rows(u_.x, batch, head, row), input = dt * x;
    T* state = static_cast<T*>(u_.state) + ((batch * u_.heads + head) * u_.rows + row) * u_.states;
    Floats sums[kLanes] = {};
    alignas(64) float rates[kLanes * kLanes];
    const bool one_rate = u_.a.strides[2] == 0;  // A does not depend on n: one exponential per row
    Floats decays = {};
    if (one_rate) {
      read_rates(head, row, count, 0, 1, rates);
      Floats first = {};
      for (int i = 0; i < count; ++i) first[i] = rates[i * kLanes];
      decays = exp2_.inside(bounded(dt * decay_rate(exp2_, u_.a, first)));
    }
    for (int64_t n = 0; n < u_.states; n += kLanes) {
      const int width = lanes(n, u_.states);
      const Floats b = load(b_.data() + n), c = load(c_.data() + n);
      if (!one_rate) read_rates(head, row, count, n, width, rates);
      for (int i = 0; i < count; ++i) {
        const Floats decay = one_rate ? all(decays[i]) : exp2_.inside(bounded(
            all(dt[i]) * decay_rate(exp2_, u_.a, load(rates + i * kLanes))));
        T* p = state + i * u_.states + n;
        const Floats h = fma(decay, load_state(p, width), all(input[i]) * b);
        store_state(p, width, h);
        sums[i] = fma(h, c, sums[i]);
      }
    }
    finish(batch, head, row, count, sums, x);
  }

  void read_rates(int64_t head, int64_t row, int count, int64_t n, int width, float* out) const {
    const auto& strides = u_.a.strides;  // [head, row, N]: sixteen rows, each along N
    u_.a.read(u_.a.block(head * strides[0] + row * strides[1] + n * strides[2], strides[2], width, strides[1], count),
              u_.a.scale(0, 1, 1), out);
  }

  void finish(int64_t batch, int64_t head, int64_t row, int count, Floats (&sums)[kLanes], Floats x) const {
    transpose(sums);
    Floats y = parameters(u_.d, head, row) * x;
    for (const Floats& sum : sums) y += sum;
    if (u_.z) y *= silu(exp2_, rows(u_.z, batch, head, row));
    alignas(64) float out[kLanes];
    store(out, y);
    const int64_t channels = u_.heads * u_.rows, first = channel(head, row);
    u_.y.write(batch * channels + first, 0, count, 1, u_.y.inverse(first, count, channels), out);
  }

  const Update& u_;
  const Exp2 exp2_;
  std::vector<float> b_, c_;
};

}  // namespace torchqx
