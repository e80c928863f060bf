#include "testing/alts_fake_service.h"

#include <algorithm>
#include <cstdlib>
#include <deque>
#include <utility>

#include "secure/alts_wire.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {
namespace {

constexpr std::string_view kClientInit = "ClientInit";
constexpr std::string_view kServerFrames = "ServerInitServerFinished";
constexpr std::string_view kClientFinished = "ClientFinished";

std::string FakeVersion(const AltsServiceOptions::RpcVersion& version) {
  ProtoWriter writer;
  writer.Number(1, version.major);
  writer.Number(2, version.minor);
  return writer.Take();
}

std::string EncodeFakeResult(const AltsFakeResult& result) {
  ProtoWriter peer;
  peer.Bytes(1, result.peer_account);
  peer.Bytes(2, result.peer_hostname);
  ProtoWriter local;
  local.Bytes(1, "local@service");
  ProtoWriter versions;
  versions.Element(1, FakeVersion(result.max_version));
  versions.Element(2, FakeVersion(result.min_version));
  ProtoWriter writer;
  writer.Bytes(1, result.application_protocol);
  writer.Bytes(2, result.record_protocol);
  writer.Bytes(3, result.key_data);
  writer.Element(4, peer.bytes());
  if (result.local_identity) writer.Element(5, local.bytes());
  writer.Number(6, 1);
  if (result.rpc_versions) writer.Element(7, versions.bytes());
  writer.Number(8, result.max_frame_size);
  return writer.Take();
}

std::string FakeAccount(std::string_view identity) {
  ProtoReader reader(identity);
  std::string account;
  while (reader.Next()) {
    if (reader.field() == 1) account = reader.Bytes();
  }
  return account;
}

void ReadFakeEndpoint(std::string_view bytes, std::string& ip, uint64_t& port) {
  ProtoReader reader(bytes);
  while (reader.Next()) {
    if (reader.field() == 1) ip = reader.Bytes();
    if (reader.field() == 2) port = reader.Number();
  }
}

void ReadFakeVersions(std::string_view bytes, AltsFakeRequest& request) {
  ProtoReader reader(bytes);
  while (reader.Next()) {
    ProtoReader version(reader.Bytes());
    while (version.Next()) {
      if (reader.field() == 1 && version.field() == 1) request.max_major = version.Number();
      if (reader.field() == 2 && version.field() == 2) request.min_minor = version.Number();
    }
  }
}

void ReadClientStart(std::string_view bytes, AltsFakeRequest& request) {
  request.kind = AltsFakeRequest::Kind::kClientStart;
  ProtoReader reader(bytes);
  while (reader.Next()) {
    switch (reader.field()) {
      case 1:
        request.security_protocol = reader.Number();
        break;
      case 2:
        request.application_protocols.emplace_back(reader.Bytes());
        break;
      case 3:
        request.record_protocols.emplace_back(reader.Bytes());
        break;
      case 4:
        request.target_accounts.push_back(FakeAccount(reader.Bytes()));
        break;
      case 5:
        request.local_account = FakeAccount(reader.Bytes());
        break;
      case 6:
        ReadFakeEndpoint(reader.Bytes(), request.local_ip, request.local_port);
        break;
      case 7:
        ReadFakeEndpoint(reader.Bytes(), request.remote_ip, request.remote_port);
        break;
      case 8:
        request.target_name = reader.Bytes();
        break;
      case 9:
        ReadFakeVersions(reader.Bytes(), request);
        break;
      case 10:
        request.max_frame_size = reader.Number();
        break;
    }
  }
}

void ReadServerParameters(std::string_view bytes, AltsFakeRequest& request) {
  ProtoReader entry(bytes);
  while (entry.Next()) {
    if (entry.field() == 1) request.security_protocol = entry.Number();
    if (entry.field() != 2) continue;
    ProtoReader parameters(entry.Bytes());
    while (parameters.Next()) {
      if (parameters.field() == 1) request.record_protocols.emplace_back(parameters.Bytes());
      if (parameters.field() == 2) request.local_account = FakeAccount(parameters.Bytes());
    }
  }
}

void ReadServerStart(std::string_view bytes, AltsFakeRequest& request) {
  request.kind = AltsFakeRequest::Kind::kServerStart;
  ProtoReader reader(bytes);
  while (reader.Next()) {
    switch (reader.field()) {
      case 1:
        request.application_protocols.emplace_back(reader.Bytes());
        break;
      case 2:
        ReadServerParameters(reader.Bytes(), request);
        break;
      case 3:
        request.in_bytes = reader.Bytes();
        break;
      case 4:
        ReadFakeEndpoint(reader.Bytes(), request.local_ip, request.local_port);
        break;
      case 5:
        ReadFakeEndpoint(reader.Bytes(), request.remote_ip, request.remote_port);
        break;
      case 6:
        ReadFakeVersions(reader.Bytes(), request);
        break;
      case 7:
        request.max_frame_size = reader.Number();
        break;
    }
  }
}

}  // namespace

