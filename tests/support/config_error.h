// What the tests of bad input share.
#pragma once

#include <gtest/gtest.h>

#include <string>

#include "runtime/core/error.h"

namespace rz::test {

// The message of the ConfigError that `call` throws, which must be one line; "no error" where it throws none.
template <class F>
std::string config_error_if_any(F&& call) {
  try {
    call();
  } catch (const ConfigError& error) {
    EXPECT_EQ(std::string(error.what()).find('\n'), std::string::npos) << error.what();
    return error.what();
  }
  return "no error";
}

// The same of a call that must throw one.
template <class F>
std::string config_error(F&& call) {
  const std::string message = config_error_if_any(call);
  EXPECT_NE(message, "no error");
  return message;
}

}  // namespace rz::test
