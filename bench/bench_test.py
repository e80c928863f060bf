#!/usr/bin/env python3
"""Tests of the bench itself: that peers echo, that the generator notices a server that does not,
and that the figures are put together as claimed.

usage: bench_test.py BIN_DIR [unittest arguments]
"""

import io
import json
import os
import re
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import unittest
import xml.etree.ElementTree as ElementTree
from contextlib import redirect_stderr, redirect_stdout

import memory
import ramp
import rdma
import report
import run
import seal
import servers

BIN_DIR = ""
PATIENCE_SECONDS = 180
# More than the 16 MiB that a raw_uring server can hold in its buffers.
FLOOD_BYTES = 40 << 20


def peers():
    """Name -> command of the peers that are built; Penstock's own server has tests of its own."""
    found = {}
    for name, command in servers.TABLE.items():
        program = servers.find_program(command[0], [BIN_DIR])
        if program is not None and not name.startswith("penstock-"):
            found[name] = [program] + command[1:]
    return found


def loadgen(*flags, stdin=None):
    """Runs the load generator to its end."""
    return subprocess.run([servers.find_program("loadgen", [BIN_DIR]), *flags], input=stdin,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                          timeout=PATIENCE_SECONDS, check=False)


def connect(address):
    host, port = address.rsplit(":", 1)
    return socket.create_connection((host, int(port)), timeout=PATIENCE_SECONDS)


class WrongServer:
    """An echo server with a fault: `spoil` turns what came (and its offset) into what goes back;
    None closes the connection. It serves one connection by each of `spoil`."""

    def __init__(self, *spoil):
        self.spoil = [each for each in spoil if each is not None]
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = "127.0.0.1:%d" % self.listener.getsockname()[1]
        self.thread = threading.Thread(target=self.serve)
        self.thread.start()

    def serve(self):
        for spoil in self.spoil:
            self.serve_one(spoil)

    def serve_one(self, spoil):
        try:
            connection, _ = self.listener.accept()
        except OSError:
            return
        with connection:
            offset = 0
            while data := connection.recv(65536):
                reply = spoil(data, offset)
                if reply is None:
                    return
                offset += len(data)
                try:
                    connection.sendall(reply)
                except OSError:
                    return

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.listener.shutdown(socket.SHUT_RDWR)  # nobody else comes
        self.thread.join()
        self.listener.close()


def flip_late(data, offset):
    """One wrong bit in the byte at 100,000."""
    at = 100000 - offset
    if 0 <= at < len(data):
        data = data[:at] + bytes([data[at] ^ 1]) + data[at + 1:]
    return data


