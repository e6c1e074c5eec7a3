// A watchdog over every test of a binary: a test that runs longer than its limit ends the process, naming the test, what it
// last said it was doing (now_doing): a hang becomes a failure with a name. It arms itself in every binary that
// uses now_doing or run_on_ranks.
// RZ_TEST_TIMEOUT_S sets the limit (default 120, four times that under a sanitizer).
#pragma once

#include <string>

namespace rz::test {

// What this test is doing, for the watchdog's message; any thread.
void now_doing(std::string what);

}  // namespace rz::test
