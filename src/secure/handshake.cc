#include <penstock/handshake.h>

#include <cerrno>
#include <cstdio>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/error.h"
#include "secure/wipe.h"

PENSTOCK_BEGIN_NAMESPACE

SecretKey::SecretKey(std::string_view bytes) {
  if (bytes.size() > kMaxSize) return;
  bytes.copy(bytes_.data(), bytes.size());
  size_ = static_cast<uint8_t>(bytes.size());
}

absl::StatusOr<SecretKey> SecretKey::FromHex(std::string_view text) {
  const auto digit = [](char c) -> int {
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    return -1;
  };
  while (!text.empty() && absl::ascii_isspace(text.front())) text.remove_prefix(1);
  while (!text.empty() && absl::ascii_isspace(text.back())) text.remove_suffix(1);
  if (text.empty() || text.size() % 2 != 0 || text.size() > 2 * kMaxSize) {
    return absl::InvalidArgumentError(absl::StrCat("a key of ", text.size(),
                                                   " hexadecimal digits: an even number from 2 to ",
                                                   2 * kMaxSize, " is accepted"));
  }
  SecretKey key;
  for (size_t i = 0; i < text.size(); i += 2) {
    const int high = digit(text[i]);
    const int low = digit(text[i + 1]);
    if (high < 0 || low < 0) {
      return absl::InvalidArgumentError("a key has a character that is no hexadecimal digit");
    }
    key.bytes_[key.size_++] = static_cast<char>(high * 16 + low);
  }
  return key;
}

absl::StatusOr<SecretKey> SecretKey::FromHexFile(const std::string& path) {
  const std::unique_ptr<FILE, int (*)(FILE*)> file(fopen(path.c_str(), "re"), fclose);
  if (file == nullptr) {
    const int error = errno;
    const std::string operation = absl::StrCat("key from ", path);
    if (error == ENOENT) {
      return absl::NotFoundError(absl::StrCat(operation, ": ", internal::ErrnoText(error)));
    }
    return internal::ErrnoStatus(error, operation);
  }
  setvbuf(file.get(), nullptr, _IONBF, 0);  // no copy of the key outside of `text`
  std::array<char, 4 * kMaxSize> text;
  const size_t size = fread(text.data(), 1, text.size(), file.get());
  absl::StatusOr<SecretKey> key = FromHex({text.data(), size});
  internal::WipeSecret(text.data(), text.size());
  if (ferror(file.get()) != 0) {
    return absl::InvalidArgumentError(absl::StrCat("key from ", path, ": it cannot be read"));
  }
  if (!key.ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat("key from ", path, ": ", key.status().message()));
  }
  return key;
}

SecretKey::SecretKey(SecretKey&& other) noexcept : bytes_(other.bytes_), size_(other.size_) {
  other.Wipe();
}

SecretKey& SecretKey::operator=(SecretKey&& other) noexcept {
  if (this != &other) {
    bytes_ = other.bytes_;
    size_ = other.size_;
    other.Wipe();
  }
  return *this;
}

void SecretKey::Wipe() {
  internal::WipeSecret(bytes_.data(), bytes_.size());
  size_ = 0;
}

std::string PeerIdentity::ToString() const {
  switch (kind) {
    case Kind::kNone:
      return "nobody yet";
    case Kind::kCertificate: {
      std::string text = subject.empty() ? "no subject" : subject;
      if (!uris.empty())
        absl::StrAppend(&text, ", uri ", absl::CHexEscape(absl::StrJoin(uris, " ")));
      if (!dns_names.empty())
        absl::StrAppend(&text, ", dns ", absl::CHexEscape(absl::StrJoin(dns_names, " ")));
      if (!ip_addresses.empty()) absl::StrAppend(&text, ", ip ", absl::StrJoin(ip_addresses, " "));
      return text;
    }
    case Kind::kPsk:
      return absl::StrCat("PSK identity '", absl::CHexEscape(psk_identity), "'");
    case Kind::kAlts:
      return absl::StrCat("service account '", absl::CHexEscape(service_account), "'");
    case Kind::kStaticKey:
      return "holder of the static key";
  }
  return "";
}

PENSTOCK_END_NAMESPACE