class PeersTest(unittest.TestCase):
    def test_every_byte_comes_back(self):
        shapes = [(1, 64, 1), (64, 1024, 16), (3, 65536, 16), (2, 1000003, 2)]
        self.assertIn("raw-epoll", peers())
        for name, command in peers().items():
            cpu_ns = 0
            for connections, size, depth in shapes:
                with self.subTest(name, size=size), servers.Server(name, command) as server:
                    result = loadgen(f"--connect={server.address}", f"--connections={connections}",
                                     f"--size={size}", f"--depth={depth}", "--duration=50ms",
                                     "--warmup=10ms", f"--watch_pid={server.pid}")
                    self.assertEqual(result.returncode, 0, result.stderr)
                    figures = json.loads(result.stdout)
                    self.assertEqual(figures["errors"], 0)
                    self.assertGreater(figures["requests"], 0)
                    cpu_ns += figures["server_cpu_ns"]
                    self.assertLessEqual(figures["p50_us"], figures["p99_9_us"])
                    self.assertEqual(server.stop(), 0)
            self.assertGreater(cpu_ns, 0, name)

    def test_a_flood_comes_back_whole(self):
        """The peer reads nothing until the server takes no more, then ends its side and reads."""
        sent = os.urandom(1 << 20) * (FLOOD_BYTES >> 20)
        for name, command in peers().items():
            with self.subTest(name), servers.Server(name, command) as server:
                with connect(server.address) as client:
                    stuck = threading.Event()

                    # Its own descriptor: the time limit is of the socket object, not of the socket.
                    out = client.dup()
                    out.settimeout(0.2)

                    def send_all(out=out, stuck=stuck):
                        done = 0
                        while done < len(sent):
                            try:
                                done += out.send(sent[done:done + (1 << 20)])
                            except TimeoutError:
                                stuck.set()
                        stuck.set()
                        out.shutdown(socket.SHUT_WR)

                    sender = threading.Thread(target=send_all)
                    sender.start()
                    self.assertTrue(stuck.wait(PATIENCE_SECONDS))
                    got = bytearray()
                    while len(got) < len(sent):
                        try:
                            part = client.recv(1 << 20)
                        except TimeoutError:
                            self.fail(f"{name}: stalled after {len(got)} bytes")
                        self.assertTrue(part, f"{name}: ended after {len(got)} bytes")
                        got += part
                    sender.join()
                    out.close()
                    self.assertTrue(got == sent)

    def test_a_reset_harms_nobody_else(self):
        for name, command in peers().items():
            with self.subTest(name), servers.Server(name, command) as server:
                other = connect(server.address)
                for _ in range(20):
                    client = connect(server.address)
                    client.settimeout(0.2)
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    client.send(bytes(1 << 20))
                    client.close()
                with other:
                    other.sendall(b"still here")
                    self.assertEqual(other.recv(100), b"still here")

    def test_wrong_key_flags(self):
        program = servers.find_program("grpc_alts_echo", [BIN_DIR])
        if program is None:
            self.skipTest("grpc_alts_echo is not built: no libgrpc29")
        key = "--key-hex=" + "00" * 44
        for arguments in [["0"], ["--key-hex=00", "0"], [key[:-1] + "x", "0"], [key],
                          [key, "--record-protocol=ALTSRP_GCM_AES128", "0"],
                          [key, "--record-protocol=NONE", "0"], [key, "--max-frame=1023", "0"],
                          [key, "--max-frame=1048577", "0"]]:
            result = subprocess.run([program, *arguments], stderr=subprocess.PIPE, text=True,
                                    timeout=PATIENCE_SECONDS, check=False)
            self.assertEqual(result.returncode, 2, arguments)
            self.assertIn("usage: ", result.stderr)

    def test_raw_seal_refuses_wrong_flags(self):
        program = servers.find_program("raw_seal", [BIN_DIR])
        if program is None:
            self.skipTest("raw_seal is not built: no OpenSSL 3")
        key = "--key-hex=" + "00" * 44
        for arguments in [["0"], ["--key-hex=00", "0"], [key[:-1] + "x", "0"], [key + "0", "0"],
                          [key], [key, "--max-frame=1023", "0"], [key, "--max-frame=131073", "0"]]:
            result = subprocess.run([program, *arguments], stderr=subprocess.PIPE, text=True,
                                    timeout=PATIENCE_SECONDS, check=False)
            self.assertEqual(result.returncode, 2, arguments)
            self.assertIn("usage: ", result.stderr)

    def test_wrong_command_lines(self):
        program = servers.find_program("raw_epoll", [BIN_DIR])
        for arguments in [[], ["x"], ["1", "2"], ["70000"], ["--mode=no", "0"]]:
            result = subprocess.run([program, *arguments], stderr=subprocess.PIPE, text=True,
                                    timeout=PATIENCE_SECONDS, check=False)
            self.assertEqual(result.returncode, 2, arguments)
            self.assertIn("usage: ", result.stderr)


