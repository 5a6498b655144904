// One row after another: which stages a block of a given order needs, and running them.
#include <map>
#include <memory>
#include <mutex>
#include <utility>

namespace torchqx::rotation {

// block = base · power. The first stage does runs of lanes · group elements, the next ones more of the power of two,
// and the base comes last, with the last one or two levels if there are any left.
struct Plan {
  struct Stage { int radix; int64_t stride; };

  int64_t block, base, power;
  int lanes, group;
  std::vector<Stage> stages;
  std::unique_ptr<Combination> combination;  // none for base 1
  int vectors = 1;                           // that the base takes at a time,
  int64_t apart = 0;                         // this far from each other
  bool mixed = false;                        // and being a butterfly too

  Plan(int64_t order, const int8_t* signs, int64_t signs_order, bool transpose)
      : block(order), base(signs_order), power(order / signs_order) {
    lanes = power >= 16 ? 16 : power >= 4 ? 4 : 1;
    group = static_cast<int>(std::min<int64_t>(16, power / lanes));
    const int64_t fitting = base == 1 ? 1 : kTableBytes / (table_floats() * 4);
    int64_t done = lanes * group;
    while (power / done > std::clamp<int64_t>(base == 1 ? 1 : fitting, 1, 4)) {
      const int radix = static_cast<int>(std::min<int64_t>(16, power / done));
      stages.push_back({radix, done});
      done *= radix;
    }
    if (base == 1) return;
    mixed = done < power;
    apart = mixed ? done : lanes;
    if (mixed) vectors = static_cast<int>(power / done);
    while (!mixed && lanes == 16 && vectors < 4 && 2 * vectors <= fitting && power % (2 * vectors * lanes) == 0) {
      vectors *= 2;
    }
    combination = std::make_unique<Combination>(signs, base, transpose, vectors * lanes * 4);
  }

  int64_t table_floats() const { return base == 1 ? 0 : base / 4 * kSums * vectors * lanes; }
};

template <class T> using FirstStage = void (*)(const T*, const float*, int64_t, float*);

template <class T> FirstStage<T> first_stage_for(const Plan& plan) {
  switch (plan.lanes * 32 + plan.group) {
    case 16 * 32 + 16: return first_stage<T, 16, 16>;
    case 16 * 32 + 8: return first_stage<T, 16, 8>;
    case 16 * 32 + 4: return first_stage<T, 16, 4>;
    case 16 * 32 + 2: return first_stage<T, 16, 2>;
    case 16 * 32 + 1: return first_stage<T, 16, 1>;
    case 4 * 32 + 2: return first_stage<T, 4, 2>;
    case 4 * 32 + 1: return first_stage<T, 4, 1>;
    case 32 + 2: return first_stage<T, 1, 2>;
    default: return first_stage<T, 1, 1>;
  }
}

inline void run_stages(const Plan& plan, float* block, float one) {
  for (const auto [radix, stride] : plan.stages) {
    switch (radix) {
      case 16: next_stage<16, 16>(block, plan.block, stride, one); break;
      case 8: next_stage<16, 8>(block, plan.block, stride, one); break;
      case 4: next_stage<16, 4>(block, plan.block, stride, one); break;
      default: next_stage<16, 2>(block, plan.block, stride, one); break;
    }
  }
}

inline void run_base(const Plan& plan, float* block, float one, float* table) {
  const auto run = [&](auto stage) {
    stage(block, *plan.combination, plan.power, plan.apart, plan.mixed, one, table);
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
      first(x + b, signs ? signs + b : nullptr, plan->block, scratch.row + b);
      run_stages(*plan, scratch.row + b, one);
      if (plan->combination) run_base(*plan, scratch.row + b, one, scratch.table);
    }
  }
};

}  // namespace torchqx::rotation
