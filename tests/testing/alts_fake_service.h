// A scripted handshaker service, after those that gRPC's tests use: three frames in clear,
// "ClientInit", "ServerInitServerFinished", "ClientFinished", and one key for everybody.
//
// It reads requests and writes responses by protobuf's wire format, so that what it understands is
// what was sent. Single-threaded.
#ifndef PENSTOCK_TESTS_TESTING_ALTS_FAKE_SERVICE_H_
#define PENSTOCK_TESTS_TESTING_ALTS_FAKE_SERVICE_H_

#include <penstock/alts_service.h>
#include <penstock/export.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

struct AltsFakeResult {
  std::string application_protocol = "grpc";
  std::string record_protocol = "ALTSRP_GCM_AES128_REKEY";
  std::string key_data = "negotiated-key-data-for-altsrp-gcm-aes128-rekey";
  std::string peer_account = "peer@service";
  std::string peer_hostname;  // instead of the account
  bool local_identity = true;
  bool rpc_versions = true;
  AltsServiceOptions::RpcVersion max_version = {.major = 3, .minor = 0};
  AltsServiceOptions::RpcVersion min_version = {.major = 2, .minor = 0};
  uint32_t max_frame_size = 0;
};

struct AltsFakeResponse {
  std::string out_frames;
  uint64_t consumed = 0;
  bool has_result = false;
  AltsFakeResult result;
  bool has_status = true;
  uint32_t status_code = 0;
  std::string status_details;

  std::string Encode() const;
};

// What one request said.
struct AltsFakeRequest {
  enum class Kind { kNone, kClientStart, kServerStart, kNext };
  Kind kind = Kind::kNone;
  std::string in_bytes;
  uint64_t security_protocol = 0;  // the key of the map, from a server
  std::vector<std::string> application_protocols;
  std::vector<std::string> record_protocols;
  std::vector<std::string> target_accounts;
  std::string local_account;
  std::string local_ip, remote_ip;
  uint64_t local_port = 0, remote_port = 0;
  std::string target_name;
  uint64_t max_major = 0, min_minor = 0;
  uint64_t max_frame_size = 0;

  static AltsFakeRequest Decode(std::string_view bytes);
};

class AltsFakeService {
 public:
  // Answers at once, inside SendRequest; else when Deliver is called.
  bool at_once = true;
  // Changes a response before it is sent; `calls` counts them over all channels.
  std::function<void(AltsFakeResponse&, int call)> change;
  // Replaces the bytes of a response.
  std::function<void(std::string&, int call)> corrupt;
  // Ends the call instead of answering.
  absl::Status unreachable;

  std::unique_ptr<AltsChannel> Open();
  CredentialsPtr Credentials();
  // Delivers the responses that wait, those that this brings about included. False when none did.
  bool Deliver();
  const std::vector<AltsFakeRequest>& requests() const { return requests_; }
  int open_channels() const { return open_; }
  // Speaks into every open channel without having been asked.
  void Interrupt(const absl::StatusOr<std::string>& response);

 private:
  class Channel;

  AltsFakeResponse Answer(Channel& channel, const AltsFakeRequest& request);

  std::vector<AltsFakeRequest> requests_;
  std::vector<Channel*> channels_;
  int open_ = 0;
  int calls_ = 0;
};

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_TESTS_TESTING_ALTS_FAKE_SERVICE_H_
