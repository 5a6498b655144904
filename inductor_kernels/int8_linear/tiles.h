// The split of the output into tiles, and their order.
#include <algorithm>

namespace torchqx {

using Finish = void (*)(const int32_t*, const int32_t*, int64_t, int64_t, const Columns&, const Epilogue&);

constexpr int64_t kCachedActivations = 256 * 1024;  // bytes of activations that stay in the second-level cache

struct Problem {
  const uint8_t* x;
  const int8_t* weight;
  int64_t rows, k;
  Epilogue epilogue;
  Finish finish;

  int64_t panels() const { return (epilogue.columns + kTileColumns - 1) / kTileColumns; }
  int64_t blocks() const { return (rows + kTileRows - 1) / kTileRows; }
  int64_t panel_bytes() const { return (k + 3) / 4 * kStepBytes; }

  // Blocks of rows whose activations stay in cache while all panels pass.
  int64_t blocks_in_chunk() const {
    return std::clamp<int64_t>(kCachedActivations / (kTileRows * std::max<int64_t>(k, 1)), 1, blocks());
  }

  void multiply(int64_t row, int64_t next, int64_t panel, int32_t* sums) const {
    kMultiply[next - row - 1](x + row * k, k, weight + panel * panel_bytes(), k, sums);
  }

  // Tiles are numbered chunk by chunk, in a chunk panel by panel, in a panel block by block: a thread's range of
  // numbers reads a panel from memory once per chunk. Rows are spread evenly over the blocks.
  void run(int64_t begin, int64_t end) const {
    alignas(64) int32_t sums[kTileRows * kTileColumns], partner[kTileRows * kTileColumns];
    const int64_t gate = epilogue.gate;
    const int64_t chunk = blocks_in_chunk();
    while (begin < end) {
      const int64_t first = begin / (chunk * panels()) * chunk;
      const int64_t height = std::min(chunk, blocks() - first);
      const int64_t inside = begin - first * panels();
      const int64_t panel = inside / height;
      const Columns columns(epilogue, panel * kTileColumns);
      const int64_t stop = std::min(end, begin - inside % height + height);
      for (int64_t block = first + inside % height; begin < stop; ++begin, ++block) {
        const int64_t row = block * rows / blocks(), next = (block + 1) * rows / blocks();
        multiply(row, next, gate * panels() + panel, sums);
        if (epilogue.gated) multiply(row, next, (1 - gate) * panels() + panel, partner);
        finish(sums, partner, next - row, row, columns, epilogue);
      }
    }
  }
};

}  // namespace torchqx
