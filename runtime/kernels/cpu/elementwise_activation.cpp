// Loops of one group of the elementwise list.
#include "runtime/kernels/cpu/elementwise_driver.h"

namespace rz::cpu {

const UnaryLoops* activation_loops() {
#define RZ_ROW(name, Functor, ...) make_unary_loops<functors::Functor>(),
  static constexpr UnaryLoops kTable[] = {RZ_UNARY_ACTIVATION(RZ_ROW)};
#undef RZ_ROW
  return kTable;
}

}  // namespace rz::cpu
