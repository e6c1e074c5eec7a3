#include "models/transformer/generate.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "runtime/core/random.h"

namespace rz::models {

int32_t choose_token(const std::vector<float>& logits, const SamplingConfig& config, uint64_t position) {
  RZ_CONFIG_CHECK(config.temperature >= 0 && std::isfinite(config.temperature), "temperature must be 0 or above, not {}", config.temperature);
  RZ_CONFIG_CHECK(config.top_k >= 0, "top_k must be 0 (all) or above, not {}", config.top_k);
  RZ_CONFIG_CHECK(config.top_p > 0 && config.top_p <= 1, "top_p must be in (0, 1], not {}", config.top_p);
  std::vector<int32_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  // Ties go to the smaller token, so that the choice does not depend on the sort.
  std::ranges::sort(order, [&](int32_t a, int32_t b) {
    const float x = logits[static_cast<size_t>(a)];
    const float y = logits[static_cast<size_t>(b)];
    return x != y ? x > y : a < b;
  });
  if (config.temperature == 0) return order.front();
  size_t kept = config.top_k > 0 ? std::min(order.size(), static_cast<size_t>(config.top_k)) : order.size();
  std::vector<double> weight(kept);
  const double highest = logits[static_cast<size_t>(order.front())];
  for (size_t i = 0; i < kept; ++i) weight[i] = std::exp((logits[static_cast<size_t>(order[i])] - highest) / config.temperature);
  double total = std::accumulate(weight.begin(), weight.end(), 0.0);
  if (config.top_p < 1) {
    double sum = 0;
    size_t n = 0;
    while (n < kept && sum < config.top_p * total) sum += weight[n++];
    kept = std::max<size_t>(n, 1);
    total = std::accumulate(weight.begin(), weight.begin() + static_cast<std::ptrdiff_t>(kept), 0.0);
  }
  double u = Random(config.seed, "sample").uniform64(position) * total;
  for (size_t i = 0; i < kept; ++i) {
    u -= weight[i];
    if (u < 0) return order[i];
  }
  return order[kept - 1];
}

std::vector<int32_t> generate(Transformer& model, const std::vector<int32_t>& prompt, int64_t count, const SamplingConfig& config,
                              const std::function<void(int32_t)>& on_token) {
  RZ_CONFIG_CHECK(!prompt.empty(), "generation needs a prompt of at least one token");
  RZ_CONFIG_CHECK(count >= 0, "cannot generate {} tokens", count);
  const bool was_training = model.training();
  model.train(false);
  const auto context = static_cast<size_t>(model.config().context);
  std::vector<int32_t> seen = prompt;
  std::vector<int32_t> pending(seen.end() - static_cast<std::ptrdiff_t>(std::min(seen.size(), context)), seen.end());
  auto caches = model.make_caches(1);
  std::vector<int32_t> generated;
  while (static_cast<int64_t>(generated.size()) < count) {
    const bool full = static_cast<size_t>(caches.front().length) + pending.size() > context;
    if (full) {
      const size_t keep = std::max<size_t>(1, context / 2);
      pending.assign(seen.end() - static_cast<std::ptrdiff_t>(std::min(seen.size(), keep)), seen.end());
      for (auto& cache : caches) cache.length = 0;
    }
    CategoryScope category(Category::input);
    const Tensor ids = Tensor::of<int32_t>({1, static_cast<int64_t>(pending.size())}, pending, "tokens to continue");
    const auto logits = model.forward_cached(ids, caches).to_vector<float>();
    const int32_t token = choose_token(logits, config, static_cast<uint64_t>(seen.size()));
    generated.push_back(token);
    seen.push_back(token);
    pending = {token};
    if (on_token) on_token(token);
  }
  model.train(was_training);
  return generated;
}

}  // namespace rz::models