class GeneratorTest(unittest.TestCase):
    LOAD = ["--size=1000", "--depth=4", "--duration=600s", "--warmup=0"]

    def expect_error(self, spoil, words):
        with WrongServer(spoil) as server:
            result = loadgen(f"--connect={server.address}", *self.LOAD)
        self.assertEqual(result.returncode, 1)
        self.assertIn(words, result.stderr)
        self.assertEqual(json.loads(result.stdout)["errors"], 1)

    def test_notices_one_wrong_bit(self):
        self.expect_error(flip_late, "wrong bytes")

    def test_notices_moved_bytes(self):
        self.expect_error(lambda data, _: data[1:] + data[:1], "wrong bytes")

    def test_notices_surplus_bytes(self):
        self.expect_error(lambda data, _: data + data, "")

    def test_notices_an_early_end(self):
        self.expect_error(lambda data, offset: data if offset < 50000 else None, "closed")

    def test_notices_that_nobody_listens(self):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        result = loadgen(f"--connect=127.0.0.1:{port}")
        self.assertEqual(result.returncode, 1)
        self.assertIn("connection 1 of 1", result.stderr)

    def test_keeps_a_rate(self):
        name, command = next(iter(peers().items()))
        with servers.Server(name, command) as server:
            result = loadgen(f"--connect={server.address}", "--connections=4", "--rate=2000",
                             "--duration=500ms", "--warmup=50ms")
        self.assertEqual(result.returncode, 0, result.stderr)
        # Late requests are caught up with, but for those of the last moment; without a rate it would
        # be tens of thousands.
        rate = json.loads(result.stdout)["requests_per_second"]
        self.assertGreater(rate, 1000)
        self.assertLess(rate, 2200)

    def test_speaks_http(self):
        request = b"GET / HTTP/1.1\r\nHost: bench\r\n\r\n"
        dates = iter(["Mon", "Tue"] * 1000000)

        def answer(body=b"hello", status="200 OK"):
            def reply(data, _):
                self.assertEqual(data.replace(request, b""), b"")
                text = f"HTTP/1.1 {status}\r\nDate: {next(dates)}\r\nContent-Length: 5\r\n\r\n"
                return (text.encode() + body) * (len(data) // len(request))
            return reply

        # The first connection is the one that learns the answer.
        for first, then, words in [(answer(), answer(), ""), (answer(), answer(b"hullo"), "wrong bytes"),
                                   (answer(status="404 No"), None, "HTTP/1.1 404 No")]:
            with WrongServer(first, then) as server:
                result = loadgen(f"--connect={server.address}", "--http=true", "--duration=50ms",
                                 "--warmup=0", "--depth=3")
            self.assertEqual(result.returncode, 1 if words else 0, result.stderr)
            self.assertIn(words, result.stderr)
            if then is not None:
                self.assertGreater(json.loads(result.stdout)["size"], 40)

    def test_refuses_wrong_flags(self):
        for flag, words in [("--connect=localhost:1", "not a numeric address"),
                            ("--connect=127.0.0.1", "no port"),
                            ("--connect=127.0.0.1:99999", "1 to 65535"),
                            ("--connect=unix:", "path"),
                            ("--size=0", "--size"), ("--depth=0", "--depth"),
                            ("--connections=0", "open files"), ("--duration=0", "--duration")]:
            connect_first = [] if flag.startswith("--connect=") else ["--connect=127.0.0.1:1"]
            result = loadgen(*connect_first, flag)
            self.assertEqual(result.returncode, 2, flag)
            self.assertIn(words, result.stderr)

    def test_holds_idle_connections(self):
        name, command = next(iter(peers().items()))
        with servers.Server(name, command) as server:
            result = loadgen(f"--connect={server.address}", "--idle=50", "--size=100000",
                             stdin="touch\ntouch\nclose\n")
        self.assertEqual(result.returncode, 0, result.stderr)
        events = [json.loads(line) for line in result.stdout.splitlines()]
        self.assertEqual([(event["event"], event["connections"]) for event in events],
                         [("connected", 50), ("touched", 50), ("touched", 50), ("closed", 0)])

    def test_idle_connections_are_checked_too(self):
        with WrongServer(flip_late) as server:
            result = loadgen(f"--connect={server.address}", "--idle=1", "--size=200000",
                             stdin="touch\n")
        self.assertEqual(result.returncode, 1)
        self.assertIn("wrong bytes", result.stderr)


def record(round_number, server, rate, cpu, errors=0):
    return {"round": round_number, "point": "c64-64", "server": server,
            "requests_per_second": rate, "cpu_us": cpu, "p50_us": 1, "p99_us": 2,
            "errors": errors, "disturbed": False}


class FiguresTest(unittest.TestCase):
    # The machine halves its speed in the second round: ratios must not notice.
    RECORDS = [record(0, "base", 100, 4), record(0, "other", 90, 5),
               record(1, "base", 50, 8), record(1, "other", 55, 8),
               record(2, "base", 100, 4), record(2, "other", 80, 6)]

    def test_ratios_are_taken_within_a_round(self):
        entry = run.summarize(self.RECORDS, "base")["c64-64", "other"]
        self.assertAlmostEqual(entry["ratio"], 0.9)
        self.assertAlmostEqual(entry["ratio_min"], 0.8)
        self.assertAlmostEqual(entry["ratio_max"], 1.1)
        self.assertAlmostEqual(entry["cpu_ratio"], 1.25)
        self.assertEqual(entry["requests_per_second"], 80)

    def test_requirements(self):
        self.assertEqual(run.check_requirement("other:base:0.89:1.26", self.RECORDS), [])
        self.assertEqual(len(run.check_requirement("other:base:0.91:1.26", self.RECORDS)), 1)
        self.assertEqual(len(run.check_requirement("other:base:0.91:1.1", self.RECORDS)), 2)
        self.assertEqual(len(run.check_requirement("absent:base:0.5:2", self.RECORDS)), 1)
        with self.assertRaises(servers.BenchError):
            run.check_requirement("other:base", self.RECORDS)

    def test_disturbance(self):
        figures = {"seconds": 1, "server_delay_ns": 1e7, "client_delay_ns": 6e7,
                   "server_cpu_ns": 5e8, "client_cpu_ns": 4e8}
        self.assertAlmostEqual(run.disturbance(figures, run.POINTS["c64-64"]), 0.06)
        self.assertAlmostEqual(run.disturbance(figures, run.POINTS["same-64"]), 0.1)
        waits = dict(figures, server_delay_ns=5e8, client_delay_ns=2e7)
        self.assertAlmostEqual(run.disturbance(waits, run.POINTS["half-c1000-64"]), 0.02)
        self.assertAlmostEqual(run.disturbance(waits, run.POINTS["most-c1000-64"]), 0.4)
        third = dict(waits, server_cpu_ns=3e8)
        self.assertAlmostEqual(run.disturbance(third, run.POINTS["half-c1000-64"]), 0.2)

    def test_table(self):
        summary = run.summarize(self.RECORDS, "base")
        text = run.markdown(summary, "base", ["base", "other"], ["c64-64"])
        self.assertIn("| base | 0.1 |", text)
        self.assertIn("| other | 0.90 (0.80-1.10) |", text)


    def test_ramp_takes_the_better_engine_of_each_plateau(self):
        records = []
        for plateau, rates in enumerate([(100, 80, 99), (80, 100, 90)]):
            for slow in (1, 2):  # the machine halves its speed in the second round
                for server, rate in zip(["epoll", "uring", "adaptive"], rates, strict=True):
                    records.append(dict(record(slow, server, rate / slow, 400 * slow / rate),
                                        plateau=plateau, connections=plateau + 1))
        summary = ramp.summarize(records)
        self.assertEqual([entry["better"] for entry in summary], ["epoll", "uring"])
        self.assertAlmostEqual(summary[0]["ratio"], 0.99)
        self.assertAlmostEqual(summary[1]["ratio"], 0.9)
        self.assertAlmostEqual(summary[1]["cpu_ratio"], 10 / 9)
        self.assertIn("| 2 | uring 75/s | 0.900 (0.90-0.90) | uring", ramp.markdown(summary))
        args = ramp.parse_arguments(["--require=0.97"])
        self.assertEqual(len(ramp.failures_of(summary, 3, args)), 1)
        self.assertEqual(len(ramp.failures_of(summary, 4, args)), 2)

    def test_rdma_ratios_leave_out_what_did_not_end(self):
        records = [{"point": "send-64-asleep", "perftest": None, "endpoint": 3.0}]
        records += [{"point": "write-64k", "perftest": theirs, "endpoint": 9.0}
                    for theirs in (10.0, 9.0, 4.5, None)]
        rows = rdma.table(records).splitlines()
        self.assertEqual(rows[2], "| send-64-asleep | no pair of runs ended | 3.0 us | |")
        self.assertEqual(rows[3], "| write-64k | 9.0 MiB/s | 9.0 MiB/s | 1.00 (0.90-2.00) |")

    def test_rdma_reads_the_last_row_of_perftest(self):
        text = (" #bytes #iterations    t_min[usec]    t_max[usec]  t_typical[usec]\n"
                " 64      1000          300.10         900.20       378.23     \t 400 9 8 7\n---\n")
        self.assertEqual(rdma.last_row(text)[4], 378.23)
        self.assertIsNone(rdma.last_row("Couldn't connect to 10.77.0.2:18515\n"))

    def test_ramp_reads_what_was_decided(self):
        text = ("http_hello: adaptive: 2s epoll: 20.0 reads a turn: 5 of 9 streams go first\n"
                "other\nhttp_hello: adaptive: 3.5s uring serves from now on: it takes 5 % less\n"
                "http_hello: adaptive: 5m4.5s back to epoll: 1 engine faults of uring, which was "
                "found better; no trial for 30s\n"
                "http_hello: adaptive: switches: 2\n")
        trace, switches = ramp.decisions(text)
        self.assertEqual([at for at, _ in trace], [2, 3.5, 304.5])
        self.assertEqual(switches, 2)
        self.assertEqual(ramp.most_switches(trace), 1)
        self.assertEqual(ramp.most_switches(trace[:2] + [(303.4, trace[2][1])]), 2)
        with self.assertRaises(servers.BenchError):
            ramp.decisions("http_hello: adaptive: 2s epoll\n")

    def test_ceilings(self):
        # Plain and bare together are 4 us of the server, and 10 us of the processor that both ends
        # share. In the last round everything waits twice as long, except for AES-GCM.
        bare = sum(seal.BARE_US[64])
        records = []
        for round_number, slow in enumerate([1, 1, 2]):
            for server, rate, cpu in [("plain-epoll", 1e6 / (slow * 10 - 2 * bare), 4 - bare),
                                      ("sealed-epoll", 9e4 / slow, 5), ("grpc-alts", 1e5, 4),
                                      ("raw-seal", 1e5, 3)]:
                records.append(dict(record(round_number, server, rate, cpu), point="same-64"))
        parts = seal.ceilings(records, seal.POINTS)
        self.assertEqual(list(parts), [("same-64", "epoll")])
        entry = parts["same-64", "epoll"]
        self.assertAlmostEqual(entry["cpu_of_ceiling"][0], 0.8)
        self.assertAlmostEqual(entry["rate_of_ceiling"][0], 0.9)
        self.assertAlmostEqual(entry["cpu_ceiling"][0], (4 - bare) / 4)
        # What was measured beside a server counts, where it was.
        for one in records:
            if one["server"] == "sealed-epoll":
                one["bare_us"] = [bare, bare]
        entry = seal.ceilings(records, seal.POINTS)["same-64", "epoll"]
        self.assertAlmostEqual(entry["cpu_of_ceiling"][0], (4 + bare) / 5)
        text = seal.markdown([dict(one, bare_us=None) for one in records],
                             {"same-64": seal.POINTS["same-64"]})
        self.assertIn("0.80 (0.80-0.80)", text)
        self.assertIn("1.25 (1.25-1.25)", text)  # the processor time of grpc-alts
        self.assertIn("| sealed to raw-seal, cpu | 1.67 (1.67-1.67) |", text)
        self.assertIn("| raw-seal to grpc-alts, cpu | 0.75 (0.75-0.75) |", text)

    def test_ceilings_of_two_processors(self):
        both = sum(seal.BARE_US[65536])
        self.assertEqual(seal.bare_us(seal.POINTS["bulk"]), (both, both))
        self.assertEqual(seal.bare_us(seal.POINTS["transfer"]),
                         (both, max(seal.BARE_US[65536])))


class RunnersTest(unittest.TestCase):
    """The runners end to end, as short as they go, and the pictures of what they wrote."""

    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.directory = directory.name

    def invoke(self, main, *arguments):
        out = io.StringIO()
        with redirect_stdout(out), redirect_stderr(io.StringIO()):
            status = main(list(arguments))
        return status, out.getvalue()

    def draw(self, path):
        status, out = self.invoke(report.main, path, "--out-dir", self.directory)
        self.assertIsNone(status)
        return {os.path.basename(name): ElementTree.parse(name).getroot()
                for name in out.split()}

    def bars(self, picture):
        """How many bars a picture has: rectangles with a server's colour, less the legend's."""
        found = [r for r in picture.iter("{http://www.w3.org/2000/svg}rect")
                 if re.fullmatch(r"s\d+", r.get("class", ""))]
        return len([r for r in found if r.get("height") != "11"])

    def test_echo(self):
        path = os.path.join(self.directory, "echo.json")
        names = list(peers())[:3]
        status, out = self.invoke(
            run.main, f"--bin-dir={BIN_DIR}", "--servers=" + ",".join(names),
            "--points=c64-64,same-64", "--rounds=1", "--duration=0.05", "--warmup=0.01",
            "--retries=0", "--date=2000-01-02", f"--out={path}")
        self.assertEqual(status, 0, out)
        self.assertIn(f"| {names[-1]} |", out)
        self.assertIn("2000-01-02", out)
        with open(path, encoding="utf-8") as file:
            self.assertEqual(len(json.load(file)["runs"]), 2 * len(names))
        pictures = self.draw(path)
        self.assertEqual(set(pictures), {f"echo-rate-vs-{names[0]}.svg", "echo-cpu.svg"})
        self.assertEqual(self.bars(pictures["echo-cpu.svg"]), 2 * len(names))
        self.assertEqual(self.bars(pictures[f"echo-rate-vs-{names[0]}.svg"]), 2 * len(names) - 2)

        again = os.path.join(self.directory, "again.json")
        status, out = self.invoke(
            run.main, f"--bin-dir={BIN_DIR}", "--servers=" + ",".join(names[:2]), "--points=p16-64",
            "--rounds=2", "--duration=0.02", "--warmup=0.01", "--retries=0", f"--with={path}",
            f"--out={again}")
        self.assertEqual(status, 0, out)
        self.assertIn("1 to 2 rounds of 0.02 to 0.05 s", out)
        status, out = self.invoke(run.main, f"--bin-dir={BIN_DIR}", "--rounds=0",
                                  f"--with={path}", f"--with={path}", f"--out={again}")
        with open(again, encoding="utf-8") as file:
            pooled = json.load(file)
        self.assertEqual([run["round"] for run in pooled["runs"]],
                         [0] * 2 * len(names) + [1] * 2 * len(names))
        self.assertEqual(pooled["rounds_line"], "2 rounds of 0.05 s")

    def test_memory(self):
        path = os.path.join(self.directory, "memory.json")
        name = next(iter(peers()))
        status, out = self.invoke(memory.main, f"--bin-dir={BIN_DIR}", f"--servers={name}",
                                  "--connections=100", f"--out={path}")
        self.assertEqual(status, 0)
        self.assertIn(f"| {name} |", out)
        self.assertEqual(self.bars(self.draw(path)["idle-memory.svg"]), 2)

    def test_seal(self):
        directories = [BIN_DIR, os.path.dirname(BIN_DIR)]
        examples = [servers.find_program(name, directories)
                    for name in ("echo_server", "echo_client", "bulk_transfer", "flow_source")]
        if None in examples:
            self.skipTest("the example programs are not built")
        refusal = subprocess.run([examples[1], "--seal=static"], capture_output=True, text=True,
                                 timeout=PATIENCE_SECONDS, check=False).stderr
        if "--key-hex" not in refusal:
            self.skipTest(f"the example programs cannot seal: {refusal.strip()}")
        path = os.path.join(self.directory, "seal.json")
        status, out = self.invoke(
            seal.main, *(f"--bin-dir={name}" for name in directories),
            "--points=c64-64,bulk,flow,transfer", "--rounds=1", "--duration=0.05", "--retries=0",
            "--transfer-mib=1", "--date=2000-01-02", f"--out={path}")
        self.assertEqual(status, 0, out)
        self.assertIn("| ceiling of sealed, cpu |", out)
        self.assertIn("| sealed to raw-seal, cpu |", out)
        with open(path, encoding="utf-8") as file:
            document = json.load(file)
        self.assertEqual({part["point"] for part in document["ceilings"]},
                         {"c64-64", "bulk", "flow", "transfer"})
        self.assertTrue(all(run["cpu_us"] > 0 for run in document["runs"]))
        # The pictures of echo servers do for these.
        self.assertIn("echo-cpu.svg", self.draw(path))

    def test_ramp(self):
        directories = [BIN_DIR, os.path.dirname(BIN_DIR)]
        hello = servers.find_program("http_hello", directories)
        if hello is None:
            self.skipTest("http_hello is not built")
        refusal = subprocess.run([hello, "--listen=127.0.0.1:0", "--adaptive", "--max-connections=0"],
                                 capture_output=True, text=True, timeout=PATIENCE_SECONDS,
                                 check=False).stderr
        self.assertIn("max-connections", refusal)
        path = os.path.join(self.directory, "ramp.json")
        common = [*(f"--bin-dir={name}" for name in directories), "--date=2000-01-02",
                  f"--out={path}"]
        try:
            status, out = self.invoke(ramp.main, *common, "--plateaus=1,64,1", "--settle=2",
                                      "--rounds=2", "--duration=0.05", "--warmup=0.01",
                                      "--retries=0")
        except servers.BenchError as error:
            # Both engines are needed, and the server says so instead of an address.
            if "ended without output" not in str(error):
                raise
            self.skipTest(f"http_hello --adaptive: {error}")
        self.assertEqual(status, 0, out)
        with open(path, encoding="utf-8") as file:
            document = json.load(file)
        self.assertEqual([entry["connections"] for entry in document["summary"]], [1, 64, 1])
        self.assertEqual(len(document["runs"]), 3 * 3 * 2)
        self.assertTrue(all(entry["ratio"] > 0 and entry["cpu_ratio"] > 0
                            for entry in document["summary"]))
        self.assertLessEqual(document["switches"], ramp.SWITCHES_MAX)
        self.assertEqual(document["most_switches"], document["switches"])
        status, out = self.invoke(ramp.main, *common, "--oscillate=3", "--half-period=0.5")
        self.assertEqual(status, 0, out)
        with open(path, encoding="utf-8") as file:
            self.assertLessEqual(json.load(file)["switches"], ramp.SWITCHES_MAX)

    def test_unknown_names(self):
        with self.assertRaises(servers.BenchError):
            self.invoke(seal.main, f"--bin-dir={os.path.dirname(BIN_DIR)}", "--servers=no-such")
        with self.assertRaises(servers.BenchError):
            self.invoke(seal.main, f"--bin-dir={self.directory}")
        for arguments in [["--servers=no-such"], ["--baseline=no-such"], ["--server=x"],
                          ["--rounds=0", "--with=no-such"]]:
            with self.assertRaises(servers.BenchError):
                self.invoke(run.main, f"--bin-dir={BIN_DIR}", *arguments)
        with self.assertRaises(servers.BenchError):
            self.invoke(run.main, f"--bin-dir={self.directory}")

    def test_google_benchmark(self):
        path = os.path.join(self.directory, "pool.json")
        document = {"context": {"date": "2000-01-02T03:04", "num_cpus": 2, "mhz_per_cpu": 2500},
                    "benchmarks": [{"name": "A", "run_name": "A", "run_type": "iteration",
                                    "real_time": 9.0, "cpu_time": 2.0, "time_unit": "us"},
                                   {"name": "B/real_time", "run_name": "B/real_time",
                                    "run_type": "iteration",
                                    "real_time": 30.0, "cpu_time": 5.0, "time_unit": "ns"},
                                   {"name": "C/64", "run_name": "C/64", "run_type": "iteration",
                                    "label": "epoll", "real_time": 900.0, "cpu_time": 900.0,
                                    "time_unit": "ns", "items_per_second": 2e7}]}
        with open(path, "w", encoding="utf-8") as file:
            json.dump(document, file)
        picture = self.draw(path)["micro-pool.svg"]
        self.assertEqual(self.bars(picture), 3)
        texts = [element.text for element in picture.iter("{http://www.w3.org/2000/svg}text")]
        self.assertIn("2,000 ns", texts)
        self.assertIn("30 ns", texts)
        self.assertIn("C/64 epoll", texts)
        self.assertIn("50 ns", texts)

    def test_other_files_are_refused(self):
        path = os.path.join(self.directory, "other.json")
        for text in ["{}", "not json"]:
            with open(path, "w", encoding="utf-8") as file:
                file.write(text)
            with self.assertRaises(report.ReportError):
                report.draw(path, None)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    BIN_DIR = sys.argv.pop(1)
    unittest.main()
