#!/usr/bin/env python3
"""Every flag error names the flag, says what was wrong, and what is accepted."""

import os
import re
import socket
import subprocess
import sys
import unittest

import programs
from programs import Case, Server, run

SERVERS = ("echo_server", "http_hello")

# Words that a program needs before it looks at a flag; of two that connect and listen, both ways.
STARTS = {"echo_server": [[]], "http_hello": [[]], "live_migration": [[]],
          "echo_client": [["--connect=127.0.0.1:1"]],
          "rdma_pingpong": [["--connect=127.0.0.1:1"], []],
          **{name: [["send", "file", "--connect=127.0.0.1:1"],
                    ["receive", "file", "--listen=127.0.0.1:0"]]
             for name in ("bulk_transfer", "rdma_put")}}
ADDRESS = (["nowhere"], ["nowhere", "127.0.0.1:80", "unix:/path"])
SWITCH = (["maybe"], ["'maybe'", "true or false"])
NUMBER = (["many"], ["'many'", "a whole number"])
TIMEOUT = (["0", "-1s"], ["1ms and more is accepted", "inf"])
INTERVAL = (["-1s"], ["-1s", "1ms and more is accepted"])
# (values that are refused, words of each refusal); values that begin with -- are words of their own.
BAD_VALUES = {
    "listen": ADDRESS, "connect": ADDRESS, "engine": (["kqueue"], ["kqueue", "auto, epoll, uring"]),
    "adaptive": SWITCH, "balance": SWITCH, "json": SWITCH, "unsafe-key-reuse": SWITCH,
    "loops": (["0", "257"], ["1 to 256 is accepted"]),
    "max-connections": (["0", "1048577"], ["1 to 1048576 is accepted"]),
    "grace": (["-1s"], ["negative", "zero and more is accepted"]), "huge-pages": SWITCH,
    "busy-poll": (["-1s"], ["negative", "zero and more is accepted"]),
    "write-timeout": TIMEOUT, "idle-timeout": TIMEOUT,
    "switch-every": INTERVAL, "move-every": INTERVAL,
    "connections": (["0"], ["1 to"]), "seconds": (["0"], ["1 to"]), "moves": (["-1"], ["0 to"]),
    "rate": (["-1"], ["0 to"]), "window": (["-1"], ["0 to"]),
    "size": (["-1", "100000000"], [" to ", "is accepted"]), "depth": (["0"], ["1 to"]),
    "iters": (["0"], ["1 to"]), "idle": (["-1"], ["0 to"]),
    "duration": (["5"], ["'5'", "500ms, 10s or 2m"]), "patience": (["0", "-1s"], ["above zero"]),
    "timeout": (["soon"], ["500ms, 10s or 2m"]),
    "max-bytes": (["-1"], [" to ", "is accepted"]), "op": (["swap"], ["send, write, read"]),
    "transport": (["ib"], ["tcp, rdma"]), "spin": NUMBER, "gid-index": NUMBER, "lanes": NUMBER, "max-frame": NUMBER,
    "seal": (["magic"], ["'magic'", "none, tls, psk and static are accepted"]),
    "cert": (["--seal=tls"], ["needs --cert"]), "key": (["--seal=tls --cert=x"], ["needs --key"]),
    "ca": (["--seal=tls --cert=x --key=x"], ["needs --ca"]),
    "verify-name": (["--seal=tls --cert=x --key=x --ca=x"], ["needs --verify-name"]),
    "psk-file": (["/none"], ["/none", "no such file"]),
    "psk-identity": (["--seal=psk --psk-identity="], ["needs --psk-identity"]),
    "key-hex": (["zz"], ["hexadecimal"]),
    "record-protocol": (["ROT13"], ["'ROT13'", "ALTSRP_GCM_AES128_REKEY are known"]),
}
# Sealing that makes the program look at the flag.
SEALED_BY = {"psk-file": ["--seal=psk"], "key-hex": ["--seal=static"],
             "record-protocol": ["--seal=static"]}
# Any word may be a device's name; without such a device the stream carries the data.
FREE = {"device"}
# Who accepts asks for no name, and so does who connects to itself.
NAMELESS = (*SERVERS, "live_migration")


