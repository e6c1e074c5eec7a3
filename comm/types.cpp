#include "comm/types.h"

#include <array>

#include "runtime/core/error.h"

namespace rz::comm {

namespace {

constexpr std::array<const char*, kCollectiveKinds> kKindNames{"all_reduce", "reduce_scatter", "all_gather", "broadcast", "barrier", "probe"};
constexpr std::array<const char*, 4> kOpNames{"sum", "mean", "max", "min"};
constexpr std::array<const char*, 2> kOrderNames{"ring", "ordered"};

template <class Enum, size_t N>
Enum parse(const std::array<const char*, N>& names, const char* what, std::string_view text) {
  for (size_t i = 0; i < N; ++i) {
    if (text == names[i]) return static_cast<Enum>(i);
  }
  throw ConfigError(fmt::format("unknown {} '{}': choose {}", what, text, fmt::join(names, ", ")));
}

}  // namespace

const char* name(CollectiveKind kind) { return kKindNames[static_cast<size_t>(kind)]; }
const char* name(ReduceOp op) { return kOpNames[static_cast<size_t>(op)]; }
const char* name(Order order) { return kOrderNames[static_cast<size_t>(order)]; }

CollectiveKind parse_collective_kind(std::string_view text) { return parse<CollectiveKind>(kKindNames, "collective", text); }
ReduceOp parse_reduce_op(std::string_view text) { return parse<ReduceOp>(kOpNames, "reduction", text); }
Order parse_order(std::string_view text) { return parse<Order>(kOrderNames, "order", text); }

}  // namespace rz::comm
