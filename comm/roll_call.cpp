#include "comm/roll_call.h"

#include <map>

namespace rz::comm {

namespace {
constexpr size_t kListed = 8;
constexpr int64_t kAnswerTimeNs = 100'000'000;
}  // namespace

std::string rank_list(const std::vector<int>& ranks) {
  std::string out = ranks.size() == 1 ? "rank " : "ranks ";
  for (size_t i = 0; i < ranks.size() && i < kListed; ++i) out += fmt::format("{}{}", i == 0 ? "" : ", ", ranks[i]);
  if (ranks.size() > kListed) out += fmt::format(" and {} more", ranks.size() - kListed);
  return out;
}

void RollCall::begin(int world_size, int64_t now_ns) {
  asked_ns_ = now_ns;
  answers_.assign(static_cast<size_t>(world_size), ControlMessage{});
}

void RollCall::answer(const ControlMessage& present) {
  if (is_open() && present.from >= 0 && present.from < static_cast<int>(answers_.size())) {
    answers_[static_cast<size_t>(present.from)] = present;
  }
}

bool RollCall::someone_left_without(const Fingerprint& mine, const Group& group, const std::vector<Departure>& departures,
                                    int64_t now_ns) const {
  bool found = false;
  for (const int r : group.members) {
    const ControlMessage& a = answers_[static_cast<size_t>(r)];
    if (departures[static_cast<size_t>(r)].reason == LeaveReason::running) continue;
    if (a.from < 0 && now_ns - asked_ns_ < kAnswerTimeNs) return false;
    found = found || (a.from >= 0 && a.issued < mine.sequence);
  }
  return found;
}

std::string RollCall::sentence(const Fingerprint& mine, const Group& group, const std::vector<Departure>& departures) const {
  std::vector<int> silent, in_it;
  std::map<std::string, std::vector<int>> others;  // ranks that are in the same state share a phrase
  for (size_t i = 0; i < group.members.size(); ++i) {
    const int r = group.members[i];
    if (static_cast<int>(i) == group.rank) continue;
    const ControlMessage& a = answers_[static_cast<size_t>(r)];
    const Departure& left = departures[static_cast<size_t>(r)];
    const std::string op = fmt::format("op#{}", mine.sequence);
    if (a.from < 0 && left.reason == LeaveReason::running) {
      silent.push_back(r);
    } else if (a.from < 0 && left.reason == LeaveReason::finished) {
      others["left: its program ended"].push_back(r);
    } else if (left.reason == LeaveReason::finished && a.issued < mine.sequence) {
      others[fmt::format("left without calling {} (program ended, called {})", op, a.issued)].push_back(r);
    } else if (left.reason != LeaveReason::running && left.reason != LeaveReason::finished) {
      others[fmt::format("left with an error: {}", left.text)].push_back(r);
    } else if (a.issued < mine.sequence) {
      others[fmt::format("answers but has not called {} (called {}{})", op, a.issued,
                         a.running ? ", busy with " + describe(a.now) : ", idle")]
          .push_back(r);
    } else if (a.running && a.now.group == mine.group && a.now.sequence == mine.sequence) {
      in_it.push_back(r);
    } else {
      others[fmt::format("answers and {}", a.running ? "is busy with " + describe(a.now) : "has done " + op)].push_back(r);
    }
  }
  std::string out;
  const auto add = [&out](std::string phrase) { out += (out.empty() ? "" : "; ") + std::move(phrase); };
  if (!silent.empty()) add(fmt::format("no answer from {}: dead or stopped", rank_list(silent)));
  for (const auto& [phrase, ranks] : others) add(fmt::format("{} {}", rank_list(ranks), phrase));
  if (!in_it.empty()) add(fmt::format("{} waiting in it too", rank_list(in_it)));
  return out;
}

std::string RollCall::missing(int self) const {
  std::vector<int> silent;
  for (int r = 0; r < static_cast<int>(answers_.size()); ++r) {
    if (r != self && !answered(r)) silent.push_back(r);
  }
  return silent.empty() ? "all ranks answer" : "no answer from " + rank_list(silent);
}

}  // namespace rz::comm
