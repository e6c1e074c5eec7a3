// Loops of one group of the elementwise list.
#include "runtime/kernels/cpu/elementwise_driver.h"

namespace rz::cpu {

const UnaryLoops* simple_loops() {
#define RZ_ROW(name, Functor, ...) make_unary_loops<functors::Functor>(),
  static constexpr UnaryLoops kTable[] = {RZ_UNARY_SIMPLE(RZ_ROW)};
#undef RZ_ROW
  return kTable;
}

}  // namespace rz::cpu
