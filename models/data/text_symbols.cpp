#include "models/data/text_symbols.h"

#include "runtime/core/error.h"

namespace rz::models {
namespace {

// A byte as it may stand in a one-line message.
std::string printable(char byte) {
  const auto value = static_cast<unsigned char>(byte);
  if (value > 0x20 && value < 0x7F) return fmt::format("'{}'", byte);
  return fmt::format("0x{:02x}", value);
}

}  // namespace

TextSymbols TextSymbols::of_text(std::string_view text) {
  std::array<bool, 256> seen{};
  for (const char c : text) seen[static_cast<unsigned char>(c)] = true;
  std::string bytes;
  for (size_t b = 0; b < seen.size(); ++b) {
    if (seen[b]) bytes.push_back(static_cast<char>(b));
  }
  return of_bytes(bytes);
}

TextSymbols TextSymbols::of_bytes(std::string_view bytes) {
  TextSymbols symbols;
  for (size_t i = 0; i < bytes.size(); ++i) {
    const auto byte = static_cast<unsigned char>(bytes[i]);
    RZ_CONFIG_CHECK(i == 0 || static_cast<unsigned char>(bytes[i - 1]) < byte,
                    "the bytes of an alphabet must ascend, but {} follows {} at position {}", printable(bytes[i]), printable(bytes[i - 1]),
                    i);
    symbols.symbol_of_[byte] = static_cast<int16_t>(i);
  }
  symbols.bytes_ = bytes;
  return symbols;
}

std::vector<int32_t> TextSymbols::encode(std::string_view text) const {
  std::vector<int32_t> out(text.size());
  for (size_t i = 0; i < text.size(); ++i) {
    out[i] = symbol_of(text[i]);
    RZ_CONFIG_CHECK(out[i] >= 0, "the byte {} at position {} does not occur in the training text, which has {} different bytes",
                    printable(text[i]), i, size());
  }
  return out;
}

std::string TextSymbols::decode(std::span<const int32_t> symbols) const {
  std::string out;
  out.reserve(symbols.size());
  for (const int32_t symbol : symbols) {
    RZ_CHECK(symbol >= 0 && symbol < size(), "symbol {} is outside the alphabet of {}", symbol, size());
    out.push_back(bytes_[static_cast<size_t>(symbol)]);
  }
  return out;
}

}  // namespace rz::models
