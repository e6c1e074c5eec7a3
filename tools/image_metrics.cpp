#include "tools/image_metrics.h"

#include <algorithm>
#include <cmath>

#include "runtime/core/error.h"
#include "runtime/core/parallel.h"

namespace rz::tools {

namespace {

std::vector<double> multiply(const std::vector<double>& a, const std::vector<double>& b, int64_t n) {
  std::vector<double> c(static_cast<size_t>(n * n), 0.0);
  for (int64_t i = 0; i < n; ++i)
    for (int64_t k = 0; k < n; ++k) {
      const double factor = a[static_cast<size_t>(i * n + k)];
      for (int64_t j = 0; j < n; ++j) c[static_cast<size_t>(i * n + j)] += factor * b[static_cast<size_t>(k * n + j)];
    }
  return c;
}

// Of a covariance: what rounding made negative counts as 0.
std::vector<double> square_root(const std::vector<double>& matrix, int64_t n) {
  const Eigen e = symmetric_eigen(matrix, n);
  std::vector<double> left = e.vectors, right(e.vectors.size());
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = 0; j < n; ++j) {
      left[static_cast<size_t>(i * n + j)] *= std::sqrt(std::max(0.0, e.values[static_cast<size_t>(j)]));
      right[static_cast<size_t>(j * n + i)] = e.vectors[static_cast<size_t>(i * n + j)];
    }
  return multiply(left, right, n);
}

double squared_distance(const double* a, const double* b, int64_t width) {
  double sum = 0;
  for (int64_t d = 0; d < width; ++d) sum += (a[d] - b[d]) * (a[d] - b[d]);
  return sum;
}

// Squared distance of each point to its k-th neighbour among the others.
std::vector<double> radii(const Features& points, int64_t k) {
  const int64_t n = points.count();
  std::vector<double> out(static_cast<size_t>(n));
  parallel_for(n, 8, [&](int64_t begin, int64_t end) {
    std::vector<double> distances(static_cast<size_t>(n));
    for (int64_t i = begin; i < end; ++i) {
      for (int64_t j = 0; j < n; ++j) distances[static_cast<size_t>(j)] = squared_distance(points.row(i), points.row(j), points.width);
      distances[static_cast<size_t>(i)] = -1;  // itself comes first
      std::nth_element(distances.begin(), distances.begin() + k, distances.end());
      out[static_cast<size_t>(i)] = distances[static_cast<size_t>(k)];
    }
  });
  return out;
}

double covered(const Features& by, const std::vector<double>& radius, const Features& points) {
  std::vector<uint8_t> inside(static_cast<size_t>(points.count()));
  parallel_for(points.count(), 8, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      for (int64_t j = 0; j < by.count() && inside[static_cast<size_t>(i)] == 0; ++j)
        inside[static_cast<size_t>(i)] = squared_distance(points.row(i), by.row(j), by.width) <= radius[static_cast<size_t>(j)];
  });
  return static_cast<double>(std::count(inside.begin(), inside.end(), 1)) / static_cast<double>(points.count());
}

}  // namespace

Gaussian fit_gaussian(const Features& f) {
  const int64_t n = f.count(), width = f.width;
  RZ_CHECK(n >= 2, "a covariance needs two points, not {}", n);
  Gaussian g{std::vector<double>(static_cast<size_t>(width), 0.0), std::vector<double>(static_cast<size_t>(width * width), 0.0)};
  for (int64_t i = 0; i < n; ++i)
    for (int64_t d = 0; d < width; ++d) g.mean[static_cast<size_t>(d)] += f.row(i)[d] / static_cast<double>(n);
  std::vector<double> centered(static_cast<size_t>(width));
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t d = 0; d < width; ++d) centered[static_cast<size_t>(d)] = f.row(i)[d] - g.mean[static_cast<size_t>(d)];
    for (int64_t d = 0; d < width; ++d)
      for (int64_t e = 0; e < width; ++e)
        g.covariance[static_cast<size_t>(d * width + e)] += centered[static_cast<size_t>(d)] * centered[static_cast<size_t>(e)] / static_cast<double>(n - 1);
  }
  return g;
}

