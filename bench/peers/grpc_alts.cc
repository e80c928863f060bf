#include "grpc_alts.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <algorithm>
#include <charconv>
#include <cstdint>
#include <optional>
#include <utility>

// Of libgrpc.so.29. Sizes that are passed by pointer go in as what is there and come out as what
// was used. The results are a tsi_result, of which 0 is success.
int alts_create_frame_protector(const uint8_t* key, size_t key_size, bool is_client, bool is_rekey,
                                size_t* max_protected_frame_size, tsi_frame_protector** self);
int tsi_frame_protector_protect(tsi_frame_protector* self, const unsigned char* plain,
                                size_t* plain_size, unsigned char* wire, size_t* wire_size);
int tsi_frame_protector_protect_flush(tsi_frame_protector* self, unsigned char* wire,
                                      size_t* wire_size, size_t* still_pending);
int tsi_frame_protector_unprotect(tsi_frame_protector* self, const unsigned char* wire,
                                  size_t* wire_size, unsigned char* plain, size_t* plain_size);
void tsi_frame_protector_destroy(tsi_frame_protector* self);

namespace penstock_bench {
namespace {

constexpr std::string_view kRekey = "ALTSRP_GCM_AES128_REKEY";
constexpr std::string_view kPlain = "ALTSRP_GCM_AES128";
// What the library takes without changing it.
constexpr size_t kFrameMaxLeast = 1024;
constexpr size_t kFrameMaxMost = 1024 * 1024;

[[noreturn]] void DieOfFlag(const char* program, const std::string& wrong) {
  fprintf(stderr,
          "%s: %s\nusage: --key-hex=HEX [--record-protocol=%s|%s] [--max-frame=BYTES]\n"
          "  HEX is 44 bytes with rekeying, else 16; BYTES is %zu to %zu\n",
          program, wrong.c_str(), kRekey.data(), kPlain.data(), kFrameMaxLeast, kFrameMaxMost);
  exit(2);
}

std::optional<std::string> FromHex(std::string_view digits) {
  if (digits.size() % 2 != 0) return std::nullopt;
  std::string bytes;
  for (size_t i = 0; i < digits.size(); i += 2) {
    uint8_t byte;
    auto [end, error] = std::from_chars(digits.data() + i, digits.data() + i + 2, byte, 16);
    if (error != std::errc() || end != digits.data() + i + 2) return std::nullopt;
    bytes.push_back(static_cast<char>(byte));
  }
  return bytes;
}

// The value when `arg` is `--NAME=VALUE`.
std::optional<std::string_view> Value(std::string_view arg, std::string_view name) {
  if (arg.substr(0, name.size()) != name) return std::nullopt;
  return arg.substr(name.size());
}

const unsigned char* Bytes(const char* data) {
  return reinterpret_cast<const unsigned char*>(data);
}
unsigned char* Bytes(char* data) { return reinterpret_cast<unsigned char*>(data); }

}  // namespace

AltsOptions TakeAltsFlags(int& argc, char** argv) {
  AltsOptions options;
  int kept = 1;
  for (int i = 1; i < argc; ++i) {
    const std::string_view arg = argv[i];
    if (const auto key = Value(arg, "--key-hex=")) {
      const std::optional<std::string> bytes = FromHex(*key);
      if (!bytes) DieOfFlag(argv[0], "--key-hex: not pairs of hexadecimal digits");
      options.key = *bytes;
    } else if (const auto protocol = Value(arg, "--record-protocol=")) {
      options.rekey = *protocol == kRekey;
      if (!options.rekey && *protocol != kPlain) {
        DieOfFlag(argv[0], "unknown --record-protocol '" + std::string(*protocol) + "'");
      }
    } else if (const auto frame = Value(arg, "--max-frame=")) {
      auto [end, error] =
          std::from_chars(frame->data(), frame->data() + frame->size(), options.frame_max);
      if (error != std::errc() || end != frame->data() + frame->size() ||
          options.frame_max < kFrameMaxLeast || options.frame_max > kFrameMaxMost) {
        DieOfFlag(argv[0], "--max-frame: '" + std::string(*frame) + "' is not accepted");
      }
    } else if (arg == "--tell-records") {
      options.tell_records = true;
    } else {
      argv[kept++] = argv[i];
    }
  }
  argc = kept;
  if (options.key.size() != (options.rekey ? 44 : 16)) {
    DieOfFlag(argv[0], "--key-hex: " + std::to_string(options.key.size()) + " bytes given");
  }
  return options;
}

char* WireBuffer::Room(size_t room) {
  if (capacity_ - size_ < room) {
    capacity_ = std::max(2 * capacity_, size_ + room);
    std::unique_ptr<char[]> grown(new char[capacity_]);
    if (size_ > 0) memcpy(grown.get(), data_.get(), size_);
    data_ = std::move(grown);
  }
  return data_.get() + size_;
}

AltsProtector::AltsProtector(const AltsOptions& options, Side side)
    : frame_max_(options.frame_max) {
  const int result =
      alts_create_frame_protector(Bytes(options.key.data()), options.key.size(),
                                  side == Side::kClient, options.rekey, &frame_max_, &protector_);
  if (result != 0) {
    fprintf(stderr, "alts_create_frame_protector: tsi_result %d\n", result);
    exit(1);
  }
}

AltsProtector::~AltsProtector() { tsi_frame_protector_destroy(protector_); }

bool AltsProtector::Seal(std::string_view plain, WireBuffer& wire) {
  while (!plain.empty()) {
    size_t taken = plain.size();
    // With less room than a record needs, the rest of it would wait for the next call.
    size_t written = frame_max_;
    if (tsi_frame_protector_protect(protector_, Bytes(plain.data()), &taken,
                                    Bytes(wire.Room(frame_max_)), &written) != 0) {
      return false;
    }
    wire.Extend(written);
    plain.remove_prefix(taken);
  }
  return true;
}

bool AltsProtector::Flush(WireBuffer& wire) {
  size_t pending = 0;
  do {
    size_t written = frame_max_;
    if (tsi_frame_protector_protect_flush(protector_, Bytes(wire.Room(frame_max_)), &written,
                                          &pending) != 0) {
      return false;
    }
    wire.Extend(written);
  } while (pending > 0);
  return true;
}

bool AltsProtector::Open(std::string_view& wire, char* plain, size_t& room) {
  size_t taken = wire.size();
  if (tsi_frame_protector_unprotect(protector_, Bytes(wire.data()), &taken, Bytes(plain), &room) !=
      0) {
    return false;
  }
  wire.remove_prefix(taken);
  return true;
}

}  // namespace penstock_bench
