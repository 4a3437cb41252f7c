"""QEMU under `softkvm exec`: the process, what its guest says on the serial line, and its monitor (QMP).

Not which guests there are (guest.py), nor what is asked of them (the files cases_*.py)."""

import json
import os
import re
import signal
import socket
import subprocess
import threading
import time

# What no guest may say.
COMPLAINTS = re.compile(
    r"WARNING:|\bBUG\b|lockup|unchecked MSR|Call Trace|Oops|rcu.*stall|general protection|Kernel panic|"
    r"[Mm]arking.*unstable|timer doesn't work|IO-APIC.*bug|spurious|nobody cared|I/O error|WRONG|segfault",
)
# Of those, what guests say on hardware, too: Linux takes the TSCs of several processors for unsynchronized on AMD without
# an invariant TSC, and QEMU keeps that bit from a guest that can migrate.
BENIGN = re.compile(r"Spectre|MDS|TSX|TAA|Vulnerable|mitigation|TSC unstable due to TSCs unsynchronized", re.I)


class Failed(Exception):
    """What a case says when the machine did not do what it should."""


class Monitor:
    """A connection of the QEMU machine protocol."""

    def __init__(self, path, limit):
        end = time.monotonic() + limit
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        while True:
            try:
                self.socket.connect(path)
                break
            except OSError as error:
                if time.monotonic() > end:
                    raise Failed(f"no monitor: {error}") from error
                time.sleep(0.05)
        self.socket.settimeout(limit)
        self.lines = self.socket.makefile("r", encoding="utf-8")
        self.events = []
        self._message()
        self("qmp_capabilities")

    def _message(self):
        try:
            line = self.lines.readline()
        except OSError as error:
            raise Failed(f"the monitor does not answer: {error}") from error
        if not line:
            raise Failed("the monitor hung up")
        return json.loads(line)

    def __call__(self, command, **arguments):
        """Executes a command; names with a dash are written with an underscore."""
        arguments = {name.replace("_", "-"): value for name, value in arguments.items()}
        text = json.dumps({"execute": command, "arguments": arguments})
        try:
            self.socket.sendall(text.encode() + b"\n")
        except OSError as error:
            raise Failed(f"the monitor hung up: {error}") from error
        while True:
            answer = self._message()
            if "return" in answer:
                return answer["return"]
            if "error" in answer:
                raise Failed(f"{command}: {answer['error']['desc']}")
            self.events.append(answer)

    def human(self, line):
        """A line for the human monitor; its answer must be empty for it to have succeeded, which the caller knows."""
        return self("human-monitor-command", command_line=line)


class Qemu:
    """A running QEMU. Leaving the `with` kills it."""

    def __init__(self, run, name, arguments, accel="kvm"):
        self.name = name
        self.run = run
        self.folder = run.folder
        self.log = os.path.join(self.folder, f"{name}.serial")
        self.errors = os.path.join(self.folder, f"{name}.errors")
        self.monitor_path = os.path.join(self.folder, f"{name}.qmp")
        if os.path.exists(self.monitor_path):
            os.unlink(self.monitor_path)
        program, environment = run.qemu.command()
        command = [*program, "-accel", accel, "-nodefaults", "-display", "none", "-no-reboot", "-serial", "stdio"]
        command += ["-qmp", f"unix:{self.monitor_path},server=on,wait=off", *arguments]
        if accel.startswith("kvm"):
            command = [run.softkvm, "exec", "--", *command]
        with open(os.path.join(self.folder, f"{name}.command"), "w", encoding="utf-8") as file:
            file.write(" ".join(command) + "\n")
        self.text = ""
        self.changed = threading.Condition()
        self.start = time.monotonic()
        with open(self.errors, "wb") as errors:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, env=environment,
                start_new_session=True,
            )
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()
        self._monitor = None

    def _read(self):
        with open(self.log, "wb") as log:
            while piece := self.process.stdout.read1(65536):
                log.write(piece)
                log.flush()
                with self.changed:
                    self.text += piece.decode("utf-8", "replace").replace("\r", "")
                    self.changed.notify_all()
        with self.changed:
            self.text += "\n"
            self.reader = None
            self.changed.notify_all()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        reader = self.reader
        if reader:
            reader.join(5)
        self.process.stdin.close()

    @property
    def monitor(self):
        """The connection to its monitor."""
        if not self._monitor:
            self._monitor = Monitor(self.monitor_path, self.run.limit)
        return self._monitor

    def wait(self, pattern, limit=None, since=0):
        """Waits until the guest has said this (after the first `since` characters). Returns the match."""
        pattern = re.compile(pattern, re.M)
        end = time.monotonic() + (limit or self.run.limit)
        with self.changed:
            while True:
                if found := pattern.search(self.text, since):
                    return found
                left = end - time.monotonic()
                if left <= 0:
                    raise Failed(f"not said in time: {pattern.pattern!r}; last: {self._last()}")
                if self.reader is None:
                    raise Failed(f"ended before it said {pattern.pattern!r}; last: {self._last()}")
                self.changed.wait(min(left, 1.0))

    def finish(self, limit=None):
        """Waits for the end of the process, which must be a good one."""
        try:
            status = self.process.wait(limit or self.run.limit)
        except subprocess.TimeoutExpired as error:
            raise Failed(f"QEMU did not end; last: {self._last()}") from error
        reader = self.reader
        if reader:
            reader.join(5)
        if status != 0:
            raise Failed(f"QEMU's status is {status}: {self.stderr()} last: {self._last()}")

    def _last(self):
        lines = [line for line in self.text.splitlines() if line.strip()]
        return " | ".join(lines[-3:]) + " " + self.stderr()

    def stderr(self):
        """What QEMU and the library said on their standard error."""
        with open(self.errors, encoding="utf-8", errors="replace") as file:
            return file.read().strip()

    def said(self, word, since=0):
        """The rest of each line that begins with "== word"."""
        return re.findall(rf"^== {re.escape(word)} ?(.*)$", self.text[since:], re.M)

    def check(self):
        """The guest complained of nothing, and the library neither."""
        bad = [line for line in self.text.splitlines() if COMPLAINTS.search(line) and not BENIGN.search(line)]
        if bad:
            raise Failed(f"the guest says: {bad[0].strip()}" + (f" (and {len(bad) - 1} more)" if bad[1:] else ""))
        errors = [line for line in self.stderr().splitlines() if not self.run.harmless(line)]
        if errors:
            raise Failed(f"QEMU says: {errors[0]}")

    def cpu_seconds(self):
        """Processor time of the process so far."""
        with open(f"/proc/{self.process.pid}/stat", encoding="utf-8") as file:
            fields = file.read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
