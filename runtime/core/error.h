// Contracts and errors. RZ_CHECK states a contract and throws rz::Error naming the values; ConfigError is for what a user
// can mend (a flag, a file, a configuration), printed without a source position. Nothing here catches: the program's edge does.
#pragma once

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <stdexcept>
#include <string>
#include <string_view>

namespace rz {

class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// Bad input from the user: one line naming the value and what would be valid.
class ConfigError : public Error {
 public:
  using Error::Error;
};

namespace detail {
[[noreturn]] void throw_check_failed(const char* file, int line, const char* condition, const std::string& message);
}  // namespace detail

}  // namespace rz

// RZ_CHECK(condition, format, values...): a contract of the API; throws rz::Error.
#define RZ_CHECK(condition, ...)                                                                      \
  do {                                                                                                \
    if (!(condition)) [[unlikely]]                                                                    \
      ::rz::detail::throw_check_failed(__FILE__, __LINE__, #condition, ::fmt::format(__VA_ARGS__));   \
  } while (false)

// RZ_CONFIG_CHECK(condition, format, values...): something the user gave; throws rz::ConfigError with just the message.
#define RZ_CONFIG_CHECK(condition, ...)                                            \
  do {                                                                             \
    if (!(condition)) [[unlikely]] throw ::rz::ConfigError(::fmt::format(__VA_ARGS__)); \
  } while (false)
