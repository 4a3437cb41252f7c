"""A guest with a real KVM in it: its kernel and modules, its initramfs with a program and what it needs, and its run.

Not what the programs do (programs/), nor the command line (run)."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time

import qemu
from guest import Archive, Guest, Unavailable, apt_options, cache, call, copy_kernel, folder_at_once, unpack

HERE = os.path.dirname(os.path.abspath(__file__))
MODULES = ["virtio_pci", "virtio_blk", "kvm_amd", "virtio_net", "tun"]
# Room for what a program prints and leaves in /out.
OUTPUT_MIB = 256


def fetch(folder, backports):
    """Kernel, modules and busybox out of their packages."""
    suite, options = qemu.backports_lists() if backports else (None, [])
    if suite:
        options = [*options, "-o", f"APT::Default-Release={suite}"]
    depends = call("apt-cache", *apt_options(options)[1:], "depends", "linux-image-cloud-amd64").decode()
    kernel = [word for word in depends.split() if re.match(r"linux-image-\d", word)]
    if not kernel:
        raise Unavailable("no package linux-image-cloud-amd64 in the package lists")
    with tempfile.TemporaryDirectory(dir=cache()) as unpacked:
        unpack([kernel[0], "busybox-static"], unpacked, options)
        copy_kernel(unpacked, folder, MODULES)
        if not os.path.exists(f"{folder}/kvm_amd.ko"):
            raise Unavailable(f"{kernel[0]} has no kvm-amd")


def libraries(program):
    """The shared libraries of a program, and its interpreter: path in the guest, path here."""
    run = subprocess.run(["ldd", program], capture_output=True, text=True, check=False)
    found = {}
    for line in run.stdout.splitlines():
        if match := re.match(r"\s*(?:\S+ => )?(/\S+) \(0x", line):
            found[match[1]] = os.path.realpath(match[1])
        elif "not found" in line:
            raise Unavailable(f"{program}: {line.strip()}")
    return found


class Nested:
    """One run of one program."""

    def __init__(self, args, folder):
        self.args = args
        self.folder = folder
        self.files = folder_at_once(f"nested-{args.kernel}", lambda into: fetch(into, args.kernel == "backports"))
        self.archive = Archive()
        self.known = set()
        self.fill()

    def directory(self, path):
        """A directory and those above it."""
        if path and path not in self.known:
            self.directory(os.path.dirname(path))
            self.known.add(path)
            self.archive.add(path, 0o040755)

    def put(self, guest, host):
        """A file of the host's."""
        guest = guest.lstrip("/")
        if guest not in self.known:
            self.known.add(guest)
            self.directory(os.path.dirname(guest))
            self.archive.file(guest, host)

    def program(self, guest, host):
        """A program with what it is linked with."""
        self.put(guest, host)
        for place, library in libraries(host).items():
            self.put(place, library)

    def fill(self):
        """The initramfs."""
        for name in ("bin", "dev", "proc", "sys", "tmp", "root", "out", "modules", "work"):
            self.directory(name)
        self.put("bin/busybox", f"{self.files}/busybox")
        for applet in call(f"{self.files}/busybox", "--list").decode().split():
            if applet != "busybox" and "/" not in applet:
                self.archive.add(f"bin/{applet}", 0o120777, b"busybox")
        self.put("init", f"{HERE}/init")
        self.put("modules/order", f"{self.files}/order")
        for file in sorted(os.listdir(self.files)):
            if file.endswith(".ko"):
                self.put(f"modules/{file}", f"{self.files}/{file}")
        self.archive.add("dev/console", 0o020600, device=(5, 1))
        self.archive.add("dev/null", 0o020666, device=(1, 3))
        for file in self.args.file:
            host, _, guest = file.partition(":")
            self.put(guest or f"work/{os.path.basename(host)}", host)
        name = f"work/{os.path.basename(self.args.program)}"
        self.program(name, self.args.program)
        if self.args.qemu:
            self.qemu()
        with open(self.args.program, "rb") as file:
            shell = [] if file.read(4) == b"\x7fELF" else ["sh"]
        command = shlex.join([*shell, f"/{name}", *self.args.arguments])
        parameters = {}
        for parameter in self.args.module:
            module, _, rest = parameter.partition(".")
            parameters.setdefault(module.replace("-", "_"), []).append(rest)
        job = f"limit={int(self.args.timeout)}\ncommand={shlex.quote(command)}\n"
        for module, values in parameters.items():
            job += f"parameters_{module}={shlex.quote(' '.join(values))}\n"
        self.archive.add("job", 0o100644, job.encode())

    def qemu(self):
        """Debian's QEMU, and a guest for it."""
        program = shutil.which(qemu.PROGRAM)
        if not program:
            raise Unavailable(f"no {qemu.PROGRAM} in PATH")
        if self.args.qemu == "older":
            program = qemu.older().program
        self.program(f"usr/bin/{qemu.PROGRAM}", program)
        for folder in ("/usr/share/qemu", "/usr/share/seabios"):
            for file in sorted(os.listdir(folder)):
                path = os.path.join(folder, file)
                if re.search(r"^(bios|kvmvapic|linuxboot|multiboot|pvh|qboot)", file) and os.path.isfile(path):
                    self.put(path, os.path.realpath(path))
        inner = Guest(self.folder)
        disk, _ = inner.disk("disk", 8)
        self.put("qemu/kernel", inner.kernel)
        self.put("qemu/initrd", inner.initrd)
        self.put("qemu/disk", disk)

    def run(self):
        """Runs it. Returns the program's status as text, or what kept it from having one."""
        initrd, disk = (os.path.join(self.folder, name) for name in ("outer-initrd", "output"))
        with open(initrd, "wb") as file:
            file.write(self.archive.finish())
        with open(disk, "wb") as file:
            file.truncate(OUTPUT_MIB << 20)
        for name in ("stdout", "stderr", "status"):
            with open(os.path.join(self.folder, name), "wb"):
                pass
        # QEMU 7.2's TCG leaves wrong flags behind CMPXCHG16B, of which newer kernels die. One thread: all its processors
        # on one of the host's.
        program, environment = qemu.backports().command()
        command = [*program, "-M", "pc", "-accel", "tcg,thread=single", "-cpu", "max,+svm", "-smp", str(self.args.cpus)]
        command += ["-m", str(self.args.memory), "-nodefaults", "-display", "none", "-no-reboot", "-serial", "stdio"]
        command += ["-drive", f"file={disk},if=none,id=output,format=raw,cache=unsafe"]
        command += ["-device", "virtio-blk-pci,drive=output", "-kernel", f"{self.files}/vmlinuz", "-initrd", initrd]
        command += ["-append", "console=ttyS0 panic=-1 mitigations=off"]
        self.emulate(command, environment)
        os.unlink(initrd)
        try:
            with tarfile.open(disk) as tar:
                tar.extractall(self.folder, filter="data")
        except tarfile.TarError:
            return "the guest has not ended: " + self.last()
        finally:
            os.unlink(disk)
        with open(os.path.join(self.folder, "status"), encoding="ascii") as file:
            status = file.read().strip()
        # busybox' timeout ends with the signal's number and 128.
        return f"not ended after {self.args.timeout:.0f} s" if status in ("137", "143") else status

    def emulate(self, command, environment):
        """QEMU until its guest powers off, or a minute after the program's time."""
        end = time.monotonic() + self.args.timeout + 60
        with open(os.path.join(self.folder, "console"), "wb") as console:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE if self.args.console else console,
                stderr=subprocess.STDOUT, env=environment, start_new_session=True,
            )
            try:
                if self.args.console:
                    os.set_blocking(process.stdout.fileno(), False)
                while process.poll() is None and time.monotonic() < end:
                    time.sleep(0.1)
                    if self.args.console and (piece := process.stdout.read()):
                        console.write(piece)
                        sys.stderr.buffer.write(piece)
                        sys.stderr.flush()
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def last(self):
        """The console's last line."""
        with open(os.path.join(self.folder, "console"), encoding="utf-8", errors="replace") as file:
            return ([line.strip() for line in file if line.strip()] or ["nothing said"])[-1]
