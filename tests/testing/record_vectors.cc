#include "testing/record_vectors.h"

#include <openssl/evp.h>

#include <cctype>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <memory>
#include <sstream>

#include "absl/strings/escaping.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {
namespace {

[[noreturn]] void BadVectors(std::string_view why) {
  std::fprintf(stderr, "%s: %.*s\n", PENSTOCK_RECORD_VECTORS, static_cast<int>(why.size()),
               why.data());
  std::abort();
}

// As much of JSON as the file has.
struct JsonValue {
  std::string text;  // of a string or a number
  std::vector<JsonValue> items;
  std::map<std::string, JsonValue, std::less<>> fields;

  bool Has(std::string_view name) const { return fields.contains(name); }
  const JsonValue& operator[](std::string_view name) const {
    const auto at = fields.find(name);
    if (at == fields.end()) BadVectors(absl::StrCat("no ", std::string(name)));
    return at->second;
  }
  uint64_t Number() const {
    uint64_t number = 0;
    if (!absl::SimpleAtoi(text, &number) && !absl::SimpleHexAtoi(text, &number)) {
      BadVectors("not a number: " + text);
    }
    return number;
  }
};

class JsonReader {
 public:
  explicit JsonReader(std::string_view rest) : rest_(rest) {}

  JsonValue Read() {
    JsonValue value;
    if (Eat('{')) {
      for (bool more = !Eat('}'); more; more = !Ends('}')) {
        std::string name = String();
        Expect(':');
        value.fields[std::move(name)] = Read();
      }
    } else if (Eat('[')) {
      for (bool more = !Eat(']'); more; more = !Ends(']')) value.items.push_back(Read());
    } else if (Peek() == '"') {
      value.text = String();
    } else {
      while (!rest_.empty() && std::isdigit(static_cast<unsigned char>(rest_[0])) != 0) {
        value.text += Take();
      }
      if (value.text.empty()) BadVectors("neither a string nor a number");
    }
    return value;
  }

 private:
  char Take() {
    if (rest_.empty()) BadVectors("ends too early");
    const char taken = rest_[0];
    rest_.remove_prefix(1);
    return taken;
  }
  char Peek() {
    while (!rest_.empty() && std::isspace(static_cast<unsigned char>(rest_[0])) != 0) Take();
    return rest_.empty() ? '\0' : rest_[0];
  }
  bool Eat(char wanted) {
    if (Peek() != wanted) return false;
    Take();
    return true;
  }
  void Expect(char wanted) {
    if (!Eat(wanted)) BadVectors(std::string(1, wanted) + " expected");
  }
  bool Ends(char end) {
    if (Eat(end)) return true;
    Expect(',');
    return false;
  }
  std::string String() {
    Expect('"');
    std::string text;
    for (char c = Take(); c != '"'; c = Take()) {
      if (c == '\\') c = Take();
      text += c;
    }
    return text;
  }

  std::string_view rest_;
};

RecordProtocol ProtocolOf(const JsonValue& value) {
  return *ParseRecordProtocol(value["record_protocol"].text);
}

RecordSender SenderOf(std::string_view side) {
  return side == "server" ? RecordSender::kServer : RecordSender::kClient;
}

FrameVector ReadFrame(const JsonValue& value) {
  FrameVector frame;
  frame.name = value["name"].text;
  frame.protocol = ProtocolOf(value);
  frame.sender = SenderOf(value["sender"].text);
  const std::string counter = FromHex(value["counter_hex"].text);
  for (size_t i = 0; i < 8; ++i) {
    frame.counter |= uint64_t{static_cast<unsigned char>(counter[i])} << (8 * i);
  }
  frame.plaintext = value.Has("plaintext_hex") ? FromHex(value["plaintext_hex"].text)
                                               : VectorPlaintext(value["plaintext_len"].Number());
  frame.frame_size = value["frame_len"].Number();
  frame.frame_sha256 = value["frame_sha256"].text;
  if (value.Has("frame_hex")) {
    frame.frame = FromHex(value["frame_hex"].text);
  } else {
    frame.frame_first = FromHex(value["frame_first_32_hex"].text);
    frame.frame_last = FromHex(value["frame_last_32_hex"].text);
  }
  return frame;
}

StreamVector ReadStream(const JsonValue& value) {
  StreamVector stream;
  stream.name = value["name"].text;
  stream.protocol = ProtocolOf(value);
  stream.sender = SenderOf(value["sender"].text);
  stream.counter = value["start_counter_low"].Number();
  stream.frame_max = static_cast<uint32_t>(value["frame_size"].Number());
  for (const JsonValue& size : value["write_sizes"].items) stream.writes.push_back(size.Number());
  for (const JsonValue& run : value["frame_lens_and_counts"].items) {
    stream.frame_sizes.insert(stream.frame_sizes.end(), run.items.at(1).Number(),
                              run.items.at(0).Number());
  }
  stream.wire_size = value["wire_len"].Number();
  stream.wire_sha256 = value["wire_sha256"].text;
  return stream;
}

HostileVector ReadHostile(const JsonValue& value) {
  HostileVector hostile;
  hostile.name = value["name"].text;
  hostile.protocol = ProtocolOf(value);
  hostile.sender =
      value["receiver"].text == "server" ? RecordSender::kClient : RecordSender::kServer;
  hostile.counter = value["start_in_counter_low"].Number();
  hostile.wire = FromHex(value["wire_hex"].text);
  hostile.want = value["want"].text;
  return hostile;
}

RecordVectors ReadVectors() {
  const std::ifstream file(PENSTOCK_RECORD_VECTORS);
  if (!file) BadVectors("cannot be opened");
  std::stringstream text;
  text << file.rdbuf();
  const std::string bytes = text.str();
  const JsonValue root = JsonReader(bytes).Read();
  RecordVectors vectors;
  for (const auto& [name, key] : root["keys_hex"].fields) {
    vectors.keys[*ParseRecordProtocol(name)] = FromHex(key.text);
  }
  for (const JsonValue& value : root["frames"].items) vectors.frames.push_back(ReadFrame(value));
  for (const JsonValue& value : root["streams"].items) vectors.streams.push_back(ReadStream(value));
  for (const JsonValue& value : root["negatives"].items) {
    vectors.hostile.push_back(ReadHostile(value));
  }
  return vectors;
}

}  // namespace

const RecordVectors& RecordVectors::Get() {
  static const RecordVectors vectors = ReadVectors();
  return vectors;
}

std::string VectorPlaintext(size_t size) {
  std::string bytes(size, '\0');
  for (size_t i = 0; i < size; ++i) bytes[i] = static_cast<char>(7 * i + 3);
  return bytes;
}

std::string Sha256Hex(std::string_view bytes) {
  unsigned char hash[EVP_MAX_MD_SIZE];
  unsigned int size = 0;
  if (EVP_Digest(bytes.data(), bytes.size(), hash, &size, EVP_sha256(), nullptr) != 1) return "";
  return absl::BytesToHexString({reinterpret_cast<const char*>(hash), size});
}

std::string FromHex(std::string_view hex) {
  return absl::HexStringToBytes(absl::string_view(hex.data(), hex.size()));
}

}  // namespace internal
PENSTOCK_END_NAMESPACE
