// One row after another: which stages a block of a given order needs, and running them.
#include <map>
#include <memory>
#include <mutex>
#include <utility>

namespace torchqx::rotation {

using SmallBase = void (*)(float*, int64_t, float, Ahead&);

inline SmallBase small_base_for(int64_t base, bool transposed) {
  switch (base) {
    case 12: return transposed ? small_base_stage<12, true> : small_base_stage<12, false>;
    case 20: return transposed ? small_base_stage<20, true> : small_base_stage<20, false>;
    case 28: return transposed ? small_base_stage<28, true> : small_base_stage<28, false>;
    case 36: return transposed ? small_base_stage<36, true> : small_base_stage<36, false>;
    default: return nullptr;
  }
}

// block = base · power. The first stage does runs of lanes · group elements, the next ones more of the power of two,
// and the base comes last; by a table of sums, with the last one or two levels if there are any left.
struct Plan {
  struct Stage { int radix; int64_t stride; };

  int64_t block, base, power;
  int lanes, group;
  std::vector<Stage> stages;
  SmallBase small = nullptr;                 // for a base that has one;
  std::unique_ptr<Combination> combination;  // for any other but 1
  int vectors = 1;                           // that the table is for at a time,
  int64_t apart = 0;                         // this far from each other
  bool mixed = false;                        // and being a butterfly too

  Plan(int64_t order, const int8_t* signs, int64_t signs_order, bool transpose)
      : block(order), base(signs_order), power(order / signs_order) {
    lanes = power >= 16 ? 16 : power >= 4 ? 4 : 1;
    group = static_cast<int>(std::min<int64_t>(16, power / lanes));
    if (lanes == 16) small = small_base_for(base, transpose);
    const bool tabled = base > 1 && !small;
    const int64_t fitting = !tabled ? 1 : kTableBytes / (table_floats() * 4);
    int64_t done = lanes * group;
    while (power / done > std::clamp<int64_t>(fitting, 1, 4)) {
      const int radix = static_cast<int>(std::min<int64_t>(16, power / done));
      stages.push_back({radix, done});
      done *= radix;
    }
    if (!tabled) return;
    mixed = done < power;
    apart = mixed ? done : lanes;
    if (mixed) vectors = static_cast<int>(power / done);
    while (!mixed && lanes == 16 && vectors < 4 && 2 * vectors <= fitting && power % (2 * vectors * lanes) == 0) {
      vectors *= 2;
    }
    combination = std::make_unique<Combination>(signs, base, transpose, vectors * lanes * 4);
  }

  int64_t passes_that_ask() const { return std::max<int64_t>(1, static_cast<int64_t>(stages.size()) + (base > 1)); }
  int64_t table_floats() const { return base == 1 || small ? 0 : base / 4 * kSums * vectors * lanes; }
};

template <class T> using FirstStage = void (*)(const T*, const float*, int64_t, float*, Ahead&);

template <class T> FirstStage<T> first_stage_for(const Plan& plan, bool is_signed) {
  switch (plan.lanes * 32 + plan.group) {
    case 16 * 32 + 16: return is_signed ? first_stage<T, 16, 16, true> : first_stage<T, 16, 16, false>;
    case 16 * 32 + 8: return is_signed ? first_stage<T, 16, 8, true> : first_stage<T, 16, 8, false>;
    case 16 * 32 + 4: return is_signed ? first_stage<T, 16, 4, true> : first_stage<T, 16, 4, false>;
    case 16 * 32 + 2: return is_signed ? first_stage<T, 16, 2, true> : first_stage<T, 16, 2, false>;
    case 16 * 32 + 1: return is_signed ? first_stage<T, 16, 1, true> : first_stage<T, 16, 1, false>;
    case 4 * 32 + 2: return is_signed ? first_stage<T, 4, 2, true> : first_stage<T, 4, 2, false>;
    case 4 * 32 + 1: return is_signed ? first_stage<T, 4, 1, true> : first_stage<T, 4, 1, false>;
    case 32 + 2: return is_signed ? first_stage<T, 1, 2, true> : first_stage<T, 1, 2, false>;
    default: return is_signed ? first_stage<T, 1, 1, true> : first_stage<T, 1, 1, false>;
  }
}

inline void run_stages(const Plan& plan, float* block, float one, Ahead& ahead) {
  for (const auto [radix, stride] : plan.stages) {
    switch (radix) {
      case 16: next_stage<16, 16>(block, plan.block, stride, one, ahead); break;
      case 8: next_stage<16, 8>(block, plan.block, stride, one, ahead); break;
      case 4: next_stage<16, 4>(block, plan.block, stride, one, ahead); break;
      default: next_stage<16, 2>(block, plan.block, stride, one, ahead); break;
    }
  }
}

inline void run_base(const Plan& plan, float* block, float one, float* table, Ahead& ahead) {
  if (plan.small) return plan.small(block, plan.power, one, ahead);
  const auto run = [&](auto stage) {
    stage(block, *plan.combination, plan.power, plan.apart, plan.mixed, one, table, ahead);
  };
  switch (plan.lanes * 8 + plan.vectors) {
    case 16 * 8 + 4: return run(base_stage<16, 4>);
    case 16 * 8 + 2: return run(base_stage<16, 2>);
    case 16 * 8 + 1: return run(base_stage<16, 1>);
    case 4 * 8 + 1: return run(base_stage<4, 1>);
    default: return run(base_stage<1, 1>);
  }
}

// Room for a row between its stages, and for the sums of a base; one per thread, kept between calls.
struct Scratch {
  float* table;
  float* row;

  Scratch(const Plan& plan, int64_t k) {
    thread_local std::vector<float> memory;
    const size_t needed = plan.table_floats() + k + 2 * 16;
    if (memory.size() < needed) memory.resize(needed);
    const auto aligned = [](float* p) { return p + (-reinterpret_cast<uintptr_t>(p) % 64) / 4; };
    table = aligned(memory.data());
    row = aligned(table + plan.table_floats());
  }
};

template <class T> struct Rotation {
  const Plan* plan;
  FirstStage<T> first;
  const float* signs;
  int64_t k;
  float one;

  // scratch.row = x R · sqrt(block)
  void operator()(const T* x, const Scratch& scratch) const {
    for (int64_t b = 0; b < k; b += plan->block) {
      Ahead ahead{reinterpret_cast<const char*>(x + b + plan->block),
                  static_cast<int64_t>(256 * sizeof(T)) / plan->passes_that_ask()};
      first(x + b, signs ? signs + b : nullptr, plan->block, scratch.row + b, ahead);
      run_stages(*plan, scratch.row + b, one, ahead);
      if (plan->base > 1) run_base(*plan, scratch.row + b, one, scratch.table, ahead);
    }
  }
};

}  // namespace torchqx::rotation
