// Hostile job files: whatever the bytes, a job comes out that round trips, or a one-line ConfigError. Seeded, so a failure repeats.
#include <google/protobuf/util/message_differencer.h>
#include <gtest/gtest.h>

#include <string>
#include <string_view>
#include <vector>

#include "runtime/core/error.h"
#include "runtime/core/random.h"
#include "tools/job_file.h"

namespace rz::tools {
namespace {

constexpr std::string_view kGood = R"(name: "fuzz" seed: 3
transformer { layers: 2 width: 96 heads: 4 positions: ROPE mlp: SWIGLU dropout: 0.1 }
text { path: "a\n\x41" validation_fraction: 0.1 }  # comment
training { steps: 10, batch: 4; accumulate: 2 }
optimizer < adamw { beta1: 9e-1 } >
schedule { kind: COSINE learning_rate: .001f warmup_steps: 0x5 }
sample { prompt: "In" 'the' tokens: 10 }
)";

// True when it was accepted.
bool survives(const std::string& text, const std::vector<std::string>& overrides = {}) {
  try {
    const auto job = parse_job(text, "fuzz", overrides);
    const auto again = parse_job(effective_text(job), "fuzz");
    EXPECT_TRUE(google::protobuf::util::MessageDifferencer::Equals(job, again)) << text;
    return true;
  } catch (const ConfigError& error) {
    const std::string_view what = error.what();
    EXPECT_TRUE(what.starts_with("fuzz:") || what.starts_with("--set ")) << what;
    for (const char c : what) EXPECT_TRUE(c >= 0x20 && c < 0x7F) << "unprintable byte in: " << what;
    EXPECT_LT(what.size(), 1200u);
    return false;
  }
}

TEST(JobFuzz, TheSeedIsGood) { EXPECT_TRUE(survives(std::string(kGood))); }

TEST(JobFuzz, RandomBytes) {
  for (uint64_t round = 0; round < 3000; ++round) {
    const Random random(1, "bytes", round);
    std::string text(random.below(0, 200), '\0');
    for (size_t i = 0; i < text.size(); ++i) text[i] = static_cast<char>(random.below(8 + 2 * i, 256));
    survives(text);
  }
}

TEST(JobFuzz, RandomTokens) {
  const std::vector<std::string> words = {"transformer", "text",      "training", "steps", "width", "{",   "}",         "{",   "}",
                                          "<",           ">",         ":",        ":",     "3",     "-1",  "0.5",       "inf", "nan",
                                          "\"a\"",       "'b",        "#",        "\n",    "\t",    "[",   "]",         ",",   ";",
                                          "ROPE",        "positions", "true",     "1e999", "0x",    "sgd", "optimizer", "/"};
  for (uint64_t round = 0; round < 3000; ++round) {
    const Random random(2, "tokens", round);
    std::string text;
    for (uint64_t i = 0, count = random.below(0, 40); i < count; ++i) text += words[random.below(8 + 2 * i, words.size())] + " ";
    survives(text);
  }
}

TEST(JobFuzz, DamagedGoodJobs) {
  int accepted = 0;
  for (uint64_t round = 0; round < 5000; ++round) {
    const Random random(3, "damage", round);
    std::string text(kGood);
    for (uint64_t i = 0, count = 1 + random.below(0, 3); i < count; ++i) {
      const size_t at = random.below(16 + 8 * i, text.size());
      switch (random.below(18 + 8 * i, 4)) {
        case 0:
          text[at] = static_cast<char>(random.below(20 + 8 * i, 256));
          break;
        case 1:
          text.erase(at, 1 + random.below(20 + 8 * i, 20));
          break;
        case 2:
          text.insert(at, text.substr(random.below(20 + 8 * i, text.size()), 15));
          break;
        default:
          text[at] = static_cast<char>(text[at] ^ (1 << random.below(20 + 8 * i, 8)));
      }
    }
    accepted += survives(text) ? 1 : 0;
  }
  // Neither all nor none: the damage reaches behind the parser's front door.
  EXPECT_GT(accepted, 100);
  EXPECT_LT(accepted, 4000);
}

TEST(JobFuzz, EveryPrefix) {
  for (size_t size = 0; size < kGood.size(); ++size) survives(std::string(kGood.substr(0, size)));
}

TEST(JobFuzz, Extremes) {
  std::string nested;
  for (int i = 0; i < 80000; ++i) nested += "transformer{";
  for (const std::string& text :
       {std::string(1000000, '{'), std::string(1000000, '['), std::string(1000000, 'a'), std::string(1000000, '9'),
        "seed: " + std::string(1000000, '9'), "name: \"" + std::string(1000000, 'x'), std::string(1000000, '\t') + "x",
        std::string(1000000, '\n') + "x", nested, "training { steps: " + std::string(900000, '-') + "1 }",
        "transformer { positions: " + std::string(900000, 'A') + " }", "transformer { " + std::string(900000, 'A') + ": 1 }",
        std::string(1, '\0'), std::string("\xEF\xBB\xBF") + std::string(kGood)}) {
    survives(text);
  }
  EXPECT_FALSE(survives(std::string(kMaxJobBytes + 1, ' ')));
}

TEST(JobFuzz, RandomOverrides) {
  const std::vector<std::string> words = {"training", "steps", "transformer", "width",    ".",    ".", "=",      "=",      "3",
                                          "-",        "{",     "}",           "steps: 4", "\xff", "",  "sample", "prompt", "nan"};
  for (uint64_t round = 0; round < 3000; ++round) {
    const Random random(4, "overrides", round);
    std::string text;
    for (uint64_t i = 0, count = random.below(0, 8); i < count; ++i) text += words[random.below(8 + 2 * i, words.size())];
    survives("transformer {} text {}", {text});
  }
}

}  // namespace
}  // namespace rz::tools
