#include "secure/alts_messages.h"

#include <penstock/record_protocol.h>

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "secure/alts_wire.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {
namespace {

// HandshakeProtocol.ALTS and NetworkProtocol.TCP.
constexpr uint64_t kProtocolAlts = 2;
constexpr uint64_t kNetworkTcp = 1;

std::string EncodeVersions(const AltsServiceOptions& options) {
  const auto version = [](const AltsRpcVersion& v) {
    ProtoWriter writer;
    writer.Number(1, v.major);
    writer.Number(2, v.minor);
    return writer.Take();
  };
  ProtoWriter writer;
  writer.Element(1, version(options.max_rpc_version));
  writer.Element(2, version(options.min_rpc_version));
  return writer.Take();
}

std::string EncodeAccount(std::string_view account) {
  ProtoWriter writer;
  writer.Element(1, account);
  return writer.Take();
}

// Nothing for what is no TCP address.
std::string EncodeEndpoint(const SocketAddress& address) {
  if (address.family() != AF_INET && address.family() != AF_INET6) return "";
  std::string ip = address.ToString();  // "1.2.3.4:5" or "[::1]:5"
  ip.resize(ip.rfind(':'));
  if (ip.front() == '[') ip = ip.substr(1, ip.size() - 2);
  ProtoWriter writer;
  writer.Bytes(1, ip);
  writer.Number(2, address.port());
  writer.Number(3, kNetworkTcp);
  return writer.Take();
}

void AddRecordProtocols(ProtoWriter& writer, uint32_t field, const AltsServiceOptions& options) {
  for (const RecordProtocol protocol : options.record_protocols) {
    writer.Element(field, RecordProtocolName(protocol));
  }
}

bool ReadVersion(std::string_view bytes, AltsRpcVersion& version) {
  ProtoReader reader(bytes);
  while (reader.Next()) {
    if (reader.field() == 1) version.major = static_cast<uint32_t>(reader.Number());
    if (reader.field() == 2) version.minor = static_cast<uint32_t>(reader.Number());
  }
  return reader.ok();
}

bool ReadVersions(std::string_view bytes, AltsResult& result) {
  result.has_peer_versions = true;
  ProtoReader reader(bytes);
  bool ok = true;
  while (reader.Next()) {
    if (reader.field() == 1) ok = ReadVersion(reader.Bytes(), result.peer_max_version) && ok;
    if (reader.field() == 2) ok = ReadVersion(reader.Bytes(), result.peer_min_version) && ok;
  }
  return ok && reader.ok();
}

bool ReadAccount(std::string_view bytes, std::string& account) {
  ProtoReader reader(bytes);
  while (reader.Next()) {
    if (reader.field() == 1) account = reader.Bytes();
  }
  return reader.ok();
}

bool ReadResult(std::string_view bytes, AltsResult& result) {
  ProtoReader reader(bytes);
  bool ok = true;
  while (reader.Next()) {
    switch (reader.field()) {
      case 1:
        result.application_protocol = reader.Bytes();
        break;
      case 2:
        result.record_protocol = reader.Bytes();
        break;
      case 3: {
        const std::string_view data = reader.Bytes();
        result.key_data_size = data.size();
        result.key = SecretKey(data.substr(0, RecordKeySize(RecordProtocol::kGcmAes128Rekey)));
        break;
      }
      case 4:
        ok = ReadAccount(reader.Bytes(), result.peer_account) && ok;
        break;
      case 5:
        result.has_local_identity = true;
        break;
      case 7:
        ok = ReadVersions(reader.Bytes(), result) && ok;
        break;
      case 8:
        result.max_frame_size = static_cast<uint32_t>(reader.Number());
        break;
      default:
        break;
    }
  }
  return ok && reader.ok();
}

bool ReadStatus(std::string_view bytes, AltsResponse& response) {
  response.status_code = 0;
  ProtoReader reader(bytes);
  while (reader.Next()) {
    if (reader.field() == 1) response.status_code = static_cast<uint32_t>(reader.Number());
    if (reader.field() == 2) response.status_details = reader.Bytes();
  }
  return reader.ok();
}

}  // namespace

std::string EncodeAltsClientStart(const AltsStart& start) {
  ProtoWriter client;
  client.Number(1, kProtocolAlts);
  for (const std::string& name : start.options.application_protocols) client.Element(2, name);
  AddRecordProtocols(client, 3, start.options);
  for (const std::string& account : start.options.target_service_accounts) {
    client.Element(4, EncodeAccount(account));
  }
  if (!start.options.local_service_account.empty()) {
    client.Element(5, EncodeAccount(start.options.local_service_account));
  }
  client.Bytes(6, EncodeEndpoint(start.handshake.local));
  client.Bytes(7, EncodeEndpoint(start.handshake.peer));
  client.Bytes(8, start.handshake.verify_name);
  client.Element(9, EncodeVersions(start.options));
  client.Number(10, start.max_frame_size);
  ProtoWriter request;
  request.Element(1, client.bytes());
  return request.Take();
}

std::string EncodeAltsServerStart(const AltsStart& start, std::string_view in_bytes) {
  ProtoWriter parameters;
  AddRecordProtocols(parameters, 1, start.options);
  if (!start.options.local_service_account.empty()) {
    parameters.Element(2, EncodeAccount(start.options.local_service_account));
  }
  ProtoWriter entry;  // of the map from handshake protocols
  entry.Number(1, kProtocolAlts);
  entry.Element(2, parameters.bytes());

  ProtoWriter server;
  for (const std::string& name : start.options.application_protocols) server.Element(1, name);
  server.Element(2, entry.bytes());
  server.Bytes(3, in_bytes);
  server.Bytes(4, EncodeEndpoint(start.handshake.local));
  server.Bytes(5, EncodeEndpoint(start.handshake.peer));
  server.Element(6, EncodeVersions(start.options));
  server.Number(7, start.max_frame_size);
  ProtoWriter request;
  request.Element(2, server.bytes());
  return request.Take();
}

std::string EncodeAltsNext(std::string_view in_bytes) {
  ProtoWriter next;
  next.Bytes(1, in_bytes);
  ProtoWriter request;
  request.Element(3, next.bytes());
  return request.Take();
}

absl::StatusOr<AltsResponse> DecodeAltsResponse(std::string_view bytes) {
  if (bytes.size() > kAltsResponseMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("a response of ", bytes.size(), " bytes; ", kAltsResponseMax, " is the most"));
  }
  AltsResponse response;
  ProtoReader reader(bytes);
  bool ok = true;
  while (reader.Next()) {
    switch (reader.field()) {
      case 1:
        response.out_frames = reader.Bytes();
        break;
      case 2:
        response.bytes_consumed =
            static_cast<uint32_t>(std::min<uint64_t>(reader.Number(), UINT32_MAX));
        break;
      case 3:
        ok = ReadResult(reader.Bytes(), response.result.emplace()) && ok;
        break;
      case 4:
        ok = ReadStatus(reader.Bytes(), response) && ok;
        break;
      default:
        break;
    }
  }
  if (!ok || !reader.ok()) return absl::InvalidArgumentError("a response that is no message");
  return response;
}

}  // namespace internal
PENSTOCK_END_NAMESPACE
