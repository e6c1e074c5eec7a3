// One function per message. The bounds are those of arithmetic and of sense, not of memory: a job may describe a model that no
// machine here could train.
#include "tools/job_validation.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "comm/link_model.h"
#include "models/diffusion/reflow.h"
#include "runtime/core/error.h"
#include "tools/image_model.h"
#include "tools/job_auto.h"
#include "tools/job_schema.h"

namespace rz::tools {
namespace {

namespace pb = google::protobuf;

constexpr int64_t kMaxSteps = int64_t{1} << 40;
constexpr int64_t kMaxWidth = int64_t{1} << 20;
constexpr int64_t kMaxCount = (int64_t{1} << 31) - 1;
constexpr double kAnyPositive = std::numeric_limits<double>::max();

// An interval of numbers and how messages say it.
struct Range {
  double low = 0;
  double high = kAnyPositive;
  bool without_low = false;
  bool without_high = false;

  bool contains(double x) const { return (without_low ? x > low : x >= low) && (without_high ? x < high : x <= high); }
  std::string str() const {
    if (high == kAnyPositive) return without_low ? fmt::format("above {}", low) : fmt::format("{} or more", low);
    return fmt::format("in {}{}, {}{}", without_low ? '(' : '[', low, high, without_high ? ')' : ']');
  }
};
constexpr Range kNotNegative{};
constexpr Range kPositive{.without_low = true};
constexpr Range kBelowOne{.high = 1, .without_high = true};

class Validator {
 public:
  Validator(const ringzero::Job& job, const JobOrigins& origins) : job_(job), origins_(origins) {}

  void run() const {
    values(job_, "");
    model_and_data();
    training();
    optimizer();
    schedule();
    sharding();
    communication();
    sample();
    experiment();
  }

 private:
  // Fails at the place of `path`.
  template <class... Args>
  void require(bool condition, const std::string& path, fmt::format_string<Args...> format, Args&&... args) const {
    if (condition) return;
    const std::string what = fmt::format(format, std::forward<Args>(args)...);
    throw ConfigError(fmt::format("{}: {}", origins_.where(path), escaped(path.empty() ? what : path + " " + what, 800)));
  }
  // The same for two fields that contradict each other: at the place of `path`, or of `other` when only that one was set.
  template <class... Args>
  void require_match(bool condition, const std::string& path, const std::string& other, fmt::format_string<Args...> format,
                     Args&&... args) const {
    if (condition) return;
    const std::string& culprit = !origins_.is_set(path) && origins_.is_set(other) ? other : path;
    throw ConfigError(fmt::format("{}: {} {}", origins_.where(culprit), path, fmt::format(format, std::forward<Args>(args)...)));
  }
  void within(const std::string& path, int64_t value, int64_t low, int64_t high) const {
    require(value >= low && value <= high, path, "is {}; valid: an integer in [{}, {}]", value, low, high);
  }
  void within(const std::string& path, double value, const Range& range) const {
    require(range.contains(value), path, "is {}; valid: a number {}", value, range.str());
  }

  // What holds for every field of every message: numbers are finite, enum values known, texts without NUL bytes.
  void values(const pb::Message& message, const std::string& prefix) const {
    const pb::Reflection& reflection = *message.GetReflection();
    // A number that the enum lacks is kept there by protobuf.
    const auto& unknown = reflection.GetUnknownFields(message);
    for (int i = 0; i < unknown.field_count(); ++i) {
      const auto* field = message.GetDescriptor()->FindFieldByNumber(unknown.field(i).number());
      require(false, field == nullptr ? prefix : prefix + field->name(), "has an unknown value{}",
              field == nullptr ? "" : "; valid: " + describe_values(*field));
    }
    std::vector<const pb::FieldDescriptor*> fields;
    reflection.ListFields(message, &fields);
    for (const auto* field : fields) {
      const std::string path = prefix + field->name();
      if (field->is_repeated()) continue;
      if (field->cpp_type() == pb::FieldDescriptor::CPPTYPE_DOUBLE) {
        const double value = reflection.GetDouble(message, field);
        require(std::isfinite(value), path, "is {}; valid: a finite number", value);
      } else if (field->cpp_type() == pb::FieldDescriptor::CPPTYPE_STRING) {
        require(reflection.GetString(message, field).find('\0') == std::string::npos, path, "holds a NUL byte");
      } else if (field->cpp_type() == pb::FieldDescriptor::CPPTYPE_MESSAGE) {
        values(reflection.GetMessage(message, field), path + ".");
      }
    }
  }

