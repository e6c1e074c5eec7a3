#include "comm/reduce.h"

#include <algorithm>

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
    case ReduceOp::mean: return f(std::integral_constant<ReduceOp, ReduceOp::sum>{});
    case ReduceOp::max: return f(std::integral_constant<ReduceOp, ReduceOp::max>{});
    case ReduceOp::min: return f(std::integral_constant<ReduceOp, ReduceOp::min>{});
  }
}

// 16-bit floats go through a block of float32, whose conversions and arithmetic are then separate, vectorizable loops.
constexpr size_t kBlock = 512;

template <class T>
void widen(const T* __restrict from, compute_t<T>* __restrict to, size_t n) {
  for (size_t i = 0; i < n; ++i) to[i] = static_cast<compute_t<T>>(from[i]);
}
template <class T>
void narrow(const compute_t<T>* __restrict from, T* __restrict to, size_t n) {
  for (size_t i = 0; i < n; ++i) to[i] = static_cast<T>(from[i]);
}

}  // namespace

void combine(DType dtype, ReduceOp op, void* out, const void* a, const void* b, size_t count) {
  dispatch(dtype, [&]<class T>(TypeTag<T>) {
    with_op(op, [&](auto constant) {
      constexpr ReduceOp kOp = decltype(constant)::value;
      T* o = static_cast<T*>(out);
      const T* x = static_cast<const T*>(a);
      const T* y = static_cast<const T*>(b);
      using C = compute_t<T>;
      // No dependence between lanes even where `out` is `b`.
#pragma GCC ivdep
      for (size_t i = 0; i < count; ++i) o[i] = static_cast<T>(apply<kOp, C>(static_cast<C>(x[i]), static_cast<C>(y[i])));
    });
  });
}

void divide(DType dtype, void* data, size_t count, int divisor) {
  dispatch_floating(dtype, "mean", [&]<class T>(TypeTag<T>) {
    using C = compute_t<T>;
    const C d = static_cast<C>(divisor);
    T* x = static_cast<T*>(data);
    for (size_t i = 0; i < count; ++i) x[i] = static_cast<T>(static_cast<C>(x[i]) / d);
  });
}

void combine_in_order(DType dtype, ReduceOp op, void* out, std::span<const std::byte* const> inputs, size_t count) {
  dispatch(dtype, [&]<class T>(TypeTag<T>) {
    with_op(op, [&](auto constant) {
      constexpr ReduceOp kOp = decltype(constant)::value;
      using C = compute_t<T>;
      alignas(64) C sum[kBlock];
      for (size_t at = 0; at < count; at += kBlock) {
        const size_t n = std::min(kBlock, count - at);
        widen<T>(reinterpret_cast<const T*>(inputs[0]) + at, sum, n);
        for (size_t k = 1; k < inputs.size(); ++k) {
          const T* x = reinterpret_cast<const T*>(inputs[k]) + at;
#pragma GCC ivdep
          for (size_t i = 0; i < n; ++i) sum[i] = apply<kOp, C>(sum[i], static_cast<C>(x[i]));
        }
        if (op == ReduceOp::mean) {
          if constexpr (std::is_floating_point_v<C>) {
            const C d = static_cast<C>(inputs.size());
            for (size_t i = 0; i < n; ++i) sum[i] /= d;
          }
        }
        narrow<T>(sum, static_cast<T*>(out) + at, n);
      }
    });
  });
}

}  // namespace rz::comm