std::string AltsFakeResponse::Encode() const {
  ProtoWriter writer;
  writer.Bytes(1, out_frames);
  writer.Number(2, consumed);
  if (has_result) writer.Element(3, EncodeFakeResult(result));
  if (has_status) {
    ProtoWriter status;
    status.Number(1, status_code);
    status.Bytes(2, status_details);
    writer.Element(4, status.bytes());
  }
  return writer.Take();
}

AltsFakeRequest AltsFakeRequest::Decode(std::string_view bytes) {
  AltsFakeRequest request;
  ProtoReader reader(bytes);
  while (reader.Next()) {
    if (reader.field() == 1) ReadClientStart(reader.Bytes(), request);
    if (reader.field() == 2) ReadServerStart(reader.Bytes(), request);
    if (reader.field() != 3) continue;
    request.kind = Kind::kNext;
    ProtoReader next(reader.Bytes());
    while (next.Next()) {
      if (next.field() == 1) request.in_bytes = next.Bytes();
    }
  }
  if (!reader.ok()) std::abort();
  return request;
}

class AltsFakeService::Channel final : public AltsChannel {
 public:
  explicit Channel(AltsFakeService& service) : service_(service) {
    ++service_.open_;
    service_.channels_.push_back(this);
  }
  ~Channel() override {
    --service_.open_;
    std::erase(service_.channels_, this);
  }
  void Start(ResponseCallback on_response) override {
    respond_ = std::make_shared<ResponseCallback>(std::move(on_response));
  }
  void SendRequest(std::string bytes) override {
    const AltsFakeRequest request = AltsFakeRequest::Decode(bytes);
    service_.requests_.push_back(request);
    const int call = service_.calls_++;
    if (!service_.unreachable.ok()) {
      pending_.emplace_back(service_.unreachable);
    } else {
      AltsFakeResponse response = service_.Answer(*this, request);
      if (service_.change) service_.change(response, call);
      std::string encoded = response.Encode();
      if (service_.corrupt) service_.corrupt(encoded, call);
      pending_.emplace_back(std::move(encoded));
    }
    if (service_.at_once) DeliverOne();
  }
  bool DeliverOne() {
    if (pending_.empty()) return false;
    absl::StatusOr<std::string> response = std::move(pending_.front());
    pending_.pop_front();
    Respond(std::move(response));
    return true;
  }
  // May drop this channel.
  void Respond(absl::StatusOr<std::string> response) {
    const auto respond = respond_;
    (*respond)(std::move(response));
  }

  bool is_client = false;
  bool sent = false;

 private:
  AltsFakeService& service_;
  std::shared_ptr<ResponseCallback> respond_;
  std::deque<absl::StatusOr<std::string>> pending_;
};

AltsFakeResponse AltsFakeService::Answer(Channel& channel, const AltsFakeRequest& request) {
  AltsFakeResponse response;
  if (request.kind == AltsFakeRequest::Kind::kClientStart) {
    channel.is_client = true;
    response.out_frames = kClientInit;
    return response;
  }
  const std::string_view wanted = channel.is_client ? kServerFrames
                                  : channel.sent    ? kClientFinished
                                                    : kClientInit;
  const std::string_view in = request.in_bytes;
  if (in.size() < wanted.size() && wanted.starts_with(in)) return response;  // more is to come
  if (!in.starts_with(wanted)) {
    response.status_code = 3;
    response.status_details = "invalid frame";
    response.out_frames = "alert";
    return response;
  }
  response.consumed = wanted.size();
  response.has_result = channel.is_client || channel.sent;
  if (channel.is_client) response.out_frames = kClientFinished;
  if (!channel.is_client && !channel.sent) response.out_frames = kServerFrames;
  channel.sent = true;
  return response;
}

std::unique_ptr<AltsChannel> AltsFakeService::Open() { return std::make_unique<Channel>(*this); }

CredentialsPtr AltsFakeService::Credentials() {
  AltsServiceOptions options;
  options.open_channel = [this]() -> absl::StatusOr<std::unique_ptr<AltsChannel>> {
    return Open();
  };
  return *AltsServiceCredentials(std::move(options));
}

bool AltsFakeService::Deliver() {
  bool delivered = false;
  for (bool again = true; again;) {
    again = false;
    for (size_t i = 0; i < channels_.size(); ++i) again = channels_[i]->DeliverOne() || again;
    delivered = delivered || again;
  }
  return delivered;
}

void AltsFakeService::Interrupt(const absl::StatusOr<std::string>& response) {
  for (size_t i = 0; i < channels_.size(); ++i) channels_[i]->Respond(response);
}

}  // namespace internal
PENSTOCK_END_NAMESPACE
