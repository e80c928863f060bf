#!/usr/bin/env python3
"""rdma_pingpong, rdma_put and bulk_transfer --transport=rdma against themselves, and what they say
of the device that they do not use."""

import json
import os
import sys

import programs
from programs import Listening, Server, each_engine, run, wait_until

# The same on a machine that has devices.
NONE = "--device=none"
NOTICE = f"{NONE}: the stream carries the data"


class Rdma:
    def ping(self, server, *words):
        done = run("rdma_pingpong", f"--connect={server.address}", NONE, f"--engine={self.engine}", *words)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn(NOTICE, done.stderr)
        return json.loads(done.stdout)

    def server(self, *words):
        return Server("rdma_pingpong", "--listen=127.0.0.1:0", NONE, f"--engine={self.engine}", *words)

    def test_pingpong(self):
        with self.server() as server:
            for op in ("send", "write", "read"):
                for words in ((), ("--size=0",), ("--size=100000", "--depth=8")):
                    figures = self.ping(server, f"--op={op}", "--iters=200", *words)
                    self.assertEqual(figures["op"], op)
                    self.assertEqual(figures["transport"], "stream")
                    self.assertEqual(figures["iters"], 200)
                    self.assertGreater(figures["min_us"], 0)
                    self.assertGreaterEqual(figures["p50_us"] * 1.02, figures["min_us"])
                    self.assertGreaterEqual(figures["p99_us"], figures["p50_us"])
                    self.assertGreater(figures["per_s"], 0)
            server.wait_for("every endpoint to end", connections=0)
            server.stop()

    def test_pingpong_with_nobody_there(self):
        with self.server() as server:
            address = server.address
            server.stop()
        done = run("rdma_pingpong", f"--connect={address}")
        self.assertEqual(done.returncode, 1)
        self.assertIn(address, done.stderr)

    def put(self, content, *words):
        source, target = self.folder / "source", self.folder / "target"
        source.write_bytes(content)
        with Listening("rdma_put", "receive", target, "--listen=127.0.0.1:0", NONE,
                       f"--engine={self.engine}", *words) as receiver:
            sent = run("rdma_put", "send", source, f"--connect={receiver.address}", NONE,
                       f"--engine={self.engine}")
            if sent.returncode == 0:
                self.assertEqual(json.loads(receiver.line())["bytes"], len(content))
            status = receiver.end()
            return sent, status, receiver.stderr(), target

    def test_put(self):
        for size in (1, 100_000, (5 << 20) + 17):
            content = os.urandom(size)
            sent, status, errors, target = self.put(content)
            self.assertEqual(sent.returncode, 0, sent.stderr)
            self.assertEqual(status, 0, errors)
            self.assertIn(NOTICE, sent.stderr)
            self.assertIn(NOTICE, errors)
            self.assertEqual(json.loads(sent.stdout)["bytes"], size)
            self.assertEqual(json.loads(sent.stdout)["transport"], "stream")
            self.assertEqual(target.read_bytes(), content)

    def test_put_of_too_much(self):
        sent, status, errors, target = self.put(b"x" * 100, "--max-bytes=99")
        self.assertEqual(sent.returncode, 1)
        self.assertEqual(status, 1)
        self.assertIn("announced 100 bytes: 1 to 99 bytes are accepted (--max-bytes)", errors)
        self.assertIn("refused: 1 to 99 bytes are accepted", sent.stderr)
        self.assertFalse(target.exists())
        self.assertEqual([path.name for path in self.folder.iterdir()], ["source"])

    def test_bulk_transfer(self):
        source, target = self.folder / "source", self.folder / "target"
        content = os.urandom((9 << 20) + 5)
        source.write_bytes(content)
        with Listening("bulk_transfer", "receive", target, "--listen=127.0.0.1:0", NONE,
                       "--transport=rdma", f"--engine={self.engine}") as receiver:
            sent = run("bulk_transfer", "send", source, f"--connect={receiver.address}", NONE,
                       "--transport=rdma", f"--engine={self.engine}")
            self.assertEqual(sent.returncode, 0, sent.stderr)
            figures = json.loads(receiver.line())
            self.assertEqual(figures["bytes"], len(content))
            for side in (figures, json.loads(sent.stdout)):
                self.assertEqual((side["transport"], side["fallback"]), ("stream", ""))
            self.assertEqual(receiver.end(), 0)
            for errors in (sent.stderr, receiver.stderr()):
                self.assertIn(NOTICE, errors)
        self.assertEqual(target.read_bytes(), content)

    def test_bulk_transfer_that_the_peers_do_not_agree_on(self):
        source, target = self.folder / "source", self.folder / "target"
        source.write_bytes(b"x")
        with Listening("bulk_transfer", "receive", target, "--listen=127.0.0.1:0") as receiver:
            sent = run("bulk_transfer", "send", source, f"--connect={receiver.address}",
                       "--transport=rdma")
            self.assertEqual(sent.returncode, 1)
            done = run("bulk_transfer", "send", source, f"--connect={receiver.address}")
            self.assertEqual(done.returncode, 0, done.stderr)
            self.assertEqual(json.loads(done.stdout)["transport"], "tcp")
            self.assertEqual(receiver.end(), 0)
            self.assertIn("sent away: ", receiver.stderr())
        self.assertEqual(target.read_bytes(), b"x")


