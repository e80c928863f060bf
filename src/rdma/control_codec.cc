#include "rdma/control_codec.h"

#include <algorithm>
#include <array>
#include <type_traits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/absl_view.h"
#include "base/check.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {
namespace {

constexpr std::string_view kMagic = "PnsR";
constexpr uint8_t kMajor = 1;
// Set in a type: who does not know it skips the message. In a field's number: who does not know it
// must refuse. In flags: the upper half must be known.
constexpr uint8_t kOptionalType = 0x80;
constexpr uint16_t kCriticalField = 0x8000;
constexpr uint16_t kCriticalFlags = 0xff00;
constexpr uint16_t kFlagReply = 0x0001;
constexpr uint16_t kFlagClosing = 0x0002;

constexpr size_t kFieldHeaderSize = 4;
// In one message, of those known and unknown.
constexpr size_t kFieldsMax = 64;
constexpr size_t kLaneSize = 28;

// Numbers of fields, ascending in every message.
enum Field : uint16_t {
  kVersions = 1,
  kFeatures = 2,
  kFrom = 3,
  kTo = 4,
  kNonce = 5,
  kDeadline = 6,
  kLanes = 7,
  kTerms = 8,
  kCode = 9,
  kRetryAfter = 10,
  kText = 11,
  kAttempts = 12,
  kNonces = 13,
  kTranscript = 14,
  kSequence = 15,
  kCredits = 16,
  kRegionGrant = 17,
  kRegionName = 18,
  kToken = 19,
  kAttempt = 20,
  kName = 21,
  kReceives = 22,
  kMessageMax = 23,
};

bool IsPrintable(char c) { return c >= ' ' && c <= '~'; }

template <class T>
void PutNumber(std::string& out, T value) {
  static_assert(std::is_unsigned_v<T>);
  for (size_t i = 0; i < sizeof(T); ++i) out.push_back(static_cast<char>(value >> (8 * i)));
}

template <class T>
T GetNumber(std::string_view bytes) {
  T value = 0;
  for (size_t i = 0; i < sizeof(T); ++i) {
    value = static_cast<T>(value | static_cast<T>(static_cast<uint8_t>(bytes[i])) << (8 * i));
  }
  return value;
}

// --- Values of fields: Put appends one, Get reads one that is exactly as long as it must be. ---

// Walks over the parts of a value, in order, and says at the end whether it was all.
class ValueReader {
 public:
  explicit ValueReader(std::string_view bytes) : rest_(bytes) {}

  template <class T>
  requires std::is_unsigned_v<T> ValueReader& operator>>(T& value) {
    if (Has(sizeof(T))) value = GetNumber<T>(rest_);
    return Skip(sizeof(T));
  }
  template <class T>
  requires std::is_enum_v<T> ValueReader& operator>>(T& value) {
    std::underlying_type_t<T> number = 0;
    *this >> number;
    value = static_cast<T>(number);
    return *this;
  }
  ValueReader& operator>>(Bytes16& value) {
    if (Has(value.size())) std::copy_n(rest_.begin(), value.size(), value.begin());
    return Skip(value.size());
  }
  bool Done() const { return ok_ && rest_.empty(); }

 private:
  bool Has(size_t size) {
    ok_ = ok_ && rest_.size() >= size;
    return ok_;
  }
  ValueReader& Skip(size_t size) {
    rest_.remove_prefix(std::min(size, rest_.size()));
    return *this;
  }

  std::string_view rest_;
  bool ok_ = true;
};

class ValueWriter {
 public:
  explicit ValueWriter(std::string& out) : out_(out) {}

  template <class T>
  requires std::is_unsigned_v<T> ValueWriter& operator<<(T value) {
    PutNumber(out_, value);
    return *this;
  }
  template <class T>
  requires std::is_enum_v<T> ValueWriter& operator<<(T value) {
    return *this << static_cast<std::underlying_type_t<T>>(value);
  }
  ValueWriter& operator<<(const Bytes16& value) {
    out_.append(value.begin(), value.end());
    return *this;
  }

