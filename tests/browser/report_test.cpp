// report.html in a headless Chromium: the timeline is drawn to scale in its lanes, light and dark, and nothing is fetched.
// A screenshot is read back by libpng; the browser's own log (--log-net-log) lists every address that it asked for.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <png.h>

#include <array>
#include <cstdlib>
#include <map>
#include <nlohmann/json.hpp>
#include <regex>

#include "tests/tools/tiny_run.h"
#include "tools/overlap/account.h"

namespace rz::tools {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;
using Rgb = std::array<int, 3>;

constexpr int kWidth = 1280;
constexpr int kHeight = 1200;
constexpr int kMainHeight = 24;  // of the lane of a main thread, and below it
constexpr int kTransferOffset = kMainHeight + 16 + 1;

struct Picture {
  int width = 0;
  int height = 0;
  std::vector<uint8_t> pixels;
  Rgb at(int x, int y) const {
    const uint8_t* p = &pixels[(static_cast<size_t>(y) * static_cast<size_t>(width) + static_cast<size_t>(x)) * 3];
    return {p[0], p[1], p[2]};
  }
};

Picture read_png(const std::string& path) {
  png_image image{};
  image.version = PNG_IMAGE_VERSION;
  if (png_image_begin_read_from_file(&image, path.c_str()) == 0) throw std::runtime_error(path + ": " + image.message);
  image.format = PNG_FORMAT_RGB;
  Picture picture{static_cast<int>(image.width), static_cast<int>(image.height), std::vector<uint8_t>(PNG_IMAGE_SIZE(image))};
  if (png_image_finish_read(&image, nullptr, picture.pixels.data(), 0, nullptr) == 0) throw std::runtime_error(path + ": " + image.message);
  return picture;
}

std::string text_of(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

// Which class of the page's style a pixel shows, plain or lighter ("odd") on the page's own colour; empty for none.
class Palette {
 public:
  Palette(const std::string& html, Rgb page) {
    const std::regex rule(R"(\.(\w+)\{--c:#([0-9a-f]{6})\})");
    for (std::sregex_iterator i(html.begin(), html.end(), rule), end; i != end; ++i) {
      const long value = std::stol((*i)[2], nullptr, 16);
      const Rgb plain = {static_cast<int>(value >> 16), static_cast<int>(value >> 8 & 255), static_cast<int>(value & 255)};
      Rgb odd;
      for (size_t k = 0; k < 3; ++k) odd[k] = static_cast<int>(std::lround(0.78 * plain[k] + 0.22 * page[k]));
      colors_.emplace_back(plain, (*i)[1]);
      colors_.emplace_back(odd, (*i)[1]);
    }
  }

  std::string of(Rgb pixel, const std::vector<std::string>& among) const {
    for (const auto& [color, name] : colors_) {
      const bool close = std::abs(color[0] - pixel[0]) <= 2 && std::abs(color[1] - pixel[1]) <= 2 && std::abs(color[2] - pixel[2]) <= 2;
      if (close && std::ranges::find(among, name) != among.end()) return name;
    }
    return "";
  }
  size_t size() const { return colors_.size(); }

 private:
  std::vector<std::pair<Rgb, std::string>> colors_;
};

std::vector<std::string> main_thread_classes() {
  std::vector<std::string> names;
  for (int a = 0; a < trace::kActivities; ++a) names.emplace_back(name(static_cast<trace::Activity>(a)));
  for (size_t c = 0; c < kCauses; ++c) names.emplace_back(name(static_cast<Cause>(c)));
  return names;
}

struct Lane {
  int top = 0;
  int bottom = 0;  // exclusive
  int left = 0;
  int right = 0;
};

// Bands, as high as a main thread's lane, nearly filled with its colours from left to right.
std::vector<Lane> main_lanes(const Picture& picture, const Palette& palette) {
  const auto among = main_thread_classes();
  std::vector<Lane> lanes;
  for (int y = 0; y < picture.height; ++y) {
    int left = picture.width, right = 0, filled = 0;
    for (int x = 0; x < picture.width; ++x) {
      if (palette.of(picture.at(x, y), among).empty()) continue;
      left = std::min(left, x);
      right = x + 1;
      ++filled;
    }
    // Labels leave more than half of a row.
    if (right - left < 800 || 2 * filled < right - left) continue;
    if (!lanes.empty() && lanes.back().bottom == y) {
      lanes.back() = {lanes.back().top, y + 1, std::min(lanes.back().left, left), std::max(lanes.back().right, right)};
    } else {
      lanes.push_back({y, y + 1, left, right});
    }
  }
  std::erase_if(lanes, [](const Lane& lane) { return lane.bottom - lane.top < kMainHeight / 2; });
  return lanes;
}

std::map<std::string, double> pixels_by_class(const Picture& picture, const Palette& palette, int y, const std::vector<std::string>& among) {
  std::map<std::string, double> pixels;
  for (int x = 0; x < picture.width; ++x)
    if (const std::string name = palette.of(picture.at(x, y), among); !name.empty()) ++pixels[name];
  return pixels;
}

class Report : public TinyRun {
 protected:
  struct Shot {
    Picture picture;
    std::vector<std::string> addresses;  // that the page asked for
  };

  Shot open(const std::string& page, bool dark = false) const {
    const std::string png = path("shot.png"), log = path("net.json");
    std::filesystem::remove(png);
    const std::string command = fmt::format(
        "timeout 120 '{}' --headless --no-sandbox --disable-gpu --disable-dev-shm-usage --hide-scrollbars --no-first-run --disable-background-networking "
        "--disable-component-update --disable-sync --disable-default-apps --disable-extensions --host-resolver-rules='MAP * ~NOTFOUND' --user-data-dir='{}' --log-net-log='{}' "
        "--blink-settings=preferredColorScheme={} --window-size={},{} --screenshot='{}' 'file://{}' >'{}' 2>&1",
        RZ_CHROMIUM, path("profile"), log, dark ? 0 : 1, kWidth, kHeight, png, page, path("chromium.log"));
    const int status = std::system(command.c_str());
    if (status != 0) throw std::runtime_error(fmt::format("{} ended with status {}: {}", RZ_CHROMIUM, status, text_of(path("chromium.log"))));
    Shot shot;
    shot.picture = read_png(png);
    // What the browser wants for itself has "not an origin" as its initiator; what a page wants, the page's origin.
    const auto logged = nlohmann::json::parse(text_of(log));
    for (const auto& event : logged.at("events")) {
      const auto params = event.value("params", nlohmann::json::object());
      if (params.contains("initiator") && params["initiator"] != "not an origin") shot.addresses.push_back(params.at("url"));
    }
    return shot;
  }
};

TEST_F(Report, TheTimelineIsDrawnToScale) {
  const std::string run_path = train_tiny("a", 3, {"sharding.stage=2"}, "20Mbit,200us");
  overlap(run_path);
  const std::string html = text_of(run_path + "/report.html");
  const RunTrace run = read_run_trace(run_path);
  const RunAccount account = account_run(run);
  const std::smatch said = [&] {
    std::smatch m;
    EXPECT_TRUE(std::regex_search(html, m, std::regex("A step of median time: step ([0-9]+)")));
    return m;
  }();
  const int64_t number = std::stoll(said[1]) - 1;
  const auto index = static_cast<size_t>(std::ranges::find(account.steps, number) - account.steps.begin());
  ASSERT_LT(index, account.steps.size());
  int64_t begin = run.at(0, number).begin_ns, end = run.at(0, number).end_ns;
  for (int r = 1; r < 3; ++r) {
    begin = std::min(begin, run.at(r, number).begin_ns);
    end = std::max(end, run.at(r, number).end_ns);
  }

  for (const bool dark : {false, true}) {
    SCOPED_TRACE(dark ? "dark" : "light");
    const Shot shot = open(run_path + "/report.html", dark);
    EXPECT_THAT(shot.addresses, IsEmpty());
    ASSERT_EQ(shot.picture.width, kWidth);
    const Rgb page = shot.picture.at(2, 2);
    EXPECT_EQ(page[0] < 64, dark);
    const Palette palette(html, page);
    ASSERT_GT(palette.size(), 30u);
    const auto lanes = main_lanes(shot.picture, palette);
    ASSERT_EQ(lanes.size(), 3u);
    double lane_width = 0;
    for (const Lane& lane : lanes) lane_width = std::max(lane_width, static_cast<double>(lane.right - lane.left));
    for (int r = 0; r < 3; ++r) {
      SCOPED_TRACE(fmt::format("rank {}", r));
      const Lane& lane = lanes[static_cast<size_t>(r)];
      EXPECT_NEAR(lane.bottom - lane.top, kMainHeight, 1);
      const StepAccount& a = account.ranks[static_cast<size_t>(r)][index];
      // Edges blend, and what is thinner than a pixel is not seen.
      const auto pixels_of = [&](int64_t ns) { return lane_width * static_cast<double>(ns) / static_cast<double>(end - begin); };
      constexpr double kTolerance = 25;
      auto drawn = pixels_by_class(shot.picture, palette, lane.top + 2, main_thread_classes());
      for (int i = 0; i < trace::kActivities; ++i)
        EXPECT_NEAR(drawn[name(static_cast<trace::Activity>(i))], pixels_of(a.activity_ns[static_cast<size_t>(i)]), kTolerance) << name(static_cast<trace::Activity>(i));
      for (size_t c = 0; c < kCauses; ++c) EXPECT_NEAR(drawn[name(static_cast<Cause>(c))], pixels_of(a.exposed_by_cause[c]), kTolerance) << name(static_cast<Cause>(c));
      std::map<std::string, int64_t> transfers;
      for (const CollectiveAccount& c : a.collectives) {
        const int64_t from = std::max(c.ready_ns, begin), to = std::min(c.operation.done_ns, end);
        transfers[name(c.purpose)] += std::max<int64_t>(to - from, 0);
      }
      const std::vector<std::string> purposes = {"reduce", "gather", "publish", "scalars"};
      auto communication = pixels_by_class(shot.picture, palette, lane.top + kTransferOffset, purposes);
      for (const auto& p : purposes) EXPECT_NEAR(communication[p], pixels_of(transfers[p]), kTolerance) << p;
      EXPECT_GT(communication["reduce"], 100);
      EXPECT_GT(communication["publish"], 100);
    }
  }
}

// What this test would see if it were not so.
TEST_F(Report, TheTestSeesAMissingTimelineAndAFetch) {
  const std::string run = train_tiny("a", 3);
  overlap(run);
  const std::string html = text_of(run + "/report.html");
  const std::string blank = path("blank.html");
  std::ofstream(blank) << std::regex_replace(html, std::regex("class=time"), "class=time style=display:none");
  const Shot without = open(blank);
  EXPECT_THAT(main_lanes(without.picture, Palette(html, without.picture.at(2, 2))), IsEmpty());
  EXPECT_THAT(without.addresses, IsEmpty());

  const std::string image = "<img src=\"http://elsewhere.invalid/a.png\">";
  const std::string fetching = path("fetching.html");
  std::ofstream(fetching) << "<!DOCTYPE html><body>" << image;
  EXPECT_THAT(open(fetching).addresses, ::testing::Contains(HasSubstr("elsewhere.invalid")));

  // Were there such a thing in the page, its policy would stop it.
  const std::string guarded = path("guarded.html");
  std::ofstream(guarded) << std::regex_replace(html, std::regex("<body>"), "<body>" + image);
  EXPECT_THAT(open(guarded).addresses, IsEmpty());
}

}  // namespace
}  // namespace rz::tools
