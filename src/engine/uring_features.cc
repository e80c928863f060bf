#include "engine/uring_features.h"

#include <sys/socket.h>
#include <sys/un.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstdlib>
#include <iterator>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "base/error.h"
#include "base/fd.h"
#include "engine/uring_buffers.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {
namespace {

constexpr unsigned kTestEntries = 8;
constexpr uint64_t kAcceptToken = 1;
constexpr uint64_t kReceiveToken = 2;
// A completion the self-test waits for is there at once or never.
constexpr __kernel_timespec kPatience{.tv_sec = 1, .tv_nsec = 0};

// What PENSTOCK_URING_DISABLE can name, a bit each.
enum Part : uint8_t {
  kRing = 1,
  kDeferTaskrun = 2,
  kCoopTaskrun = 4,
  kMultishotAccept = 8,
  kMultishotReceive = 16,
};
constexpr struct {
  absl::string_view name;
  Part part;
} kParts[] = {{"io_uring", kRing},
              {"defer_taskrun", kDeferTaskrun},
              {"coop_taskrun", kCoopTaskrun},
              {"multishot_accept", kMultishotAccept},
              {"multishot_receive", kMultishotReceive}};

absl::StatusOr<uint8_t> DisabledParts() {
  const char* const list = std::getenv("PENSTOCK_URING_DISABLE");
  uint8_t disabled = 0;
  if (list == nullptr) return disabled;
  for (const absl::string_view name : absl::StrSplit(list, ',', absl::SkipEmpty())) {
    const auto* const known = std::find_if(std::begin(kParts), std::end(kParts),
                                           [name](const auto& each) { return each.name == name; });
    if (known == std::end(kParts)) {
      const auto append = [](std::string* out, const auto& each) {
        out->append(each.name.data(), each.name.size());
      };
      return absl::InvalidArgumentError(absl::StrCat("environment PENSTOCK_URING_DISABLE: '", name,
                                                     "' is none of ",
                                                     absl::StrJoin(kParts, ", ", append)));
    }
    disabled |= known->part;
  }
  return disabled;
}

// Exhaustion is an error; everything else that keeps a ring from being made means "not here".
absl::Status SetupError(int error, const char* call) {
  if (error == ENOMEM || error == EMFILE || error == ENFILE) {
    return ErrnoStatus(error, absl::StrCat(call, " (locked memory or descriptors)"), nullptr);
  }
  const char* const why = error == ENOSYS   ? "the kernel has no io_uring"
                          : error == EPERM  ? "forbidden for this process"
                          : error == EACCES ? "forbidden by a security module"
                                            : "a ring cannot be made";
  return absl::UnimplementedError(
      absl::StrCat("io_uring: ", why, " (", ErrnoStatus(error, call, nullptr).message(), ")"));
}

class TestRing {
 public:
  explicit TestRing(Sys& sys) : sys_(sys) {}
  ~TestRing() {
    if (made_) io_uring_queue_exit(&ring_);
  }
  // And starts it, as the engine starts its own.
  absl::Status Make(uint32_t flags) {
    flags |= IORING_SETUP_R_DISABLED;
    absl::Status status = SetUpRing(sys_, kTestEntries, kTestEntries * 2, flags, &ring_);
    made_ = status.ok();
    if (!made_) return status;
    const int enabled = EnableRing(sys_, ring_);
    return enabled < 0 ? SetupError(-enabled, "io_uring_register") : status;
  }
  io_uring* get() { return &ring_; }

  // What the kernel does not take now, Await submits.
  void Submit() {
    if (sys_.RingEnter() >= 0) io_uring_submit(&ring_);
  }
  // Submits what was prepared and waits for the next completion of `token`: 0, or the -errno of the
  // wait.
  int Await(uint64_t token, io_uring_cqe* out) {
    for (int i = 0; i < 4; ++i) {
      io_uring_cqe* cqe = nullptr;
      __kernel_timespec patience = kPatience;
      int result = sys_.RingEnter();
      if (result >= 0) {
        result = io_uring_submit_and_wait_timeout(&ring_, &cqe, 1, &patience, nullptr);
      }
      if (result == -EINTR) continue;
      if (result < 0) return WaitError(result);
      if (cqe == nullptr) break;
      *out = *cqe;
      io_uring_cqe_seen(&ring_, cqe);
      if (out->user_data == token) return 0;
    }
    return -ETIME;
  }

