#include "base/error.h"

#include <errno.h>
#include <penstock/status.h>
#include <string.h>

#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/cord.h"
#include "absl/strings/str_cat.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {
namespace {

constexpr char kUnauthenticatedEof[] = "penstock/unauthenticated-eof";

}  // namespace

absl::StatusCode ErrnoCode(int error) {
  switch (error) {
    // The connection is gone, was never there, or the address is not to be had now.
    case ECONNRESET:
    case EPIPE:
    case ECONNREFUSED:
    case ECONNABORTED:
    case ENOTCONN:
    case ESHUTDOWN:
    case EHOSTUNREACH:
    case EHOSTDOWN:
    case ENETUNREACH:
    case ENETDOWN:
    case ENETRESET:
    case ENONET:
    case EPROTO:
    case EADDRINUSE:
    case EADDRNOTAVAIL:
    // The file of a Unix socket: nobody listens there.
    case ENOENT:
    case ENOTDIR:
    // The kernel gave the peer up: no answer to a SYN, to data (TCP_USER_TIMEOUT, tcp(7)) or to
    // keep-alive probes. The connection is gone, which is what Unavailable says; after
    // DeadlineExceeded, which is for the deadlines of StreamOptions, a stream can still be read.
    case ETIMEDOUT:
      return absl::StatusCode::kUnavailable;

    case EMFILE:
    case ENFILE:
    case ENOBUFS:
    case ENOMEM:
    case ENOSPC:
    case EDQUOT:
      return absl::StatusCode::kResourceExhausted;

    case EACCES:
    case EPERM:
    case EROFS:
      return absl::StatusCode::kPermissionDenied;

    case ENOSYS:
    case EOPNOTSUPP:
    case EAFNOSUPPORT:
    case EPFNOSUPPORT:
    case EPROTONOSUPPORT:
    case ESOCKTNOSUPPORT:
    case ENOPROTOOPT:
    case ENODEV:
      return absl::StatusCode::kUnimplemented;

    case EINVAL:
    case EDOM:
    case EMSGSIZE:
    case ENAMETOOLONG:
    case ELOOP:
      return absl::StatusCode::kInvalidArgument;

    case ECANCELED:
      return absl::StatusCode::kCancelled;

    default:
      return absl::StatusCode::kInternal;
  }
}

std::string ErrnoText(int error) {
  const char* name = ::strerrorname_np(error);
  if (name == nullptr) return absl::StrCat("error ", error);
  // glibc starts its sentences with a capital, except that some start with an acronym.
  std::string text = ::strerrordesc_np(error);
  if (text.size() > 1 && !absl::ascii_isupper(text[1])) text[0] = absl::ascii_tolower(text[0]);
  return absl::StrCat(text, " (", name, ")");
}

absl::Status PeerStatus(absl::StatusCode code, std::string_view operation,
                        const SocketAddress* peer, std::string_view reason) {
  std::string message(operation);
  if (peer != nullptr) message.append(" ").append(peer->ToString());
  return absl::Status(code, message.append(": ").append(reason));
}

absl::Status ErrnoStatus(int error, std::string_view operation, const SocketAddress* peer) {
  return PeerStatus(ErrnoCode(error), operation, peer, ErrnoText(error));
}

absl::Status AsUnauthenticatedEof(absl::Status status) {
  status.SetPayload(kUnauthenticatedEof, absl::Cord());
  return status;
}

}  // namespace internal

bool IsUnauthenticatedEof(const absl::Status& status) {
  return IsEof(status) && status.GetPayload(internal::kUnauthenticatedEof).has_value();
}

PENSTOCK_END_NAMESPACE
