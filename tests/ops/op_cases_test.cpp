// Every row of the table of op cases (tests/support/op_cases.h).
#include "tests/support/op_cases.h"

#include <gtest/gtest.h>

namespace rz::test {
namespace {

class OpCases : public testing::TestWithParam<size_t> {};

TEST_P(OpCases, ValueGradientTypesStridesAndThreads) { check_op_case(op_cases()[GetParam()]); }

std::string row_name(const testing::TestParamInfo<size_t>& info) {
  std::string name = std::to_string(info.param) + "_";
  for (const char c : op_cases()[info.param].name) name += std::isalnum(static_cast<unsigned char>(c)) ? c : '_';
  return name;
}

INSTANTIATE_TEST_SUITE_P(Table, OpCases, testing::Range<size_t>(0, op_cases().size()), row_name);

}  // namespace
}  // namespace rz::test
