// Loops of the binary elementwise ops, comparisons, selection and conversion.
#include "runtime/kernels/cpu/elementwise_driver.h"

namespace rz::cpu {

namespace {

template <class F, class C>
void value_loop(const C* __restrict a, const C* __restrict b, const C*, C* __restrict out, int64_t n, C, C) {
  n = n / kLoopMultiple * kLoopMultiple;
  for (int64_t i = 0; i < n; ++i) out[i] = F::template value<C>(a[i], b[i]);
}
template <class F, class C>
void grad_a_loop(const C* __restrict g, const C* __restrict a, const C* __restrict b, C* __restrict out, int64_t n, C, C) {
  n = n / kLoopMultiple * kLoopMultiple;
  for (int64_t i = 0; i < n; ++i) out[i] = F::template grad_a<C>(g[i], a[i], b[i]);
}
template <class F, class C>
void grad_b_loop(const C* __restrict g, const C* __restrict a, const C* __restrict b, C* __restrict out, int64_t n, C, C) {
  n = n / kLoopMultiple * kLoopMultiple;
  for (int64_t i = 0; i < n; ++i) out[i] = F::template grad_b<C>(g[i], a[i], b[i]);
}
template <class F>
constexpr BinaryLoops make_binary_loops() {
  return {{value_loop<F, float>, value_loop<F, double>},
          {grad_a_loop<F, float>, grad_a_loop<F, double>},
          {grad_b_loop<F, float>, grad_b_loop<F, double>}};
}

template <class C>
void identity_loop(const C* __restrict a, const C*, const C*, C* __restrict out, int64_t n, C, C) {
  for (int64_t i = 0; i < n; ++i) out[i] = a[i];
}
template <class C>
void where_loop(const C* __restrict condition, const C* __restrict a, const C* __restrict b, C* __restrict out, int64_t n, C, C) {
  for (int64_t i = 0; i < n; ++i) out[i] = condition[i] != C(0) ? a[i] : b[i];
}

#define RZ_COMPARISON(name, symbol)                                                                              \
  template <class C>                                                                                             \
  void name##_loop(const C* __restrict a, const C* __restrict b, const C*, C* __restrict out, int64_t n, C, C) { \
    for (int64_t i = 0; i < n; ++i) out[i] = a[i] symbol b[i] ? C(1) : C(0);                                     \
  }
RZ_COMPARE_OPS(RZ_COMPARISON)
#undef RZ_COMPARISON

}  // namespace

const BinaryLoops* binary_loops() {
#define RZ_ROW(name, Functor, ...) make_binary_loops<functors::Functor>(),
  static constexpr BinaryLoops kTable[] = {RZ_BINARY_OPS(RZ_ROW)};
#undef RZ_ROW
  return kTable;
}

const Loops* compare_loops() {
#define RZ_ROW(name, symbol) Loops{name##_loop<float>, name##_loop<double>},
  static constexpr Loops kTable[] = {RZ_COMPARE_OPS(RZ_ROW)};
#undef RZ_ROW
  return kTable;
}

const Loops& identity_loops() {
  static constexpr Loops loops{identity_loop<float>, identity_loop<double>};
  return loops;
}
const Loops& where_loops() {
  static constexpr Loops loops{where_loop<float>, where_loop<double>};
  return loops;
}

}  // namespace rz::cpu
