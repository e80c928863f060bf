#!/usr/bin/env python3
"""The --seal flags of the example programs: every way to seal, and everybody who must be refused."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import unittest
from pathlib import Path

import programs
from programs import Listening, Server, each_engine, receive_all, run

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "make_certs.sh"
KEYS = {"ALTSRP_GCM_AES128_REKEY": bytes(range(44)).hex(), "ALTSRP_GCM_AES128": bytes(range(16)).hex()}


class Seal:
    def certificates(self, name="ours", *words):
        if shutil.which("openssl") is None:
            raise unittest.SkipTest("no openssl program to make certificates with")
        folder = self.folder / name
        subprocess.run([SCRIPT, folder, *words], check=True, stdout=subprocess.DEVNULL)
        return folder

    def tls(self, folder, side, verify_name="localhost"):
        words = ["--seal=tls", f"--cert={folder}/{side}.pem", f"--key={folder}/{side}.key",
                 f"--ca={folder}/ca.pem"]
        return words + ([f"--verify-name={verify_name}"] if side == "client" else [])

    def psk(self, folder, identity="pump"):
        return ["--seal=psk", f"--psk-file={folder}/psk.hex", f"--psk-identity={identity}"]

    def server(self, *words):
        return Server("echo_server", "--listen=127.0.0.1:0", f"--engine={self.engine}", *words)

    def run_client(self, server, *words):
        return run("echo_client", f"--connect={server.address}", f"--engine={self.engine}",
                   "--duration=200ms", *words)

    def every_way(self, folder):
        """What server and client say, for each way to seal."""
        static = ["--seal=static", f"--key-hex={KEYS['ALTSRP_GCM_AES128_REKEY']}"]
        return ((self.tls(folder, "server"), self.tls(folder, "client")),
                (self.psk(folder), self.psk(folder)), (static, static))

    def check_echo(self, server_words, client_words):
        with self.server(*server_words) as server:
            done = self.run_client(server, *client_words)
            self.assertEqual(done.returncode, 0, done.stderr)
            figures = json.loads(done.stdout)
            self.assertEqual(figures["errors"], 0)
            self.assertGreater(figures["requests"], 0)
            last = server.stop()
        self.assertEqual((last["errors"], last["pool_live_bytes"], last["connections"]), (0, 0, 0))
        # Records are longer than what they carry.
        self.assertGreater(last["bytes_in"], figures["bytes"])

    def check_refused(self, server_words, client_words, said, server_said):
        """Both ends say why; nothing is echoed, and the server goes on."""
        with self.server(*server_words) as server:
            done = self.run_client(server, *client_words)
            self.assertEqual(done.returncode, 1, done.stdout)
            self.assertRegex(done.stderr, said)
            last = server.stop()
            self.assertRegex(server.stderr(), server_said)
            # Each tells it once.
            self.assertEqual(json.loads(done.stdout)["errors"], 1)
            self.assertEqual(len(server.stderr().splitlines()), 1, server.stderr())
        self.assertEqual((last["errors"], last["pool_live_bytes"], last["connections"]), (0, 0, 0))

    def test_certificates(self):
        folder = self.certificates()
        for words in ([], ["--connections=8", "--depth=4", "--size=1000"], ["--size=300000"]):
            with self.subTest(words=words):
                self.check_echo(self.tls(folder, "server"), self.tls(folder, "client") + words)
        with self.subTest("by address"):
            self.check_echo(self.tls(folder, "server"), self.tls(folder, "client", "127.0.0.1"))

    def test_shared_key(self):
        folder = self.certificates()
        self.check_echo(self.psk(folder), self.psk(folder) + ["--connections=4", "--size=20000"])

    def test_static_key(self):
        for protocol, key in KEYS.items():
            for frame in ("0", "1024", "65536", "1048576"):
                with self.subTest(protocol=protocol, frame=frame):
                    words = ["--seal=static", f"--key-hex={key}", f"--record-protocol={protocol}",
                             f"--max-frame={frame}"]
                    self.check_echo(words, words + ["--size=100000", "--depth=2"])

    def test_a_static_key_serves_one_connection(self):
        words = ["--seal=static", f"--key-hex={KEYS['ALTSRP_GCM_AES128_REKEY']}"]
        with self.server(*words) as server:
            self.assertEqual(self.run_client(server, *words).returncode, 0)
            self.assertEqual(self.run_client(server, *words).returncode, 1)
            server.stop()
            self.assertRegex(server.stderr(), "used")
        with self.server(*words, "--unsafe-key-reuse") as server:
            done = self.run_client(server, *words, "--unsafe-key-reuse", "--connections=4")
            self.assertEqual(done.returncode, 0, done.stderr)
            server.stop()

    def test_peer_that_never_reads_loses_its_connection_alone(self):
        words = ["--seal=static", f"--key-hex={KEYS['ALTSRP_GCM_AES128_REKEY']}", "--unsafe-key-reuse"]
        with self.server(*words, "--write-timeout=200ms") as server:
            done = run("seal_pipe", f"--connect={server.address}", f"--engine={self.engine}", *words,
                       "--flood")
            self.assertEqual((done.returncode, done.stdout), (1, ""))
            self.assertIn("reset", done.stderr)
            server.wait_for("cut off", connections=0, closed=1, pool_live_bytes=0)
            other = self.run_client(server, *words)
            self.assertEqual(other.returncode, 0, other.stderr)
            self.assertEqual(server.stop()["errors"], 0)

    def test_record_sizes_of_tls(self):
        """The smaller of what either side says goes for both directions, as the help says."""
        folder = self.certificates()
        seals = (lambda side: self.tls(folder, side), lambda side: self.psk(folder))
        text = "0123456789abcdef" * 62500
        for seal in seals:
            for server_frame, client_frame, frame in ((1024, 0, 1024), (0, 1024, 1024),
                                                      (4096, 8192, 4096),
                                                      (1048580, 1048580, 1048580)):
                with self.subTest(seal=seal("server")[0], server=server_frame, client=client_frame), \
                        self.server(*seal("server"), f"--max-frame={server_frame}") as server:
                    done = run("seal_pipe", f"--connect={server.address}",
                               f"--engine={self.engine}", f"--max-frame={client_frame}",
                               *seal("client"), input=text)
                    self.assertEqual((done.returncode, done.stderr), (0, ""))
                    self.assertTrue(done.stdout == text)
                    last = server.stop()
                    # 24 bytes a record; the handshake takes a few thousand.
                    least = 24 * -(-len(text) // (frame - 24))
                    for wire in (last["bytes_in"], last["bytes_out"]):
                        self.assertGreaterEqual(wire - len(text), least)
                        self.assertLess(wire - len(text), 2 * least + 8000)

    def test_another_authority_is_refused(self):
        ours, theirs = self.certificates(), self.certificates("theirs")
        stranger = [word.replace(f"{theirs}/ca.pem", f"{ours}/ca.pem")
                    for word in self.tls(theirs, "client")]
        self.check_refused(self.tls(ours, "server"), stranger, "(?i)alert|authority|CA",
                           "(?i)certificate")
        self.check_refused(self.tls(theirs, "server"), self.tls(ours, "client"),
                           "(?i)certificate", "(?i)alert|authority|CA")

    def test_another_name_is_refused(self):
        folder = self.certificates()
        self.check_refused(self.tls(folder, "server"),
                           self.tls(folder, "client", "elsewhere.example"),
                           "(?i)name|host", "(?i)alert")

    def test_another_shared_key_is_refused(self):
        ours, theirs = self.certificates(), self.certificates("theirs")
        self.check_refused(self.psk(ours), self.psk(theirs), "(?i)alert", "binder")
        self.check_refused(self.psk(ours), self.psk(ours, "stranger"), "(?i)alert",
                           "identity 'stranger'")

    def test_another_static_key_is_refused(self):
        key = KEYS["ALTSRP_GCM_AES128"]
        words = ["--seal=static", "--record-protocol=ALTSRP_GCM_AES128"]
        with self.server(*words, f"--key-hex={key}") as server:
            done = self.run_client(server, *words, f"--key-hex={key[2:]}00")
            self.assertEqual(done.returncode, 1)
            last = server.stop()
        self.assertEqual((last["errors"], last["pool_live_bytes"]), (0, 0))

    def test_plain_and_sealed_do_not_mix(self):
        folder = self.certificates()
        with self.server(*self.tls(folder, "server")) as server:
            self.assertEqual(self.run_client(server, "--size=4096").returncode, 1)
            server.stop()
            self.assertNotEqual(server.stderr(), "")
        with self.server() as server:
            self.assertEqual(self.run_client(server, *self.tls(folder, "client")).returncode, 1)

    def test_bulk_transfer(self):
        folder = self.certificates()
        source, target = self.folder / "source", self.folder / "target"
        content = os.urandom(3000001)
        source.write_bytes(content)
        for server, client in self.every_way(folder):
            with self.subTest(seal=server):
                with Listening("bulk_transfer", "receive", target, "--listen=127.0.0.1:0",
                               f"--engine={self.engine}", *server) as receiver:
                    done = run("bulk_transfer", "send", source, f"--connect={receiver.address}",
                               f"--engine={self.engine}", *client)
                    self.assertEqual(done.returncode, 0, done.stderr)
                    self.assertEqual(receiver.end(), 0, receiver.stderr())
                self.assertEqual(target.read_bytes(), content)
                target.unlink()

    def test_strangers_of_a_bulk_transfer(self):
        folder = self.certificates()
        source, target = self.folder / "source", self.folder / "target"
        source.write_bytes(b"content")
        for server, client in self.every_way(folder):
            one_key = "--seal=static" in server and "--unsafe-key-reuse" not in server
            with self.subTest(seal=server):
                with Listening("bulk_transfer", "receive", target, "--listen=127.0.0.1:0",
                               f"--engine={self.engine}", *server) as receiver:
                    with receiver.connect() as stranger:
                        stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
                        with contextlib.suppress(ConnectionResetError):
                            receive_all(stranger)
                    if not one_key:
                        done = run("bulk_transfer", "send", source,
                                   f"--connect={receiver.address}", f"--engine={self.engine}",
                                   *client)
                        self.assertEqual(done.returncode, 0, done.stderr)
                    self.assertEqual(receiver.end(), 1 if one_key else 0, receiver.stderr())
                    self.assertIn("not received: " if one_key else "sent away: ",
                                  receiver.stderr())
                self.assertEqual(target.exists(), not one_key)
                target.unlink(missing_ok=True)

    def test_http(self):
        folder = self.certificates()
        get = "GET /%d HTTP/1.1\r\nHost: here\r\n\r\n"
        requests = "".join(get % i for i in range(100))
        last_request = "HEAD / HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n"
        for server_words, client_words in self.every_way(folder):
            with self.subTest(seal=server_words), \
                    Server("http_hello", "--listen=127.0.0.1:0", f"--engine={self.engine}",
                           *server_words) as server:
                done = run("seal_pipe", f"--connect={server.address}", f"--engine={self.engine}",
                           *client_words, input=requests + last_request)
                self.assertEqual((done.returncode, done.stderr), (0, ""))
                # The head of each answer ends in an empty line; the last has no body.
                *bodies, rest = done.stdout.split("Hello, world!\n")
                self.assertEqual(len(bodies), 100)
                for head in bodies + [rest]:
                    self.assertTrue(head.startswith("HTTP/1.1 200 OK\n"), head)
                    self.assertIn("\nContent-Length: 14\n", head)
                self.assertIn("\nConnection: close\n", rest)
                last = server.stop()
                self.assertEqual((last["errors"], last["pool_live_bytes"], last["connections"]),
                                 (0, 0, 0))

    def test_plain_http_gets_no_answer(self):
        folder = self.certificates()
        with Server("http_hello", "--listen=127.0.0.1:0", f"--engine={self.engine}",
                    *self.psk(folder)) as server, server.connect() as peer:
            peer.sendall(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n")
            with self.assertRaises(ConnectionResetError):  # OpenSSL has no alert for such a peer
                peer.recv(1)
            server.stop(signal.SIGINT)

    def test_flags_that_make_no_sense(self):
        folder = self.certificates()
        for words, said in (
                (["--seal=yes"], "none, tls, psk and static"),
                (["--seal=tls"], "--cert"),
                (self.tls(folder, "client")[:-1], "--verify-name"),
                (self.tls(folder, "client") + [f"--ca={folder}/none.pem"], "none.pem"),
                (self.tls(folder, "client") + [f"--key={folder}/server.key"], "(?i)key"),
                (["--seal=psk"], "--psk-file"),
                (self.psk(folder)[:1] + [f"--psk-file={folder}/ca.pem"], "--psk-file"),
                (["--seal=static"], "--key-hex"),
                (["--seal=static", "--key-hex=0102"], "44"),
                (["--seal=static", "--key-hex=xy"], "--key-hex"),
                (["--seal=static", "--record-protocol=ROT13"], "ALTSRP_GCM_AES128_REKEY"),
                (["--cert=c", "--key=k", "--ca=a"], "--cert goes with --seal=tls, not with --seal=none"),
                (["--key=k"], "--key goes with --seal=tls"), (["--ca=a"], "--ca goes with --seal=tls"),
                (["--verify-name=localhost"], "--verify-name goes with --seal=tls"),
                (["--psk-file=p"], "--psk-file goes with --seal=psk, not with --seal=none"),
                (["--key-hex=00"], "--key-hex goes with --seal=static, not with --seal=none"),
                (self.psk(folder) + ["--verify-name=localhost"],
                 "--verify-name goes with --seal=tls, not with --seal=psk"),
                (self.tls(folder, "client") + ["--psk-identity=pump"],
                 "--psk-identity goes with --seal=psk, not with --seal=tls"),
                (self.psk(folder) + ["--record-protocol=ALTSRP_GCM_AES128"],
                 "--record-protocol goes with --seal=static, not with --seal=psk"),
                # With the default value, too, in either spelling.
                (["--psk-identity=penstock"], "--psk-identity goes with --seal=psk"),
                (["--psk_identity", "penstock", "--seal=none"], "--psk-identity goes with --seal=psk"),
                (self.psk(folder) + ["--record-protocol=ALTSRP_GCM_AES128_REKEY"],
                 "--record-protocol goes with --seal=static, not with --seal=psk"),
                (self.tls(folder, "client") + ["--unsafe-key-reuse=false"],
                 "--unsafe-key-reuse goes with --seal=static, not with --seal=tls"),
                (self.tls(folder, "client") + ["--unsafe-key-reuse"],
                 "--unsafe-key-reuse goes with --seal=static, not with --seal=tls"),
                (["--max-frame=4096"], "--max-frame: plain streams have no records; --seal"),
                (self.psk(folder) + ["--max-frame=100"], "--max-frame.*1024.*1048580"),
                (self.tls(folder, "client") + ["--max-frame=1048581"],
                 "--max-frame.*1024.*1048580")):
            with self.subTest(words=words):
                done = run("echo_client", "--connect=127.0.0.1:1", *words)
                self.assertEqual(done.returncode, 1)
                self.assertRegex(done.stderr, said)
        with self.subTest("a server"):
            done = run("echo_server", "--listen=127.0.0.1:0", *self.tls(folder, "server"),
                       "--verify-name=localhost")
            self.assertEqual(done.returncode, 1)
            self.assertRegex(done.stderr, "--verify-name: .*listening side")


globals().update(each_engine(Seal))

if __name__ == "__main__":
    sys.exit(programs.main())
