// The flags with which every example program seals its streams.
//
//   --seal=none     plain streams
//   --seal=tls      TLS 1.3 with certificates on both sides: --cert --key --ca, and --verify-name
//                   for the side that connects
//   --seal=psk      TLS 1.3 with a shared key: --psk-file --psk-identity
//   --seal=static   a key from outside, streams as gRPC's ALTS makes them: --key-hex
//                   --record-protocol; the listening side is the ALTS server
//
// A flag of another way than the chosen one is refused.
#ifndef PENSTOCK_EXAMPLES_COMMON_SEALING_H_
#define PENSTOCK_EXAMPLES_COMMON_SEALING_H_

#include <penstock/stream.h>
#include <penstock/task.h>

#include <memory>

#include "absl/functional/any_invocable.h"
#include "absl/status/statusor.h"

namespace examples {

// What the flags ask for; cheap to copy.
class Sealing {
 public:
  // Plain streams.
  Sealing() = default;
  // Ends the program, naming the flag, when they make no sense.
  static Sealing FromFlags(bool listens);

  // Whether whoever connects first uses up the key.
  bool serves_one() const;

  // Gives the stream back, sealed, in a later turn; or, plain, at once.
  using Done = absl::AnyInvocable<void(absl::StatusOr<penstock::StreamPtr>) &&>;
  void Apply(penstock::StreamPtr stream, Done done) const;
  // The same for a coroutine. `sealing` must outlive it.
  static penstock::coro::Task<absl::StatusOr<penstock::StreamPtr>> Await(
      const Sealing& sealing, penstock::StreamPtr stream);

 private:
  struct Choice;
  std::shared_ptr<const Choice> choice_;  // null: plain
};

}  // namespace examples

#endif  // PENSTOCK_EXAMPLES_COMMON_SEALING_H_
