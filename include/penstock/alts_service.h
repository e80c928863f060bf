// Credentials that let a handshaker service agree on keys: ALTS as gRPC has it, where a trusted
// service of the host (grpc.gcp.HandshakerService) speaks for both ends.
//
// This library speaks the service's messages and moves its frames to and from the peer; how the
// service is reached is the caller's: an AltsChannel for each handshake. Streams are in gRPC mode;
// docs/wire-formats.md has the messages and the rules.
#ifndef PENSTOCK_ALTS_SERVICE_H_
#define PENSTOCK_ALTS_SERVICE_H_

#include <penstock/export.h>
#include <penstock/handshake.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/status/statusor.h"

PENSTOCK_BEGIN_NAMESPACE

// One call of grpc.gcp.HandshakerService.DoHandshake, a stream of messages each way. Owned and used
// by one Handshaker, where that is used; ending it ends the call.
class PENSTOCK_EXPORT AltsChannel {
 public:
  // Takes one serialised grpc.gcp.HandshakerResp; or, once and for the last time, the error or the
  // end (any status) of the call.
  using ResponseCallback = absl::AnyInvocable<void(absl::StatusOr<std::string>)>;

  virtual ~AltsChannel() = default;
  // Once, before the first request. `on_response` runs on the thread where the Handshaker is used,
  // which with Seal is the loop's whatever executor there is, inside SendRequest or later, and
  // never after this channel's destruction, which may happen while it runs.
  virtual void Start(ResponseCallback on_response) = 0;
  // Sends one serialised grpc.gcp.HandshakerReq. The next one follows after its response.
  virtual void SendRequest(std::string request) = 0;
};

struct AltsServiceOptions {
  struct RpcVersion {
    uint32_t major = 0;
    uint32_t minor = 0;
  };

  // Opens the call for one handshake; its error is NewHandshaker's.
  std::function<absl::StatusOr<std::unique_ptr<AltsChannel>>()> open_channel;
  // In order of preference.
  std::vector<std::string> application_protocols = {"grpc"};
  std::vector<RecordProtocol> record_protocols = {RecordProtocol::kGcmAes128Rekey};
  // A client's server must be one of these service accounts; empty: any that the service vouches
  // for. HandshakeOptions::verify_name asks the service for its secure naming check besides.
  std::vector<std::string> target_service_accounts = {};
  // This side's service account, where the host has several; empty: the service chooses.
  std::string local_service_account = {};
  // The RPC protocol versions that this side speaks; the peer's must meet them.
  RpcVersion max_rpc_version = {.major = 2, .minor = 1};
  RpcVersion min_rpc_version = {.major = 2, .minor = 1};
  // Handshakes of each role at one time; beyond it NewHandshaker fails with ResourceExhausted.
  size_t handshakes_max = 100;
};

// InvalidArgument when open_channel or a list of protocols is empty.
PENSTOCK_EXPORT absl::StatusOr<CredentialsPtr> AltsServiceCredentials(AltsServiceOptions options);

PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_ALTS_SERVICE_H_
