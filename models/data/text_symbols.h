// The alphabet of byte-level text: each different byte of the text is a symbol, numbered by byte value.
//
// Small enough to be stored beside a model, so that text can be generated without the data. Immutable; thread-safe.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace rz::models {

class TextSymbols {
 public:
  TextSymbols() { symbol_of_.fill(-1); }
  // The different bytes of `text`.
  static TextSymbols of_text(std::string_view text);
  // The alphabet that bytes() of another one gave; ConfigError unless its bytes ascend strictly.
  static TextSymbols of_bytes(std::string_view bytes);

  int64_t size() const { return static_cast<int64_t>(bytes_.size()); }
  // Byte of each symbol, ascending.
  const std::string& bytes() const { return bytes_; }
  // The symbol of a byte, or -1.
  int symbol_of(char byte) const { return symbol_of_[static_cast<unsigned char>(byte)]; }

  // ConfigError naming byte and position for a byte that the text lacks.
  std::vector<int32_t> encode(std::string_view text) const;
  // rz::Error for a symbol outside [0, size()).
  std::string decode(std::span<const int32_t> symbols) const;

 private:
  std::string bytes_;
  std::array<int16_t, 256> symbol_of_{};
};

}  // namespace rz::models
