#include "runtime/kernels/backend.h"

namespace rz {

const Backend& backend(Device device) {
  static const Backend cpu_backend{"cpu",
                                   &cpu::elementwise_kernels(),
                                   &cpu::reduction_kernels(),
                                   &cpu::matmul_kernels(),
                                   &cpu::loss_kernels(),
                                   &cpu::norm_kernels(),
                                   &cpu::embedding_kernels(),
                                   &cpu::attention_kernels(),
                                   &cpu::random_kernels(),
                                   &cpu::optimizer_kernels(),
                                   &cpu::fixed_point_kernels(),
                                   &cpu::conv_kernels(),
                                   &cpu::group_norm_kernels(),
                                   &cpu::image_kernels()};
  RZ_CHECK(device.type == DeviceType::cpu, "this program was built without a CUDA backend");
  return cpu_backend;
}

}  // namespace rz
