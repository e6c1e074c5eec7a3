// The table of op cases. TO ADD AN OPERATION: add a row to op_case_rows.cpp. A row names the op, how to call it, its inputs and a
// naive reference in double; it then gets, without further code:
//
//   value in f64 against the reference · gradients by central differences · values and gradients in f32, bf16 and f16 against f64 with
//   bounds in units of the type's precision · the same bits for strided inputs · the same bits for any thread count
//
// Elementwise ops need no row: theirs are made from kernels/elementwise_list.h (a new one only needs its formula in
// op_case_rows.cpp, as an independent reference).
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "runtime/core/tensor.h"

namespace rz::test {

struct OpInput {
  Shape shape;
  double low = -1;
  double high = 1;
  Tensor fixed{};  // an index or mask: given as it is, no gradient
};

struct OpCase {
  std::string name;
  std::function<Tensor(const std::vector<Tensor>&)> op;
  std::vector<OpInput> inputs;
  // The value in double from contiguous f64 inputs, row-major, written without the library's kernels.
  std::function<std::vector<double>(const std::vector<Tensor>&)> reference;
  double precision = 16;  // bound of values and gradients in units of the type's epsilon times max(1, largest |value|)
  bool has_gradient = true;
  bool any_dtype = true;  // false: f64 and f32 only
  double step = 1e-5;     // of the central difference
};

// All rows.
const std::vector<OpCase>& op_cases();

// Runs every check of a row; failures name the row.
void check_op_case(const OpCase& row);

}  // namespace rz::test