 private:
  // io_uring_enter(2): EAGAIN is a kernel out of memory or other resources.
  static int WaitError(int result) { return result == -EAGAIN ? -ENOMEM : result; }

  Sys& sys_;
  io_uring ring_{};
  bool made_ = false;
};

// Whether a call failed because something ran out, which is passed on. Any other failure only means
// that the features behind it cannot be shown to work.
bool Exhausted(int64_t result) {
  return result == -EMFILE || result == -ENFILE || result == -ENOMEM || result == -ENOBUFS;
}

absl::Status IfExhausted(int64_t result) {
  if (!Exhausted(result)) return absl::OkStatus();
  return ErrnoStatus(static_cast<int>(-result), "io_uring: try its features", nullptr);
}

// A listening socket with an abstract name the kernel picks (unix(7), autobind), and its address.
int ListenAnywhere(Sys& sys, sockaddr_un* address, socklen_t* length) {
  const int fd = sys.Socket(AF_UNIX, SOCK_STREAM, 0);
  if (fd < 0) return fd;
  *address = {};
  address->sun_family = AF_UNIX;
  auto* const name = reinterpret_cast<sockaddr*>(address);
  *length = sizeof *address;
  int result = sys.Bind(fd, name, sizeof(sa_family_t));
  if (result >= 0) result = sys.Listen(fd, 1);
  if (result >= 0) result = sys.LocalName(fd, name, length);
  if (result >= 0) return fd;
  sys.Close(fd);
  return result;
}

// Accepts on `listener` with a multishot accept; the accepted descriptor, or negative.
int TryMultishotAccept(TestRing& ring, int listener, bool* multishot) {
  io_uring_sqe* const sqe = io_uring_get_sqe(ring.get());
  io_uring_prep_multishot_accept(sqe, listener, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
  sqe->user_data = kAcceptToken;
  io_uring_cqe cqe;
  if (const int error = ring.Await(kAcceptToken, &cqe); error < 0) return error;
  *multishot = cqe.res >= 0 && (cqe.flags & IORING_CQE_F_MORE);
  return cqe.res;
}

// OK as well where the features do not work; what ran out is passed on.
absl::Status TestReceive(Sys& sys, TestRing& ring, int from, int to, UringFeatures* features) {
  BufferRing buffers(sys);
  alignas(16) char memory[2][64];
  if (absl::Status status = buffers.Register(ring.get(), 8, SIZE_MAX); !status.ok()) {
    return absl::IsResourceExhausted(status) ? status : absl::OkStatus();
  }
  features->buffer_ring = true;
  buffers.AddRaw(memory[0], sizeof memory[0], 0);
  buffers.AddRaw(memory[1], sizeof memory[1], 1);
  buffers.Publish();
  io_uring_sqe* const sqe = io_uring_get_sqe(ring.get());
  io_uring_prep_recv_multishot(sqe, to, nullptr, 0, 0);
  sqe->flags |= IOSQE_BUFFER_SELECT;
  sqe->buf_group = BufferRing::kGroup;
  sqe->user_data = kReceiveToken;
  ring.Submit();
  if (const int64_t sent = sys.Send(from, "x", 1); sent != 1) return IfExhausted(sent);
  io_uring_cqe cqe;
  if (const int error = ring.Await(kReceiveToken, &cqe); error < 0) return IfExhausted(error);
  // ENOBUFS is no exhaustion here: the kernel does not take the buffers it was lent.
  if (cqe.res < 0 && cqe.res != -ENOBUFS) return IfExhausted(cqe.res);
  features->multishot_receive =
      cqe.res == 1 && (cqe.flags & IORING_CQE_F_BUFFER) && (cqe.flags & IORING_CQE_F_MORE);
  return absl::OkStatus();
}

// OK as well where features do not work; what ran out is passed on.
absl::Status TestSockets(Sys& sys, TestRing& ring, UringFeatures* features) {
  sockaddr_un address;
  socklen_t length;
  UniqueFd listener(sys, ListenAnywhere(sys, &address, &length));
  if (listener.get() < 0) return IfExhausted(listener.get());
  UniqueFd client(sys, sys.Socket(AF_UNIX, SOCK_STREAM, 0));
  if (client.get() < 0) return IfExhausted(client.get());
  const int connected = sys.Connect(client.get(), reinterpret_cast<sockaddr*>(&address), length);
  if (connected < 0) return IfExhausted(connected);
  bool multishot = false;
  UniqueFd accepted(sys, TryMultishotAccept(ring, listener.get(), &multishot));
  if (Exhausted(accepted.get())) return IfExhausted(accepted.get());
  features->multishot_accept = multishot;
  if (accepted.get() < 0) accepted = UniqueFd(sys, sys.Accept(listener.get(), nullptr, nullptr));
  if (accepted.get() < 0) return IfExhausted(accepted.get());
  return TestReceive(sys, ring, client.get(), accepted.get(), features);
}

}  // namespace

absl::Status SetUpRing(Sys& sys, unsigned entries, unsigned completions, uint32_t flags,
                       io_uring* ring) {
  constexpr char kCall[] = "io_uring_setup";
  if (const int refused = sys.RingSetup(); refused < 0) return SetupError(-refused, kCall);
  io_uring_params params{};
  params.flags = flags | IORING_SETUP_CQSIZE | IORING_SETUP_CLAMP;
  params.cq_entries = completions;
  if (const int result = io_uring_queue_init_params(entries, ring, &params); result < 0) {
    return SetupError(-result, kCall);
  }
  // The engine's least kernel: waits with a time limit (EXT_ARG, 5.11) and multishot polls, which
  // have no flag of their own but came with this one.
  if (!(params.features & IORING_FEAT_EXT_ARG) || !(params.features & IORING_FEAT_RSRC_TAGS)) {
    io_uring_queue_exit(ring);
    return absl::UnimplementedError("io_uring: no multishot poll (kernel 5.13)");
  }
  return absl::OkStatus();
}

int EnableRing(Sys& sys, const io_uring& ring) {
  return sys.RingRegister(ring.ring_fd, IORING_REGISTER_ENABLE_RINGS, nullptr, 0);
}

uint32_t SetupFlags(const UringFeatures& features) {
  if (features.defer_taskrun) return IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN;
  if (features.coop_taskrun) return IORING_SETUP_COOP_TASKRUN;
  return 0;
}

absl::StatusOr<UringFeatures> ProbeUring(Sys& sys) {
  const absl::StatusOr<uint8_t> disabled = DisabledParts();
  if (!disabled.ok()) return disabled.status();
  UringFeatures candidates[] = {{.defer_taskrun = true}, {.coop_taskrun = true}, {}};
  if (*disabled & kRing) return absl::UnimplementedError("io_uring: disabled by environment");
  absl::Status status;
  for (UringFeatures features : candidates) {
    if (features.defer_taskrun && (*disabled & kDeferTaskrun)) continue;
    if (features.coop_taskrun && (*disabled & kCoopTaskrun)) continue;
    TestRing ring(sys);
    status = ring.Make(SetupFlags(features));
    if (absl::IsResourceExhausted(status)) return status;
    if (!status.ok()) continue;
    status = TestSockets(sys, ring, &features);
    if (!status.ok()) return status;
    if (*disabled & kMultishotAccept) features.multishot_accept = false;
    if (*disabled & kMultishotReceive) features.multishot_receive = false;
    return features;
  }
  return status;
}

}  // namespace internal
PENSTOCK_END_NAMESPACE
