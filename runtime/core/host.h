// The machine that this process runs on.
#pragma once

#include <string>

namespace rz {

// "unknown" where the system does not say.
std::string host_name();

}  // namespace rz