  void model_and_data() const {
    require(job_.model_case() != ringzero::Job::MODEL_NOT_SET, "", "the job has no model; valid: {}", arms("model"));
    require(job_.data_case() != ringzero::Job::DATA_NOT_SET, "", "the job has no data; valid: {}", arms("data"));
    if (job_.has_transformer()) transformer(job_.transformer());
    if (job_.has_text()) {
      within("text.validation_fraction", job_.text().validation_fraction(), {.high = 1, .without_low = true, .without_high = true});
    }
    if (job_.has_tokens()) tokens(job_.tokens());
    const bool sees_images = !job_.has_transformer();
    const std::string model = arm_name("model"), data = arm_name("data");
    require(sees_images == job_.has_images(), data, "is given to {}; valid: {}", model, sees_images ? "images {...}" : "text {...} or tokens {...}");
    if (!sees_images) return require(!job_.has_diffusion(), "diffusion", "is given beside transformer, which has no use for it");
    image_model();
    images();
    if (job_.has_diffusion()) diffusion();
  }

  // The arm of a oneof that is set.
  std::string arm_name(const std::string& oneof) const {
    const auto* field = job_.GetReflection()->GetOneofFieldDescriptor(job_, ringzero::Job::descriptor()->FindOneofByName(oneof));
    return field == nullptr ? "" : field->name();
  }

