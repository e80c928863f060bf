#!/usr/bin/env python3
"""http_hello against raw sockets, curl and wrk."""

import json
import re
import shutil
import signal
import subprocess
import sys

import programs
from programs import PATIENCE, Server, each_engine, flood, receive_all, wait_until

GREETING = b"Hello, world!\n"
GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


class Answers:
    """The answers that come out of a connection, one by one."""

    def __init__(self, peer):
        self.file = peer.makefile("rb")

    def next(self, head_only=False):
        """(status, fields, body) of the next answer; None at the end."""
        line = self.file.readline()
        if not line:
            return None
        match = re.fullmatch(rb"HTTP/1\.1 (\d{3}) [A-Za-z ]+\r\n", line)
        if not match:
            raise AssertionError(f"no status line: {line}")
        fields = {}
        while (line := self.file.readline()) != b"\r\n":
            name, value = line.rstrip(b"\r\n").split(b": ", 1)
            fields[name.decode().lower()] = value.decode()
        size = 0 if head_only else int(fields["content-length"])
        return int(match[1]), fields, self.file.read(size)


class Http:
    def setUp(self):
        super().setUp()
        self.server = self.enterContext(Server("http_hello", "--listen=127.0.0.1:0",
                                               f"--engine={self.engine}", "--grace=100ms"))

    def tearDown(self):
        # Whatever peers did, nothing was the server's fault and nothing is left.
        last = self.server.stop()
        self.assertEqual((last["errors"], last["pool_live_bytes"], last["connections"]), (0, 0, 0))

    def ask(self, request):
        """All answers to `request`, to which the server closes the connection."""
        with self.server.connect() as peer:
            try:
                peer.sendall(request)
            except ConnectionError:
                pass
            answers = Answers(peer)
            return list(iter(answers.next, None))

    def refuses(self, request, status):
        answers = self.ask(request)
        self.assertEqual([answer[0] for answer in answers], [status], request[:200])
        self.assertEqual(answers[0][1]["connection"], "close")
        self.assertTrue(answers[0][2].startswith(str(status).encode()), answers[0][2])

    def test_get_and_head_on_one_connection(self):
        with self.server.connect() as peer:
            answers = Answers(peer)
            for _ in range(3):
                peer.sendall(GET)
                status, fields, body = answers.next()
                self.assertEqual((status, body), (200, GREETING))
                self.assertNotIn("connection", fields)
                self.assertRegex(fields["date"],
                                 r"^\w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT$")
                peer.sendall(b"HEAD /x?y HTTP/1.1\r\nHost: a\r\n\r\n")
                status, fields, _ = answers.next(head_only=True)
                self.assertEqual((status, fields["content-length"]), (200, str(len(GREETING))))

    def test_a_server_that_drains_says_so_and_ends_at_once_when_told_twice(self):
        with Server("http_hello", "--listen=127.0.0.1:0", f"--engine={self.engine}",
                    "--grace=1h") as server:
            with server.connect() as idle, server.connect() as peer:
                answers = Answers(peer)
                for each, answered in ((idle, Answers(idle)), (peer, answers)):
                    each.sendall(GET)
                    answered.next()
                server.signal(signal.SIGTERM)
                wait_until(lambda: self.refused(server), "a listener that is closed")
                peer.sendall(GET)
                self.assertEqual(answers.next()[1]["connection"], "close")
                self.assertIsNone(answers.next())
                # Told again, it waits for nobody: the idle deadline would end this one in order.
                wait_until(lambda: self.told_to_end(server), "the end")
                with self.assertRaises(ConnectionResetError):
                    idle.recv(1)
                self.assertEqual(json.loads(server.line())["errors"], 0)

    @staticmethod
    def told_to_end(server):
        server.signal(signal.SIGTERM)
        return server.process.poll() is not None

    @staticmethod
    def refused(server):
        try:
            server.connect().close()
        except ConnectionRefusedError:
            return True
        except ConnectionResetError:
            pass  # was in the backlog as it closed
        return False

    def test_pipelining(self):
        with self.server.connect() as peer:
            answers = Answers(peer)
            for count in (2, 16, 1000):
                peer.sendall(GET * count)
                for _ in range(count):
                    self.assertEqual(answers.next()[::2], (200, GREETING))

    def test_whoever_asks_and_does_not_listen_holds_little(self):
        with self.server.connect() as peer:
            peer.setblocking(False)
            held = []
            for _ in range(50):
                try:
                    while True:
                        peer.send(GET * 20000)
                except BlockingIOError:
                    held.append(self.server.snapshot()["pool_live_bytes"])
            self.assertGreater(max(held), 0)
            self.assertLess(max(held), 128 * 1024)

    def test_client_that_never_reads_loses_its_connection_alone(self):
        with Server("http_hello", "--listen=127.0.0.1:0", f"--engine={self.engine}",
                    "--write-timeout=200ms") as server, server.connect() as other:
            with server.connect() as peer:
                flood(peer, GET * 2000)
                server.wait_for("cut off", connections=1, closed=1, pool_live_bytes=0)
            other.sendall(GET)
            self.assertEqual(Answers(other).next()[0], 200)
            other.close()
            self.assertEqual(server.stop()["errors"], 0)

    def test_pipelined_requests_are_answered_in_order(self):
        answers = self.ask(GET + b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc" + GET +
                           b"BREW / HTTP/1.1\r\nHost: a\r\n\r\n" +
                           b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n" + GET)
        self.assertEqual([answer[0] for answer in answers], [200, 405, 200, 501, 200])
        self.assertEqual(answers[1][1]["allow"], "GET, HEAD")
        self.assertEqual(answers[-1][1]["connection"], "close")

    def test_request_in_single_bytes(self):
        with self.server.connect() as peer:
            answers = Answers(peer)
            for byte in GET + GET:
                peer.sendall(bytes([byte]))
            for _ in range(2):
                self.assertEqual(answers.next()[0], 200)

    def test_http_1_0(self):
        answers = self.ask(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"
                           b"GET / HTTP/1.0\r\n\r\n" + GET)
        self.assertEqual([answer[1]["connection"] for answer in answers], ["keep-alive", "close"])

    def test_connection_options_are_a_list(self):
        answers = self.ask(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: x , Close\r\n\r\n" + GET)
        self.assertEqual(len(answers), 1)

    def test_empty_lines_before_a_request(self):
        with self.server.connect() as peer:
            peer.sendall(b"\r\n\r\n" + GET)
            self.assertEqual(Answers(peer).next()[0], 200)

    def test_malformed_requests(self):
        field = b"GET / HTTP/1.1\r\nHost: a\r\n%b\r\n\r\n"
        for request in (
                b"hello\r\n\r\n", b"hello\n", b"GET /\r\n\r\n", b"GET  / HTTP/1.1\r\n\r\n",
                b"G\x00T / HTTP/1.1\r\nHost: a\r\n\r\n", b"GET / HTTQ/1.1\r\nHost: a\r\n\r\n",
                b"GET /\x01 HTTP/1.1\r\nHost: a\r\n\r\n", b"GET / HTTP/1.1 \r\nHost: a\r\n\r\n",
                b"GET / HTTP/1.1\nHost: a\n\n", b"GET / HTTP/1.1\r\n\r\n",
                b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\n\r\n\r\n",
                field % b"Host: b", field % b"NoColon", field % b"Space : 1", field % b" folded",
                field % b": empty", field % b"A: b\x00c", field % b"A: b\rc", field % b"A: b\nc: d",
                field % b"Content-Length: x", field % b"Content-Length: -1",
                field % b"Content-Length: 1, 1", field % b"Content-Length: +1",
                field % b"Content-Length: 1\r\nContent-Length: 2",
                field % b"Content-Length: 9999999999999999999999",
                field % b"Content-Length: 1\r\nTransfer-Encoding: chunked"):
            with self.subTest(request=request):
                self.refuses(request, 400)

    def test_versions(self):
        self.refuses(b"GET / HTTP/2.0\r\nHost: a\r\n\r\n", 505)
        self.assertEqual(self.ask(b"GET / HTTP/1.9\r\nHost: a\r\nConnection: close\r\n\r\n")[0][0],
                         200)

    def test_head_beyond_the_limit(self):
        self.refuses(b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 8192 + b"\r\n\r\n", 431)
        self.refuses(b"GET /" + b"x" * 100000, 431)
        self.refuses(b"\r\n" * 50000, 431)
        largest = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nX: "
        largest += b"x" * (8192 - len(largest) - 4) + b"\r\n\r\n"
        self.assertEqual(self.ask(largest)[0][0], 200)

    def test_bodies_are_skipped(self):
        head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n"
        with self.server.connect() as peer:
            answers = Answers(peer)
            for size in (0, 1, 5000, 1 << 20):
                peer.sendall(head % size + GET[:1] * size + GET)
                self.assertEqual([answers.next()[0], answers.next()[0]], [405, 200], size)

    def test_bodies_beyond_the_limit(self):
        self.refuses(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % ((1 << 20) + 1) +
                     b"x" * 100000, 413)

    def test_chunked_bodies(self):
        head = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: %b\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
        self.refuses(head % b"chunked", 411)
        self.refuses(head % b"gzip, chunked", 501)

    def test_expectations(self):
        expect = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: %b\r\n\r\n"
        self.refuses(expect % b"100-continue", 405)
        self.refuses(expect % b"miracle", 417)

    def test_end_in_the_middle_of_a_request(self):
        with self.server.connect() as peer:
            peer.sendall(GET + GET[:10])
            peer.shutdown(programs.socket.SHUT_WR)
            self.assertEqual(receive_all(peer).count(GREETING), 1)

    def test_error_reaches_a_client_that_goes_on_sending(self):
        with self.server.connect() as peer:
            peer.sendall(b"BAD\n" + b"x" * 300000)
            peer.shutdown(programs.socket.SHUT_WR)
            self.assertIn(b" 400 ", receive_all(peer))

    def test_curl(self):
        if not shutil.which("curl"):
            self.skipTest("curl is not installed")
        url = f"http://{self.server.address}/"
        for words, status, body in (([], "200", GREETING), (["-I"], "200", None),
                                    (["-0"], "200", GREETING), (["-d", "x=1"], "405", None),
                                    (["-H", "Expect: 100-continue", "-d", "x"], "405", None)):
            with self.subTest(words=words):
                done = subprocess.run(["curl", "-sS", "-w", "%{stderr}%{http_code}", *words, url],
                                      capture_output=True, timeout=PATIENCE, check=False)
                self.assertEqual((done.returncode, done.stderr.decode()), (0, status))
                if body is not None:
                    self.assertEqual(done.stdout, body)
        done = subprocess.run(["curl", "-sS", "-w", "%{num_connects}", url, url, url],
                              capture_output=True, timeout=PATIENCE, check=False)
        self.assertEqual(done.stdout, GREETING + b"1" + (GREETING + b"0") * 2)

    def test_wrk(self):
        if not shutil.which("wrk"):
            self.skipTest("wrk is not installed")
        done = subprocess.run(["wrk", "-t1", "-c32", "-d1s", "--timeout", "180s", f"http://{self.server.address}/"],
                              capture_output=True, text=True, timeout=PATIENCE, check=False)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertNotIn("errors", done.stdout)
        self.assertNotIn("Non-2xx", done.stdout)
        self.assertGreater(int(re.search(r"(\d+) requests in", done.stdout)[1]), 0)


globals().update(each_engine(Http))

if __name__ == "__main__":
    sys.exit(programs.main())
