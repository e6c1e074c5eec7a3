// Whole numbers of pieces.
#pragma once

#include <cstdint>

namespace rz::cpu {

// Of x >= 0 and y > 0.
constexpr int64_t ceil_divide(int64_t x, int64_t y) { return (x + y - 1) / y; }
constexpr int64_t round_up(int64_t x, int64_t to) { return ceil_divide(x, to) * to; }

}  // namespace rz::cpu
