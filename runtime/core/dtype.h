// Element types, the two 16-bit floating-point types with their conversions (round to nearest even), and run-time dispatch.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "runtime/core/error.h"

namespace rz {

enum class DType : uint8_t { f32, bf16, f16, f64, i32, i64, u8 };

// bfloat16: the upper half of a float32.
struct bf16 {
  uint16_t bits = 0;
  bf16() = default;
  explicit bf16(float value) {
    uint32_t u = std::bit_cast<uint32_t>(value);
    const uint32_t rounded = u + 0x7FFFu + ((u >> 16) & 1u);
    const bool is_nan = (u & 0x7FFFFFFFu) > 0x7F800000u;
    bits = static_cast<uint16_t>((is_nan ? (u | 0x00400000u) : rounded) >> 16);
  }
  operator float() const { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }
};

namespace detail {
// For compilers without a 16-bit floating-point type.
uint16_t float_to_half(float value);
float half_to_float(uint16_t bits);
}  // namespace detail

// IEEE binary16, through the compiler's own type where it has one.
struct f16 {
  uint16_t bits = 0;
  f16() = default;
#ifdef __FLT16_MANT_DIG__
  explicit f16(float value) : bits(std::bit_cast<uint16_t>(static_cast<_Float16>(value))) {}
  operator float() const { return static_cast<float>(std::bit_cast<_Float16>(bits)); }
#else
  explicit f16(float value) : bits(detail::float_to_half(value)) {}
  operator float() const { return detail::half_to_float(bits); }
#endif
};

template <class T>
struct TypeTag {
  using type = T;
};

template <class T>
inline constexpr DType dtype_of = [] {
  if constexpr (std::is_same_v<T, float>) return DType::f32;
  else if constexpr (std::is_same_v<T, bf16>) return DType::bf16;
  else if constexpr (std::is_same_v<T, f16>) return DType::f16;
  else if constexpr (std::is_same_v<T, double>) return DType::f64;
  else if constexpr (std::is_same_v<T, int32_t>) return DType::i32;
  else if constexpr (std::is_same_v<T, int64_t>) return DType::i64;
  else if constexpr (std::is_same_v<T, uint8_t>) return DType::u8;
  else static_assert(!sizeof(T), "not an element type");
}();

// The type in which a kernel computes on elements of T: float for the 16-bit types, T itself otherwise.
template <class T>
using compute_t = std::conditional_t<std::is_same_v<T, bf16> || std::is_same_v<T, f16>, float, T>;

// The same of a floating type known at run time.
constexpr DType compute_dtype(DType t) { return t == DType::f64 ? DType::f64 : DType::f32; }

constexpr size_t size_bytes(DType t) {
  switch (t) {
    case DType::f32: case DType::i32: return 4;
    case DType::bf16: case DType::f16: return 2;
    case DType::f64: case DType::i64: return 8;
    case DType::u8: return 1;
  }
  return 0;
}

constexpr bool is_floating(DType t) { return t == DType::f32 || t == DType::bf16 || t == DType::f16 || t == DType::f64; }

// "f32", "bf16", ...
const char* name(DType t);
// The inverse of name(); ConfigError listing the choices for anything else.
DType parse_dtype(std::string_view text);

// Calls f(TypeTag<T>{}) with the C++ type of `t`.
template <class F>
decltype(auto) dispatch(DType t, F&& f) {
  switch (t) {
    case DType::f32: return f(TypeTag<float>{});
    case DType::bf16: return f(TypeTag<bf16>{});
    case DType::f16: return f(TypeTag<f16>{});
    case DType::f64: return f(TypeTag<double>{});
    case DType::i32: return f(TypeTag<int32_t>{});
    case DType::i64: return f(TypeTag<int64_t>{});
    case DType::u8: break;
  }
  return f(TypeTag<uint8_t>{});
}

// The same for floating-point types only; `what` names the operation in the error.
template <class F>
decltype(auto) dispatch_floating(DType t, std::string_view what, F&& f) {
  RZ_CHECK(is_floating(t), "{} needs a floating-point tensor, not {}", what, name(t));
  switch (t) {
    case DType::bf16: return f(TypeTag<bf16>{});
    case DType::f16: return f(TypeTag<f16>{});
    case DType::f64: return f(TypeTag<double>{});
    default: return f(TypeTag<float>{});
  }
}

}  // namespace rz
