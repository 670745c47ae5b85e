// Writes into guest memory that stop at the first failure.
#pragma once

#include <cstdint>
#include <span>
#include <utility>

#include "continuo/kvm/memory.h"

namespace continuo::vmm {

class GuestWriter {
  public:
    explicit GuestWriter(kvm::GuestMemory& memory) : memory_{memory} {}
    template <class T>
    void put(std::uint64_t gpa, const T& value) {
        if (status_) status_ = memory_.write_object(gpa, value);
    }
    void put_bytes(std::uint64_t gpa, std::span<const std::byte> bytes) {
        if (status_) status_ = memory_.write(gpa, bytes);
    }
    kvm::Status status() { return std::move(status_); }

  private:
    kvm::GuestMemory& memory_;
    kvm::Status status_{};
};

}  // namespace continuo::vmm
