// What ranks must agree on before and while they train.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "comm/communicator.h"

namespace rz::tools {

// Runs `f` on rank 0 alone; if it throws, every rank throws. `what` opens the error's text. COLLECTIVE.
void on_rank_zero(comm::Communicator& comm, std::string_view what, const std::function<void()>& f);

// ConfigError on every rank, naming the field and the ranks, unless every rank gave the same (name, value) pairs. COLLECTIVE.
void check_agreement(comm::Communicator& comm, const std::vector<std::pair<std::string, std::string>>& fields);

}  // namespace rz::tools