 private:
  std::string& out_;
};

template <class Lane, class Walk>
void WalkLane(Lane& lane, Walk walk) {
  uint8_t reserved = 0;
  walk(lane.qpn, lane.psn, lane.lid, lane.mtu, reserved, lane.gid);
}

bool GetLanes(std::string_view bytes, std::vector<LaneAddress>& lanes) {
  const size_t count = bytes.size() / kLaneSize;
  if (bytes.size() % kLaneSize != 0 || count == 0 || count > kLanesMax) return false;
  lanes.resize(count);
  for (size_t i = 0; i < count; ++i) {
    ValueReader reader(bytes.substr(i * kLaneSize, kLaneSize));
    WalkLane(lanes[i], [&](auto&... part) { (reader >> ... >> part); });
  }
  return true;
}

// --- The fields of each message: one description, walked by the encoder and by the decoder. ---
//
// walk(field, required, parts...): a value of several parts is the parts one after the other.

template <class Walk>
void Walkthrough(auto& m, Walk& walk, const ControlHello*) {
  walk(kVersions, true, m.version_min, m.version_max);
  walk(kFeatures, true, m.features);
  walk(kFrom, true, m.from.incarnation, m.from.endpoint, m.from.attempt);
  walk(kNonce, true, m.nonce);
  walk(kDeadline, false, m.deadline_ms);
  walk.Lanes(m.lanes);
  walk(kTerms, true, m.terms.depth, m.terms.size, m.terms.read_depth);
  walk.Name(m.name);
  walk(kMessageMax, false, m.terms.message_max);
}

template <class Walk>
void Walkthrough(auto& m, Walk& walk, const ControlAccept*) {
  walk(kVersions, true, m.version);
  walk(kFeatures, true, m.features);
  walk(kFrom, true, m.from.incarnation, m.from.endpoint, m.from.attempt);
  walk(kTo, true, m.to.incarnation, m.to.endpoint, m.to.attempt);
  walk(kNonce, true, m.nonce);
  walk.Lanes(m.lanes);
  walk(kTerms, true, m.terms.depth, m.terms.size, m.terms.read_depth);
  walk(kMessageMax, false, m.terms.message_max);
}

template <class Walk>
void Walkthrough(auto& m, Walk& walk, const ControlReject*) {
  walk(kCode, true, m.code);
  walk(kRetryAfter, false, m.retry_after_ms);
  walk.Text(m.text);
  walk(kAttempt, false, m.attempt);
}

template <class Walk>
void Walkthrough(auto& m, Walk& walk, const ControlReady*) {
  walk(kAttempts, true, m.active_attempt, m.passive_attempt);
  walk(kNonces, true, m.active_nonce, m.passive_nonce);
  walk(kTranscript, true, m.transcript);
}

template <class Walk>
void Walkthrough(auto& m, Walk& walk, const ControlCredit*) {
  walk(kCredits, true, m.granted);
}

template <class Walk>
void Walkthrough(auto& m, Walk& walk, const ControlRegion*) {
  walk(kRegionGrant, true, m.region, m.address, m.length, m.epoch, m.rkey, m.access);
}

template <class Walk>
void Walkthrough(auto& m, Walk& walk, const ControlRevoke*) {
  walk(kRegionName, true, m.region, m.epoch);
}

template <class Walk>
void Walkthrough(auto& m, Walk& walk, const ControlPing*) {
  walk(kToken, true, m.token);
}

template <class Walk>
void Walkthrough(auto& m, Walk& walk, const ControlPong*) {
  walk(kToken, true, m.token);
}

template <class Walk>
void Walkthrough(auto& m, Walk& walk, const ControlFallback*) {
  walk.Text(m.text);
  walk(kSequence, true, m.received);
}

template <class Walk>
void Walkthrough(auto& m, Walk& walk, const ControlDrain*) {
  walk(kSequence, true, m.sequence);
}

template <class Walk>
void Walkthrough(auto& m, Walk& walk, const ControlClose*) {
  walk(kCode, true, m.code);
  walk.Text(m.text);
}

template <class Walk>
void Walkthrough(auto& m, Walk& walk, const ControlGrant*) {
  walk(kReceives, true, m.receives);
}

template <class Walk>
void Walkthrough(auto&, Walk&, const ControlSkipped*) {}

template <class M, class Walk>
void WalkFields(M& message, Walk& walk) {
  Walkthrough(message, walk, static_cast<const std::remove_const_t<M>*>(nullptr));
}

// --- Encoding ---

class FieldWriter {
 public:
  explicit FieldWriter(std::string& out) : out_(out) {}

