#include "tests/support/watchdog.h"

#include <gtest/gtest.h>

#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <thread>

namespace rz::test {

namespace {

double limit_s() {
  if (const char* text = std::getenv("RZ_TEST_TIMEOUT_S"); text != nullptr) return std::atof(text);
#if defined(RZ_ASAN) || defined(RZ_TSAN)
  return 480;
#else
  return 120;
#endif
}

class Watchdog final : public ::testing::EmptyTestEventListener {
 public:
  static Watchdog& instance() {
    static auto* dog = new Watchdog;  // owned by GoogleTest once appended
    return *dog;
  }

  void say(std::string what) {
    std::lock_guard lock(mutex_);
    doing_ = std::move(what);
  }

 private:
  void OnTestProgramStart(const ::testing::UnitTest&) override {
    thread_ = std::thread([this] { watch(); });
  }
  void OnTestProgramEnd(const ::testing::UnitTest&) override {
    {
      std::lock_guard lock(mutex_);
      stop_ = true;
    }
    changed_.notify_all();
    thread_.join();
  }
  void OnTestStart(const ::testing::TestInfo& info) override { set(std::string(info.test_suite_name()) + "." + info.name()); }
  void OnTestEnd(const ::testing::TestInfo&) override { set(""); }

  void set(std::string test) {
    {
      std::lock_guard lock(mutex_);
      test_ = std::move(test);
      doing_.clear();
      deadline_ = std::chrono::steady_clock::now() + std::chrono::milliseconds(static_cast<int64_t>(limit_s() * 1000));
    }
    changed_.notify_all();
  }

  void watch() {
    std::unique_lock lock(mutex_);
    while (!stop_) {
      if (test_.empty()) {
        changed_.wait(lock);
        continue;
      }
      const auto until = deadline_;
      changed_.wait_until(lock, until);
      if (stop_ || test_.empty() || std::chrono::steady_clock::now() < deadline_) continue;
      std::fprintf(stderr, "watchdog: test %s hangs: %.0f s%s%s\n", test_.c_str(), limit_s(), doing_.empty() ? "" : " in ", doing_.c_str());
      std::fflush(stderr);
      std::abort();
    }
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::string test_;  // empty: between tests
  std::string doing_;
  std::chrono::steady_clock::time_point deadline_;
  bool stop_ = false;
  std::thread thread_;
};

// Before main(): GoogleTest accepts listeners any time before RUN_ALL_TESTS.
const bool g_armed = [] {
  ::testing::UnitTest::GetInstance()->listeners().Append(&Watchdog::instance());
  return true;
}();

}  // namespace

void now_doing(std::string what) { Watchdog::instance().say(std::move(what)); }

}  // namespace rz::test
