// How far a set of images is from another, by features of a classifier: numbers of this project's own scale. They depend on how many
// images there are: compare only equal numbers.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace rz::tools {

// N points of D numbers, one after the other.
struct Features {
  std::vector<double> values;
  int64_t width = 0;

  int64_t count() const { return width == 0 ? 0 : static_cast<int64_t>(values.size()) / width; }
  const double* row(int64_t i) const { return values.data() + i * width; }
  Features first(int64_t n) const { return {{values.begin(), values.begin() + n * width}, width}; }
};

struct Gaussian {
  std::vector<double> mean;        // [D]
  std::vector<double> covariance;  // [D, D], divided by N - 1
};
// rz::Error for fewer than two points.
Gaussian fit_gaussian(const Features& features);

// |m1 - m2|^2 + tr(C1 + C2 - 2 (C1^(1/2) C2 C1^(1/2))^(1/2)): Frechet's distance of two normal distributions (Dowson and Landau 1982;
// Heusel et al. 2017, arXiv 1706.08500, equation 6).
double frechet_distance(const Gaussian& a, const Gaussian& b);

// Eigenvalues, and eigenvectors in columns, of a symmetric [n, n] matrix, by Jacobi rotations.
struct Eigen {
  std::vector<double> values;
  std::vector<double> vectors;
};
Eigen symmetric_eigen(std::vector<double> matrix, int64_t n);

// Improved precision and recall (Kynkaanniemi et al. 2019, arXiv 1904.06991): the part of `generated` that lies within the distance of
// some real point's k-th neighbour, and the other way round. N^2 distances.
struct PrecisionRecall {
  double precision = 0;
  double recall = 0;
};
PrecisionRecall precision_recall(const Features& real, const Features& generated, int64_t k = 3);

}  // namespace rz::tools
