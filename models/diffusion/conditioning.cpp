#include "models/diffusion/conditioning.h"

#include <vector>

#include "runtime/core/random.h"

namespace rz::models::diffusion {

Tensor constant_labels(int64_t count, int32_t label) {
  return Tensor::of<int32_t>({count}, std::vector<int32_t>(static_cast<size_t>(count), label), "labels");
}

Tensor drop_labels(const Tensor& labels, double p, int32_t null_label, const SampleKey& key) {
  RZ_CHECK(labels.rank() == 1 && labels.dtype() == DType::i32, "labels must be i32 [B], not {}", labels.str());
  RZ_CONFIG_CHECK(p >= 0 && p <= 1, "labels cannot be dropped with probability {}: give a number in [0, 1]", p);
  auto kept = labels.to_vector<int32_t>();
  for (size_t i = 0; i < kept.size(); ++i)
    if (Random(key.seed, "diffusion:label_drop", key.step, key.first_sample + i).uniform64(0) < p) kept[i] = null_label;
  return Tensor::of<int32_t>(labels.shape(), kept, "labels");
}

}  // namespace rz::models::diffusion
