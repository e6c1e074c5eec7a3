// One call of one hot kernel, on one thread, for bench/instructions.py, which counts its instructions under callgrind: what noise of the
// machine does not touch. Needs no google-benchmark: valgrind knows no AVX-512, so it is built at a lower CPU level and small.
// --list: a JSON object of the compiler, the CPU level and the cases; CASE: runs it. Every case is called once before it is counted, so
// that memory, tables and pages are there.
#include <fmt/format.h>

#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string_view>
#include <utility>
#include <vector>

#include "comm/reduce.h"
#include "runtime/kernels/backend.h"

// The function within which callgrind collects (--toggle-collect): not a member of a namespace, so that its symbol is its name.
extern "C" void rz_counted_call(const std::function<void()>& call) { call(); }

namespace rz::bench {
namespace {

using Call = std::function<void()>;

struct Case {
  const char* name;
  const char* unit;
  int64_t units;                  // of work in a call
  std::function<Call()> prepare;  // makes the inputs
};

Tensor random_tensor(Shape shape, DType dtype = DType::f32) {
  Tensor x = Tensor::empty(shape);
  backend({}).random->normal({.seed = 1, .stream = "instructions"}, x);
  if (dtype == DType::f32) return x;
  Tensor out = Tensor::empty(shape, dtype);
  backend({}).elementwise->copy(x, out);
  return out;
}

// m tokens, a layer from k to n: forward a b^T, input gradient a b, weight gradient a^T b, added in place as in training.
Case product(const char* name, int64_t m, int64_t n, int64_t k, bool transpose_a, bool transpose_b, DType dtype = DType::f32) {
  return {name, "multiply-add", m * n * k, [=]() -> Call {
            const Tensor a = random_tensor(transpose_a ? Shape{k, m} : Shape{m, k}, dtype),
                         b = random_tensor(transpose_b ? Shape{n, k} : Shape{k, n}, dtype);
            return [=, out = Tensor::zeros({m, n}, dtype)]() mutable {
              backend({}).matmul->matmul(a, b, out, {.transpose_a = transpose_a, .transpose_b = transpose_b, .accumulate = transpose_a});
            };
          }};
}

// Causal, [B, T, H, D] seen as [B, H, T, D], as in training. Products of T x T x D, half of them masked: 2 forward, 5 backward.
Case attention(const char* name, bool backward) {
  constexpr int64_t kHeads = 4, kTokens = 256, kWidth = 64;
  return {name, "multiply-add", (backward ? 5 : 2) * kHeads * kTokens * (kTokens + 1) / 2 * kWidth, [=]() -> Call {
            const auto tensor = [] { return random_tensor({1, kTokens, kHeads, kWidth}).view_transpose(1, 2); };
            const AttentionCall call{.causal = true, .scale = 0.125, .rope = {}};
            const Tensor q = tensor(), k = tensor(), v = tensor(), grad = tensor();
            Tensor out = tensor(), lse = Tensor::empty({1, kHeads, kTokens});
            backend({}).attention->forward(call, q, k, v, out, lse);
            if (!backward) return [=]() mutable { backend({}).attention->forward(call, q, k, v, out, lse); };
            return [=, dq = tensor(), dk = tensor(), dv = tensor()]() mutable {
              backend({}).attention->backward(call, grad, q, k, v, out, lse, dq, dk, dv, false);
            };
          }};
}

Case layer_norm(const char* name, bool backward) {
  constexpr int64_t kRows = 512, kWidth = 384;
  return {name, "element", kRows * kWidth, [=]() -> Call {
            const Tensor x = random_tensor({kRows, kWidth}), grad = random_tensor({kRows, kWidth}), weight = random_tensor({kWidth}),
                         bias = random_tensor({kWidth});
            Tensor y = Tensor::empty(x.shape()), mean = Tensor::empty({kRows}), rstd = Tensor::empty({kRows});
            backend({}).norm->forward(x, weight, bias, 1e-5, y, mean, rstd);
            if (!backward) return [=]() mutable { backend({}).norm->forward(x, weight, bias, 1e-5, y, mean, rstd); };
            Tensor weight_blocks = Tensor::empty({norm_blocks(kRows), kWidth}), bias_blocks = Tensor::empty({norm_blocks(kRows), kWidth});
            return [=, dx = Tensor::zeros(x.shape()), dweight = Tensor::zeros({kWidth}), dbias = Tensor::zeros({kWidth})]() mutable {
              backend({}).norm->backward(grad, x, weight, mean, rstd, dx, true, weight_blocks, bias_blocks);
              backend({}).norm->add_blocks(weight_blocks, dweight, true);
              backend({}).norm->add_blocks(bias_blocks, dbias, true);
            };
          }};
}

Case group_norm(const char* name, bool backward) {
  constexpr int64_t kImages = 4, kPixels = 256, kChannels = 64, kGroups = 8;
  return {name, "element", kImages * kPixels * kChannels, [=]() -> Call {
            const Shape shape{kImages, kPixels, kChannels};
            const GroupNormCall call{.groups = kGroups,
                                     .silu = true,
                                     .weight = random_tensor({kChannels}),
                                     .bias = random_tensor({kChannels}),
                                     .scale = {},
                                     .shift = {}};
            const Tensor x = random_tensor(shape), grad = random_tensor(shape);
            Tensor y = Tensor::empty(shape), mean = Tensor::empty({kImages, kGroups}), rstd = Tensor::empty({kImages, kGroups});
            backend({}).group_norm->forward(call, x, y, mean, rstd);
            if (!backward) return [=]() mutable { backend({}).group_norm->forward(call, x, y, mean, rstd); };
            return [=, dx = Tensor::empty(shape), sums = Tensor::empty({kImages, 2, kChannels})]() mutable {
              backend({}).group_norm->backward(call, grad, x, mean, rstd, dx, false, sums);
            };
          }};
}

Case bias_gelu(const char* name, bool backward) {
  constexpr int64_t kRows = 256, kWidth = 1536;
  return {name, "element", kRows * kWidth, [=]() -> Call {
            const Tensor x = random_tensor({kRows, kWidth}), bias = random_tensor({kWidth}), grad = random_tensor({kRows, kWidth});
            return [=, out = Tensor::empty(x.shape())]() mutable {
              if (backward)
                backend({}).elementwise->binary_gradient(BinaryOp::bias_gelu, 0, grad, x, bias, out, false);
              else
                backend({}).elementwise->binary(BinaryOp::bias_gelu, x, bias, out);
            };
          }};
}

Case bias_gradient() {
  constexpr int64_t kRows = 512, kWidth = 1536;
  return {"bias_gradient", "element", kRows * kWidth, []() -> Call {
            return [grad = random_tensor({kRows, kWidth}), out = Tensor::zeros({kWidth})]() mutable {
              backend({}).reduction->sum_to_shape(grad, out, true);
            };
          }};
}

Case cross_entropy(const char* name, bool backward) {
  constexpr int64_t kRows = 32, kSymbols = 8192;
  return {name, "element", kRows * kSymbols, [=]() -> Call {
            const Tensor logits = random_tensor({kRows, kSymbols}), targets = Tensor::full({kRows}, 17, DType::i32);
            Tensor lse = Tensor::empty({kRows});
            backend({}).loss->cross_entropy(logits, targets, -1, 0, lse);
            if (!backward) return [=]() mutable { backend({}).loss->cross_entropy(logits, targets, -1, 0, lse); };
            return [=, dlogits = Tensor::empty(logits.shape())]() mutable {
              backend({}).loss->cross_entropy_backward(logits, targets, lse, -1, 1.0 / kRows, dlogits, false);
            };
          }};
}

// The update of float32 weights, and the one that reads bfloat16 gradients and writes bfloat16 weights beside their master copies.
Case adamw(const char* name, DType dtype) {
  constexpr int64_t kWeights = 1 << 18;
  return {
      name, "element", kWeights, [=]() -> Call {
        const AdamStep step{.learning_rate = 1e-3f,
                            .beta1 = 0.9f,
                            .beta2 = 0.95f,
                            .epsilon = 1e-8f,
                            .weight_decay = 0.1f,
                            .bias_correction1 = 0.1f,
                            .bias_correction2 = 0.05f};
        const Tensor grad = random_tensor({kWeights}, dtype), rounded = dtype == DType::f32 ? Tensor() : Tensor::empty({kWeights}, dtype);
        return [=, weight = random_tensor({kWeights}), first = Tensor::zeros({kWeights}), second = Tensor::zeros({kWeights})]() mutable {
          backend({}).optimizer->adam(step, weight, grad, first, second, rounded);
        };
      }};
}

enum class Pass : uint8_t { forward, data_gradient, weight_gradient };
Case convolution(const char* name, Pass pass) {
  constexpr int64_t kImages = 4, kExtent = 16, kChannels = 64, kKernel = 3;
  return {name, "multiply-add", kImages * kExtent * kExtent * kKernel * kKernel * kChannels * kChannels, [=]() -> Call {
            const ConvWindow window{1, kKernel / 2};
            Tensor x = random_tensor({kImages, kExtent, kExtent, kChannels}), y = random_tensor(x.shape()),
                   weight = random_tensor({kChannels, kKernel, kKernel, kChannels});
            return [=]() mutable {
              ConvKernels& conv = *backend({}).conv;
              if (pass == Pass::forward) conv.forward(x, weight, {}, window, ConvActivation::none, y);
              if (pass == Pass::data_gradient) conv.data_gradient(y, weight, window, x, false);
              if (pass == Pass::weight_gradient) conv.weight_gradient(y, x, window, weight, false);
            };
          }};
}

// What a rank of a ring adds.
Case ring_sum(const char* name, DType dtype) {
  constexpr int64_t kElements = 1 << 18;
  return {name, "element", kElements, [=]() -> Call {
            const Tensor a = random_tensor({kElements}, dtype);
            return [=, b = random_tensor({kElements}, dtype)]() mutable {
              comm::combine(dtype, comm::ReduceOp::sum, b.raw_data(), a.raw_data(), b.raw_data(), kElements);
            };
          }};
}

Case exact_sum() {
  constexpr int64_t kElements = 1 << 18;
  return {"exact_sum", "element", kElements, []() -> Call {
            return [x = random_tensor({kElements}), sums = Tensor::zeros({kElements}, DType::i64)]() mutable {
              backend({}).fixed_point->add_fixed(x, -40, sums, true);
            };
          }};
}

std::vector<Case> cases() {
  return {product("matmul_forward", 512, 1536, 384, false, true),
          product("matmul_input_gradient", 512, 384, 1536, false, false),
          product("matmul_weight_gradient", 1536, 384, 512, true, false),
          product("matmul_bf16", 512, 1536, 384, false, true, DType::bf16),
          attention("attention_forward", false),
          attention("attention_backward", true),
          convolution("conv3x3_forward", Pass::forward),
          convolution("conv3x3_data_gradient", Pass::data_gradient),
          convolution("conv3x3_weight_gradient", Pass::weight_gradient),
          layer_norm("layer_norm_forward", false),
          layer_norm("layer_norm_backward", true),
          group_norm("group_norm_forward", false),
          group_norm("group_norm_backward", true),
          bias_gelu("bias_gelu_forward", false),
          bias_gelu("bias_gelu_backward", true),
          bias_gradient(),
          cross_entropy("cross_entropy_forward", false),
          cross_entropy("cross_entropy_backward", true),
          adamw("adamw", DType::f32),
          adamw("adamw_bf16", DType::bf16),
          ring_sum("ring_sum", DType::f32),
          ring_sum("ring_sum_bf16", DType::bf16),
          exact_sum()};
}

void list() {
#ifdef __clang__
  const char* compiler = "clang " __clang_version__;
#else
  const char* compiler = "g++ " __VERSION__;
#endif
  fmt::print("{{\"compiler\": \"{}\", \"level\": \"{}\", \"cases\": [", compiler, RZ_CPU_LEVEL);
  const char* comma = "";
  for (const Case& c : cases())
    fmt::print("{}\n  {{\"name\": \"{}\", \"unit\": \"{}\", \"units\": {}}}", std::exchange(comma, ","), c.name, c.unit, c.units);
  fmt::print("]}}\n");
}

int run(std::string_view name) {
  for (const Case& c : cases()) {
    if (name != c.name) continue;
    const Call call = c.prepare();
    call();
    // Through a pointer that the compiler cannot see through: the function stays one, with its own symbol.
    void (*volatile counted)(const Call&) = rz_counted_call;
    counted(call);
    return EXIT_SUCCESS;
  }
  fmt::print(stderr, "bench_instructions: no case '{}'; --list names them\n", name);
  return 2;
}

}  // namespace
}  // namespace rz::bench

int main(int argc, char** argv) {
  if (argc != 2) {
    fmt::print(stderr, "usage: bench_instructions --list | CASE\n");
    return 2;
  }
  if (std::string_view(argv[1]) != "--list") return rz::bench::run(argv[1]);
  rz::bench::list();
  return EXIT_SUCCESS;
}
