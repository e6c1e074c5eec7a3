#include "comm/reduce.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <vector>

#include "runtime/kernels/cpu/convert.h"

namespace rz::comm {

namespace {

template <ReduceOp op, class T>
inline T apply(T a, T b) {
  if constexpr (op == ReduceOp::max) {
    return (a > b || a != a) ? a : b;
  } else if constexpr (op == ReduceOp::min) {
    return (a < b || a != a) ? a : b;
  } else if constexpr (std::is_integral_v<T>) {
    using U = std::make_unsigned_t<T>;  // wraps where T would overflow
    return static_cast<T>(static_cast<U>(static_cast<U>(a) + static_cast<U>(b)));
  } else {
    return a + b;
  }
}

// Calls f with the operation as a constant; mean adds.
template <class F>
void with_op(ReduceOp op, F&& f) {
  switch (op) {
    case ReduceOp::sum:
    case ReduceOp::mean:
      return f(std::integral_constant<ReduceOp, ReduceOp::sum>{});
    case ReduceOp::max:
      return f(std::integral_constant<ReduceOp, ReduceOp::max>{});
    case ReduceOp::min:
      return f(std::integral_constant<ReduceOp, ReduceOp::min>{});
  }
}

constexpr size_t kBlock = 512;

template <class T>
void widen(const T* from, compute_t<T>* to, size_t n) {
  cpu::load_run(from, 1, to, static_cast<int64_t>(n));
}
template <class T>
void narrow(const compute_t<T>* from, T* to, size_t n) {
  cpu::store_run(from, to, 1, static_cast<int64_t>(n), false);
}

// body(begin, length) over blocks, for types whose conversions are loops of their own.
template <class Body>
void for_blocks(size_t count, Body body) {
  for (size_t at = 0; at < count; at += kBlock) body(at, std::min(kBlock, count - at));
}

template <ReduceOp op, class T>
void combine_typed(T* out, const T* a, const T* b, size_t count) {
  using C = compute_t<T>;
  if constexpr (std::is_same_v<T, f16>) {  // g++ 12 does not vectorize the conversions of _Float16; load_run does it by hand
    alignas(64) float x[kBlock];
    alignas(64) float y[kBlock];
    for_blocks(count, [&](size_t at, size_t n) {
      widen(a + at, x, n);
      widen(b + at, y, n);
      for (size_t i = 0; i < n; ++i) x[i] = apply<op>(x[i], y[i]);
      narrow(x, out + at, n);
    });
  } else {
    // No dependence between lanes even where `out` is `b`.
#pragma GCC ivdep
    for (size_t i = 0; i < count; ++i) out[i] = static_cast<T>(apply<op, C>(static_cast<C>(a[i]), static_cast<C>(b[i])));
  }
}

// out[i] = first[i] (op) in[0][i] (op) ..., of one to three more, read at once and written once.
template <ReduceOp op, class T>
void fold_few(T* out, const T* first, const std::byte* const* in, size_t inputs, size_t count) {
  const T* a = reinterpret_cast<const T*>(in[0]);
  const T* b = reinterpret_cast<const T*>(in[inputs > 1 ? 1 : 0]);
  const T* c = reinterpret_cast<const T*>(in[inputs > 2 ? 2 : 0]);
  // No dependence between lanes, though `out` may be one of the inputs.
  if (inputs == 1) {
#pragma GCC ivdep
    for (size_t i = 0; i < count; ++i) out[i] = apply<op>(first[i], a[i]);
  } else if (inputs == 2) {
#pragma GCC ivdep
    for (size_t i = 0; i < count; ++i) out[i] = apply<op>(apply<op>(first[i], a[i]), b[i]);
  } else {
#pragma GCC ivdep
    for (size_t i = 0; i < count; ++i) out[i] = apply<op>(apply<op>(apply<op>(first[i], a[i]), b[i]), c[i]);
  }
}

// Types that are added as they are: no conversions, and nothing but the last group of inputs is written to `out`.
template <ReduceOp op, class T>
void fold(T* out, std::span<const std::byte* const> inputs, size_t count) {
  constexpr size_t kAtOnce = 3;
  alignas(64) T sum[kBlock];
  std::array<const std::byte*, kAtOnce> next;
  for (size_t at = 0; at < count; at += inputs.size() <= kAtOnce + 1 ? count : kBlock) {
    const size_t n = inputs.size() <= kAtOnce + 1 ? count : std::min(kBlock, count - at);
    const T* first = reinterpret_cast<const T*>(inputs[0]) + at;
    for (size_t k = 1; k < inputs.size();) {
      const size_t taken = std::min(kAtOnce, inputs.size() - k);
      for (size_t j = 0; j < taken; ++j) next[j] = inputs[k + j] + at * sizeof(T);
      k += taken;
      T* to = k == inputs.size() ? out + at : sum;
      fold_few<op>(to, first, next.data(), taken, n);
      first = to;
    }
  }
}

}  // namespace

void combine(DType dtype, ReduceOp op, void* out, const void* a, const void* b, size_t count) {
  dispatch(dtype, [&]<class T>(TypeTag<T>) {
    with_op(op, [&](auto constant) {
      combine_typed<decltype(constant)::value>(static_cast<T*>(out), static_cast<const T*>(a), static_cast<const T*>(b), count);
    });
  });
}

void divide(DType dtype, void* data, size_t count, int divisor) {
  dispatch_floating(dtype, "mean", [&]<class T>(TypeTag<T>) {
    using C = compute_t<T>;
    const C d = static_cast<C>(divisor);
    T* x = static_cast<T*>(data);
    alignas(64) C wide[kBlock];
    for_blocks(count, [&](size_t at, size_t n) {
      widen<T>(x + at, wide, n);
      for (size_t i = 0; i < n; ++i) wide[i] /= d;
      narrow<T>(wide, x + at, n);
    });
  });
}

void combine_in_order(DType dtype, ReduceOp op, void* out, std::span<const std::byte* const> inputs, size_t count) {
  dispatch(dtype, [&]<class T>(TypeTag<T>) {
    with_op(op, [&](auto constant) {
      constexpr ReduceOp kOp = decltype(constant)::value;
      using C = compute_t<T>;
      if constexpr (std::is_same_v<C, T>) {
        if (inputs.size() > 1) {
          fold<kOp>(static_cast<T*>(out), inputs, count);
          if (op == ReduceOp::mean) divide(dtype, out, count, static_cast<int>(inputs.size()));
          return;
        }
      }
      alignas(64) C sum[kBlock];
      alignas(64) C next[kBlock];
      for_blocks(count, [&](size_t at, size_t n) {
        widen<T>(reinterpret_cast<const T*>(inputs[0]) + at, sum, n);
        for (size_t k = 1; k < inputs.size(); ++k) {
          widen<T>(reinterpret_cast<const T*>(inputs[k]) + at, next, n);
          for (size_t i = 0; i < n; ++i) sum[i] = apply<kOp, C>(sum[i], next[i]);
        }
        if (op == ReduceOp::mean) {
          if constexpr (std::is_floating_point_v<C>) {
            const C d = static_cast<C>(inputs.size());
            for (size_t i = 0; i < n; ++i) sum[i] /= d;
          }
        }
        narrow<T>(sum, static_cast<T*>(out) + at, n);
      });
    });
  });
}

namespace {

// 16-bit floats in ring order: rounded at every hop.
void combine_by_hops(DType dtype, ReduceOp op, std::byte* out, std::span<const std::byte* const> inputs, size_t count) {
  alignas(64) std::byte sum[kBlock * 2];
  const size_t last = inputs.size() - 1;
  for_blocks(count, [&](size_t at, size_t n) {
    const std::byte* so_far = inputs[0] + at * 2;
    for (size_t k = 1; k <= last; ++k) {
      std::byte* to = k == last ? out + at * 2 : sum;
      combine(dtype, op, to, so_far, inputs[k] + at * 2, n);
      so_far = to;
    }
  });
  if (op == ReduceOp::mean) divide(dtype, out, count, static_cast<int>(inputs.size()));
}

}  // namespace

void combine_all(DType dtype, ReduceOp op, Order order, std::span<std::byte* const> outputs, std::span<const std::byte* const> inputs,
                 size_t count) {
  constexpr size_t kCached = 16 * 1024;  // what has been added is copied from the nearest cache
  const size_t element = size_bytes(dtype);
  const size_t step = kCached / element;
  const bool rounds_at_hops = order == Order::ring && (dtype == DType::bf16 || dtype == DType::f16);
  const auto add = [&](std::span<const std::byte* const> in, size_t at, size_t n) {
    std::byte* out = outputs[0] + at * element;
    if (rounds_at_hops) {
      combine_by_hops(dtype, op, out, in, n);
    } else {
      combine_in_order(dtype, op, out, in, n);
    }
    for (size_t k = 1; k < outputs.size(); ++k) std::memcpy(outputs[k] + at * element, out, n * element);
  };
  if (count <= step) return add(inputs, 0, count);  // short data take less time than allocating
  std::vector<const std::byte*> in(inputs.size());
  for (size_t at = 0; at < count; at += step) {
    for (size_t k = 0; k < in.size(); ++k) in[k] = inputs[k] + at * element;
    add(in, at, std::min(step, count - at));
  }
}

}  // namespace rz::comm
