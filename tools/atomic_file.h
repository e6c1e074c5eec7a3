// Small files that are either wholly there or not at all.
//
// Written beside their final name, synced, then renamed. Not for checkpoints, which have a protocol of their own. Thread-safe for
// different paths.
#pragma once

#include <string>
#include <string_view>

namespace rz::tools {

// Writes all of `bytes` to an open descriptor, through interruptions and short writes; rz::Error naming `path` otherwise.
void write_all(int descriptor, std::string_view bytes, const std::string& path);

// Replaces or creates the file; rz::Error naming path and cause, and the old file untouched, when that fails.
void write_file_atomically(const std::string& path, std::string_view bytes);

}  // namespace rz::tools
