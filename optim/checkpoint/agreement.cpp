#include "optim/checkpoint/agreement.h"

#include <algorithm>
#include <cstring>

#include "runtime/core/rank_context.h"
#include "runtime/core/storage.h"

namespace rz::optim::checkpoint {

namespace {
constexpr std::string_view kName = "checkpoint";  // of the collectives
}

std::vector<std::string> gather_strings(comm::Communicator& comm, std::string_view own) {
  const auto ranks = static_cast<size_t>(comm.size());
  std::vector<int64_t> lengths(ranks);
  const auto own_length = static_cast<int64_t>(own.size());
  lengths[static_cast<size_t>(comm.rank())] = own_length;
  comm.all_gather(&own_length, lengths.data(), ranks, DType::i64, {.name = kName}).wait();
  const auto longest = static_cast<size_t>(*std::max_element(lengths.begin(), lengths.end()));
  std::vector<std::string> out(ranks);
  if (longest == 0) return out;

  // Chunks of equal length, so that chunk r of the buffer is rank r's padded string.
  const auto storage = Storage::make(longest * ranks, Category::workspace, "checkpoint: strings of all ranks");
  if (dry_run()) return std::vector<std::string>(ranks, std::string(own));  // nobody else is there to disagree
  auto* all = reinterpret_cast<char*>(storage->data());
  char* mine = all + longest * static_cast<size_t>(comm.rank());
  std::memset(mine, 0, longest);
  std::memcpy(mine, own.data(), own.size());
  comm.all_gather(mine, all, longest * ranks, DType::u8, {.name = kName}).wait();
  for (size_t r = 0; r < ranks; ++r) out[r].assign(all + longest * r, static_cast<size_t>(lengths[r]));
  return out;
}

std::string broadcast_string(comm::Communicator& comm, std::string_view on_rank_0) {
  int64_t length = comm.rank() == 0 ? static_cast<int64_t>(on_rank_0.size()) : 0;
  comm.broadcast(&length, 1, DType::i64, 0, {.name = kName}).wait();
  std::string text = comm.rank() == 0 ? std::string(on_rank_0) : std::string();
  text.resize(static_cast<size_t>(length));
  comm.broadcast(text.data(), text.size(), DType::u8, 0, {.name = kName}).wait();
  return text;
}

Failure failure_of(const std::function<void()>& local_work) {
  try {
    local_work();
    return {};
  } catch (const ConfigError& e) {
    return {e.what(), true};
  } catch (const std::exception& e) {
    const std::string text = e.what();
    return {text.empty() ? "an error without a text" : text, false};
  }
}

void agree(comm::Communicator& comm, const Failure& own, std::string_view what) {
  const std::string message = own.text.empty() ? "" : fmt::format("{}{}", own.is_config ? 'c' : 'e', own.text);
  const auto all = gather_strings(comm, message);
  std::string text;
  bool is_config = true;
  for (size_t r = 0; r < all.size(); ++r) {
    if (all[r].empty()) continue;
    is_config = is_config && all[r][0] == 'c';
    const bool told =
        std::find(all.begin(), all.begin() + static_cast<std::ptrdiff_t>(r), all[r]) != all.begin() + static_cast<std::ptrdiff_t>(r);
    if (!told) text += fmt::format("{}rank {}/{}: {}", text.empty() ? "" : "; ", r, all.size(), all[r].substr(1));
  }
  if (text.empty()) return;
  text = fmt::format("{}: {}", what, text);
  if (is_config) throw ConfigError(text);
  throw Error(text);
}

void run_in_rounds(comm::Communicator& comm, uint64_t own_bytes, std::string_view what, const std::function<void(uint64_t)>& step) {
  auto rounds = static_cast<int64_t>(own_bytes / kRoundBytes + 1);
  comm.all_reduce(&rounds, 1, DType::i64, comm::ReduceOp::max, {.name = kName}).wait();
  for (int64_t round = 0; round < rounds; ++round) agree(comm, failure_of([&] { step(kRoundBytes); }), what);
}

}  // namespace rz::optim::checkpoint
