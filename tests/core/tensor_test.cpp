// Tensors: views share storage and see releases; types and bounds are checked.
#include "runtime/core/tensor.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>

namespace rz {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::ThrowsMessage;

Tensor iota(Shape shape) {
  std::vector<float> values(static_cast<size_t>(shape.numel()));
  std::iota(values.begin(), values.end(), 0.0f);
  return Tensor::of(shape, values);
}

TEST(Tensor, ViewsShareStorage) {
  Tensor t = iota({2, 3});
  Tensor row = t.view_slice(0, 1, 2);
  row.data<float>()[0] = 42;
  EXPECT_EQ(t.data<float>()[3], 42);
  EXPECT_EQ(t.view_reshape({3, 2}).data<float>(), t.data<float>());
  EXPECT_EQ(t.storage(), t.view_transpose(0, 1).storage());
}

TEST(Tensor, ViewsHaveTheRightStrides) {
  const Tensor t = iota({2, 3, 4});
  const Tensor p = t.view_permute({2, 0, 1});
  EXPECT_EQ(p.shape(), Shape({4, 2, 3}));
  EXPECT_EQ(p.stride(0), 1);
  EXPECT_EQ(p.stride(1), 12);
  EXPECT_EQ(p.stride(2), 4);
  EXPECT_FALSE(p.is_contiguous());
  const Tensor b = t.view_slice(1, 0, 1).view_broadcast({2, 5, 4});
  EXPECT_EQ(b.stride(1), 0);
  EXPECT_TRUE(t.view_slice(0, 1, 2).is_contiguous());
  EXPECT_FALSE(t.view_slice(2, 0, 2).is_contiguous());
}

TEST(Tensor, ChecksBoundsAndShapes) {
  const Tensor t = iota({2, 3});
  EXPECT_THAT([&] { t.view_slice(1, 2, 4); }, ThrowsMessage<Error>(HasSubstr("[2, 4)")));
  EXPECT_THAT([&] { t.view_reshape({4}); }, ThrowsMessage<Error>(HasSubstr("[4]")));
  EXPECT_THROW(t.view_transpose(0, 1).view_reshape({6}), Error);
  EXPECT_THROW(t.view_broadcast({3, 3}), Error);
  EXPECT_THROW(t.view_permute({0, 0}), Error);
  EXPECT_THAT([&] { (void)t.data<double>(); }, ThrowsMessage<Error>(HasSubstr("f64")));
  EXPECT_THROW(Tensor().shape(), Error);
  EXPECT_THROW(Tensor::over(t.storage(), {7}, DType::f32), Error);
  EXPECT_THROW(Tensor::over(t.storage(), {3}, DType::f32, 4), Error);
}

TEST(Tensor, ReadingAReleasedStorageNamesItsOwner) {
  Tensor t = Tensor::full({4}, 1.0, DType::f32, "blocks.3");
  const Tensor view = t.view_slice(0, 0, 2);
  t.storage()->release();
  EXPECT_THAT([&] { (void)view.data<float>(); }, ThrowsMessage<Error>(HasSubstr("'blocks.3' read while released")));
  t.storage()->materialize();
  EXPECT_NO_THROW((void)view.data<float>());
}

TEST(Tensor, RebindMovesEveryHandle) {
  Tensor a = iota({3});
  Tensor b = a;
  auto flat = Storage::make(64, Category::parameter, "flat");
  a.rebind_storage(flat, 4);
  EXPECT_EQ(b.storage(), flat);
  EXPECT_EQ(b.raw_data(), flat->data() + 16);
}

TEST(Tensor, EmptyTensorsHaveNoElementsAndNoBytes) {
  const Tensor t = Tensor::zeros({0, 5});
  EXPECT_EQ(t.numel(), 0);
  EXPECT_EQ(t.size_bytes(), 0u);
  EXPECT_TRUE(t.is_contiguous());
  EXPECT_THAT(t.to_vector<float>(), testing::IsEmpty());
}

TEST(DTypes, SixteenBitFloatsRoundToNearestEven) {
  EXPECT_EQ(static_cast<float>(bf16(1.0f + 1.0f / 256)), 1.0f);              // halfway, to even
  EXPECT_EQ(static_cast<float>(bf16(1.0f + 3.0f / 256)), 1.0f + 4.0f / 256);  // halfway, to even
  EXPECT_EQ(static_cast<float>(f16(65504.0f)), 65504.0f);
  EXPECT_TRUE(std::isinf(static_cast<float>(f16(65536.0f))));
  EXPECT_TRUE(std::isnan(static_cast<float>(bf16(std::numeric_limits<float>::quiet_NaN()))));
  EXPECT_TRUE(std::isinf(static_cast<float>(bf16(std::numeric_limits<float>::infinity()))));
  EXPECT_THAT([] { parse_dtype("float32"); }, ThrowsMessage<ConfigError>(HasSubstr("f32")));
}

// The conversion for compilers without a half type against the compiler's own, for every half and for the rounding between.
#ifdef __FLT16_MANT_DIG__
TEST(DTypes, SoftwareHalvesEqualTheCompilers) {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    f16 h;
    h.bits = static_cast<uint16_t>(bits);
    const float value = h;
    const float software = detail::half_to_float(h.bits);
    if (std::isnan(value)) {
      ASSERT_TRUE(std::isnan(software)) << bits;
      continue;
    }
    ASSERT_EQ(std::bit_cast<uint32_t>(software), std::bit_cast<uint32_t>(value)) << bits;
    for (const float near : {value, std::nextafter(value, 1e9f), value * (1 + 0x1.0p-11f), value * (1 + 0x1.8p-11f), value * (1 - 0x1.0p-12f)})
      ASSERT_EQ(detail::float_to_half(near), f16(near).bits) << near;
  }
}
#endif

TEST(Tensor, ConvertsValues) {
  EXPECT_THAT(Tensor::full({3}, 2.5, DType::bf16).to_vector<double>(), ElementsAre(2.5, 2.5, 2.5));
  EXPECT_EQ(Tensor::scalar(3, DType::i64).item(), 3.0);
}

}  // namespace
}  // namespace rz
