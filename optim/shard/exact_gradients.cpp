#include "optim/shard/exact_gradients.h"

#include <algorithm>
#include <cstring>

#include "runtime/kernels/backend.h"

namespace rz::optim {

ExactGradients::ExactGradients(const FlatLayout& layout, GradientGrids& grids, Range update_range, Memory memory, const std::string& name)
    : layout_(layout), grids_(grids), update_range_(update_range), memory_(memory) {
  for (const FlatEntry& entry : layout.entries()) parameters_.push_back(grids.index_of(*entry.parameter));
  sums_ = Storage::make_released(static_cast<size_t>(layout.padded_elements()) * sizeof(int64_t),
                                 memory.transient ? Category::communication : Category::gradient, name + " gradient sums");
  if (!memory.transient) sums_->materialize();
  if (memory.apart) own_sums_ = Tensor::empty({update_range.length()}, DType::i64, Category::gradient, name + " reduced gradient sums");
}

void ExactGradients::zero_all() {
  sums_->materialize();
  if (!dry_run()) std::memset(sums_->data(), 0, sums_->size_bytes());
}

void ExactGradients::add(const std::shared_ptr<Storage>& gradients, DType dtype, const std::vector<char>& contributed) {
  const bool partial = !std::ranges::all_of(contributed, [](char c) { return c != 0; });
  bool accumulate = have_sums_;
  if (!have_sums_) {
    sums_->materialize();
    auto* sums = reinterpret_cast<int64_t*>(sums_->data());
    if (partial) {
      zero_all();
      accumulate = true;
    } else if (!dry_run()) {
      for (const Range& gap : layout_.padding()) std::fill(sums + gap.begin, sums + gap.end, 0);
    }
    have_sums_ = true;
  }
  for (size_t e = 0; e < parameters_.size(); ++e) {
    const FlatEntry& entry = layout_.entries()[e];
    if (!contributed[e]) continue;
    const Shape flat{entry.parameter->numel()};
    Tensor sums = Tensor::over(sums_, flat, DType::i64, entry.offset);
    const Tensor gradient = Tensor::over(gradients, flat, dtype, entry.offset);
    const size_t p = parameters_[e];
    grids_.note_magnitude(p, backend(sums.device()).fixed_point->add_fixed(gradient, grids_.grid(p), sums, accumulate));
  }
}

int64_t* ExactGradients::sums_to_reduce() {
  if (!have_sums_) zero_all();
  return reinterpret_cast<int64_t*>(sums_->data());
}

void ExactGradients::finish_reduce(bool accumulate, Tensor& out) {
  Tensor result = Tensor::over(sums_, {update_range_.length()}, DType::i64, update_range_.begin);
  auto& kernels = *backend(out.device()).fixed_point;
  if (memory_.apart) {
    if (accumulate)
      kernels.add_sums(result, own_sums_);
    else if (!dry_run())
      std::memcpy(own_sums_.raw_data(), result.raw_data(), result.size_bytes());
    result = own_sums_;
  }
  for (size_t e = 0; e < parameters_.size(); ++e) {
    const Range part = intersect(layout_.entries()[e].range(), update_range_);
    if (part.length() == 0) continue;
    const int64_t begin = part.begin - update_range_.begin;
    Tensor to = out.view_slice(0, begin, begin + part.length());
    kernels.to_float(result.view_slice(0, begin, begin + part.length()), grids_.grid(parameters_[e]), to);
  }
  have_sums_ = false;
  if (memory_.transient) sums_->release();
}

}  // namespace rz::optim