Eigen symmetric_eigen(std::vector<double> a, int64_t n) {
  RZ_CHECK(static_cast<int64_t>(a.size()) == n * n, "{} numbers are no {} x {} matrix", a.size(), n, n);
  Eigen e{{}, std::vector<double>(a.size(), 0.0)};
  for (int64_t i = 0; i < n; ++i) e.vectors[static_cast<size_t>(i * n + i)] = 1;
  const auto at = [n](int64_t i, int64_t j) { return static_cast<size_t>(i * n + j); };
  double total = 0;
  for (const double v : a) total += v * v;
  for (int sweep = 0; sweep < 60; ++sweep) {
    double off = 0;
    for (int64_t i = 0; i < n; ++i)
      for (int64_t j = 0; j < i; ++j) off += 2 * a[at(i, j)] * a[at(i, j)];
    if (off <= 1e-28 * total) break;
    for (int64_t p = 0; p < n; ++p)
      for (int64_t q = p + 1; q < n; ++q) {
        if (a[at(p, q)] == 0) continue;
        // Golub and Van Loan, "Matrix computations", section 8.5: the rotation that makes a(p, q) zero.
        const double theta = (a[at(q, q)] - a[at(p, p)]) / (2 * a[at(p, q)]);
        const double t = (theta >= 0 ? 1 : -1) / (std::abs(theta) + std::sqrt(theta * theta + 1));
        const double c = 1 / std::sqrt(t * t + 1), s = t * c;
        const auto turn = [&](std::vector<double>& m, size_t x, size_t y) {
          const double u = m[x], v = m[y];
          m[x] = c * u - s * v;
          m[y] = s * u + c * v;
        };
        for (int64_t k = 0; k < n; ++k) turn(a, at(k, p), at(k, q));
        for (int64_t k = 0; k < n; ++k) turn(a, at(p, k), at(q, k));
        for (int64_t k = 0; k < n; ++k) turn(e.vectors, at(k, p), at(k, q));
      }
  }
  for (int64_t i = 0; i < n; ++i) e.values.push_back(a[at(i, i)]);
  return e;
}

double frechet_distance(const Gaussian& a, const Gaussian& b) {
  const auto n = static_cast<int64_t>(a.mean.size());
  RZ_CHECK(a.mean.size() == b.mean.size(), "features of {} and {} numbers", a.mean.size(), b.mean.size());
  double distance = squared_distance(a.mean.data(), b.mean.data(), n);
  const auto root = square_root(a.covariance, n);
  auto product = multiply(multiply(root, b.covariance, n), root, n);
  for (int64_t i = 0; i < n; ++i) {
    distance += a.covariance[static_cast<size_t>(i * n + i)] + b.covariance[static_cast<size_t>(i * n + i)];
    for (int64_t j = 0; j < i; ++j) {  // rounding leaves it not quite symmetric
      const double mean = (product[static_cast<size_t>(i * n + j)] + product[static_cast<size_t>(j * n + i)]) / 2;
      product[static_cast<size_t>(i * n + j)] = product[static_cast<size_t>(j * n + i)] = mean;
    }
  }
  for (const double v : symmetric_eigen(product, n).values) distance -= 2 * std::sqrt(std::max(0.0, v));
  return distance;
}

PrecisionRecall precision_recall(const Features& real, const Features& generated, int64_t k) {
  RZ_CHECK(k >= 1 && real.count() > k && generated.count() > k && real.width == generated.width, "{} real and {} generated points, neighbour {}",
           real.count(), generated.count(), k);
  return {covered(real, radii(real, k), generated), covered(generated, radii(generated, k), real)};
}

}  // namespace rz::tools
