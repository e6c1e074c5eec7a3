// The task of a job for a dry run: the same model over a data set that has its size but not its contents.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "tools/task.h"

namespace rz::tools {

// Call it with a dry RankContext bound. Reads no data where the number of symbols is known without (token files, the King
// James Bible, a vocabulary in the job); otherwise counts the bytes that a text file has. `notes` gets what was assumed.
// ConfigError where nothing can be known.
std::unique_ptr<Task> make_dry_task(const ringzero::Job& job, std::vector<std::string>& notes);

}  // namespace rz::tools
