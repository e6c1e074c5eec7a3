// Shapes: checked when made; errors name what was asked.
#include "runtime/core/shape.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

#include "runtime/core/error.h"

namespace rz {
namespace {

using testing::HasSubstr;
using testing::ThrowsMessage;

TEST(Shape, CountsElements) {
  EXPECT_EQ(Shape({2, 3, 4}).numel(), 24);
  EXPECT_EQ(Shape().numel(), 1);
  EXPECT_EQ(Shape({3, 0, 5}).numel(), 0);
  EXPECT_EQ(Shape({2, 3})[-1], 3);
}

TEST(Shape, RefusesNegativeExtents) {
  EXPECT_THAT([] { Shape({2, -3}); }, ThrowsMessage<Error>(HasSubstr("-3")));
}

TEST(Shape, RefusesOverflow) {
  const int64_t big = int64_t{1} << 40;
  EXPECT_THAT([&] { Shape({big, big}); }, ThrowsMessage<Error>(HasSubstr("overflows")));
  // A zero extent must not hide it: the strides of such a shape overflow all the same.
  EXPECT_THAT([&] { Shape({0, big, big}); }, ThrowsMessage<Error>(HasSubstr("overflows")));
  EXPECT_EQ(Shape({std::numeric_limits<int64_t>::max()}).numel(), std::numeric_limits<int64_t>::max());
}

TEST(Shape, RefusesTooManyDimensions) {
  EXPECT_THROW(Shape({1, 1, 1, 1, 1, 1, 1, 1, 1}), Error);
}

TEST(Shape, NamesAMissingDimension) {
  EXPECT_THAT([] { (void)Shape({2, 3})[2]; }, ThrowsMessage<Error>(HasSubstr("[2, 3]")));
  EXPECT_THROW((void)Shape({2, 3})[-3], Error);
}

TEST(Shape, Broadcasts) {
  EXPECT_EQ(broadcast_shapes({4, 1, 3}, {2, 1}, "add"), Shape({4, 2, 3}));
  EXPECT_EQ(broadcast_shapes({}, {5}, "add"), Shape({5}));
  EXPECT_EQ(broadcast_shapes({0, 3}, {1, 3}, "add"), Shape({0, 3}));
  EXPECT_THAT([] { broadcast_shapes({2, 3}, {4, 3}, "add"); }, ThrowsMessage<Error>(testing::AllOf(HasSubstr("[2, 3]"), HasSubstr("[4, 3]"))));
}

}  // namespace
}  // namespace rz
