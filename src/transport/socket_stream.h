// SocketStream: the owner's handle of a Connection, as a Stream. Two words, and they live inside
// the connection, so a stream is one allocation and a crowd of them leaves no crumbs in the heap.
// The connection outlives its handle while the kernel or a running callback still uses it.
#ifndef PENSTOCK_TRANSPORT_SOCKET_STREAM_H_
#define PENSTOCK_TRANSPORT_SOCKET_STREAM_H_

#include <penstock/export.h>
#include <penstock/stream.h>

#include <cstddef>
#include <new>
#include <utility>

#include "engine/connection.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

class SocketStream final : public Stream {
 public:
  // Takes the owner's hold.
  static StreamPtr Adopt(Connection* connection) {
    static_assert(sizeof(SocketStream) <= Connection::kHandleSize);
    return StreamPtr(new (connection->handle_storage()) SocketStream(*connection));
  }

  // What `delete` of a StreamPtr comes to: the memory is the connection's, and goes with its last
  // hold.
  static void operator delete(SocketStream* self, std::destroying_delete_t) {
    Connection& connection = self->connection_;
    self->~SocketStream();
    connection.ReleaseOwner();
  }

  void ReadReady(ReadCallback done) override { connection_.ReadReady(std::move(done)); }
  void CancelRead() override { connection_.CancelRead(); }
  void Write(BufferChain data, DoneCallback done) override {
    connection_.Write(std::move(data), std::move(done));
  }
  bool writable() const override { return connection_.writable(); }
  void NotifyWritable(DoneCallback done) override { connection_.NotifyWritable(std::move(done)); }
  void ShutdownWrite(DoneCallback done) override { connection_.ShutdownWrite(std::move(done)); }
  void ShutdownRead() override { connection_.ShutdownRead(); }
  void Abort() override { connection_.Abort(); }
  void SetReadDeadline(absl::Duration after) override { connection_.SetReadDeadline(after); }
  void SetWriteDeadline(absl::Duration after) override { connection_.SetWriteDeadline(after); }
  void SetIdleDeadline(absl::Duration after) override { connection_.SetIdleDeadline(after); }
  SocketAddress peer() const override { return connection_.peer(); }
  SocketAddress local() const override { return connection_.local(); }
  Loop& loop() const override;
  StreamStats stats() const override { return connection_.stats(); }
  SendBounds send_bounds() const override { return connection_.send_bounds(); }

  Connection* connection() override { return &connection_; }

 private:
  explicit SocketStream(Connection& connection) : connection_(connection) {}
  static void* operator new(size_t, void* place) { return place; }

  Connection& connection_;
};

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_TRANSPORT_SOCKET_STREAM_H_
