// Recurrent states in scratch: [N][16], one row per state and one lane per channel.
namespace torchqx {

constexpr int kSteps = 32;                       // time steps between two loads of a state into registers
constexpr int64_t kScratchBytes = 256 * 1024;    // of states that pass again and again: half of a second-level cache
constexpr int64_t kWorthAThread = 1 << 16;       // state elements times steps; below, waking a thread costs more

inline int64_t blocks(int64_t channels) { return (channels + kLanes - 1) / kLanes; }
inline int64_t padded(int64_t states) { return blocks(states) * kLanes; }

// scratch [N][16] -> out[lane * lane_stride + n]
inline void write_state(const float* scratch, int64_t states, float* out, int64_t lane_stride, int lanes) {
  for (int64_t first = 0; first < states; first += kLanes) {
    const int count = static_cast<int>(std::min<int64_t>(kLanes, states - first));
    Floats rows[kLanes] = {};
    for (int i = 0; i < count; ++i) rows[i] = load(scratch + (first + i) * kLanes);
    transpose(rows);
    for (int lane = 0; lane < lanes; ++lane) std::memcpy(out + lane * lane_stride + first, &rows[lane], count * 4);
  }
}

// A · log2(e) from A, or from the codes of A_log: A = -exp(code · scale).
inline Floats decay_rate(const Exp2& exp2, const Operand& a, Floats x) {
  return (a.is_code() ? -exp(exp2, x) : x) * kLog2E;
}

}  // namespace torchqx
