// Seal as an awaitable; see penstock/coro.h for how a wait ends.
//
//   absl::StatusOr<StreamPtr> sealed =
//       co_await coro::Seal(std::move(stream), credentials, handshake, options);
#ifndef PENSTOCK_CORO_SEAL_H_
#define PENSTOCK_CORO_SEAL_H_

#include <penstock/coro.h>
#include <penstock/export.h>
#include <penstock/seal.h>

#include <coroutine>
#include <utility>

#include "absl/status/statusor.h"

PENSTOCK_BEGIN_NAMESPACE
namespace coro {
namespace detail {

class SealWait final : public ResultWait<absl::StatusOr<StreamPtr>> {
 public:
  SealWait(StreamPtr plain, const CredentialsPtr& credentials, const HandshakeOptions& handshake,
           const SealOptions& options, CancelToken token)
      : ResultWait(plain->loop(), std::move(token)),
        plain_(std::move(plain)),
        credentials_(credentials),
        handshake_(handshake),
        options_(options) {}
  ~SealWait() {
    if (Forget()) attempt_.Cancel();
  }
  void await_suspend(std::coroutine_handle<> coroutine) {
    Suspend(coroutine);
    attempt_ = penstock::Seal(std::move(plain_), std::move(credentials_), std::move(handshake_),
                              std::move(options_), Callback());
  }

 private:
  void OnCancel() override { attempt_.Cancel(); }
  StreamPtr plain_;
  CredentialsPtr credentials_;
  HandshakeOptions handshake_;
  SealOptions options_;
  SealAttempt attempt_;
};

}  // namespace detail

// As penstock::Seal. Cancelled: the handshake is given up, and the stream with it. Who is at the
// other end SealOptions::authorize is told, before the wait ends; it may copy that to the caller's.
inline detail::SealWait Seal(StreamPtr plain, const CredentialsPtr& credentials,
                             const HandshakeOptions& handshake, const SealOptions& options,
                             CancelToken token = CancelToken()) {
  return detail::SealWait(std::move(plain), credentials, handshake, options, std::move(token));
}
// Options that are temporaries; see coro.h.
detail::SealWait Seal(StreamPtr plain, const CredentialsPtr& credentials,
                      const HandshakeOptions&& handshake, const SealOptions& options,
                      CancelToken token = CancelToken()) = delete;
detail::SealWait Seal(StreamPtr plain, const CredentialsPtr& credentials,
                      const HandshakeOptions& handshake, const SealOptions&& options,
                      CancelToken token = CancelToken()) = delete;

}  // namespace coro
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_CORO_SEAL_H_