class Flags(Case):
    def refuses(self, name, *words, says):
        done = run(name, *words)
        self.assertEqual(done.returncode, 1, done)
        self.assertEqual(done.stdout, "")
        self.assertTrue(done.stderr.startswith(f"{name}: "), done.stderr)
        self.assertEqual(done.stderr.count("\n"), 1, done.stderr)
        for text in says:
            self.assertIn(text, done.stderr)

    def test_help(self):
        for name, flags in {
                **{name: ("listen", "engine", "loops", "max-connections", "grace", "write-timeout",
                          "idle-timeout", "switch-every", "move-every", "adaptive", "balance", "huge-pages", "busy-poll")
                   for name in SERVERS},
                "live_migration": ("connections", "seconds", "moves", "switch-every", "move-every", "rate",
                                   "window", "seal", "json"),
                "echo_client": ("connect", "connections", "size", "depth", "duration", "idle", "patience",
                                "engine", "busy-poll"),
                "bulk_transfer": ("connect", "listen", "timeout", "max-bytes", "engine")}.items():
            for word in ("--help", "-h"):
                with self.subTest(program=name, word=word):
                    done = run(name, word)
                    self.assertEqual(done.returncode, 0, done.stderr)
                    self.assertTrue(done.stdout.startswith(f"usage: {name} "), done.stdout)
                    self.assertNotIn("Usage", done.stderr)
                    for flag in flags:
                        self.assertIn(f"\n  --{flag}  ", done.stdout)

    def test_every_flag_refuses_what_it_cannot_take(self):
        sealed = "without sealed streams" not in run("echo_client", "--seal=psk").stderr
        for name, starts in STARTS.items():
            if programs.built(name) is None:
                continue
            flags = re.findall(r"^  --([a-z-]+)", run(name, "--help").stdout, re.MULTILINE)
            self.assertGreater(len(flags), 5, name)
            for flag in flags:
                with self.subTest(program=name, flag=flag):
                    if flag in FREE or (flag == "verify-name" and name in NAMELESS):
                        continue
                    self.assertIn(flag, BAD_VALUES, "a new flag needs a row")
                    values, says = BAD_VALUES[flag]
                    if not sealed and (flag == "seal" or flag in SEALED_BY or values[0].startswith("--seal")):
                        continue
                    for value in values:
                        self.refused_somehow(name, starts, flag, value, says)

    def refused_somehow(self, name, starts, flag, value, says):
        """A flag concerns one of the ways to start a program, at least."""
        words = value.split() if value.startswith("--") else [f"--{flag}={value}"]
        said = []
        for start in starts:
            try:
                done = run(name, *start, *SEALED_BY.get(flag, []), *words, timeout=programs.PATIENCE)
            except subprocess.TimeoutExpired:
                continue  # it listens, and the flag says nothing to it
            said.append(done.stderr)
            if done.returncode == 1 and all(text in done.stderr for text in (flag, *says)):
                return
        self.fail(f"--{flag}={value} is not refused with {says}: {said}")

    def test_unknown_flag(self):
        for name in (*SERVERS, "echo_client", "bulk_transfer", "live_migration"):
            self.refuses(name, "--bogus-flag=1", says=["--bogus-flag", "--help"])

    def test_one_dash(self):
        for word in ("-loops=2", "-bogus", "-max-connections=5"):
            self.refuses("echo_server", word, says=[f"'{word}'", "two dashes"])

    def test_values_of_the_wrong_kind(self):
        self.refuses("echo_server", "--loops=two", says=["--loops", "'two'", "a whole number"])
        self.refuses("echo_server", "--loops", "two", says=["--loops", "'two'"])
        self.refuses("echo_server", "--max-connections=", says=["--max-connections"])
        self.refuses("echo_client", "--duration=5", says=["--duration", "'5'", "10s"])

    def test_value_missing(self):
        self.refuses("echo_server", "--loops", says=["--loops", "missing"])

    def test_ranges(self):
        self.refuses("echo_server", "--loops=0", says=["--loops", "0", "1 to 256"])
        self.refuses("echo_server", "--max-connections=0", says=["--max-connections", "1 to"])
        self.refuses("echo_server", "--max-connections=3", "--loops=4",
                     says=["--max-connections", "3", "4 loops", "4 and more is accepted"])
        self.refuses("echo_server", "--grace=-1s", says=["--grace", "negative"])
        self.refuses("echo_client", "--size=0", says=["--size", "1 to"])
        self.refuses("echo_client", "--depth=0", says=["--depth", "1 to"])
        self.refuses("echo_client", "--connections=0", says=["--connections", "1 to"])
        self.refuses("echo_client", "--idle=-1", says=["--idle", "0 to"])
        self.refuses("echo_client", "--duration=0s", says=["--duration", "above zero"])
        self.refuses("echo_client", "--size=1000000", "--depth=100",
                     says=["--depth", "100000000 bytes in flight", "67108864"])

    def test_addresses(self):
        for name, flag in (("echo_server", "listen"), ("http_hello", "listen"),
                           ("echo_client", "connect")):
            for bad in ("localhost", "1.2.3:80", "127.0.0.1:99999", "[::1:80", "unix:"):
                self.refuses(name, f"--{flag}={bad}", says=[f"--{flag}", bad, "127.0.0.1:80",
                                                            "unix:/path"])

    def test_engine(self):
        for name in (*SERVERS, "echo_client"):
            self.refuses(name, "--engine=kqueue", says=["--engine", "kqueue", "auto, epoll, uring"])
        environment = {**os.environ, "PENSTOCK_ENGINE": "kqueue"}
        done = run("echo_server", "--listen=127.0.0.1:0", env=environment)
        self.assertEqual(done.returncode, 1)
        self.assertIn("PENSTOCK_ENGINE", done.stderr)
        self.assertIn("kqueue", done.stderr)

    def test_engine_from_the_environment(self):
        environment = {**os.environ, "PENSTOCK_ENGINE": "epoll"}
        with Server("echo_server", "--listen=127.0.0.1:0", env=environment) as server:
            last = server.stop()
        self.assertEqual(last["engine"], "epoll")

    def test_words_that_are_no_flags(self):
        for name in (*SERVERS, "echo_client"):
            self.refuses(name, "127.0.0.1:0", says=["127.0.0.1:0", "only flags"])

    def test_unix_socket_has_one_loop(self):
        self.refuses("echo_server", f"--listen=unix:{self.folder}/s", "--loops=2",
                     says=["--loops", "Unix socket", "--loops=1"])

    def test_address_in_use(self):
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            self.refuses("echo_server", f"--listen=127.0.0.1:{port}",
                         says=[f"127.0.0.1:{port}", "EADDRINUSE"])

    def test_address_of_another_host(self):
        self.refuses("echo_server", "--listen=192.0.2.1:7", says=["192.0.2.1:7", "EADDRNOTAVAIL"])

    def test_bulk_transfer(self):
        expected = "'send FILE' or 'receive OUT'"
        for words in ([], ["send"], ["fetch", "x"], ["send", "a", "b"]):
            self.refuses("bulk_transfer", *words, says=[expected])
        self.refuses("bulk_transfer", "send", "file", says=["--connect=ADDRESS"])
        self.refuses("bulk_transfer", "receive", "file", says=["--listen=ADDRESS"])
        self.refuses("bulk_transfer", "send", "file", "--connect=nowhere", says=["--connect"])
        self.refuses("bulk_transfer", "send", "file", "--connect=127.0.0.1:1", "--timeout=0s",
                     says=["--timeout", "1ms"])
        self.refuses("bulk_transfer", "receive", "file", "--listen=127.0.0.1:0", "--max-bytes=-1",
                     says=["--max-bytes", "0 to"])

    def test_both_spellings_of_a_name(self):
        for word in (["--max-connections=5"], ["--max_connections", "5"]):
            with Server("echo_server", "--listen=127.0.0.1:0", *word) as server:
                server.stop()


if __name__ == "__main__":
    sys.exit(programs.main())
