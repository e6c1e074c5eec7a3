#include "tools/agree.h"

#include "optim/checkpoint/agreement.h"
#include "runtime/core/error.h"

namespace rz::tools {

void on_rank_zero(comm::Communicator& comm, std::string_view what, const std::function<void()>& f) {
  using namespace optim::checkpoint;
  agree(comm, comm.rank() == 0 ? failure_of(f) : Failure{}, what);
}

void check_agreement(comm::Communicator& comm, const std::vector<std::pair<std::string, std::string>>& fields) {
  for (const auto& [name, value] : fields) {
    const auto all = optim::checkpoint::gather_strings(comm, value);
    for (size_t r = 1; r < all.size(); ++r)
      RZ_CONFIG_CHECK(all[r] == all[0], "ranks disagree on the {}: rank 0 has {}, rank {} has {}", name, all[0], r, all[r]);
  }
}

}  // namespace rz::tools