  template <class... Parts>
  void operator()(uint16_t field, bool, const Parts&... parts) {
    Begin(field);
    ValueWriter writer(out_);
    (writer << ... << parts);
    End();
  }
  void Text(const std::string& text) { String(kText, text); }
  void Name(const std::string& name) { String(kName, name); }
  void Lanes(const std::vector<LaneAddress>& lanes) {
    if (lanes.empty()) return;
    Begin(kLanes);
    ValueWriter writer(out_);
    for (const LaneAddress& lane : lanes) {
      WalkLane(lane, [&](const auto&... part) { (writer << ... << part); });
    }
    End();
  }

 private:
  void String(uint16_t field, const std::string& text) {
    if (text.empty()) return;
    Begin(field);
    out_.append(text, 0, kControlTextMax);
    End();
  }
  void Begin(uint16_t field) {
    begin_ = out_.size();
    PutNumber(out_, field);
    PutNumber(out_, uint16_t{0});
  }
  void End() {
    const size_t size = out_.size() - begin_ - kFieldHeaderSize;
    out_[begin_ + 2] = static_cast<char>(size);
    out_[begin_ + 3] = static_cast<char>(size >> 8);
  }

  std::string& out_;
  size_t begin_ = 0;
};

std::string HeaderBytes(ControlType type, uint16_t flags, size_t size) {
  std::string out(kMagic);
  PutNumber(out, kMajor);
  PutNumber(out, static_cast<uint8_t>(type));
  PutNumber(out, flags);
  PutNumber(out, static_cast<uint32_t>(size));
  return out;
}

// The alternatives of ControlMessage stand in the order of their types.
ControlType TypeOf(const ControlMessage& message) {
  return static_cast<ControlType>(message.index() + 1);
}
static_assert(std::is_same_v<std::variant_alternative_t<0, ControlMessage>, ControlHello>);
static_assert(std::is_same_v<std::variant_alternative_t<12, ControlMessage>, ControlGrant>);
constexpr size_t kControlTypes = std::variant_size_v<ControlMessage> - 1;

template <class M>
concept HasReply = requires(M m) {
  m.reply;
};
template <class M>
concept HasClosing = requires(M m) {
  m.closing;
};

// --- Decoding ---

struct RawField {
  uint16_t number;
  bool critical;
  bool used = false;
  std::string_view value;
};

std::string FieldName(uint16_t number) {
  static constexpr std::string_view kNames[] = {
      "",         "versions", "features",     "from",        "to",
      "nonce",    "deadline", "lanes",        "terms",       "code",
      "retry",    "text",     "attempts",     "nonces",      "transcript",
      "sequence", "credits",  "region grant", "region name", "token",
      "attempt",  "name",     "receives",     "message max",
  };
  if (number == 0 || number >= std::size(kNames)) return absl::StrCat("field ", number);
  return std::string(kNames[number]);
}

class FieldReader {
 public:
  // False, with a reason, when `body` is no row of fields.
  bool Parse(std::string_view body) {
    while (!body.empty()) {
      if (body.size() < kFieldHeaderSize) return Fail("a field is cut off");
      const auto tag = GetNumber<uint16_t>(body);
      const auto size = GetNumber<uint16_t>(body.substr(2));
      const auto number = static_cast<uint16_t>(tag & ~kCriticalField);
      body.remove_prefix(kFieldHeaderSize);
      if (size > body.size()) return Fail(absl::StrCat(FieldName(number), " is cut off"));
      if (count_ > 0 && number <= fields_[count_ - 1].number) {
        return Fail(absl::StrCat(FieldName(number), " is repeated or out of order"));
      }
      if (count_ == fields_.size()) return Fail("too many fields");
      fields_[count_++] = {
          .number = number, .critical = (tag & kCriticalField) != 0, .value = body.substr(0, size)};
      body.remove_prefix(size);
    }
    return true;
  }

