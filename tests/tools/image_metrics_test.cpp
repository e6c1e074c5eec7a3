// Measures of images against closed forms.
#include "tools/image_metrics.h"

#include <gtest/gtest.h>

#include <cmath>

#include "runtime/core/error.h"
#include "runtime/core/random.h"
#include "tools/picture.h"

namespace rz::tools {
namespace {

Features normal_points(int64_t count, int64_t width, double std, uint64_t seed, double shift = 0) {
  Features f{{}, width};
  const Random random(seed, "points");
  for (int64_t i = 0; i < count * width; ++i) f.values.push_back(shift + std * random.normal(static_cast<uint64_t>(i)));
  return f;
}

TEST(ImageMetrics, EigenvectorsDiagonalize) {
  const int64_t n = 17;
  const Features x = normal_points(n, n, 1, 3);
  std::vector<double> a(static_cast<size_t>(n * n));
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = 0; j < n; ++j) a[static_cast<size_t>(i * n + j)] = x.row(i)[j] + x.row(j)[i];
  const Eigen e = symmetric_eigen(a, n);
  double trace = 0, sum = 0;
  for (int64_t i = 0; i < n; ++i) trace += a[static_cast<size_t>(i * n + i)], sum += e.values[static_cast<size_t>(i)];
  EXPECT_NEAR(sum, trace, 1e-12);
  for (int64_t j = 0; j < n; ++j)
    for (int64_t i = 0; i < n; ++i) {
      double image = 0;
      for (int64_t k = 0; k < n; ++k) image += a[static_cast<size_t>(i * n + k)] * e.vectors[static_cast<size_t>(k * n + j)];
      EXPECT_NEAR(image, e.values[static_cast<size_t>(j)] * e.vectors[static_cast<size_t>(i * n + j)], 1e-12);
    }
}

TEST(ImageMetrics, FrechetDistanceHasItsClosedForm) {
  // Commuting covariances: |m1 - m2|^2 + sum (sqrt(l1) - sqrt(l2))^2.
  const Gaussian a{{0, 1, 2}, {4, 0, 0, 0, 9, 0, 0, 0, 0}};
  const Gaussian b{{1, 1, 0}, {1, 0, 0, 0, 16, 0, 0, 0, 25}};
  EXPECT_NEAR(frechet_distance(a, b), 5 + 1 + 1 + 25, 1e-10);
  EXPECT_NEAR(frechet_distance(b, a), 5 + 1 + 1 + 25, 1e-10);
  // Not commuting, in two dimensions: tr sqrt(M) = sqrt(tr M + 2 sqrt(det M)) for M = C1 C2.
  const Gaussian c{{0, 0}, {2, 1, 1, 3}}, d{{0, 0}, {5, -1, -1, 1}};
  const double trace = 2 * 5 - 1 - 1 + 3, determinant = 5.0 * 4.0;
  EXPECT_NEAR(frechet_distance(c, d), 5 + 6 - 2 * std::sqrt(trace + 2 * std::sqrt(determinant)), 1e-10);
  const Gaussian fit = fit_gaussian(normal_points(500, 6, 2, 1));
  EXPECT_NEAR(frechet_distance(fit, fit), 0, 1e-9);
  EXPECT_THROW(fit_gaussian(normal_points(1, 3, 1, 1)), Error);
}

TEST(ImageMetrics, FitIsMeanAndCovariance) {
  const Gaussian g = fit_gaussian({{1, 2, 3, 6, 5, 4}, 2});
  EXPECT_EQ(g.mean, (std::vector<double>{3, 4}));
  EXPECT_NEAR(g.covariance[0], 4, 1e-12);
  EXPECT_NEAR(g.covariance[1], 2, 1e-12);
  EXPECT_NEAR(g.covariance[3], 4, 1e-12);
}

TEST(ImageMetrics, PrecisionAndRecallTellFarFromNarrow) {
  // Points on a line: the third neighbour of 0 is 3 away, of those in the middle 2.
  Features line{{}, 1};
  for (int i = 0; i < 10; ++i) line.values.push_back(i);
  const PrecisionRecall half = precision_recall(line, {{4.4, 4.5, 4.6, 4.65, 20, 21, 22, 23}, 1}, 3);
  EXPECT_EQ(half.precision, 0.5);
  // The four near ones' third neighbours are at most .25 away and reach no integer; the others' are 3 away and reach none below 17.
  EXPECT_EQ(half.recall, 0);
  const Features real = normal_points(400, 4, 1, 1), alike = normal_points(400, 4, 1, 2), narrow = normal_points(400, 4, 0.1, 3), far = normal_points(400, 4, 1, 4, 50);
  const auto same = precision_recall(real, alike), small = precision_recall(real, narrow), away = precision_recall(real, far);
  EXPECT_GT(same.precision, 0.8);
  EXPECT_GT(same.recall, 0.8);
  EXPECT_GT(small.precision, 0.99);
  EXPECT_LT(small.recall, 0.1);
  EXPECT_EQ(away.precision, 0);
  EXPECT_EQ(away.recall, 0);
}

TEST(Picture, SheetsPlaceAndCropImages) {
  // Three images of 3 x 3 with a border of 7 and the numbers 1, 2, 3 in their middle.
  std::vector<uint8_t> images(27, 7);
  for (uint8_t i = 0; i < 3; ++i) images[i * 9u + 4] = static_cast<uint8_t>(i + 1);
  const Sheet sheet = image_sheet({3, 3, 1}, images, 2, 1);
  EXPECT_EQ(sheet.size, (models::ImageSize{3, 3, 1}));
  EXPECT_EQ(sheet.pixels, (std::vector<uint8_t>{1, 255, 2, 255, 255, 255, 3, 255, 255}));
  EXPECT_EQ(png_of(sheet.size, sheet.pixels).substr(1, 3), "PNG");
  EXPECT_THROW(png_of({1, 1, 2}, std::vector<uint8_t>{1, 2}), ConfigError);
  EXPECT_EQ(levels_of(std::vector<float>{-2, -1, 0, 1, 3}), (std::vector<uint8_t>{0, 0, 128, 255, 255}));
}

}  // namespace
}  // namespace rz::tools
