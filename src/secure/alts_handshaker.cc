#include "secure/alts_handshaker.h"

#include <penstock/record_protocol.h>

#include <algorithm>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "secure/wipe.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {
namespace {

// Of the service's: what concerns the caller is passed on, the rest is a handshake that failed.
absl::StatusCode ServiceCode(uint32_t code) {
  const auto given = static_cast<absl::StatusCode>(code);
  switch (given) {
    case absl::StatusCode::kPermissionDenied:
    case absl::StatusCode::kResourceExhausted:
    case absl::StatusCode::kUnavailable:
      return given;
    default:
      return absl::StatusCode::kUnauthenticated;
  }
}

bool AtLeast(const AltsRpcVersion& a, const AltsRpcVersion& b) {
  return a.major != b.major ? a.major > b.major : a.minor >= b.minor;
}

// gRPC's C++ takes min(peer, own) but never less than 16 KiB, and 16 KiB of a peer that says
// nothing; a side that wants less has its way.
uint32_t SendMax(uint32_t own, uint32_t peer) {
  if (peer == 0) return std::min(own, kRecordFrameGrpc);
  return std::min(own, std::max(peer, kRecordFrameGrpc));
}

// Some implementations count a limit without the length field, and may take the least limit for
// ours whatever we say.
uint32_t ReceiveMax(uint32_t own) {
  return std::min(std::max(own, kRecordFrameGrpc) + 4, kRecordFrameMax);
}

void Wipe(absl::StatusOr<std::string>& response) {
  if (response.ok()) WipeSecret(response->data(), response->size());
}

template <typename List, typename Item>
bool Contains(const List& list, const Item& item) {
  return std::find(list.begin(), list.end(), item) != list.end();
}

}  // namespace

AltsHandshaker::AltsHandshaker(std::shared_ptr<const AltsServiceOptions> options,
                               std::shared_ptr<void> slot, std::unique_ptr<AltsChannel> channel,
                               const HandshakeOptions& handshake, const FrameSizes& frames)
    : options_(std::move(options)),
      slot_(std::move(slot)),
      channel_(std::move(channel)),
      handshake_(handshake),
      frames_(frames) {
  channel_->Start(
      [this](absl::StatusOr<std::string> response) { OnResponse(std::move(response)); });
}

// The channel may report the end of its call while it is destroyed, last of all: to nobody.
AltsHandshaker::~AltsHandshaker() {
  phase_ = Phase::kFailed;
  DropResponse();
}

void AltsHandshaker::OnResponse(absl::StatusOr<std::string> response) {
  const bool over = phase_ == Phase::kVerdict || phase_ == Phase::kDone || phase_ == Phase::kFailed;
  // A call that ends after its last answer does not take that back.
  if (!over && !response_.has_value()) {
    response_ = std::move(response);
  } else {
    Wipe(response);
  }
  if (over) return;
  if (stepping_ || wake_ == nullptr) return;
  const auto wake = wake_;
  (*wake)();
}

Handshaker::Progress AltsHandshaker::Step(std::string_view in) {
  stepping_ = true;
  size_t consumed = 0;
  bool go_on = true;
  while (go_on) {
    const std::string_view rest = in.substr(consumed);
    switch (phase_) {
      case Phase::kStart:
      case Phase::kPeer:
        go_on = Ask(rest);
        break;
      case Phase::kService:
        go_on = TakeResponse(rest, consumed);
        break;
      default:
        go_on = false;
        break;
    }
  }
  stepping_ = false;
  return Report(consumed);
}