  template <class... Parts>
  void operator()(uint16_t field, bool required, Parts&... parts) {
    RawField* raw = Take(field, required);
    if (raw == nullptr) return;
    ValueReader reader(raw->value);
    (reader >> ... >> parts);
    if (!reader.Done()) Fail(absl::StrCat(FieldName(field), " of ", raw->value.size(), " bytes"));
  }
  void Text(std::string& text) {
    RawField* raw = Take(kText, false);
    if (raw == nullptr) return;
    if (raw->value.size() > kControlTextMax) {
      Fail(absl::StrCat("text of ", raw->value.size(), " bytes"));
      return;
    }
    text = raw->value;
    // It ends up in messages of errors.
    for (char& c : text) {
      if (!IsPrintable(c)) c = '?';
    }
  }
  // Told apart by every byte, so none is replaced.
  void Name(std::string& name) {
    RawField* raw = Take(kName, false);
    if (raw == nullptr) return;
    if (raw->value.empty() || raw->value.size() > kControlTextMax ||
        !std::all_of(raw->value.begin(), raw->value.end(), IsPrintable)) {
      Fail(absl::StrCat("name of ", raw->value.size(), " bytes, or not of ASCII"));
      return;
    }
    name = raw->value;
  }
  void Lanes(std::vector<LaneAddress>& lanes) {
    RawField* raw = Take(kLanes, false);
    if (raw != nullptr && !GetLanes(raw->value, lanes)) {
      Fail(absl::StrCat("lanes of ", raw->value.size(), " bytes"));
    }
  }

  // After all fields: what was critical and nobody took.
  void CheckRest() {
    for (size_t i = 0; i < count_; ++i) {
      if (fields_[i].critical && !fields_[i].used) {
        Fail(absl::StrCat("unknown critical field ", fields_[i].number));
        return;
      }
    }
  }

  const std::string& problem() const { return problem_; }

 private:
  bool Fail(std::string problem) {
    if (problem_.empty()) problem_ = std::move(problem);
    return false;
  }
  RawField* Take(uint16_t field, bool required) {
    for (size_t i = 0; i < count_; ++i) {
      if (fields_[i].number != field) continue;
      fields_[i].used = true;
      return &fields_[i];
    }
    if (required) Fail(absl::StrCat(FieldName(field), " is missing"));
    return nullptr;
  }

  std::array<RawField, kFieldsMax> fields_;
  size_t count_ = 0;
  std::string problem_;
};

absl::Status ControlError(ControlType type, std::string_view problem) {
  return absl::InvalidArgumentError(
      absl::StrCat("RDMA control ", ControlTypeName(type), ": ", AbslView(problem)));
}

template <class M>
absl::StatusOr<ControlMessage> DecodeFields(const ControlHeader& header, std::string_view body) {
  FieldReader reader;
  M message;
  if (reader.Parse(body)) {
    WalkFields(message, reader);
    reader.CheckRest();
  }
  if (!reader.problem().empty()) return ControlError(header.type, reader.problem());
  if constexpr (HasReply<M>) message.reply = (header.flags & kFlagReply) != 0;
  if constexpr (HasClosing<M>) message.closing = (header.flags & kFlagClosing) != 0;
  ControlMessage result = std::move(message);
  if (absl::Status status = CheckControl(result); !status.ok()) return status;
  return result;
}

template <size_t... I>
absl::StatusOr<ControlMessage> DecodeByType(const ControlHeader& header, std::string_view body,
                                            std::index_sequence<I...>) {
  using Decode = absl::StatusOr<ControlMessage> (*)(const ControlHeader&, std::string_view);
  static constexpr Decode kDecoders[] = {
      &DecodeFields<std::variant_alternative_t<I, ControlMessage>>...};
  return kDecoders[static_cast<size_t>(header.type) - 1](header, body);
}

bool IsKnown(ControlType type) {
  return type != ControlType{0} && static_cast<size_t>(type) <= kControlTypes;
}

// --- What the fields must be among each other ---

std::string_view LaneProblem(const LaneAddress& lane) {
  if (lane.qpn == 0 || lane.qpn > kLaneNumberMax) return "queue pair number out of range";
  if (lane.psn > kLaneNumberMax) return "packet sequence number out of range";
  if (lane.mtu < 1 || lane.mtu > 5) return "unknown MTU";
  if (lane.gid == Bytes16{} && lane.lid == 0) return "neither GID nor LID";
  return {};
}

template <class M>
std::string_view OpeningProblem(const M& message) {
  if (message.from.attempt == 0) return "attempt 0";
  if (message.lanes.size() > kLanesMax) return "too many lanes";
  for (const LaneAddress& lane : message.lanes) {
    if (std::string_view problem = LaneProblem(lane); !problem.empty()) return problem;
  }
  if (message.lanes.empty()) {
    return (message.features & kFeatureFallback) == 0 ? "neither lanes nor the fallback" : "";
  }
  if (message.terms.depth == 0 || message.terms.size == 0) return "terms that let nothing in";
  return {};
}

std::string_view Problem(const ControlHello& hello) {
  if (hello.version_min == 0 || hello.version_min > hello.version_max) return "no version range";
  return OpeningProblem(hello);
}
std::string_view Problem(const ControlAccept& accept) {
  if (accept.version == 0) return "version 0";
  if (accept.to.attempt == 0) return "an answer to attempt 0";
  return OpeningProblem(accept);
}
std::string_view Problem(const ControlRegion& region) {
  if (region.address + region.length < region.address) return "a region that wraps around";
  return {};
}
std::string_view Problem(const auto&) { return {}; }

}  // namespace