class Flags(programs.Case):
    def refuses(self, name, *words, says):
        done = run(name, *words)
        self.assertEqual(done.returncode, 1, done.stdout)
        for text in says:
            self.assertIn(text, done.stderr)

    def test_flags(self):
        to = "--connect=127.0.0.1:1"
        self.refuses("rdma_pingpong", to, "--op=swap", says=["--op", "swap", "send, write, read"])
        self.refuses("rdma_pingpong", to, "--iters=0", says=["--iters", "1 to"])
        self.refuses("rdma_pingpong", to, "--depth=0", says=["--depth", "1 to"])
        self.refuses("rdma_pingpong", to, "--size=-1", says=["--size", "0 to"])
        self.refuses("rdma_pingpong", "--connect=nowhere", says=["--connect", "nowhere"])
        for words in (["--move-every=10ms"], ["--balance"]):
            self.refuses("rdma_pingpong", "--listen=127.0.0.1:0", "--loops=2", *words,
                         says=[words[0].split("=")[0], "stays with its loop"])
        self.refuses("bulk_transfer", "send", "file", to, "--transport=ib",
                     says=["--transport", "ib", "tcp, rdma"])
        self.refuses("rdma_put", says=["'send FILE' or 'receive OUT'"])
        self.refuses("rdma_put", "send", "file", says=["--connect=ADDRESS"])
        self.refuses("rdma_put", "receive", "file", says=["--listen=ADDRESS"])
        self.refuses("rdma_put", "send", self.folder / "none", to, says=["none", "No such file"])

    def test_the_device_is_seen_to_before_anybody_comes(self):
        out = self.folder / "out"
        at = "--listen=127.0.0.1:0"
        to = "--connect=127.0.0.1:1"
        listening = (["rdma_pingpong", at], ["rdma_put", "receive", out, at],
                     ["bulk_transfer", "receive", out, at, "--transport=rdma"])
        for words in (*listening, ["rdma_pingpong", to]):
            for flag, values, says in (("lanes", (0, 9), "1 to 8"), ("gid-index", (-1, 256), "0 to 255"),
                                       ("spin", (-1, 1_000_001), "0 to 1000000")):
                for value in values:
                    done = run(*words, f"--{flag}={value}")
                    self.assertEqual(done.returncode, 1, done)
                    self.assertEqual(done.stdout, "")
                    for text in (f"--{flag}", str(value), says):
                        self.assertIn(text, done.stderr)
        done = run("rdma_pingpong", to, "--device=no-such-device")
        self.assertIn("no RDMA device is used, the stream carries the data", done.stderr)
        for words in listening:
            with Listening(*words, "--device=no-such-device") as program:
                wait_until(lambda: "no RDMA device is used, the stream carries the data" in program.stderr(),
                           "what it says of the device")


globals().update(each_engine(Rdma))

if __name__ == "__main__":
    sys.exit(programs.main())