  void image_model() const {
    const auto recompute = job_.training().recompute();
    const bool partly = recompute == ringzero::Training::SELECTIVE || recompute == ringzero::Training::SQRT;
    require(!partly && (!job_.has_classifier() || recompute == ringzero::Training::NONE), "training.recompute", "is {}; {} has {}",
            ringzero::Training::Recompute_Name(recompute), arm_name("model"), job_.has_classifier() ? "NONE" : "NONE and FULL");
    if (job_.has_unet()) {
      const auto& m = job_.unet();
      within("unet.width", m.width(), 2, kMaxWidth);
      within("unet.blocks", m.blocks(), 1, 1000);
      within("unet.patch", m.patch(), 1, 1024);
      within("unet.head_width", m.head_width(), 1, kMaxWidth);
      within("unet.dropout", m.dropout(), kBelowOne);
      within("unet.norm_epsilon", m.norm_epsilon(), kPositive);
      require(m.width() % 2 == 0, "unet.width", "is {}; valid: an even number", m.width());
      require(m.multipliers_size() <= 16, "unet.multipliers", "names {} levels; valid: at most 16", m.multipliers_size());
      for (const int64_t multiplier : m.multipliers()) within("unet.multipliers", multiplier, 1, 1024);
      for (const int64_t height : m.attention_heights()) within("unet.attention_heights", height, 1, kMaxWidth);
    }
    if (job_.has_dit()) {
      const auto& m = job_.dit();
      within("dit.layers", m.layers(), 1, 100'000);
      within("dit.width", m.width(), 4, kMaxWidth);
      within("dit.heads", m.heads(), 1, kMaxWidth);
      within("dit.patch", m.patch(), 1, 1024);
      within("dit.mlp_width", m.mlp_width(), 0, int64_t{1} << 24);
      within("dit.dropout", m.dropout(), kBelowOne);
      within("dit.norm_epsilon", m.norm_epsilon(), kPositive);
      require_match(m.width() % 4 == 0 && m.width() % m.heads() == 0, "dit.width", "dit.heads",
                    "is {}; valid: a multiple of 4 and of dit.heads, {}", m.width(), m.heads());
    }
    if (job_.has_classifier()) {
      within("classifier.width1", job_.classifier().width1(), 1, kMaxWidth);
      within("classifier.width2", job_.classifier().width2(), 1, kMaxWidth);
      within("classifier.features", job_.classifier().features(), 1, kMaxWidth);
      require(job_.classifier().noise_levels() || !job_.has_diffusion(), "diffusion", "is given to a classifier without noise_levels");
    }
  }

  void images() const {
    const auto& m = job_.images();
    require(int{!m.idx().empty()} + int{!m.folder().empty()} + int{!m.npy().empty()} <= 1, "images", "names several sources; valid: one of idx, folder, npy");
    require(m.npy_labels().empty() || !m.npy().empty(), "images.npy_labels", "is given without images.npy");
    within("images.validation_fraction", m.validation_fraction(), {.high = 1, .without_low = true, .without_high = true});
    within("images.padding", m.padding(), 0, 1024);
  }

  void diffusion() const {
    const auto& m = job_.diffusion();
    const auto& presets = models::diffusion::preset_names();
    require(std::find(presets.begin(), presets.end(), m.preset()) != presets.end(), "diffusion.preset", "is '{}'; valid: {}", escaped(m.preset(), 60),
            fmt::join(presets, ", "));
    within("diffusion.timesteps", m.timesteps(), 0, 1'000'000);
    within("diffusion.beta_first", m.beta_first(), kNotNegative);
    within("diffusion.beta_last", m.beta_last(), kNotNegative);
    within("diffusion.sigma_min", m.sigma_min(), kNotNegative);
    within("diffusion.sigma_max", m.sigma_max(), kNotNegative);
    within("diffusion.shift", m.shift(), kNotNegative);
    within("diffusion.sigma_data", m.sigma_data(), kNotNegative);
    within("diffusion.label_drop", m.label_drop(), {.high = 1});
    within("diffusion.loss_history", m.loss_history(), 1, 1000);
    require(!m.loss_aware_times() || !job_.has_classifier(), "diffusion.loss_aware_times", "is given to classifier");
    require(m.pairs().empty() || !job_.has_classifier(), "diffusion.pairs", "is given to classifier");
    require_match(!m.distill() || !m.pairs().empty(), "diffusion.distill", "diffusion.pairs", "is true without diffusion.pairs, what a network is distilled to");
    try {
      const auto process = models::diffusion::make_preset(m.preset(), preset_options(m, m.sigma_data() > 0 ? m.sigma_data() : 0.5));
      require(!m.loss_aware_times() || process.path->steps() > 1, "diffusion.loss_aware_times", "is true, and the times of preset {} are continuous", m.preset());
      if (!m.pairs().empty()) models::diffusion::check_path_of_pairs(*process.path);
    } catch (const ConfigError& e) {
      require(false, "diffusion", "cannot be: {}", e.what());
    }
  }

  static std::string arms(const std::string& oneof) {
    const auto* found = ringzero::Job::descriptor()->FindOneofByName(oneof);
    std::string out;
    for (int i = 0; i < found->field_count(); ++i) out += fmt::format("{}{} {{...}}", i == 0 ? "" : " or ", found->field(i)->name());
    return out;
  }

  void transformer(const ringzero::Transformer& t) const {
    within("transformer.layers", t.layers(), 1, 1'000'000);
    within("transformer.width", t.width(), 1, kMaxWidth);
    within("transformer.heads", t.heads(), 1, kMaxWidth);
    require_match(t.width() % t.heads() == 0, "transformer.width", "transformer.heads", "is {}, not a multiple of transformer.heads, {}",
                  t.width(), t.heads());
    within("transformer.kv_heads", t.kv_heads(), 0, kMaxWidth);
    require_match(t.kv_heads() == 0 || t.heads() % t.kv_heads() == 0, "transformer.kv_heads", "transformer.heads",
                  "is {}, not a divisor of transformer.heads, {}", t.kv_heads(), t.heads());
    const int64_t head_width = t.width() / t.heads();
    require_match(t.positions() != ringzero::Transformer::ROPE || head_width % 2 == 0, "transformer.positions", "transformer.heads",
                  "is ROPE, which turns pairs of channels, but a head has {} (width {} / heads {}), an odd number", head_width, t.width(),
                  t.heads());
    within("transformer.context", t.context(), 1, int64_t{1} << 24);
    within("transformer.vocabulary", t.vocabulary(), 0, int64_t{1} << 24);
    within("transformer.mlp_width", t.mlp_width(), 0, int64_t{1} << 24);
    within("transformer.dropout", t.dropout(), kBelowOne);
    within("transformer.rope_base", t.rope_base(), kPositive);
    within("transformer.norm_epsilon", t.norm_epsilon(), kPositive);
  }

  void tokens(const ringzero::TokenData& d) const {
    require(!d.train_path().empty(), "tokens.train_path", "is missing; valid: a token file");
    require(!d.validation_path().empty(), "tokens.validation_path", "is missing; valid: a token file");
    within("tokens.vocabulary", d.vocabulary(), 1, 65536);
    if (!job_.has_transformer()) return;
    const int64_t model = job_.transformer().vocabulary();
    require_match(model == 0 || model >= d.vocabulary(), "transformer.vocabulary", "tokens.vocabulary",
                  "is {}, fewer than the {} of tokens.vocabulary; valid: 0 or at least that", model, d.vocabulary());
  }

  void training() const {
    const auto& t = job_.training();
    within("training.steps", t.steps(), 1, kMaxSteps);
    within("training.batch", t.batch(), 1, kMaxCount);
    within("training.accumulate", t.accumulate(), 1, kMaxCount);
    require_match(t.accumulate() <= t.batch(), "training.accumulate", "training.batch",
                  "is {}, more micro-batches than training.batch has sequences, {}", t.accumulate(), t.batch());
    within("training.micro_batch", t.micro_batch(), 0, kMaxCount);
    within("training.threads", t.threads(), 0, 1024);
    within("training.evaluate_every", t.evaluate_every(), 0, kMaxSteps);
    within("training.evaluate_sequences", t.evaluate_sequences(), 0, kMaxCount);
    within("training.clip_norm", t.clip_norm(), kNotNegative);
    within("training.ema_decay", t.ema_decay(), kBelowOne);
    within("training.save_every", t.save_every(), 0, kMaxSteps);
    within("training.sample_every", t.sample_every(), 0, kMaxSteps);
    within("training.sample_count", t.sample_count(), 1, 10'000);
    within("training.sample_steps", t.sample_steps(), 0, 1'000'000);
    require(t.sample_every() == 0 || is_diffusion(job_), "training.sample_every", "is given beside {}, which draws no images", arm_name("model"));
    within("training.trace_steps", t.trace_steps(), 0, 100'000);
    within("training.memory_limit_mb", t.memory_limit_mb(), kNotNegative);
    if (t.precision() == ringzero::Training::F16) loss_scaling(t.loss_scaling());
  }

  void loss_scaling(const ringzero::LossScaling& s) const {
    const std::string path = "training.loss_scaling.";
    within(path + "smallest", s.smallest(), kPositive);
    within(path + "initial", s.initial(), {.low = s.smallest(), .high = s.largest()});
    within(path + "growth", s.growth(), {.low = 1, .without_low = true});
    within(path + "backoff", s.backoff(), {.high = 1, .without_low = true, .without_high = true});
    within(path + "growth_interval", s.growth_interval(), 1, kMaxSteps);
  }

  template <class AdamLike>
  void adam(const std::string& path, const AdamLike& a) const {
    within(path + ".beta1", a.beta1(), kBelowOne);
    within(path + ".beta2", a.beta2(), kBelowOne);
    within(path + ".epsilon", a.epsilon(), kPositive);
    within(path + ".weight_decay", a.weight_decay(), kNotNegative);
  }

  void optimizer() const {
    const auto& o = job_.optimizer();
    if (o.has_adamw()) adam("optimizer.adamw", o.adamw());
    if (o.has_adam()) adam("optimizer.adam", o.adam());
    if (!o.has_sgd()) return;
    within("optimizer.sgd.momentum", o.sgd().momentum(), kBelowOne);
    within("optimizer.sgd.weight_decay", o.sgd().weight_decay(), kNotNegative);
    require_match(!o.sgd().nesterov() || o.sgd().momentum() > 0, "optimizer.sgd.nesterov", "optimizer.sgd.momentum",
                  "is true, but optimizer.sgd.momentum is 0; valid: a momentum above 0");
  }

  void schedule() const {
    const auto& s = job_.schedule();
    within("schedule.learning_rate", s.learning_rate(), kNotNegative);
    within("schedule.final_learning_rate", s.final_learning_rate(), kNotNegative);
    // May be longer than the run: cutting a job short (--steps) must not make it invalid.
    within("schedule.warmup_steps", s.warmup_steps(), 0, std::numeric_limits<int64_t>::max());
  }

  void sharding() const {
    within("sharding.stage", job_.sharding().stage(), 0, 3);
    if (job_.sharding().bucket_mb() != kAuto) within("sharding.bucket_mb", job_.sharding().bucket_mb(), {.high = 1 << 20});
    const auto reduce = job_.sharding().reduce_dtype();
    const auto precision = job_.training().precision();
    require_match(reduce == ringzero::Training::F32 || reduce == precision, "sharding.reduce_dtype", "training.precision",
                  "is {}, but training.precision is {}; valid: F32 or the same", ringzero::Training::Precision_Name(reduce),
                  ringzero::Training::Precision_Name(precision));
    within("sharding.prefetch", job_.sharding().prefetch(), 0, 1024);
    within("sharding.prefetch_mb", job_.sharding().prefetch_mb(), {.high = 1 << 20});
    within("sharding.group_size", job_.sharding().group_size(), 0, kMaxCount);
  }

  void communication() const {
    within("communication.ranks", job_.communication().ranks(), 1, 1024);
    within("communication.deadline_s", job_.communication().deadline_s(), {.high = 1e6, .without_low = true});
    const auto& c = job_.communication();
    try {
      comm::parse_network(c.link(), c.inter_node_link(), c.nodes());
    } catch (const ConfigError& e) {
      const std::string what = e.what();  // begins with the field
      const size_t field = what.find(' ');
      require(false, fmt::format("communication.{}", what.substr(0, field)), "{}", what.substr(field + 1));
    }
  }

  void sample() const {
    if (!job_.has_sample()) return;
    const auto& s = job_.sample();
    within("sample.tokens", s.tokens(), 0, kMaxCount);
    within("sample.temperature", s.temperature(), kNotNegative);
    within("sample.top_k", s.top_k(), 0, kMaxCount);
    within("sample.top_p", s.top_p(), {.high = 1, .without_low = true});
  }

  void experiment() const {
    within("experiment.slow_rank", job_.experiment().slow_rank(), -1, kMaxCount);
    within("experiment.slow_factor", job_.experiment().slow_factor(), {.low = 1, .high = 1000});
  }

  const ringzero::Job& job_;
  const JobOrigins& origins_;
};

}  // namespace

void validate_job(const ringzero::Job& job, const JobOrigins& origins) { Validator(job, origins).run(); }

}  // namespace rz::tools