bool AltsHandshaker::Ask(std::string_view rest) {
  if (response_.has_value()) {
    Fail(response_->ok() ? absl::InvalidArgumentError("the service answers without being asked")
                         : absl::UnavailableError(absl::StrCat("the service has ended the call: ",
                                                               response_->status().message())));
    return false;
  }
  const AltsStart start{
      .options = *options_, .handshake = handshake_, .max_frame_size = frames_.receive_max};
  if (phase_ == Phase::kStart && !handshake_.server) {
    Send(EncodeAltsClientStart(start), 0);
    return true;
  }
  if (rest.size() <= offered_) return false;
  const std::string_view offer = rest.substr(0, handshake_.input_max - taken_);
  if (offer.size() <= offered_) {
    Fail(absl::ResourceExhaustedError(
        absl::StrCat("it takes more than ", handshake_.input_max, " bytes from the peer")));
    return false;
  }
  Send(phase_ == Phase::kStart ? EncodeAltsServerStart(start, offer) : EncodeAltsNext(offer),
       offer.size());
  return true;
}

void AltsHandshaker::Send(std::string request, size_t offered) {
  offered_ = offered;
  phase_ = Phase::kService;
  channel_->SendRequest(std::move(request));
}

bool AltsHandshaker::TakeResponse(std::string_view rest, size_t& consumed) {
  if (!response_.has_value()) return false;
  absl::StatusOr<std::string> bytes = *std::exchange(response_, std::nullopt);
  if (!bytes.ok()) {
    Fail(absl::UnavailableError(
        absl::StrCat("the service cannot be reached: ", bytes.status().message())));
    return false;
  }
  absl::StatusOr<AltsResponse> response = DecodeAltsResponse(*bytes);
  Wipe(bytes);
  if (!response.ok()) {
    Fail(absl::InvalidArgumentError(
        absl::StrCat("the service sends ", response.status().message())));
    return false;
  }
  // Even an error may come with frames that tell the peer.
  std::string frames = std::move(response->out_frames);
  peer_answers_ = !frames.empty();
  if (!response->status_code.has_value() || *response->status_code != 0) {
    out_ += frames;
    Fail(response->status_code.has_value()
             ? absl::Status(ServiceCode(*response->status_code),
                            absl::StrCat("the service refuses, status ", *response->status_code,
                                         ": ", absl::CHexEscape(response->status_details)))
             : absl::InvalidArgumentError("the service's response has no status"));
    return false;
  }
  const size_t count = response->bytes_consumed;
  if (count > offered_ || count > rest.size()) {
    Fail(absl::InvalidArgumentError(
        absl::StrCat("the service consumes ", count, " bytes of ", offered_)));
    return false;
  }
  consumed += count;
  taken_ += count;
  offered_ -= count;
  phase_ = Phase::kPeer;
  if (!response->result.has_value()) {
    out_ += frames;
    return true;
  }
  absl::Status checked = CheckResult(*response->result);
  if (!checked.ok()) {
    Fail(std::move(checked));
    return false;
  }
  held_ = std::move(frames);
  Accept(*std::move(response->result));
  return false;
}

absl::Status AltsHandshaker::CheckResult(const AltsResult& result) const {
  const absl::StatusOr<RecordProtocol> protocol = ParseRecordProtocol(result.record_protocol);
  if (!protocol.ok() || !Contains(options_->record_protocols, *protocol)) {
    return absl::InvalidArgumentError(absl::StrCat("the service chose the record protocol '",
                                                   absl::CHexEscape(result.record_protocol),
                                                   "', which was not offered"));
  }
  if (!Contains(options_->application_protocols, result.application_protocol)) {
    return absl::InvalidArgumentError(absl::StrCat("the service chose the application protocol '",
                                                   absl::CHexEscape(result.application_protocol),
                                                   "', which was not offered"));
  }
  if (result.key_data_size < RecordKeySize(*protocol)) {
    return absl::InvalidArgumentError(absl::StrCat("the service's key has ", result.key_data_size,
                                                   " bytes; ", RecordKeySize(*protocol),
                                                   " are needed"));
  }
  if (result.peer_account.empty()) {
    return absl::UnauthenticatedError("the service names no service account of the peer");
  }
  if (!result.has_local_identity) {
    return absl::InvalidArgumentError("the service does not say as whom this side took part");
  }
  if (!result.has_peer_versions) {
    return absl::InvalidArgumentError("the service does not say which RPC versions the peer has");
  }
  if (!AtLeast(result.peer_max_version, options_->min_rpc_version) ||
      !AtLeast(options_->max_rpc_version, result.peer_min_version)) {
    return absl::InvalidArgumentError("this side and the peer have no RPC version in common");
  }
  const auto& targets = options_->target_service_accounts;
  if (!handshake_.server && !targets.empty() && !Contains(targets, result.peer_account)) {
    return absl::UnauthenticatedError(
        absl::StrCat("the server is '", absl::CHexEscape(result.peer_account),
                     "', which is none of the accounts that it may be"));
  }
  return absl::OkStatus();
}

