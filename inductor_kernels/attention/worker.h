// One thread's share of the rows: packs the keys and values it needs, then takes tiles of rows through them.
#include <memory>
#include <new>

namespace torchqx_attention {

constexpr int64_t kBlockKeys = 512;  // keys whose scores for one tile stay in the first-level cache
constexpr int64_t kBlockRows = 66;   // rows that pass while those keys are in the second-level cache: 11 tiles
constexpr int64_t kScoreStride = kBlockKeys + kLanes;  // not a power of two: rows would share cache sets

template <class T>
struct Buffer {
  explicit Buffer(int64_t count) : data(static_cast<T*>(::operator new[](count * sizeof(T), std::align_val_t{64}))) {}
  ~Buffer() { ::operator delete[](data, std::align_val_t{64}); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  T* const data;
};

inline int64_t round_up(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

template <class Element, Mask kMask>
class Worker {
  using Value = typename Element::Value;

 public:
  static int64_t blocks(const Problem& p) { return (p.rows() + kBlockRows - 1) / kBlockRows; }

  explicit Worker(const Problem& problem)
      : p(problem),
        key_words(p.width / Element::kPerWord),
        keeps(blocks(p) > 1),
        packed_keys(capacity() * key_words),
        packed_values(capacity() / Element::kPerWord * p.padded_width()),
        queries(kBlockRows * key_words),
        scores(kTileRows * kScoreStride),
        sums(kBlockRows * p.padded_width()) {}

  // Item: one block of rows of one head of keys and values.
  void run(int64_t item) {
    const int64_t pair = item / blocks(p), block = item % blocks(p);
    if (pair != current) packed = 0;
    current = pair;
    b = pair / p.kv_heads;
    kv_head = pair % p.kv_heads;
    const int64_t first = block * p.rows() / blocks(p), count = (block + 1) * p.rows() / blocks(p) - first;
    const int64_t visible = p.visible(first + count - 1);
    for (int64_t r = 0; r < count; ++r) load_query(first + r, queries.data + r * key_words);
    std::fill_n(rows, count, Row{});
    if (visible == 0) std::fill_n(sums.data, count * p.padded_width(), 0.f);
    const int64_t tiles = (count + kTileRows - 1) / kTileRows;
    for (int64_t key = 0; key < visible; key += kBlockKeys) {
      if (key >= packed) pack(key, std::min(kBlockKeys, p.keys - key));
      for (int64_t t = 0; t < tiles; ++t) {
        const int64_t from = t * count / tiles, to = (t + 1) * count / tiles;
        if (p.visible(first + to - 1) > key) attend(first, from, to - from, key);
      }
    }
    for (int64_t r = 0; r < count; ++r)
      p.finish<Element>(b, p.head(kv_head, first + r), p.query(first + r), sums.data + r * p.padded_width(),
                        rows[r].sum);
  }

 private:
  // Keys and values that no other block of rows will ask for give their place to the next ones.
  int64_t place(int64_t key) const { return keeps ? key : 0; }
  int64_t capacity() const { return round_up(keeps ? p.keys : std::min(p.keys, kBlockKeys), kPanelKeys); }

  void load_query(int64_t row, Word* out) const {
    const Value* q = p.q.at<Value>(b, p.head(kv_head, row), p.query(row));
    std::copy_n(q, p.width, reinterpret_cast<Value*>(out));
  }

  void pack(int64_t key, int64_t count) {
    pack_keys<Element>(p.k.at<Value>(b, kv_head, key), p.k.row, count, key_words,
                       packed_keys.data + place(key) * key_words);
    pack_values<Element>(p.v.at<Value>(b, kv_head, key), p.v.row, count, p.width, p.padded_width(),
                         packed_values.data + place(key) / Element::kPerWord * p.padded_width());
    packed = key + count;
  }

  // `count` rows of the block from `from` on, against the block of keys from `key` on.
  void attend(int64_t first, int64_t from, int64_t count, int64_t key) {
    const int64_t most = std::min(kBlockKeys, p.visible(first + from + count - 1) - key);
    for (int64_t panel = 0; panel < most; panel += kPanelKeys) {
      const int64_t registers = (std::min(kPanelKeys, most - panel) + kLanes - 1) / kLanes;
      product<Element>(count, registers, queries.data + from * key_words, key_words,
                       packed_keys.data + (place(key) + panel) * key_words, kPanelKeys, key_words,
                       scores.data + panel, kScoreStride, false);
    }
    const int64_t width = p.padded_width(), vectors = width / kLanes;
    for (int64_t r = 0; r < count; ++r) {
      const int64_t row = first + from + r, visible = std::clamp<int64_t>(p.visible(row) - key, 0, most);
      const void* mask = p.mask_at(b, p.head(kv_head, row), p.query(row), key);
      Row& state = rows[from + r];
      weigh<Element, kMask>(scores.data + r * kScoreStride, visible, round_up(most, 2 * kLanes), p.scale, mask, state);
      if (key > 0 && state.correction != 1.f) shrink(sums.data + (from + r) * width, state.correction);
    }
    const int64_t groups = (vectors + kTileRegisters - 1) / kTileRegisters;
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t start = g * vectors / groups, end = (g + 1) * vectors / groups;
      product<Element>(count, end - start, reinterpret_cast<const Word*>(scores.data), kScoreStride,
                       packed_values.data + place(key) / Element::kPerWord * width + start * kLanes, width,
                       (most + Element::kPerWord - 1) / Element::kPerWord, sums.data + from * width + start * kLanes,
                       width, key > 0);
    }
  }

  void shrink(float* row, float factor) const {
    for (int64_t c = 0; c < p.padded_width(); c += kLanes)
      _mm512_store_ps(row + c, _mm512_mul_ps(_mm512_load_ps(row + c), _mm512_set1_ps(factor)));
  }

  const Problem& p;
  const int64_t key_words;
  const bool keeps;
  Buffer<Word> packed_keys, packed_values, queries;
  Buffer<float> scores, sums;
  Row rows[kBlockRows];
  int64_t b = 0, kv_head = 0;
  int64_t current = -1, packed = 0;  // whose keys and values are packed, and how many
};

}  // namespace torchqx_attention
