// The messages of grpc.gcp.HandshakerService (handshaker.proto): requests written, responses read.
//
// Field numbers are in the .cc; those that nobody here uses are neither written nor looked at.
// Pure; any thread.
#ifndef PENSTOCK_SECURE_ALTS_MESSAGES_H_
#define PENSTOCK_SECURE_ALTS_MESSAGES_H_

#include <penstock/address.h>
#include <penstock/alts_service.h>
#include <penstock/export.h>
#include <penstock/handshake.h>

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

// `options` must live as long as this. What a start request says besides.
struct AltsStart {
  const AltsServiceOptions& options;
  const HandshakeOptions& handshake;
  uint32_t max_frame_size = 0;
};

std::string EncodeAltsClientStart(const AltsStart& start);
std::string EncodeAltsServerStart(const AltsStart& start, std::string_view in_bytes);
std::string EncodeAltsNext(std::string_view in_bytes);

using AltsRpcVersion = AltsServiceOptions::RpcVersion;

struct AltsResult {
  std::string application_protocol;
  std::string record_protocol;
  // The first bytes of key_data, as many as the longest key has, and how many there were in all.
  SecretKey key;
  size_t key_data_size = 0;
  // Service accounts; an identity may be a host name instead, which is none.
  std::string peer_account;
  bool has_local_identity = false;
  bool has_peer_versions = false;
  AltsRpcVersion peer_max_version;
  AltsRpcVersion peer_min_version;
  uint32_t max_frame_size = 0;
};

struct AltsResponse {
  std::string out_frames;
  uint32_t bytes_consumed = 0;
  std::optional<AltsResult> result;
  // Absent when the response had none.
  std::optional<uint32_t> status_code;
  std::string status_details;
};

// Bounds what the service may say at once; the frames of a handshake are far below.
inline constexpr size_t kAltsResponseMax = 128 * 1024;

// InvalidArgument when the bytes are too many, or no HandshakerResp.
absl::StatusOr<AltsResponse> DecodeAltsResponse(std::string_view bytes);

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_SECURE_ALTS_MESSAGES_H_