void AltsHandshaker::Accept(AltsResult result) {
  const RecordProtocol protocol = *ParseRecordProtocol(result.record_protocol);
  const SecretKey key(result.key.view().substr(0, RecordKeySize(protocol)));
  result_.protocol = protocol;
  result_.mode = RecordMode::kGrpc;
  result_.server = handshake_.server;
  result_.send_key = key;
  result_.receive_key = key;
  result_.send_frame_max = SendMax(frames_.send_max, result.max_frame_size);
  result_.receive_frame_max = ReceiveMax(frames_.receive_max);
  result_.peer.kind = PeerIdentity::Kind::kAlts;
  result_.peer.service_account = std::move(result.peer_account);
  result_.peer.application_protocol = std::move(result.application_protocol);
  phase_ = Phase::kVerdict;
}

Handshaker::Progress AltsHandshaker::Authorize(const absl::Status& verdict) {
  if (phase_ != Phase::kVerdict) return Report(0);
  if (!verdict.ok()) {
    Fail(absl::PermissionDeniedError(absl::StrCat(
        "this side's authorisation refuses ", result_.peer.ToString(), ": ", verdict.message())));
    return Report(0);
  }
  out_ += held_;
  phase_ = Phase::kDone;
  slot_.reset();
  return Report(0);
}

absl::Status AltsHandshaker::OnPeerEnd() {
  if (phase_ != Phase::kDone && phase_ != Phase::kFailed) {
    Fail(absl::DataLossError(peer_answers_
                                 ? "the peer ended the stream in the middle of the handshake"
                                 : "the peer does not respond: it ended the stream, and the "
                                   "service has nothing more to say"));
  }
  return error_;
}

void AltsHandshaker::Fail(absl::Status error) {
  error_ = absl::Status(
      error.code(),
      absl::StrCat("ALTS handshake", handshake_.peer_name.empty() ? "" : " with ",
                   handshake_.peer_name,
                   handshake_.server ? " (server): " : " (client): ", error.message()));
  result_.send_key.Wipe();
  result_.receive_key.Wipe();
  DropResponse();
  phase_ = Phase::kFailed;
  slot_.reset();
}

void AltsHandshaker::DropResponse() {
  if (response_.has_value()) Wipe(*response_);
  response_.reset();
}

std::string_view AltsHandshaker::phase() const {
  switch (phase_) {
    case Phase::kStart:
    case Phase::kPeer:
      return "the peer's frames";
    case Phase::kService:
      return "the handshaker service";
    case Phase::kVerdict:
      return "this side's authorisation";
    default:
      return "nothing";
  }
}

Handshaker::Progress AltsHandshaker::Report(size_t consumed) {
  Progress progress;
  progress.out = std::exchange(out_, {});
  progress.consumed = consumed;
  switch (phase_) {
    case Phase::kStart:
    case Phase::kPeer:
      progress.state = State::kMore;
      break;
    case Phase::kService:
      progress.state = State::kWaiting;
      break;
    case Phase::kVerdict:
      progress.state = State::kAuthorize;
      break;
    case Phase::kDone:
      progress.state = State::kDone;
      break;
    case Phase::kFailed:
      progress.state = State::kFailed;
      progress.error = error_;
      break;
  }
  return progress;
}

}  // namespace internal
PENSTOCK_END_NAMESPACE