std::string EncodeControl(const ControlMessage& message) {
  PENSTOCK_CHECK(!std::holds_alternative<ControlSkipped>(message), "nothing to encode");
  const ControlType type = TypeOf(message);
  std::string body;
  uint16_t flags = 0;
  std::visit(
      [&]<class M>(const M& m) {
        if constexpr (HasReply<M>) flags = m.reply ? kFlagReply : 0;
        if constexpr (HasClosing<M>) flags |= m.closing ? kFlagClosing : 0;
        FieldWriter writer(body);
        WalkFields(m, writer);
      },
      message);
  PENSTOCK_CHECK(body.size() <= kControlBodyMax, "a control message that nobody would take");
  return HeaderBytes(type, flags, body.size()).append(body);
}

std::string ControlDataHeader(size_t size) {
  PENSTOCK_CHECK(size <= kControlDataMax, "data that nobody would take");
  return HeaderBytes(ControlType::kData, 0, size);
}

absl::StatusOr<ControlHeader> DecodeControlHeader(std::string_view header) {
  PENSTOCK_CHECK(header.size() >= kControlHeaderSize, "half a header");
  if (header.substr(0, kMagic.size()) != kMagic) {
    return absl::InvalidArgumentError("RDMA control: not a control stream of Penstock");
  }
  const auto major = static_cast<uint8_t>(header[4]);
  const ControlHeader result = {.type = static_cast<ControlType>(header[5]),
                                .flags = GetNumber<uint16_t>(header.substr(6)),
                                .body_size = GetNumber<uint32_t>(header.substr(8))};
  if (major != kMajor) {
    return ControlError(result.type, absl::StrCat("of version ", major, ", not ", kMajor));
  }
  if ((result.flags & kCriticalFlags) != 0) {
    return ControlError(result.type, absl::StrCat("unknown critical flags ",
                                                  absl::Hex(result.flags & kCriticalFlags)));
  }
  const size_t most = result.type == ControlType::kData ? kControlDataMax : kControlBodyMax;
  if (result.body_size > most) {
    return ControlError(result.type, absl::StrCat("length ", result.body_size, ", at most ", most));
  }
  return result;
}

absl::StatusOr<ControlMessage> DecodeControl(const ControlHeader& header, std::string_view body) {
  if (IsKnown(header.type)) {
    return DecodeByType(header, body, std::make_index_sequence<kControlTypes>());
  }
  const auto type = static_cast<uint8_t>(header.type);
  if ((type & kOptionalType) == 0) return ControlError(header.type, "unknown");
  return ControlSkipped{.type = type};
}

FrameFormat ControlFrameFormat(bool with_data) {
  const auto size = [](std::string_view bytes) -> absl::StatusOr<uint64_t> {
    absl::StatusOr<ControlHeader> header = DecodeControlHeader(bytes);
    if (!header.ok()) return header.status();
    return header->body_size;
  };
  const auto without = [](std::string_view bytes) -> absl::StatusOr<uint64_t> {
    absl::StatusOr<ControlHeader> header = DecodeControlHeader(bytes);
    if (!header.ok()) return header.status();
    if (header->type == ControlType::kData) {
      return ControlError(header->type, "no data is agreed upon");
    }
    return header->body_size;
  };
  FrameFormat format = {
      .header_size = kControlHeaderSize, .body_size = without, .body_max = kControlBodyMax};
  if (with_data) {
    format.body_size = size;
    format.body_max = kControlDataMax;
  }
  return format;
}

absl::Status CheckControl(const ControlMessage& message) {
  const std::string_view problem = std::visit([](const auto& m) { return Problem(m); }, message);
  return problem.empty() ? absl::OkStatus() : ControlError(TypeOf(message), problem);
}

}  // namespace internal
PENSTOCK_END_NAMESPACE
