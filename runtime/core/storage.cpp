#include "runtime/core/storage.h"

#include "runtime/core/allocator.h"
#include "runtime/core/error.h"
#include "runtime/core/rank_context.h"

namespace rz {

namespace {

// What collectives read and write.
bool is_for_peers(Category category) {
  return category == Category::parameter || category == Category::gradient || category == Category::communication;
}

}  // namespace

Storage::Storage(size_t bytes, Category category, std::string owner)
    : size_bytes_(bytes), dry_(dry_run()), category_(category), owner_(std::move(owner)), tracker_(RankContext::current()->shared_memory()) {}

std::shared_ptr<Storage> Storage::make_released(size_t bytes, Category category, std::string owner) {
  return std::shared_ptr<Storage>(new Storage(bytes, category, std::move(owner)));
}

std::shared_ptr<Storage> Storage::make(size_t bytes, Category category, std::string owner) {
  auto storage = make_released(bytes, category, std::move(owner));
  storage->materialize();
  return storage;
}

Storage::~Storage() { release(); }

void Storage::materialize() {
  if (data_ != nullptr) return;
  // An empty storage still gets an address, so that "materialized" and "has data" stay one thing.
  static std::byte empty[allocator::kAlignment];
  if (size_bytes_ == 0) {
    data_ = empty;
    return;
  }
  tracker_->on_materialize(*this, static_cast<int64_t>(size_bytes_));
  try {
    data_ = static_cast<std::byte*>(dry_ ? allocator::reserved(size_bytes_) : allocator::allocate(size_bytes_, is_for_peers(category_)));
  } catch (...) {
    tracker_->on_release(*this, static_cast<int64_t>(size_bytes_));
    throw;
  }
}

void Storage::release() noexcept {
  if (data_ == nullptr) return;
  if (size_bytes_ > 0) {
    if (!dry_) allocator::deallocate(data_, size_bytes_);
    tracker_->on_release(*this, static_cast<int64_t>(size_bytes_));
  }
  data_ = nullptr;
}

void Storage::throw_released() const {
  throw Error(fmt::format("'{}' read while released ({} bytes, {}): it must be gathered or materialized first", owner_, size_bytes_, name(category_)));
}

}  // namespace rz
