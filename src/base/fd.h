// UniqueFd: owns one file descriptor and closes it through Sys, so that tests see every close.
//
// Any thread, one at a time. The Sys must outlive it.
#ifndef PENSTOCK_BASE_FD_H_
#define PENSTOCK_BASE_FD_H_

#include <utility>

#include "base/sys.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

class UniqueFd {
 public:
  UniqueFd() = default;
  UniqueFd(Sys& sys, int fd) : sys_(&sys), fd_(fd) {}
  UniqueFd(UniqueFd&& other) noexcept : sys_(other.sys_), fd_(other.Release()) {}
  UniqueFd& operator=(UniqueFd&& other) noexcept {
    if (this != &other) {
      Reset();
      sys_ = other.sys_;
      fd_ = other.Release();
    }
    return *this;
  }
  ~UniqueFd() { Reset(); }

  // -1 when it owns none.
  int get() const { return fd_; }
  explicit operator bool() const { return fd_ >= 0; }

  // The caller closes it from now on.
  int Release() { return std::exchange(fd_, -1); }

  // Closes now. A failing close(2) still frees the descriptor, so there is nothing to report.
  void Reset() {
    if (fd_ >= 0) sys_->Close(Release());
  }

 private:
  Sys* sys_ = nullptr;
  int fd_ = -1;
};

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_BASE_FD_H_
