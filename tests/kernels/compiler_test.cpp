// What the build relies on the compiler for, where a compiler is known to get it wrong.
#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>

namespace rz {
namespace {

[[gnu::noinline]] void copy_doubles(double* to) {
  static constexpr double kValues[4] = {1, 1, 0, 0};
  std::memcpy(to, kValues, sizeof kValues);
}
[[gnu::noinline]] void copy_integers(int64_t* to) {
  static constexpr int64_t kValues[8] = {5, 5, 5, 5, 0, 0, 0, 0};
  std::memcpy(to, kValues, sizeof kValues);
}

// GCC 12.2 with AVX-512 broadcasts the leading elements over the trailing zeros; cmake/RzCompile.cmake avoids it.
TEST(Compiler, ConstantsWithATailOfZerosAreCopiedAsTheyAre) {
  double d[4];
  copy_doubles(d);
  EXPECT_EQ(d[1], 1);
  EXPECT_EQ(d[2], 0);
  int64_t i[8];
  copy_integers(i);
  EXPECT_EQ(i[3], 5);
  EXPECT_EQ(i[4], 0);
}

}  // namespace
}  // namespace rz
