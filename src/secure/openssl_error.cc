#include "secure/openssl_error.h"

#include <openssl/err.h>

#include "absl/strings/str_cat.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {
namespace {

std::string ReasonOf(unsigned long error) {  // NOLINT: OpenSSL's type
  const char* reason = ERR_reason_error_string(error);
  if (reason != nullptr) return reason;
  return absl::StrCat("error ", ERR_GET_REASON(error));
}

}  // namespace

OpenSslError TakeOpenSslError() {
  OpenSslError taken;
  const char* data = nullptr;
  int flags = 0;
  while (true) {
    const unsigned long error = ERR_get_error_all(nullptr, nullptr, nullptr, &data, &flags);
    if (error == 0) break;
    if (taken.text.empty()) {
      taken.library = ERR_GET_LIB(error);
      taken.reason = ERR_GET_REASON(error);
    }
    absl::StrAppend(&taken.text, taken.text.empty() ? "" : "; ", ReasonOf(error));
    if ((flags & ERR_TXT_STRING) != 0 && data != nullptr && *data != '\0') {
      absl::StrAppend(&taken.text, " (", data, ")");
    }
  }
  if (taken.text.empty()) taken.text = "OpenSSL gave no reason";
  return taken;
}

}  // namespace internal
PENSTOCK_END_NAMESPACE
