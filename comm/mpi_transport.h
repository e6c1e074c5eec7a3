// MpiTransport: one rank per process over MPI point-to-point messages. Made, used and closed by the progress thread alone,
// which makes every MPI call of the process, MPI_Init_thread and MPI_Finalize included.
// After a failure it is never finalized: MPI_Finalize waits for dead peers. Header free of mpi.h.
#pragma once

#include <cstddef>
#include <memory>

#include "comm/transport.h"

namespace rz::comm {

// Longer messages go as several of `message_limit_bytes` (MPI counts are int); the same on all ranks.
// Throws CommError if MPI cannot be initialized. Once per process.
std::unique_ptr<Transport> make_mpi_transport(size_t message_limit_bytes);

}  // namespace rz::comm
