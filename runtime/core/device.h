// Where memory lives and where work is queued. CPU work is done when the call returns, so a CPU Stream is a no-op; the
// types have the shape that a backend with asynchronous streams needs (a Work joins a Stream, not the host).
#pragma once

#include <cstdint>

namespace rz {

enum class DeviceType : uint8_t { cpu, cuda };

struct Device {
  DeviceType type = DeviceType::cpu;
  int index = 0;
  bool operator==(const Device&) const = default;
};

// An ordered queue of work on a device. `native` is the backend's own handle (cudaStream_t); null on the CPU.
class Stream {
 public:
  explicit Stream(Device device = {}, void* native = nullptr) : device_(device), native_(native) {}
  Device device() const { return device_; }
  void* native() const { return native_; }

 private:
  Device device_;
  void* native_;
};

}  // namespace rz
