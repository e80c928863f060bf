#!/usr/bin/env python3
"""bulk_transfer against itself and against peers that cheat, stall or die."""

import hashlib
import json
import os
import pty
import re
import resource
import select
import signal
import socket
import struct
import sys
import threading

import programs
from programs import PATIENCE, Listening, Running, each_engine, program, receive_all, run, wait_until

MIB = 1 << 20
HUGE = 64 << 30  # of a sparse file: a transfer that lasts until the test ends it


def header(length, magic=b"PENSBULK", version=1, zero=0):
    return magic + struct.pack(">IIQ", version, zero, length)


def reset(peer):
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.close()


def trailer(content):
    return hashlib.sha256(content).digest()


class Bulk:
    def setUp(self):
        super().setUp()
        self.source, self.target = self.folder / "source", self.folder / "target"

    def receiver(self, *words, listen="127.0.0.1:0", **options):
        return Listening("bulk_transfer", "receive", self.target, f"--listen={listen}",
                         f"--engine={self.engine}", *words, **options)

    def sender(self, address, *words):
        return Running("bulk_transfer", "send", self.source, f"--connect={address}",
                       f"--engine={self.engine}", *words)

    def sparse_source(self):
        with open(self.source, "wb") as file:
            file.truncate(HUGE)

    def parts(self):
        return [path for path in self.folder.iterdir() if ".part-" in path.name]

    def wait_for_content(self):
        """Until the transfer is well under way."""
        wait_until(lambda: any(part.stat().st_size > MIB for part in self.parts()), "some content")

    def nothing_left(self):
        self.assertFalse(self.target.exists())
        self.assertEqual(self.parts(), [])

    def transfer(self, content, listen="127.0.0.1:0"):
        self.source.write_bytes(content)
        with self.receiver(listen=listen) as receiver, self.sender(receiver.address) as sender:
            self.assertEqual(sender.end(), 0, sender.stderr())
            self.assertEqual(receiver.end(), 0, receiver.stderr())
            for figures in (json.loads(sender.line()), json.loads(receiver.line())):
                self.assertEqual(list(figures), ["transport", "fallback", "bytes", "seconds",
                                                 "bytes_per_s", "sha256"])
                self.assertEqual((figures["transport"], figures["fallback"]), ("tcp", ""))
                self.assertEqual(figures["bytes"], len(content))
                self.assertEqual(figures["sha256"], hashlib.sha256(content).hexdigest())
        self.assertEqual(self.target.read_bytes(), content)
        self.assertEqual(self.parts(), [])

    def test_files_of_all_sizes(self):
        for size in (0, 1, 31, 32, 65536, 256 * 1024, 256 * 1024 + 1, 5 * MIB + 3):
            with self.subTest(size=size):
                self.transfer(os.urandom(size))  # in place of the one before

    def test_over_a_unix_socket(self):
        self.transfer(os.urandom(100000), listen=f"unix:{self.folder}/bulk.sock")

    def test_mode_follows_the_umask(self):
        self.transfer(b"content")
        umask = os.umask(0)
        os.umask(umask)
        self.assertEqual(self.target.stat().st_mode & 0o777, 0o666 & ~umask)

    def test_killed_sender_leaves_no_file(self):
        self.sparse_source()
        with self.receiver() as receiver, self.sender(receiver.address) as sender:
            self.wait_for_content()
            sender.process.kill()
            self.assertEqual(receiver.end(), 1)
            self.assertRegex(receiver.stderr(), r"not received: read from .*"
                                                r"(end of stream|ECONNRESET)")
        self.nothing_left()

    def test_killed_receiver_leaves_no_file_under_the_final_name(self):
        self.sparse_source()
        with self.receiver() as receiver, self.sender(receiver.address) as sender:
            self.wait_for_content()
            receiver.process.kill()
            self.assertEqual(sender.end(), 1)
            self.assertRegex(sender.stderr(), r"not sent: .*(ECONNRESET|EPIPE|end of stream)")
        self.assertFalse(self.target.exists())

    def test_interrupted_receiver_cleans_up(self):
        for number in (signal.SIGTERM, signal.SIGINT):
            with self.subTest(signal=number):
                self.sparse_source()
                with self.receiver() as receiver, self.sender(receiver.address) as sender:
                    self.wait_for_content()
                    receiver.signal(number)
                    self.assertEqual(receiver.end(), 1)
                    self.assertIn("not received: ", receiver.stderr())
                    self.assertIn("cancelled", receiver.stderr())
                    self.assertEqual(sender.end(), 1)
                self.nothing_left()

    def test_interrupted_while_nobody_came(self):
        with self.receiver() as receiver:
            receiver.signal(signal.SIGTERM)
            self.assertEqual(receiver.end(), 1)
        self.nothing_left()

    def test_old_file_survives_a_failure(self):
        self.target.write_bytes(b"old")
        with self.receiver() as receiver:
            with receiver.connect() as peer:
                peer.sendall(header(100) + b"x" * 50)
            self.assertEqual(receiver.end(), 1)
            self.assertIn("end of stream", receiver.stderr())
        self.assertEqual(self.target.read_bytes(), b"old")
        self.assertEqual(self.parts(), [])

    def receives(self, data, *words, verdict, says):
        """Sends `data` by hand; expects the verdict and the message."""
        with self.receiver(*words) as receiver, receiver.connect() as peer:
            peer.sendall(data)
            answer = peer.recv(40, socket.MSG_WAITALL)
            self.assertEqual(receiver.end(), 1)
            self.assertIn(says, receiver.stderr())
        self.assertEqual(answer[:4], b"PBAK")
        self.assertEqual(struct.unpack(">I", answer[4:8])[0], verdict)
        self.nothing_left()

    def test_receiver_checks_the_checksum(self):
        self.receives(header(5) + b"hello" + trailer(b"hellO"), verdict=1,
                      says="the checksums differ")

    def test_strangers_do_not_end_the_receiver(self):
        def speak(data):
            def stranger(peer):
                peer.sendall(data)
                answer = peer.recv(40, socket.MSG_WAITALL)
                self.assertEqual(answer[:8], b"PBAK\0\0\0\3")
            return stranger

        strangers = [
            (speak(header(5, magic=b"GET / HT")), "not bulk_transfer"),
            (speak(header(5, version=2)), "version 2"),
            (speak(header(5, zero=1)), "reserved"),
            (lambda peer: peer.close(), "end of stream"),
            (lambda peer: (peer.sendall(header(5)[:7]), peer.shutdown(socket.SHUT_WR)),
             "end of stream"),
            (reset, "ECONNRESET"),
            (lambda peer: receive_all(peer), "no byte for"),  # stalls, until --timeout
        ]
        self.source.write_bytes(b"content")
        with self.receiver("--timeout=2s") as receiver:
            for stranger, _ in strangers:
                with receiver.connect() as peer:
                    stranger(peer)
            with self.sender(receiver.address) as sender:
                self.assertEqual(sender.end(), 0, sender.stderr())
            self.assertEqual(receiver.end(), 0, receiver.stderr())
            said = receiver.stderr().splitlines()
        self.assertEqual(len([line for line in said if "sent away: " in line]), len(strangers))
        for _, reason in strangers:
            self.assertIn(reason, "\n".join(said))
        self.assertEqual(self.target.read_bytes(), b"content")

    def test_receiver_bounds_the_length(self):
        self.receives(header(101), "--max-bytes=100", verdict=3, says="--max-bytes accepts 100")
        self.receives(header((1 << 64) - 1), verdict=3, says=str((1 << 64) - 1))

    def test_receiver_gives_a_stalled_sender_up(self):
        self.receives(header(100) + b"x" * 50, "--timeout=2s", verdict=2, says="no byte for")

    def test_receiver_accepts_what_the_format_says(self):
        with self.receiver() as receiver, receiver.connect() as peer:
            for byte in header(5) + b"hello" + trailer(b"hello"):
                peer.sendall(bytes([byte]))
            self.assertEqual(receive_all(peer), b"PBAK\0\0\0\0" + trailer(b"hello"))
            self.assertEqual(receiver.end(), 0, receiver.stderr())
        self.assertEqual(self.target.read_bytes(), b"hello")

    def sends(self, serve, *words, content=b"hello"):
        """Sends to `serve(peer)`; expects a failure, and returns what was said."""
        if content is not None:
            self.source.write_bytes(content)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.settimeout(PATIENCE)

            def accept():
                peer, _ = listener.accept()
                peer.settimeout(PATIENCE)
                with peer:
                    serve(peer)

            thread = threading.Thread(target=accept)
            thread.start()
            with self.sender(f"127.0.0.1:{listener.getsockname()[1]}", *words) as sender:
                self.assertEqual(sender.end(), 1)
                thread.join()
                return sender.stderr()

    def test_sender_checks_the_answer(self):
        size = len(header(5)) + 5 + 32

        def answer(verdict, digest, magic=b"PBAK"):
            def serve(peer):
                peer.recv(size, socket.MSG_WAITALL)
                peer.sendall(magic + struct.pack(">I", verdict) + digest)
            return serve

        self.assertIn("the checksums differ", self.sends(answer(0, trailer(b"hellO"))))
        self.assertIn("the checksums differ", self.sends(answer(1, trailer(b"hellO"))))
        self.assertIn("could not store", self.sends(answer(2, bytes(32))))
        self.assertIn("refused", self.sends(answer(3, bytes(32))))
        self.assertIn("not one of bulk_transfer", self.sends(answer(4, bytes(32))))
        self.assertIn("not one of bulk_transfer", self.sends(answer(0, bytes(32), b"HTTP")))
        self.assertIn("end of stream", self.sends(lambda peer: peer.recv(size, socket.MSG_WAITALL)))

    def test_sender_gives_a_stalled_receiver_up(self):
        def serve(peer):  # reads nothing, and notices when the sender has gone
            gone = select.poll()
            gone.register(peer, select.POLLRDHUP | select.POLLHUP | select.POLLERR)
            gone.poll(PATIENCE * 1000)

        self.sparse_source()
        self.assertIn("200 ms", self.sends(serve, "--timeout=200ms", content=None))

    def test_sender_gives_an_answer_that_does_not_come_up(self):
        # The limit is the connecting's, too, which a busy machine may not make at first.
        for limit in ("20ms", "500ms", "10s"):
            said = self.sends(receive_all, f"--timeout={limit}")
            if "no answer" not in said:
                break
        self.assertIn("no byte for", said)

    def test_sender_tells_why_the_receiver_gave_up(self):
        self.sparse_source()
        with self.receiver("--max-bytes=100") as receiver:
            with self.sender(receiver.address) as sender:
                self.assertEqual(sender.end(), 1)
                self.assertRegex(sender.stderr(), "refused the transfer|ECONNRESET|EPIPE")
            self.assertEqual(receiver.end(), 1)
        self.nothing_left()

    def test_no_room(self):
        # A file size limit stands in for a full disk: write(2) fails, with EFBIG.
        self.sparse_source()
        limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (MIB, MIB))  # noqa: E731
        with self.receiver(preexec_fn=limit, restore_signals=False) as receiver:
            with self.sender(receiver.address) as sender:
                self.assertEqual(sender.end(), 1)
                self.assertRegex(sender.stderr(), "could not store|ECONNRESET|EPIPE")
            self.assertEqual(receiver.end(), 1)
            self.assertIn("not received: write ", receiver.stderr())
        self.nothing_left()

    def test_file_that_shrinks(self):
        self.sparse_source()
        with self.receiver() as receiver, self.sender(receiver.address) as sender:
            self.wait_for_content()
            os.truncate(self.source, 0)
            self.assertEqual(sender.end(), 1)
            self.assertIn("became shorter", sender.stderr())
            self.assertEqual(receiver.end(), 1)
        self.nothing_left()

    def fails(self, *words, says):
        done = run("bulk_transfer", *words, f"--engine={self.engine}")
        self.assertEqual((done.returncode, done.stdout), (1, ""), done)
        self.assertIn(says, done.stderr)

    def test_bad_paths(self):
        self.fails("send", self.folder / "absent", "--connect=127.0.0.1:1", says="absent: No such")
        self.fails("send", self.folder, "--connect=127.0.0.1:1", says="not a regular file")
        self.fails("receive", self.folder / "no/file", "--listen=127.0.0.1:0", says="No such")
        self.fails("receive", self.folder, "--listen=127.0.0.1:0", says="not a regular file")
        self.fails("receive", "/dev/null", "--listen=127.0.0.1:0", says="not a regular file")

    def test_bad_addresses(self):
        self.source.write_bytes(b"x")
        self.fails("send", self.source, f"--connect=unix:{self.folder}/absent", says="ENOENT")
        self.fails("receive", self.target, "--listen=192.0.2.1:0", says="EADDRNOTAVAIL")
        self.nothing_left()

    def test_progress_lines(self):
        self.sparse_source()
        with self.receiver() as receiver, self.sender(receiver.address) as sender:
            line = r"^ *\d+ %  [\d.]+ [KMGT]?i?B of 64\.0 GiB  [\d.]+ [KMGT]?i?B/s  ETA \d+ s$"
            wait_until(lambda: re.search(line, sender.stderr(), re.MULTILINE), "a line")
            self.assertNotIn("\r", sender.stderr())

    def test_progress_bar_on_a_terminal(self):
        self.sparse_source()
        with self.receiver() as receiver:
            child, terminal = pty.fork()
            if child == 0:
                os.execv(program("bulk_transfer"), ["bulk_transfer", "send", str(self.source),
                                                    f"--connect={receiver.address}"])
            shown = b""
            try:
                while not re.search(rb"\r\[#*-*\] +\d+ %  .*ETA \d+ s", shown):
                    shown += os.read(terminal, 4096)
            finally:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                os.close(terminal)


globals().update(each_engine(Bulk))

if __name__ == "__main__":
    sys.exit(programs.main())
