// Environment: where a conformance test runs: which engines serve the two ends of its streams, over
// which kind of address, and how its loops are driven. The tests know only this interface, so one
// contract is checked on every engine, real or simulated.
//
// Everything runs on the test's own thread.
#ifndef PENSTOCK_TESTS_TESTING_ENVIRONMENT_H_
#define PENSTOCK_TESTS_TESTING_ENVIRONMENT_H_

#include <penstock/address.h>
#include <penstock/export.h>
#include <penstock/loop.h>
#include <penstock/stream.h>

#include <functional>
#include <memory>
#include <ostream>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "testing/sanitized.h"

namespace penstock::testing {
class SimWorld;
}  // namespace penstock::testing

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

class Environment {
 public:
  virtual ~Environment() = default;

  // Empty, or why this machine cannot offer this environment: the reason a test gives for skipping.
  virtual std::string missing() = 0;
  // A loop whose default engine is the one that listens.
  virtual absl::StatusOr<std::unique_ptr<Loop>> NewLoop(LoopOptions options) = 0;
  // An address nobody listens on, to give to Listen; new at each call.
  virtual SocketAddress NewAddress() = 0;
  virtual EngineKind listen_engine() const = 0;
  virtual EngineKind connect_engine() const = 0;
  // True when the streams are kernel sockets, which a plain socket can connect to and understand.
  virtual bool has_kernel() const = 0;
  // True when streams change engine as they please.
  virtual bool moves() const { return false; }
  // False when driving a loop also runs the others.
  virtual bool drives_alone() const { return true; }
  // Bytes that a stream must have received before it can pass any of them on.
  virtual size_t unit_max() const { return 1; }
  // What is simulated, or null where the kernel is real.
  virtual testing::SimWorld* world() { return nullptr; }
  // Makes a stream of the kind under test from one that was connected or accepted: at once, or in a
  // later turn.
  using StreamCallback = absl::AnyInvocable<void(absl::StatusOr<StreamPtr>) &&>;
  virtual void Wrap(StreamPtr stream, bool server, StreamCallback done) {
    (void)server;
    std::move(done)(std::move(stream));
  }
  // Runs turns of `loops` until `done`; false when it still is not after a generous real time.
  virtual bool Drive(std::span<Loop* const> loops, absl::FunctionRef<bool()> done) = 0;
  // Runs turns until no loop finds anything more to do.
  virtual void Settle(std::span<Loop* const> loops) = 0;
};

// One row of a parameterized suite.
struct EnvironmentCase {
  std::string name;  // a gtest name: letters and digits
  std::function<std::unique_ptr<Environment>()> make;
};

void PrintTo(const EnvironmentCase& which, std::ostream* out);

// Every combination of engines (each alone, and the two on one loop) with every address family.
std::vector<EnvironmentCase> KernelEnvironments();
// These, and the simulated engines in each of their styles.
std::vector<EnvironmentCase> AllEnvironments();
// One per engine, over IPv4: for tests that addresses make no difference to.
std::vector<EnvironmentCase> KernelEngines();
// These, and the simulated engines in each of their styles.
std::vector<EnvironmentCase> AllEngines();

// Some of all these, of every kind, with streams that change engine all the time.
std::vector<EnvironmentCase> MovingEnvironments();

// Sealed streams over some of the above, in both record modes. None in a build without them.
std::vector<EnvironmentCase> SealedEnvironments();
// One per engine and mode, over IPv4.
std::vector<EnvironmentCase> SealedEngines();

// Streams over RDMA endpoints, which are over some of the above. None in a build without them.
std::vector<EnvironmentCase> RdmaStreamEnvironments();

// Drive and Settle for loops of the real kernel, also without an environment.
bool DriveLoops(std::span<Loop* const> loops, absl::FunctionRef<bool()> done);
void SettleLoops(std::span<Loop* const> loops);

// Empty, or why `engine` cannot be had here.
std::string MissingEngine(EngineKind engine);
// The same of the first of the two real ones that cannot be had.
std::string MissingEngine();

using testing::kSanitized;

// True under a sanitizer and, told so by PENSTOCK_TESTS_SLOW=1, on an emulated machine: tests scale
// their counts down and time bounds up.
bool IsSlow();

// `count`, or a tenth of it where tests are slow.
int Scaled(int count);

// A new folder that is removed, with the sockets in it, at the end.
class ScratchFolder {
 public:
  ScratchFolder();
  ~ScratchFolder();
  ScratchFolder(const ScratchFolder&) = delete;
  ScratchFolder& operator=(const ScratchFolder&) = delete;
  std::string NewPath();

 private:
  std::string path_;
  int next_ = 0;
};

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_TESTS_TESTING_ENVIRONMENT_H_
