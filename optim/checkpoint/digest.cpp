#include "optim/checkpoint/digest.h"

#include <xxhash.h>

#include <new>

namespace rz::optim::checkpoint {

uint64_t digest_of(std::string_view bytes) { return XXH64(bytes.data(), bytes.size(), 0); }

Digest::Digest() : state_(XXH64_createState()) {
  if (state_ == nullptr) throw std::bad_alloc();
  reset();
}

Digest::~Digest() { XXH64_freeState(state_); }

void Digest::add(const void* data, size_t bytes) {
  if (bytes > 0) XXH64_update(state_, data, bytes);
}

uint64_t Digest::value() const { return XXH64_digest(state_); }

void Digest::reset() { XXH64_reset(state_, 0); }

}  // namespace rz::optim::checkpoint
