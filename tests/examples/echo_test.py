#!/usr/bin/env python3
"""echo_server and echo_client against each other and against peers that misbehave."""

import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading

import programs
from programs import (PATIENCE, Case, Running, Server, each_engine, flood, receive_all, run,
                      wait_until)

SERVER_KEYS = ["engine", "engine_reason", "loops", "connections", "uring_connections",
               "idle_connections", "pinned_bytes", "sealed_pinned_bytes", "framed_pinned_bytes",
               "pool_live_bytes", "pool_ring_bytes", "pool_mapped_bytes", "bytes_in", "bytes_out",
               "errors", "accepted", "closed", "engine_switches", "switches_to_epoll",
               "switches_to_uring", "listener_switches", "listener_switches_refused",
               "loop_moves", "moves_out", "moves_back", "refused_to_epoll", "refused_to_uring",
               "refused_out", "refused_in", "stranded", "pause_p50_us", "pause_p99_us",
               "late_completions", "bytes_carried"]
CLIENT_KEYS = ["engine", "connections", "size", "depth", "seconds", "requests", "requests_per_s",
               "bytes", "p50_us", "p90_us", "p99_us", "p999_us", "max_us", "errors"]


class Echo:
    def server(self, *words, listen="127.0.0.1:0"):
        return Server("echo_server", f"--listen={listen}", f"--engine={self.engine}", *words)

    def client(self, server, *words):
        done = run("echo_client", f"--connect={server.address}", f"--engine={self.engine}", *words)
        self.assertEqual(done.returncode, 0, done.stderr)
        return json.loads(done.stdout)

    def test_half_close(self):
        with self.server() as server, server.connect() as peer:
            sent = os.urandom(300000)
            sender = threading.Thread(target=lambda: (peer.sendall(sent),
                                                      peer.shutdown(socket.SHUT_WR)))
            sender.start()
            self.assertEqual(receive_all(peer), sent)
            sender.join()
            last = server.stop()
        self.assertEqual(list(last), SERVER_KEYS)
        self.assertEqual((last["bytes_in"], last["bytes_out"]), (300000, 300000))
        self.assertEqual((last["accepted"], last["closed"], last["connections"]), (1, 1, 0))
        self.assertEqual((last["errors"], last["pool_live_bytes"]), (0, 0))

    def test_load(self):
        for words in (["--connections=1", "--size=1"], ["--connections=8", "--size=1000",
                                                        "--depth=4"],
                      ["--connections=2", "--size=200000", "--depth=3"]):
            with self.subTest(words=words), self.server() as server:
                figures = self.client(server, "--duration=300ms", *words)
                self.assertEqual(list(figures), CLIENT_KEYS)
                self.assertEqual((figures["errors"], figures["engine"]), (0, self.engine))
                self.assertGreater(figures["requests"], 0)
                self.assertGreater(figures["requests_per_s"], 0)
                self.assertGreaterEqual(figures["bytes"], figures["requests"] * figures["size"])
                self.assertLessEqual(figures["p50_us"], figures["p99_us"])
                self.assertLessEqual(figures["p999_us"], figures["max_us"])
                last = server.stop()
                self.assertEqual(last["engine"], self.engine)
                self.assertEqual(last["engine_reason"], "requested")
                self.assertEqual((last["bytes_in"], last["bytes_out"]), (figures["bytes"],) * 2)
                self.assertEqual((last["errors"], last["pool_live_bytes"]), (0, 0))

    def test_snapshots_while_it_runs(self):
        with self.server() as server:
            self.assertEqual(server.snapshot()["connections"], 0)
            peers = [server.connect() for _ in range(5)]
            for peer in peers:
                peer.sendall(b"hello")
                self.assertEqual(peer.recv(5), b"hello")
            idle = server.wait_for("five idle", connections=5, idle_connections=5,
                                   pool_live_bytes=0)
            self.assertEqual(idle["errors"], 0)
            for peer in peers:
                peer.close()
            server.wait_for("all gone", connections=0, closed=5)
            server.stop()

    def test_whoever_takes_the_first_line_alone_leaves_it_serving(self):
        command = [programs.program("echo_server"), "--listen=127.0.0.1:0",
                   f"--engine={self.engine}"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            self.addCleanup(process.kill)
            address = process.stdout.readline().split()[-1]
            process.stdout.close()  # as `echo_server | head -1` does
            process.send_signal(signal.SIGUSR1)
            done = run("echo_client", f"--connect={address}", "--duration=100ms")
            self.assertEqual(done.returncode, 0, done.stderr)
            process.send_signal(signal.SIGTERM)
            self.assertEqual(process.wait(PATIENCE), 0)

    def test_huge_pages_and_busy_polling(self):
        with self.server("--huge-pages", "--busy-poll=1ms") as server:
            figures = self.client(server, "--duration=200ms", "--connections=4", "--size=40000",
                                  "--busy-poll=1ms")
            self.assertEqual(figures["errors"], 0)
            self.assertGreater(figures["requests"], 0)
            self.assertEqual(server.stop()["pool_live_bytes"], 0)

    def test_unix_socket_with_a_path(self):
        path = self.folder / "echo.sock"
        with self.server(listen=f"unix:{path}") as server:
            self.assertEqual(server.address, f"unix:{path}")
            self.assertEqual(self.client(server, "--duration=100ms")["errors"], 0)
            server.stop()
        self.assertFalse(path.exists())

    def test_stale_unix_socket_is_replaced(self):
        path = self.folder / "echo.sock"
        with self.server(listen=f"unix:{path}") as server:
            server.process.kill()
            server.end()
        self.assertTrue(path.exists())
        # The kernel takes the ring of a killed process down behind its back, and a ring holds the
        # listening socket.
        wait_until(lambda: self.refuses(path), "the killed server stops listening")
        with self.server(listen=f"unix:{path}") as server:
            self.assertEqual(self.client(server, "--duration=100ms")["errors"], 0)
            server.stop()

    def refuses(self, path):
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(str(path))
            except ConnectionRefusedError:
                return True
        return False

    def test_abstract_unix_socket(self):
        with self.server(listen=f"unix:@penstock-{os.getpid()}-{self.engine}") as server:
            self.assertEqual(self.client(server, "--duration=100ms")["errors"], 0)
            server.stop()

    def test_ipv6(self):
        try:
            with socket.socket(socket.AF_INET6) as probe:
                probe.bind(("::1", 0))
        except OSError as error:
            self.skipTest(f"no IPv6 here: {error}")
        with self.server(listen="[::1]:0") as server:
            self.assertEqual(self.client(server, "--duration=100ms")["errors"], 0)
            server.stop()

    def test_loops_share_one_free_port(self):
        with self.server("--loops=2") as server:
            figures = self.client(server, "--connections=32", "--duration=200ms")
            self.assertEqual(figures["errors"], 0)
            last = server.stop()
        self.assertEqual((last["loops"], last["accepted"], last["errors"]), (2, 32, 0))

    def test_connections_beyond_the_limit_wait(self):
        with self.server("--max-connections=2") as server:
            first, second, third = (server.connect() for _ in range(3))
            for peer in (first, second):
                peer.sendall(b"a")
                self.assertEqual(peer.recv(1), b"a")
            third.sendall(b"b")
            self.assertEqual(server.snapshot()["connections"], 2)
            first.close()
            self.assertEqual(third.recv(1), b"b")
            second.close()
            third.close()
            server.stop()

    def test_the_limit_is_exact_over_several_loops(self):
        with self.server("--max-connections=5", "--loops=3") as server:
            peers = [server.connect() for _ in range(40)]
            for peer in peers:
                peer.sendall(b"a")
            server.wait_for("all that may", connections=5)
            wait_until(lambda: len(select.select(peers, [], [], 0)[0]) >= 5, "five answers")
            self.assertEqual(len(select.select(peers, [], [], 0)[0]), 5)
            self.assertEqual(server.snapshot()["connections"], 5)
            for peer in peers:
                peer.close()
            server.stop()

    def test_terminates_in_grace_although_a_peer_stays(self):
        for number in (signal.SIGTERM, signal.SIGINT):
            with self.subTest(signal=number), self.server("--grace=100ms") as server:
                with server.connect() as peer:
                    peer.sendall(b"x")
                    self.assertEqual(peer.recv(1), b"x")
                    last = server.stop(number)
                    try:
                        self.assertEqual(peer.recv(1), b"")
                    except ConnectionResetError:
                        pass
                self.assertEqual((last["connections"], last["pool_live_bytes"]), (0, 0))

    def test_resets_are_not_errors(self):
        with self.server() as server:
            for _ in range(20):
                with server.connect() as peer:
                    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    peer.sendall(b"x" * 100000)
            server.wait_for("all gone", connections=0, accepted=20)
            last = server.stop()
            self.assertEqual((last["errors"], last["pool_live_bytes"]), (0, 0))

    def test_peer_that_does_not_read_is_held_back(self):
        with self.server() as server, server.connect() as peer:
            peer.settimeout(0.5)
            sent = 0
            try:
                while sent < 1 << 30:
                    sent += peer.send(b"x" * 65536)
            except TimeoutError:
                pass
            self.assertLess(sent, 1 << 30)
            self.assertLessEqual(server.snapshot()["pool_live_bytes"], 1 << 20)
            with server.connect() as other:
                other.sendall(b"y")
                self.assertEqual(other.recv(1), b"y")
            peer.close()
            server.wait_for("all gone", connections=0, pool_live_bytes=0)
            server.stop()

    def test_peer_that_never_reads_loses_its_connection_alone(self):
        with self.server("--write-timeout=200ms") as server:
            with server.connect() as other:
                for number in range(3):
                    with server.connect() as peer:
                        flood(peer, b"x" * 65536)
                        other.sendall(b"y")
                        self.assertEqual(other.recv(1), b"y")
                        server.wait_for("cut off", connections=1, closed=number + 1, pool_live_bytes=0)
            server.wait_for("all gone", connections=0)
            self.assertEqual(server.stop()["errors"], 0)

    def test_connection_on_which_nothing_moves_is_closed(self):
        with self.server("--idle-timeout=2s") as server, server.connect() as peer:
            peer.sendall(b"x")
            self.assertEqual(peer.recv(1), b"x")
            try:
                self.assertEqual(peer.recv(1), b"")
            except ConnectionResetError:
                pass
            server.wait_for("gone", connections=0, closed=1, errors=0)
            server.stop()

    def test_idle_connections_leave_with_stdin(self):
        with self.server() as server:
            with Running("echo_client", f"--connect={server.address}", "--idle=100",
                         f"--engine={self.engine}", "--duration=1h",
                         stdin=subprocess.PIPE) as client:
                figures = json.loads(client.line())
                self.assertEqual((figures["requests"], figures["errors"]), (100, 0))
                idle = server.wait_for("idle", connections=100, idle_connections=100,
                                       pool_live_bytes=0)
                self.assertEqual(idle["bytes_in"], 6400)
                client.process.stdin.close()
                self.assertEqual(client.end(), 0)
            server.wait_for("all gone", connections=0)
            server.stop()

    def test_idle_connections_leave_after_a_while(self):
        with self.server() as server:
            figures = self.client(server, "--idle=10", "--duration=300ms")
            self.assertEqual((figures["requests"], figures["errors"]), (10, 0))
            server.stop()

    def test_client_tells_of_a_server_that_dies(self):
        with self.server() as server:
            with Running("echo_client", f"--connect={server.address}", "--duration=1h",
                         f"--engine={self.engine}") as client:
                wait_until(lambda: server.snapshot()["bytes_in"] > 0, "some traffic")
                server.process.kill()
                self.assertEqual(client.end(), 1)
                self.assertEqual(json.loads(client.line())["errors"], 1)
                self.assertIn("connection 0: read from", client.stderr())

    def test_client_tells_of_an_idle_connection_that_dies(self):
        with self.server() as server:
            with Running("echo_client", f"--connect={server.address}", "--idle=3",
                         f"--engine={self.engine}", "--duration=1h", stdin=subprocess.PIPE) as client:
                self.assertEqual(json.loads(client.line())["errors"], 0)
                server.process.kill()
                wait_until(lambda: "read from" in client.stderr(), "what the client says of it")
                client.process.stdin.close()
                self.assertEqual(client.end(), 1)

    def client_of(self, serve, *words):
        """Runs the client against `serve(peer)`, which answers one connection."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.settimeout(PATIENCE)

            def accept():
                peer, _ = listener.accept()
                peer.settimeout(PATIENCE)
                with peer:
                    try:
                        serve(peer)
                    except ConnectionError:
                        pass

            thread = threading.Thread(target=accept)
            thread.start()
            done = run("echo_client", f"--connect=127.0.0.1:{listener.getsockname()[1]}",
                       f"--engine={self.engine}", "--size=100", "--duration=1h", *words)
            thread.join()
        return done

    def against(self, serve, *words):
        """As above; returns what the client complains of."""
        done = self.client_of(serve, *words)
        self.assertEqual(done.returncode, 1, done)
        self.assertEqual(json.loads(done.stdout)["errors"], 1)
        return done.stderr

    def test_client_finds_one_wrong_bit(self):
        def serve(peer):
            peer.sendall(peer.recv(100))
            wrong = bytearray(peer.recv(100))
            wrong[42] ^= 1
            peer.sendall(wrong)
            peer.recv(1)

        self.assertIn("byte 142 came back wrong", self.against(serve))

    def test_client_finds_bytes_that_it_did_not_send(self):
        def serve(peer):
            request = peer.recv(100)
            peer.sendall(request + request)
            peer.recv(1)

        self.assertRegex(self.against(serve), "byte 100 came back wrong|more came back")

    def test_client_counts_replies_that_never_come(self):
        self.assertIn("100 bytes did not come back", self.against(
            receive_all, "--duration=100ms", "--patience=200ms"))

    def test_client_measures_until_the_first_reply(self):
        """However late it comes: without one nothing would have been measured."""
        def serve(peer):
            request = peer.recv(100)
            late.wait(0.3)
            peer.sendall(request)
            peer.recv(1)

        late = threading.Event()
        done = self.client_of(serve, "--duration=50ms")
        self.assertEqual(done.returncode, 0, done)
        self.assertEqual(json.loads(done.stdout)["requests"], 1)

    def test_client_tells_of_an_early_end(self):
        self.assertIn("end of stream", self.against(
            lambda peer: (peer.recv(100), peer.shutdown(socket.SHUT_WR), receive_all(peer))))


class Connecting(Case):
    def test_refused(self):
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{closed.getsockname()[1]}"
            done = run("echo_client", f"--connect={address}", "--connections=10")
        self.assertEqual(done.returncode, 1)
        self.assertIn(f"echo_client: connect to {address}", done.stderr)
        self.assertIn("ECONNREFUSED", done.stderr)
        self.assertIn("more errors follow", done.stderr)
        self.assertEqual(json.loads(done.stdout)["errors"], 10)


globals().update(each_engine(Echo))

if __name__ == "__main__":
    sys.exit(programs.main())
