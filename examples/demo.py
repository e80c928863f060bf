#!/usr/bin/env python3
"""The tour that examples/demo.sh runs once the example programs are built."""

import argparse
import ctypes
import hashlib
import json
import os
import queue
import resource
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

MIB = 1 << 20
PATIENCE = 300  # seconds that a step may take on a machine that is slow
ENGINES = ("epoll", "uring")


class Absent(Exception):
    """This machine lacks what a step needs; the text says what."""


class Broken(Exception):
    """An example program did not do its part."""


class Server:
    """An example server that runs: its address, and its snapshots as dictionaries."""

    def __init__(self, command, log):
        self.process = subprocess.Popen([str(word) for word in command], text=True,
                                        stdout=subprocess.PIPE, stderr=log)
        self.lines = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()
        first = self._line("its address")
        if not first.startswith("listening on "):
            raise Broken(f"{command[0]} printed '{first}' instead of its address")
        self.address = first[len("listening on "):].strip()

    def _read(self):
        for line in self.process.stdout:
            self.lines.put(line)
        self.lines.put(None)

    def _line(self, what):
        try:
            line = self.lines.get(timeout=PATIENCE)
        except queue.Empty:
            line = None
        if line is None:
            self.process.kill()
            raise Broken(f"{self.process.args[0]} ended or stalled before it printed {what} "
                         f"(status {self.process.wait()})")
        return line

    def snapshot(self):
        self.process.send_signal(signal.SIGUSR1)
        return json.loads(self._line("a snapshot"))

    def resident(self):
        """Resident bytes of the process."""
        with open(f"/proc/{self.process.pid}/status", encoding="ascii") as status:
            for line in status:
                if line.startswith("VmRSS:"):
                    return int(line.split()[1]) * 1024
        raise Broken("no VmRSS in /proc/<pid>/status")

    def stop(self):
        """Drains the server; returns its last line."""
        self.process.send_signal(signal.SIGTERM)
        last = json.loads(self._line("its last line"))
        status = self.process.wait(timeout=PATIENCE)
        if status != 0:
            raise Broken(f"{self.process.args[0]} ended with status {status}")
        return last

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


def wait_until(condition, seconds, what):
    """Polls `condition` for its first true value."""
    end = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise Broken(f"{what}: not within {seconds} s")
        time.sleep(0.1)


def uring_missing():
    """Why io_uring cannot be used here; empty when it can. io_uring_setup(2) is call 425."""
    libc = ctypes.CDLL(None, use_errno=True)
    params = ctypes.create_string_buffer(256)
    fd = libc.syscall(425, 1, params)
    if fd >= 0:
        os.close(fd)
        return ""
    error = ctypes.get_errno()
    return f"io_uring_setup: {os.strerror(error)} (disabled, forbidden or an old kernel)"


