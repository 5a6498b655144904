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
    number_rows(first, count);
    const int64_t visible = p.visible(rows[count - 1].query);
    for (int64_t r = 0; r < count; ++r) load_query(rows[r], queries.data + r * key_words);
    if (visible == 0) std::fill_n(sums.data, count * p.padded_width(), 0.f);
    const int64_t tiles = (count + kTileRows - 1) / kTileRows;
    for (int64_t key = 0; key < visible; key += kBlockKeys) {
      if (key >= packed) pack(key, std::min(kBlockKeys, p.keys - key));
      for (int64_t t = 0; t < tiles; ++t) {
        const int64_t from = t * count / tiles, to = (t + 1) * count / tiles;
        if (p.visible(rows[to - 1].query) > key) attend(from, to - from, key);
      }
    }
    for (int64_t r = 0; r < count; ++r)
      p.finish<Element>(b, rows[r].head, rows[r].query, sums.data + r * p.padded_width(), rows[r].sum);
  }

 private:
  // Keys and values that no other block of rows will ask for give their place to the next ones.
  int64_t place(int64_t key) const { return keeps ? key : 0; }
  int64_t capacity() const { return round_up(keeps ? p.keys : std::min(p.keys, kBlockKeys), kPanelKeys); }

  // Rows that share keys are numbered query by query, so that neighbours see nearly the same keys when causal.
  // Counted up, because a division per row would cost as much as its softmax.
  void number_rows(int64_t first, int64_t count) {
    const int64_t group = p.group();
    int64_t query = first / group, member = first % group;
    for (int64_t r = 0; r < count; ++r) {
      rows[r] = Row{query, kv_head * group + member};
      if (++member == group) member = 0, ++query;
    }
  }

  void load_query(const Row& row, Word* out) const {
    const Value* q = p.q.at<Value>(b, row.head, row.query);
    for (int64_t w = 0; w < key_words; w += kLanes) {
      const __mmask16 inside = first_lanes(key_words - w);
      _mm512_mask_storeu_epi32(out + w, inside, _mm512_maskz_loadu_epi32(inside, q + w * Element::kPerWord));
    }
  }

  void pack(int64_t key, int64_t count) {
    pack_keys<Element>(p.k.at<Value>(b, kv_head, key), p.k.row, count, key_words,
                       packed_keys.data + place(key) * key_words);
    pack_values<Element>(p.v.at<Value>(b, kv_head, key), p.v.row, count, p.width, p.padded_width(),
                         packed_values.data + place(key) / Element::kPerWord * p.padded_width());
    packed = key + count;
  }

  // `count` rows of the block from `from` on, against the block of keys from `key` on.
  void attend(int64_t from, int64_t count, int64_t key) {
    const int64_t most = std::min(kBlockKeys, p.visible(rows[from + count - 1].query) - key);
    for (int64_t panel = 0; panel < most; panel += kPanelKeys) {
      const int64_t registers = (std::min(kPanelKeys, most - panel) + kLanes - 1) / kLanes;
      product<Element>(count, registers, queries.data + from * key_words, key_words,
                       packed_keys.data + (place(key) + panel) * key_words, kPanelKeys, key_words,
                       scores.data + panel, kScoreStride, false);
    }
    const int64_t width = p.padded_width(), vectors = width / kLanes, padded = round_up(most, 2 * kLanes);
    const float exponent = Masking<kMask>::exponent(p.scale);
    // Step by step for all rows of the tile: reducing a register is slow, and does not wait for another row's.
    __m512 highest[kTileRows], total[kTileRows];
    for (int64_t r = 0; r < count; ++r) {
      const Row& row = rows[from + r];
      const int64_t visible = std::clamp<int64_t>(p.visible(row.query) - key, 0, most);
      const void* mask = p.mask_at(b, row.head, row.query, key);
      highest[r] = hide<kMask>(scores.data + r * kScoreStride, visible, padded, p.scale, mask);
    }
    for (int64_t r = 0; r < count; ++r) rows[from + r].raise(_mm512_reduce_max_ps(highest[r]), exponent);
    for (int64_t r = 0; r < count; ++r)
      total[r] = weigh<Element>(scores.data + r * kScoreStride, padded, rows[from + r].maximum, exponent);
    for (int64_t r = 0; r < count; ++r) {
      Row& state = rows[from + r];
      state.sum = state.sum * state.correction + _mm512_reduce_add_ps(total[r]);
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
