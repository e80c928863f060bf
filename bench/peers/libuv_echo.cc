// Echo over libuv: one read buffer shared by all connections, uv_try_write first, a queued uv_write
// (reading stopped meanwhile) only for what the socket did not take.
//
//   libuv_echo PORT
#include <sys/socket.h>
#include <uv.h>

#include <cstdlib>
#include <cstring>

#include "peer.h"

namespace penstock_bench {
namespace {

alignas(64) char shared_buffer[kReadSize];

void Check(int result, const char* what) {
  if (result < 0) Die(what, -result);
}

void Close(uv_stream_t* stream) {
  auto* handle = reinterpret_cast<uv_handle_t*>(stream);
  if (uv_is_closing(handle) != 0) return;
  uv_close(handle, [](uv_handle_t* closed) { delete reinterpret_cast<uv_tcp_t*>(closed); });
}

void OnRead(uv_stream_t* stream, ssize_t size, const uv_buf_t* buffer);

void GiveBuffer(uv_handle_t*, size_t, uv_buf_t* buffer) {
  *buffer = uv_buf_init(shared_buffer, sizeof shared_buffer);
}

void OnWritten(uv_write_t* request, int status) {
  uv_stream_t* stream = request->handle;
  free(request);
  if (status < 0 || uv_read_start(stream, GiveBuffer, OnRead) < 0) Close(stream);
}

// The request and the bytes it sends share one allocation, freed when it completes.
void WriteRest(uv_stream_t* stream, const char* data, size_t size) {
  auto* request = static_cast<uv_write_t*>(malloc(sizeof(uv_write_t) + size));
  if (request == nullptr) Die("malloc");
  char* copy = reinterpret_cast<char*>(request + 1);
  memcpy(copy, data, size);
  uv_buf_t buffer = uv_buf_init(copy, static_cast<unsigned>(size));
  uv_read_stop(stream);
  if (uv_write(request, stream, &buffer, 1, OnWritten) < 0) {
    free(request);
    Close(stream);
  }
}

void OnRead(uv_stream_t* stream, ssize_t size, const uv_buf_t* buffer) {
  if (size == 0) return;
  if (size < 0) {
    Close(stream);
    return;
  }
  uv_buf_t reply = uv_buf_init(buffer->base, static_cast<unsigned>(size));
  int sent = uv_try_write(stream, &reply, 1);
  if (sent == UV_EAGAIN) sent = 0;
  if (sent < 0) {
    Close(stream);
  } else if (sent < size) {
    WriteRest(stream, buffer->base + sent, size - sent);
  }
}

void OnConnection(uv_stream_t* listener, int status) {
  Check(status, "accept");
  auto* connection = new uv_tcp_t;
  Check(uv_tcp_init(listener->loop, connection), "uv_tcp_init");
  auto* stream = reinterpret_cast<uv_stream_t*>(connection);
  Check(uv_accept(listener, stream), "uv_accept");
  Check(uv_read_start(stream, GiveBuffer, OnRead), "uv_read_start");
}

}  // namespace
}  // namespace penstock_bench

int main(int argc, char** argv) {
  using namespace penstock_bench;
  PeerOptions options = ParsePeerOptions(argc, argv, {});
  int listen_fd = ListenOrDie(options.port, SOCK_NONBLOCK);
  uv_loop_t loop;
  Check(uv_loop_init(&loop), "uv_loop_init");
  uv_tcp_t listener;
  Check(uv_tcp_init(&loop, &listener), "uv_tcp_init");
  Check(uv_tcp_open(&listener, listen_fd), "uv_tcp_open");
  Check(uv_listen(reinterpret_cast<uv_stream_t*>(&listener), SOMAXCONN, OnConnection), "uv_listen");
  AnnouncePeer(listen_fd);
  uv_run(&loop, UV_RUN_DEFAULT);
}
