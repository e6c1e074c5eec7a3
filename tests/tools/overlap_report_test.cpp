// What `ringzero overlap` writes: overlap.json, report.html. How the page looks is tests/browser.
#include "tools/overlap/overlap_report.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "runtime/core/error.h"
#include "tests/tools/synthetic_trace.h"
#include "tests/tools/tiny_run.h"
#include "tools/overlap/report_html.h"

namespace rz::tools {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;
using ::testing::Not;
using OverlapReport = TinyRun;

std::string text_of(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

size_t count(const std::string& text, const std::string& part) {
  size_t n = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + part.size())) ++n;
  return n;
}

// Elements close, and nothing could be fetched.
void expect_sound_page(const std::string& html) {
  for (const char* element : {"svg", "g", "text", "title", "table", "details", "summary", "div", "ul", "style"})
    EXPECT_EQ(count(html, fmt::format("<{} ", element)) + count(html, fmt::format("<{}>", element)), count(html, fmt::format("</{}>", element))) << element;
  EXPECT_THAT(html, HasSubstr("content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:\""));
  for (const char* outside : {"<script", "<img", "<link", "<iframe", "@import", "src=", "href", "//", "url(h"}) EXPECT_THAT(html, Not(HasSubstr(outside)));
  for (const char* number : {"nan", "inf%", "=\"-"}) EXPECT_THAT(html, Not(HasSubstr(number)));
}

TEST_F(OverlapReport, TheJsonHoldsTheAccount) {
  const std::string run = train_tiny("a", 3, {"sharding.stage=1"}, "1Gbit,20us");
  const std::string printed = overlap(run, "--json");
  const json overlap = json::parse(text_of(run + "/overlap.json"));
  EXPECT_EQ(json::parse(printed), overlap);
  EXPECT_EQ(overlap.at("ranks"), 3);
  EXPECT_EQ(overlap.at("first_step"), 2);
  EXPECT_EQ(overlap.at("last_step"), 5);
  EXPECT_EQ(overlap.at("per_rank").size(), 3u);
  EXPECT_FALSE(overlap.at("advice").empty());
  auto accounts = overlap.at("per_rank");
  accounts.push_back(overlap.at("critical"));
  EXPECT_EQ(overlap.at("critical"), overlap.at("per_rank").at(overlap.at("critical").at("rank").get<size_t>()));
  constexpr double kRounding = 1e-9;  // ms
  for (const json& a : accounts) {
    const auto ms = [&](const char* key) { return a.at(key).get<double>(); };
    EXPECT_NEAR(ms("compute_ms") + ms("exposed_ms") + ms("other_ms"), ms("step_ms"), kRounding);
    EXPECT_NEAR(ms("forward_ms") + ms("backward_ms") + ms("optimizer_ms"), ms("compute_ms"), kRounding);
    EXPECT_GE(ms("hidden_fraction"), 0);
    EXPECT_LE(ms("hidden_fraction"), 1);
    double by_cause = 0, by_bucket = 0, transfers = 0, hidden = 0;
    for (const auto& [cause, value] : a.at("exposed_by_cause").items()) by_cause += value.get<double>();
    for (const json& b : a.at("buckets")) {
      by_bucket += b.at("exposed_ms").get<double>();
      transfers += b.at("transfer_ms").get<double>();
      hidden += b.at("hidden_ms").get<double>();
      double of_bucket = 0;
      for (const json& c : b.at("causes")) of_bucket += c.at("ms").get<double>();
      EXPECT_NEAR(of_bucket, b.at("exposed_ms").get<double>(), kRounding);
    }
    EXPECT_NEAR(by_cause, ms("exposed_ms"), kRounding);
    EXPECT_NEAR(by_bucket, ms("exposed_ms"), kRounding);
    EXPECT_NEAR(transfers, ms("communication_ms"), kRounding);
    EXPECT_NEAR(hidden, ms("hidden_fraction") * ms("communication_ms"), kRounding);
    EXPECT_EQ(a.at("exposed_by_cause").size(), kCauses);
    EXPECT_EQ(a.at("steps").size(), 4u);
  }
}

TEST_F(OverlapReport, AStragglerIsNamedWhereTheLinkIsTheLimit) {
  // Behind a link that takes far longer than all compute nobody need wait for a rank that takes 20 times as long.
  const std::string run = train_tiny("a", 3, {"experiment.slow_rank=1", "experiment.slow_factor=20"}, "5Mbit,20us");
  EXPECT_THAT(overlap(run), HasSubstr("straggler: rank 1"));
  const json stragglers = json::parse(text_of(run + "/overlap.json")).at("stragglers");
  ASSERT_FALSE(stragglers.at("ranks").empty());
  EXPECT_EQ(stragglers.at("ranks").at(0).at("rank"), 1);
  EXPECT_GT(stragglers.at("ranks").at(0).at("busy_ms"), stragglers.at("usual_busy_ms"));
  EXPECT_GE(stragglers.at("saved_ms"), 0);
  EXPECT_THAT(text_of(run + "/report.html"), HasSubstr("straggler: rank 1"));
}

TEST_F(OverlapReport, ThePageShowsEveryRankAndSection) {
  for (const int ranks : {1, 3}) {
    const std::string run = train_tiny(fmt::format("n{}", ranks), ranks, {"name=<i>a & \"b\""});
    EXPECT_THAT(overlap(run), HasSubstr("critical"));
    const std::string html = text_of(run + "/report.html");
    expect_sound_page(html);
    EXPECT_THAT(html, HasSubstr("<h1>&lt;i&gt;a &amp; &quot;b&quot;</h1>"));
    EXPECT_EQ(count(html, "<text class=rank "), static_cast<size_t>(ranks));
    for (const char* section : {"Advice", "A step of median time", "Where the time of a step goes", "Hidden and exposed, by bucket", "Memory over that step", "Loss", "Causes of exposed time"})
      EXPECT_EQ(count(html, fmt::format("<h2>{}", section)), 1u) << section;
  }
}

TEST_F(OverlapReport, ManyRanksAreCutAndSaidSo) {
  SyntheticTrace trace(20);
  for (int r = 0; r < 20; ++r) {
    trace.activity(r, r == 19 ? 40 : 80, trace::Activity::backward);
    trace.wait(r, r == 19 ? 88 : 85, 90, trace.reduction(r, "b", 84, 84, 90));
  }
  const RunAccount account = trace.account();
  ASSERT_EQ(account.critical_rank(), 19);
  const std::string html = report_html(trace.run(), account, ringzero::Job(), {});
  expect_sound_page(html);
  EXPECT_EQ(count(html, "<text class=rank "), 16u);
  EXPECT_THAT(html, HasSubstr("rank 19, critical"));
  EXPECT_THAT(html, HasSubstr("16 of 20 ranks are shown"));
}

TEST_F(OverlapReport, DamagedMetricsAreNamed) {
  const std::string run = train_tiny("a", 1);
  std::ofstream(run + "/metrics.jsonl", std::ios::app) << "{]\n";
  try {
    overlap(run);
    FAIL() << "accepted";
  } catch (const ConfigError& e) {
    EXPECT_THAT(e.what(), HasSubstr("metrics.jsonl:6"));
  }
}

}  // namespace
}  // namespace rz::tools
