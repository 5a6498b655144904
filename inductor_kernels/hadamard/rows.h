// One row after another: which passes a block of a given order needs, and running them.
#include <map>
#include <memory>
#include <mutex>
#include <utility>

namespace torchqx::rotation {

// block = bases · power. Bases with code of their own come first, straight from the input; so does the outermost part
// of a power without bases. Then what is left of the power: stages in cache, and a last pass of 16 · group elements.
struct Plan {
  struct Stage { int radix; int64_t stride; };

  int64_t block;
  std::vector<int64_t> bases;
  int64_t power;
  bool transpose;
  bool direct;            // the first base needs no copy before it
  int first_radix = 1;    // of the first pass, where there are no bases
  int64_t run = 1;        // what is left of the power
  int64_t pitch = 1;      // between runs: a little more than a large power of two, where they would share cache places
  std::vector<Stage> stages;
  int group = 0;          // 0: runs too short for vectors
  std::unique_ptr<Combination> table;  // for a base without code of its own
  int table_lanes = 1, table_vectors = 1;

  Plan(int64_t order, std::vector<int64_t> base_orders, bool transposed)
      : block(order), bases(std::move(base_orders)), power(order), transpose(transposed) {
    for (const int64_t base : bases) power /= base;
    direct = !transpose && power >= 16 && !bases.empty() && is_compiled_base(bases[0]);
    run = pitch = power;
    if (power < 16) return;
    if (direct && bases.size() == 1 && run >= 512) pitch = run + 16;
    group = static_cast<int>(std::min<int64_t>(16, power / 16));
    if (bases.empty()) first_radix = static_cast<int>(std::min<int64_t>(16, power / (16 * group)));
    run /= first_radix;
    if (run == 512) group = 4;  // so that the stage does more: with radix 8 it takes no longer than with 2
    for (int64_t done = 16 * group; done < run; done *= stages.back().radix) {
      stages.push_back({static_cast<int>(std::min<int64_t>(16, run / done)), done});
    }
  }

  bool needs_table() const { return bases.size() == 1 && (power < 16 || !is_compiled_base(bases[0])); }

  void make_table(const int8_t* signs) {
    table_lanes = power >= 16 ? 16 : power >= 4 ? 4 : 1;
    while (table_lanes == 16 && table_vectors < 4 && 2 * table_floats() * 4 <= kTableBytes &&
           power % (2 * table_vectors * 16) == 0) {
      table_vectors *= 2;
    }
    table = std::make_unique<Combination>(signs, bases[0], transpose, table_vectors * table_lanes * 4);
  }

  int64_t padding() const { return pitch == power ? 0 : bases[0] * 16; }
  int64_t table_floats() const { return needs_table() ? bases[0] / 4 * kSums * table_vectors * table_lanes : 0; }
  int64_t passes() const {
    return 2 + static_cast<int64_t>(stages.size() + bases.size()) - (direct ? 1 : 0);
  }
};

// Room for a row between its passes, and for the sums of a base; one per thread, kept between calls.
struct Scratch {
  float* table;
  float* row;

  Scratch(const Plan& plan, int64_t k) {
    thread_local std::vector<float> memory;
    const size_t needed = plan.table_floats() + k + plan.padding() + 2 * 16;
    if (memory.size() < needed) memory.resize(needed);
    const auto aligned = [](float* p) { return p + (-reinterpret_cast<uintptr_t>(p) % 64) / 4; };
    table = aligned(memory.data());
    row = aligned(table + plan.table_floats());
  }
};

constexpr int64_t kLongBlock = 16 * 1024;  // bytes

struct Rotation {
  const Plan* plan;
  const Signs* signs;
  int64_t k;
  float one;

  // x R · sqrt(block), into the sink; scratch.row is free for what the sink keeps of the elements it has got.
  template <class T, class Sink> void operator()(const T* x, const Scratch& scratch, Sink& sink) const {
    for (int64_t b = 0; b < k; b += plan->block) {
      Ahead ahead{reinterpret_cast<const char*>(x + b + plan->block),
                  static_cast<int64_t>(256 * sizeof(T)) / plan->passes(),
                  plan->block * static_cast<int64_t>(sizeof(T)) >= kLongBlock};
      const uint16_t* bits = signs->bits.data() + b / 16;
      float* row = scratch.row + b;
      if (plan->group == 0) {
        narrow(x + b, row, scratch.table, b, sink, ahead);
        continue;
      }
      if constexpr (std::is_same_v<T, bfloat16>) {
        if (plan->power >= 32) {
          first(Pairs{x + b, bits}, row, ahead);
          rest<true>(row, scratch.table, b, sink, ahead);
          continue;
        }
      }
      first(Rows<T>{x + b, bits}, row, ahead);
      rest<false>(row, scratch.table, b, sink, ahead);
    }
  }

  template <class Source> void first(const Source& from, float* row, Ahead& ahead) const {
    if (plan->direct) {
      const int64_t pitch = plan->bases.size() == 1 ? plan->pitch : stride(0);
      return compiled_base_pass<false>(plan->bases[0], from, stride(0), row, pitch, one, ahead);
    }
    any_radix_pass(plan->first_radix, from, plan->block / plan->first_radix, row, one, ahead);
  }

  template <bool Paired, class Sink>
  void rest(float* row, float* table, int64_t at, Sink& sink, Ahead& ahead) const {
    if (!plan->bases.empty() && !plan->direct) base(0, row, table, ahead);
    const int64_t part = plan->bases.size() > 1 ? stride(0) : plan->stages.empty() ? plan->block : plan->run;
    const int64_t apart = part + plan->pitch - plan->power;
    float* x = row;
    for (int64_t done = 0; done < plan->block; done += part, x += apart, at += part) {
      if (plan->bases.size() > 1) base(1, x, table, ahead);
      for (const auto [radix, distance] : plan->stages) {
        for (float* from = x; from < x + part; from += radix * distance) {
          any_radix_pass(radix, Floats{from}, distance, from, one, ahead);
        }
      }
      any_last_pass<Paired>(plan->group, x, part, at, sink, ahead);
    }
  }

  // Powers too short for vectors, and rows that are no whole number of them.
  template <class T, class Sink>
  void narrow(const T* x, float* row, float* table, int64_t at, Sink& sink, Ahead& ahead) const {
    for (int64_t i = 0; i < plan->block; ++i) row[i] = load<1>(x + i)[0] * signs->of(at + i);
    if (plan->table) base(0, row, table, ahead);
    short_runs(row, plan->block, plan->power);
    put_row(row, plan->block, at, sink);
  }

  void base(int number, float* x, float* table, Ahead& ahead) const {
    if (!plan->table) {
      const auto pass = plan->transpose ? compiled_base_pass<true, Floats> : compiled_base_pass<false, Floats>;
      return pass(plan->bases[number], Floats{x}, stride(number), x, stride(number), one, ahead);
    }
    const auto run = [&](auto stage) { stage(x, *plan->table, plan->power, one, table, ahead); };
    switch (plan->table_lanes * 8 + plan->table_vectors) {
      case 16 * 8 + 4: return run(base_stage<16, 4>);
      case 16 * 8 + 2: return run(base_stage<16, 2>);
      case 16 * 8 + 1: return run(base_stage<16, 1>);
      case 4 * 8 + 1: return run(base_stage<4, 1>);
      default: return run(base_stage<1, 1>);
    }
  }

  // Between the rows that a base acts across.
  int64_t stride(int number) const { return number == 0 ? plan->block / plan->bases[0] : plan->power; }
};

}  // namespace torchqx::rotation
