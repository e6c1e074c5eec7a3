#include "comm/communicator.h"

#include "comm/dry.h"
#include "comm/progress.h"

namespace rz::comm {

struct Communicator::Prepared : Progress::Operation {};

namespace {

template <class Operation>
Operation operation_of(const std::shared_ptr<Group>& group, CollectiveKind kind, size_t count, DType dtype,
                                 const CollectiveOptions& options) {
  Operation o;
  o.group = group;
  o.print.kind = kind;
  o.print.count = count;
  o.print.dtype = dtype;
  o.print.order = options.order;
  o.print.set_name(options.name);
  o.at_once = options.at_once;
  return o;
}

void check_op(DType dtype, ReduceOp op, CollectiveKind kind) {
  RZ_CHECK(op != ReduceOp::mean || is_floating(dtype), "{}: mean needs a floating-point type, not {}", name(kind), name(dtype));
}

// The same on every member: from what they all know. Never 0, the id of the whole job.
uint32_t group_id(uint32_t parent, uint32_t split, int color) {
  uint64_t h = 0xcbf29ce484222325ULL;
  for (const uint32_t v : {parent, split, static_cast<uint32_t>(color)}) {
    for (int i = 0; i < 4; ++i) h = (h ^ ((v >> (8 * i)) & 0xFFu)) * 0x100000001b3ULL;
  }
  return static_cast<uint32_t>(h ^ (h >> 32)) | 1u;
}

}  // namespace

Communicator::Communicator(std::shared_ptr<Progress> progress, std::shared_ptr<Group> group)
    : progress_(std::move(progress)), group_(std::move(group)) {}
Communicator::Communicator(std::shared_ptr<Dry> dry, std::shared_ptr<Group> group) : dry_(std::move(dry)), group_(std::move(group)) {}
Communicator::~Communicator() = default;
Communicator::Communicator(Communicator&&) noexcept = default;
Communicator& Communicator::operator=(Communicator&&) noexcept = default;

int Communicator::rank() const { return group_->rank; }
int Communicator::size() const { return group_->size(); }
int Communicator::world_rank() const { return dry_ ? dry_->rank() : progress_->rank(); }
int Communicator::world_size() const { return dry_ ? dry_->size() : progress_->size(); }
WireStats Communicator::wire_stats() const { return dry_ ? dry_->stats() : progress_->wire_stats(); }
bool Communicator::shares_memory() const { return !dry_ && progress_->shares_memory(*group_); }
size_t Communicator::scratch_bytes() const { return dry_ ? dry_->scratch_bytes() : progress_->scratch_bytes(); }

Work Communicator::issue(Prepared&& operation) {
  if (dry_) return dry_->issue(operation.print, *group_);
  return progress_->issue(std::move(operation));
}

Work Communicator::all_reduce(void* data, size_t count, DType dtype, ReduceOp op, CollectiveOptions options) {
  check_op(dtype, op, CollectiveKind::all_reduce);
  auto o = operation_of<Prepared>(group_, CollectiveKind::all_reduce, count, dtype, options);
  o.print.op = op;
  o.data = static_cast<std::byte*>(data);
  return issue(std::move(o));
}

Work Communicator::reduce_scatter(void* full, void* own, size_t count, DType dtype, ReduceOp op, CollectiveOptions options) {
  check_op(dtype, op, CollectiveKind::reduce_scatter);
  auto o = operation_of<Prepared>(group_, CollectiveKind::reduce_scatter, count, dtype, options);
  o.print.op = op;
  o.data = static_cast<std::byte*>(full);
  o.own = static_cast<std::byte*>(own);
  return issue(std::move(o));
}

Work Communicator::all_gather(const void* own, void* full, size_t count, DType dtype, CollectiveOptions options) {
  options.order = Order::ring;  // nothing is added
  auto o = operation_of<Prepared>(group_, CollectiveKind::all_gather, count, dtype, options);
  o.data = static_cast<std::byte*>(full);
  o.own = static_cast<std::byte*>(const_cast<void*>(own));  // read only
  return issue(std::move(o));
}

Work Communicator::broadcast(void* data, size_t count, DType dtype, int root, CollectiveOptions options) {
  RZ_CHECK(root >= 0 && root < size(), "broadcast: root {} is not a rank of {}", root, size());
  options.order = Order::ring;
  auto o = operation_of<Prepared>(group_, CollectiveKind::broadcast, count, dtype, options);
  o.print.root = root;
  o.data = static_cast<std::byte*>(data);
  return issue(std::move(o));
}

Work Communicator::barrier(CollectiveOptions options) {
  options.order = Order::ring;
  return issue(operation_of<Prepared>(group_, CollectiveKind::barrier, 0, DType::u8, options));
}

ProbeResult Communicator::probe() {
  ProbeResult result;
  auto o = operation_of<Prepared>(group_, CollectiveKind::probe, 0, DType::u8, {.name = "probe"});
  o.data = reinterpret_cast<std::byte*>(&result);
  issue(std::move(o)).wait();
  return result;
}

Communicator Communicator::split(int color, const std::function<int(int)>& color_of) {
  RZ_CHECK(!dry_ || color_of, "a dry communicator of {} ranks cannot be split without knowing their colours", size());
  const auto n = static_cast<size_t>(size());
  std::vector<int32_t> colors(n);
  colors[static_cast<size_t>(rank())] = color;
  all_gather(&colors[static_cast<size_t>(rank())], colors.data(), n, DType::i32, {.name = "split"}).wait();
  if (dry_)
    for (size_t r = 0; r < n; ++r) colors[r] = color_of(static_cast<int>(r));
  auto group = std::make_shared<Group>();
  group->id = group_id(group_->id, group_->splits++, color);
  group->members.clear();
  for (size_t r = 0; r < n; ++r) {
    if (colors[r] != color) continue;
    if (static_cast<int>(r) == rank()) group->rank = group->size();
    group->members.push_back(group_->members[r]);
  }
  if (dry_) return {dry_, std::move(group)};
  progress_->add_group(group);
  return Communicator(progress_, std::move(group));
}

}  // namespace rz::comm