def raise_descriptor_limit(wanted):
    """Returns how many descriptors one process may have, raised towards `wanted`."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < wanted:
        for limits in ((wanted, max(hard, wanted)), (min(hard, wanted), hard)):
            try:
                resource.setrlimit(resource.RLIMIT_NOFILE, limits)
                break
            except (ValueError, OSError):
                continue
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


# What the engine says when the machine has run out of something: an error, and no absence.
EXHAUSTED = "locked memory or descriptors"


class Tour:
    def __init__(self, programs, quick, scratch):
        self.programs = programs
        self.quick = quick
        self.scratch = scratch
        self.log = open(scratch / "stderr", "w+", encoding="utf-8")
        self.figures = {}
        self.refused = None

    def uring_refused(self):
        """Why the io_uring engine does not run although the kernel has rings, in its own words; empty
        when it does. Asked once."""
        if self.refused is None:
            start = os.lseek(self.log.fileno(), 0, os.SEEK_END)
            try:
                with Server([self.programs / "echo_server", "--engine=uring",
                             f"--listen=unix:{self.scratch}/probe"], self.log) as server:
                    server.stop()
                self.refused = ""
            except Broken:
                said = os.pread(self.log.fileno(), 4096, start).decode(errors="replace").strip()
                is_refusal = "io_uring" in said and EXHAUSTED not in said
                self.refused = said.splitlines()[-1] if is_refusal else ""
        return self.refused

    def need_uring(self):
        missing = uring_missing() or self.uring_refused()
        if missing:
            raise Absent(missing)

    def server(self, engine, *options, log=None):
        if engine == "uring":
            self.need_uring()
        return Server([self.programs / "echo_server", "--listen=127.0.0.1:0", f"--engine={engine}",
                       *options], log or self.log)

    def client(self, server, *options):
        """Runs the echo client and returns its line."""
        done = self.run_client(server, *options)
        if done.returncode != 0:
            raise Broken(f"echo_client ended with status {done.returncode}: {done.stdout}")
        return json.loads(done.stdout.splitlines()[-1])

    def run_client(self, server, *options):
        done = subprocess.run([self.programs / "echo_client", f"--connect={server.address}",
                               *options], text=True, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, check=False, timeout=300)
        self.log.write(done.stderr)
        return done

    def certificates(self, name):
        """A folder with an authority of its own and what it has signed."""
        folder = self.scratch / name
        if not folder.exists():
            script = Path(__file__).resolve().parent / "make_certs.sh"
            subprocess.run([script, folder], check=True, stdout=subprocess.DEVNULL)
        return folder

    @staticmethod
    def tls(folder, side):
        words = ["--seal=tls", f"--cert={folder}/{side}.pem", f"--key={folder}/{side}.key",
                 f"--ca={folder}/ca.pem"]
        return words + (["--verify-name=localhost"] if side == "client" else [])

    def psk(self):
        return ["--seal=psk", f"--psk-file={self.certificates('ours')}/psk.hex"]

    def step(self, group, name, function, *arguments):
        """Runs one step; what is absent or broken is said, recorded, and the tour goes on."""
        try:
            figures = function(*arguments)
        except Absent as absent:
            figures = {"absent": str(absent)}
            print(f"  {name}: not here: {absent}")
        except (Broken, OSError, ValueError, KeyError, subprocess.SubprocessError) as error:
            figures = {"broken": f"{type(error).__name__}: {error}"}
            print(f"  {name}: BROKEN: {error}")
        self.figures.setdefault(group, {})[name] = figures

    def echo(self, engine):
        seconds = 2 if self.quick else 5
        with self.server(engine) as server:
            result = self.client(server, "--connections=64", "--size=1024", "--depth=16",
                                 f"--duration={seconds}s")
            last = server.stop()
        print(f"  {engine}: {result['requests_per_s']:,.0f} requests/s, every byte verified; "
              f"latency p50 {result['p50_us']:,.0f} us, p99 {result['p99_us']:,.0f} us; "
              f"errors {result['errors'] + last['errors']}")
        return {"client": result, "server": last}

    def bulk(self):
        program = self.programs / "bulk_transfer"
        if not program.exists():
            raise Absent("bulk_transfer is left out of a build without OpenSSL")
        size = (128 if self.quick else 1024) * MIB
        free = shutil.disk_usage(self.scratch).free
        if free < 3 * size:
            raise Absent(f"{free // MIB} MiB free in {self.scratch}, {3 * size // MIB} needed")
        source, target = self.scratch / "sent", self.scratch / "received"
        with open(source, "wb") as out:
            for _ in range(size // MIB):
                out.write(os.urandom(MIB))
        with Server([program, "receive", target, "--listen=127.0.0.1:0"], self.log) as receiver:
            started = time.monotonic()
            sender = subprocess.run([program, "send", source, f"--connect={receiver.address}"],
                                    stdout=self.log, stderr=self.log, check=False, timeout=300)
            status = receiver.process.wait(timeout=PATIENCE)
            seconds = time.monotonic() - started
        if sender.returncode != 0 or status != 0:
            raise Broken(f"send ended with status {sender.returncode}, receive with {status}")
        figures = {"bytes": size, "seconds": seconds, "sha256_sent": sha256(source),
                   "sha256_received": sha256(target)}
        equal = figures["sha256_sent"] == figures["sha256_received"]
        print(f"  {size // MIB} MiB in {seconds:.2f} s, {size / MIB / seconds:,.0f} MiB/s, "
              f"verified on the way; SHA-256 of both files {'equal' if equal else 'DIFFERENT'}: "
              f"{figures['sha256_received'][:16]}...")
        source.unlink()
        target.unlink()
        return figures

    def endpoint(self, op):
        program = self.programs / "rdma_pingpong"
        if not program.exists():
            raise Absent("this Penstock has no component rdma")
        words = [f"--op={op}", f"--iters={2000 if self.quick else 20000}"]
        with Server([program, "--listen=127.0.0.1:0"], self.log) as server:
            done = subprocess.run([program, f"--connect={server.address}", *words], text=True,
                                  stdout=subprocess.PIPE, stderr=self.log, check=False, timeout=120)
            if done.returncode != 0:
                raise Broken(f"rdma_pingpong --op={op} ended with status {done.returncode}")
            last = server.stop()
        result = json.loads(done.stdout)
        print(f"  {op}, {result['size']} bytes: p50 {result['p50_us']:.1f} us, "
              f"p99 {result['p99_us']:.1f} us")
        return {"client": result, "server": last}

    def soft_roce(self):
        """The same over devices, which the kernel of an emulated machine makes of Ethernet ones."""
        examples = Path(__file__).resolve().parent
        machine = examples.parent / "tests/vm/run.py"
        program = self.programs / "rdma_pingpong"
        if not program.exists() or not machine.exists():
            raise Absent("rdma_pingpong or tests/vm/run.py is not here")
        if not shutil.which("qemu-system-x86_64"):
            raise Absent("no qemu-system-x86_64 here (Debian package qemu-system-x86)")
        done = subprocess.run([machine, "--kernel=6.12", "--rdma", f"--limit={PATIENCE}", "--",
                               examples / "soft_roce.sh", self.programs.resolve(), "200"], text=True,
                              stdout=subprocess.PIPE, stderr=self.log, check=False)
        lines = done.stdout.splitlines()
        if done.returncode == 77:
            raise Absent(lines[-1].removeprefix("skipped: "))
        if done.returncode == 125:
            raise Broken("the emulated machine did not start")
        if done.returncode != 0:
            raise Broken(f"soft_roce.sh ended with status {done.returncode}: {done.stdout}")
        figures = [json.loads(line) for line in lines]
        for each in figures:
            print(f"  {each['op']}, {each['size']} bytes, over a {each['transport']} of soft RoCE, "
                  f"emulated: p50 {each['p50_us']:,.0f} us, p99 {each['p99_us']:,.0f} us")
        return {each["op"]: each for each in figures}

    def sealed_echo(self, engine):
        self.need_sealing()
        certificates = self.certificates("ours")
        seconds = 2 if self.quick else 5
        with self.server(engine, *self.tls(certificates, "server")) as server:
            result = self.client(server, *self.tls(certificates, "client"), "--connections=64",
                                 "--size=1024", "--depth=16", f"--duration={seconds}s")
            last = server.stop()
        print(f"  {engine}: {result['requests_per_s']:,.0f} requests/s in records of AES-128-GCM, "
              f"keyed by TLS 1.3 with certificates on both sides; errors "
              f"{result['errors'] + last['errors']}")
        return {"client": result, "server": last}

    def moving(self, sealed):
        """Streams that change engine and thread all the time, both ends of each."""
        self.need_uring()
        words = ["--json", f"--seconds={2 if self.quick else 5}"]
        if sealed:
            self.need_sealing()
            words += self.psk()
        done = subprocess.run([self.programs / "live_migration", *words], text=True,
                              stdout=subprocess.PIPE, stderr=self.log, check=False, timeout=300)
        if done.returncode != 0:
            raise Broken(f"live_migration ended with status {done.returncode}: {done.stdout}")
        figures = json.loads(done.stdout)
        print(f"  {'sealed' if sealed else 'plain'}: {figures['connections']} connections, "
              f"{figures['engine_switches']:,} engine switches and {figures['loop_moves']:,} moves "
              f"between threads; pause p50 {figures['pause_p50_us']:,.0f} us, p99 "
              f"{figures['pause_p99_us']:,.0f} us; {figures['bytes'] // MIB:,} MiB verified, "
              f"errors {figures['errors']}")
        return figures

    def stranger(self):
        """A client with a certificate of another authority, and one that does not seal at all."""
        self.need_sealing()
        ours, theirs = self.certificates("ours"), self.certificates("theirs")
        # It does trust our server, so that it is the server who refuses.
        words = self.tls(theirs, "client")[:-2] + [f"--ca={ours}/ca.pem", "--verify-name=localhost"]
        with open(self.scratch / "refusals", "w+", encoding="utf-8") as log:
            with self.server("auto", *self.tls(ours, "server"), log=log) as server:
                stranger = self.run_client(server, *words, "--duration=100ms")
                plain = self.run_client(server, "--duration=100ms", "--size=4096")
                last = server.stop()
            server_said = Path(log.name).read_text(encoding="utf-8", errors="replace")
        self.log.write(server_said)
        for who, done in (("a certificate of another authority", stranger), ("no seal", plain)):
            said = done.stderr.strip().splitlines() or ["nothing"]
            print(f"  {who}: echo_client ended with status {done.returncode}: {said[0]}")
        for line in server_said.strip().splitlines():
            print(f"  and {line}")
        return {"stranger_status": stranger.returncode, "stranger_said": stranger.stderr,
                "plain_status": plain.returncode, "server": last, "server_said": server_said}

    def need_sealing(self):
        asked = subprocess.run([self.programs / "echo_client", "--seal=psk", "--connect=unix:@none"],
                               text=True, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL,
                               check=False, timeout=PATIENCE)
        if "without sealed streams" in asked.stderr:
            raise Absent("this Penstock was built without sealed streams")
        if shutil.which("openssl") is None:
            raise Absent("openssl, which makes the certificates, is not installed")

    def sealed_idle(self, engine):
        self.need_sealing()
        return self.idle(engine, 2000 if self.quick else 10000, self.psk())

    def idle(self, engine, wanted=10000, sealing=()):
        count = min(wanted, raise_descriptor_limit(wanted + 200) - 100)
        with self.server(engine, f"--max-connections={wanted + 100}", *sealing) as server:
            if count < wanted:
                print(f"  only {count:,} connections: the limit of open files is {count + 100:,}")
            # Some requests first, so that code and tables that every server needs are resident, and
            # what a few handshakes at once need.
            self.client(server, f"--connections={500 if sealing else 1}", "--size=16384",
                        "--depth=1", "--duration=100ms", *sealing)
            first = wait_until(lambda: self.none_left(server), PATIENCE, "the first client's end")
            before = server.resident()
            silent, resident_silent = (None, None) if sealing else self.silent(server, count)
            # It stays until its standard input ends.
            client = subprocess.Popen(
                [self.programs / "echo_client", f"--connect={server.address}", f"--idle={count}",
                 "--size=1024", "--duration=1h", *sealing],
                stdin=subprocess.PIPE, stdout=self.log, stderr=self.log)
            try:
                wait_until(lambda: self.all_served(server, first, count), PATIENCE,
                           f"{count} connections served")
                # Figures of one snapshot may be a few operations apart; nothing moves any more now.
                idle = server.snapshot()
                # What a handshake needed, and the cipher contexts in use, go after a second.
                resident = self.settled(server) if sealing else server.resident()
                client.stdin.close()
                if client.wait(timeout=PATIENCE) != 0:
                    raise Broken(f"echo_client --idle ended with status {client.returncode}")
            finally:
                client.kill()
                client.wait()
            wait_until(lambda: self.none_left(server), PATIENCE, "their end")
            after = self.settled(server)
            last = server.stop()
        each = (resident - before) / count
        each_silent = (resident_silent - before) / count if silent else None
        if silent:
            print(f"  {engine}: {silent['idle_connections']:,} connections that never said anything pin "
                  f"{silent['pool_live_bytes']} pool bytes; resident memory {each_silent:,.0f} bytes each")
        print(f"  {engine}: {idle['idle_connections']:,} of {count:,} connections idle after "
              f"{(idle['bytes_in'] - first['bytes_in']) // 1024:,} KiB of traffic; pool bytes they pin: {idle['pool_live_bytes']}; resident memory "
              f"{each:,.0f} bytes each, {(after - before) / MIB:+.1f} MiB after they left")
        return {"count": count, "wanted": wanted, "silent": silent, "snapshot": idle, "last": last,
                "resident_before": before, "resident_idle": resident, "resident_after": after,
                "resident_per_connection": each, "resident_per_silent": each_silent}

    def silent(self, server, count):
        """A snapshot, and the resident memory, with `count` connections that were accepted and have
        sent nothing. They end in resets, which leave no addresses in use for a while as orderly ends
        do."""
        host, port = server.address.rsplit(":", 1)
        peers = []
        try:
            for _ in range(count):
                peer = socket.create_connection((host, int(port)), timeout=PATIENCE)
                peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                peers.append(peer)
            snapshot = wait_until(lambda: self.all_idle(server, count), PATIENCE,
                                  f"{count} connections accepted")
            resident = server.resident()
        finally:
            for peer in peers:
                peer.close()
        wait_until(lambda: self.none_left(server), PATIENCE, "their end")
        return snapshot, resident

    @staticmethod
    def all_idle(server, count):
        snapshot = server.snapshot()
        return snapshot if snapshot["idle_connections"] == count else None

    @staticmethod
    def all_served(server, first, count):
        """True once each of `count` connections has had its 1 KiB back."""
        snapshot = server.snapshot()
        return (snapshot["connections"] == count
                and snapshot["bytes_out"] - first["bytes_out"] >= count * 1024)

    @staticmethod
    def none_left(server):
        snapshot = server.snapshot()
        return snapshot if snapshot["connections"] == 0 else None

    @staticmethod
    def settled(server):
        """The least resident memory within five seconds: unused pool memory is given back after one
        second without traffic."""
        least = server.resident()
        for _ in range(10):
            time.sleep(0.5)
            least = min(least, server.resident())
        return least

    def run(self):
        release = os.uname().release
        print(f"\nPenstock on Linux {release}, {os.cpu_count()} CPUs")
        self.figures["machine"] = {"kernel": release, "cpus": os.cpu_count(),
                                   "uring_missing": uring_missing(),
                                   "uring_refused": self.uring_refused(), "quick": self.quick}
        print("\nEcho: 64 connections, 1 KiB messages, 16 in flight on each")
        for engine in ENGINES:
            self.step("echo", engine, self.echo, engine)
        print("\nBulk transfer of one file of random bytes")
        self.step("bulk", "transfer", self.bulk)
        print("\nIdle connections: what they hold while nothing is said")
        for engine in ENGINES:
            self.step("idle", engine, self.idle, engine)
        print("\nLive migration: both ends of every connection change engine and thread, at any point")
        self.step("moving", "plain", self.moving, False)
        self.step("moving", "sealed", self.moving, True)
        print("\nRDMA endpoints: without a device the stream carries the data, the peer's loop reads and "
              "writes; and over a device")
        for op in ("send", "write", "read"):
            self.step("endpoint", op, self.endpoint, op)
        self.step("endpoint", "device", self.soft_roce)
        print("\nSealed echo: the same messages, encrypted and authenticated")
        for engine in ENGINES:
            self.step("sealed_echo", engine, self.sealed_echo, engine)
        self.step("stranger", "refused", self.stranger)
        print("\nIdle sealed connections, keyed by TLS 1.3 with a shared key")
        for engine in ENGINES:
            self.step("sealed_idle", engine, self.sealed_idle, engine)
        print()


def sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(MIB):
            digest.update(block)
    return digest.hexdigest()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--programs", type=Path, required=True, help="folder of the examples")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path, help="write the figures there too")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="penstock-demo.") as scratch:
        tour = Tour(args.programs, args.quick, Path(scratch))
        tour.run()
        if args.json:
            args.json.write_text(json.dumps(tour.figures, indent=2) + "\n", encoding="utf-8")
        broken = [name for group in tour.figures.values() for name, figures in group.items()
                  if isinstance(figures, dict) and "broken" in figures]
        if broken:
            tour.log.seek(0)
            print(f"broken steps: {', '.join(broken)}; the programs said:\n{tour.log.read()[-4000:]}",
                  file=sys.stderr)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
