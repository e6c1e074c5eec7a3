// A training step (forward, mean squared error, backward, gradients kept in place) of image networks on 28x28 images with one channel:
// images per second and thread, by CPU time. The optimizer's update is not in it: it does not depend on the batch.
#include <vector>

#include "bench/machine.h"
#include "models/diffusion/classifier.h"
#include "models/diffusion/dit.h"
#include "models/diffusion/unet.h"
#include "runtime/autograd/engine.h"
#include "runtime/autograd/grad_mode.h"
#include "runtime/ops/elementwise.h"
#include "runtime/ops/loss.h"
#include "runtime/ops/reduction.h"

namespace rz::bench {
namespace {

namespace diffusion = models::diffusion;

diffusion::UNetConfig unet(int64_t patch, int64_t width, std::vector<int64_t> multipliers, int64_t blocks,
                           std::vector<int64_t> attention = {}) {
  diffusion::UNetConfig c;
  c.patch = patch;
  c.width = width;
  c.multipliers = std::move(multipliers);
  c.blocks = blocks;
  c.attention_heights = std::move(attention);
  c.classes = 10;
  return c;
}

diffusion::DiTConfig dit(int64_t patch, int64_t width, int64_t layers, int64_t heads) {
  diffusion::DiTConfig c;
  c.patch = patch;
  c.width = width;
  c.layers = layers;
  c.heads = heads;
  c.classes = 10;
  return c;
}

diffusion::UNet make(const diffusion::UNetConfig& c) { return diffusion::UNet(c); }
diffusion::DiT make(const diffusion::DiTConfig& c) { return diffusion::DiT(c); }

template <class Config>
void train(benchmark::State& state, const Config& config) {
  const int64_t batch = state.range(0);
  auto network = make(config);
  network.materialize(1);
  const Tensor x = random_tensor({batch, 28, 28, 1}), target = random_tensor({batch, 28, 28, 1}), noise = random_tensor({batch});
  for (auto _ : state) {
    const Tensor y = network.forward(x, noise, {});
    autograd::backward(ops::mean(ops::square(ops::sub(y, target))));
    for (nn::Parameter* p : network.parameters()) autograd::clear_grad(p->value);
  }
  state.counters["images/s"] = benchmark::Counter(static_cast<double>(batch * state.iterations()), benchmark::Counter::kIsRate);
  state.counters["parameters"] = static_cast<double>(network.parameter_count());
}

template <class Config>
void infer(benchmark::State& state, const Config& config) {
  autograd::NoGrad no_grad;
  const int64_t batch = state.range(0);
  auto network = make(config);
  network.materialize(1);
  const Tensor x = random_tensor({batch, 28, 28, 1}), noise = random_tensor({batch});
  for (auto _ : state) benchmark::DoNotOptimize(network.forward(x, noise, {}));
  state.counters["images/s"] = benchmark::Counter(static_cast<double>(batch * state.iterations()), benchmark::Counter::kIsRate);
}

void classifier(benchmark::State& state) {
  const int64_t batch = state.range(0);
  diffusion::Classifier network({});
  network.materialize(1);
  const Tensor x = random_tensor({batch, 28, 28, 1});
  const Tensor labels = Tensor::of<int32_t>({batch}, std::vector<int32_t>(static_cast<size_t>(batch), 3));
  for (auto _ : state) {
    autograd::backward(ops::cross_entropy(network.forward(x).logits, labels).loss);
    for (nn::Parameter* p : network.parameters()) autograd::clear_grad(p->value);
  }
  state.counters["images/s"] = benchmark::Counter(static_cast<double>(batch * state.iterations()), benchmark::Counter::kIsRate);
  state.counters["parameters"] = static_cast<double>(network.parameter_count());
}
BENCHMARK(classifier)->Arg(64)->Unit(benchmark::kMillisecond);

#define RZ_NETWORK(name, config)                                                  \
  BENCHMARK_CAPTURE(train, name, config)->Arg(64)->Unit(benchmark::kMillisecond); \
  BENCHMARK_CAPTURE(infer, name, config)->Arg(64)->Unit(benchmark::kMillisecond);
RZ_NETWORK(unet_28_32_1x2x2_2_blocks, unet(1, 32, {1, 2, 2}, 2))
RZ_NETWORK(unet_28_32_1x2x2_1_block, unet(1, 32, {1, 2, 2}, 1))
RZ_NETWORK(unet_28_16_1x2x4_1_block, unet(1, 16, {1, 2, 4}, 1))
RZ_NETWORK(unet_patch2_32_1x2_1_block, unet(2, 32, {1, 2}, 1))
RZ_NETWORK(unet_patch2_32_1x2_2_blocks, unet(2, 32, {1, 2}, 2))
RZ_NETWORK(unet_patch2_32_1x2_2_blocks_attention_7, unet(2, 32, {1, 2}, 2, {7}))
RZ_NETWORK(unet_patch2_48_1x2_1_block, unet(2, 48, {1, 2}, 1))
RZ_NETWORK(unet_patch2_64_1x2_1_block, unet(2, 64, {1, 2}, 1))
RZ_NETWORK(dit_patch4_128_6_layers, dit(4, 128, 6, 4))
RZ_NETWORK(dit_patch2_96_4_layers, dit(2, 96, 4, 4))

}  // namespace
}  // namespace rz::bench
