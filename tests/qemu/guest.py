"""The guest's files: Debian's cloud kernel with the modules of virtio, busybox, an initramfs of them and of guest/, and disks.

What comes from Debian's packages is fetched once into softkvm's cache folder."""

import glob
import hashlib
import lzma
import os
import random
import shutil
import struct
import subprocess
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
MODULES = ["virtio_pci", "virtio_mmio", "virtio_blk", "virtio_net"]


class Unavailable(Exception):
    """Something that this host does not have and that cannot be fetched."""


def cache():
    """softkvm's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(base):
        base = os.path.expanduser("~/.cache")
    folder = os.path.join(base, "softkvm")
    os.makedirs(folder, exist_ok=True)
    return folder


def call(*command, **options):
    """Runs a program; what it says when it fails is the reason why something is unavailable."""
    try:
        return subprocess.run(command, check=True, capture_output=True, **options).stdout
    except FileNotFoundError as error:
        raise Unavailable(f"no {command[0]} on this host") from error
    except subprocess.CalledProcessError as error:
        last = (error.stderr or b"").decode("utf-8", "replace").strip().splitlines()[-1:]
        raise Unavailable(f"{command[0]}: {' '.join(last) or error.returncode}") from error


def folder_at_once(name, fill):
    """A folder of the cache, made by `fill` if it is not there; it appears whole or not at all."""
    folder = os.path.join(cache(), name)
    if not os.path.isdir(folder):
        with tempfile.TemporaryDirectory(dir=cache()) as staging:
            fresh = os.path.join(staging, "fresh")
            os.mkdir(fresh)
            fill(fresh)
            os.rename(fresh, folder)
    return folder


def apt_options(options):
    """The arguments of apt's programs for somebody who is not root."""
    return ["-q", "-o", "APT::Sandbox::User=root", "-o", "Debug::NoLocking=1", *options]


def unpack(packages, into, options=()):
    """Fetches packages of the release and unpacks them."""
    with tempfile.TemporaryDirectory(dir=cache()) as downloads:
        call("apt-get", *apt_options(options), "download", *packages, cwd=downloads)
        for file in glob.glob(os.path.join(downloads, "*.deb")):
            call("dpkg-deb", "-x", file, into)


def copy_kernel(unpacked, folder, modules):
    """A kernel, busybox, and these modules with those that they need, in the order in which they are loaded."""
    shutil.copy(glob.glob(f"{unpacked}/boot/vmlinuz-*")[0], f"{folder}/vmlinuz")
    shutil.copy(glob.glob(f"{unpacked}/**/bin/busybox", recursive=True)[0], f"{folder}/busybox")
    files = {}
    for file in glob.glob(f"{unpacked}/**/modules/**/*.ko*", recursive=True):
        files[os.path.basename(file).split(".")[0].replace("-", "_")] = file
    order = []

    def add(name):
        if name in order or name not in files:
            return
        with open(files[name], "rb") as file:
            contents = file.read()
        if files[name].endswith(".xz"):
            contents = lzma.decompress(contents)
        # The section .modinfo has strings that end with 0.
        depends = contents.partition(b"\0depends=")[2].partition(b"\0")[0].decode()
        for other in filter(None, depends.split(",")):
            add(other.replace("-", "_"))
        order.append(name)
        with open(f"{folder}/{name}.ko", "wb") as file:
            file.write(contents)

    for name in modules:
        add(name)
    with open(f"{folder}/order", "w", encoding="utf-8") as file:
        file.write("\n".join(order) + "\n")


def fetch_guest(folder):
    """Kernel, modules and busybox out of their packages."""
    depends = call("apt-cache", "depends", "linux-image-cloud-amd64").decode()
    kernel = [word for word in depends.split() if word.startswith("linux-image-")]
    if len(kernel) < 2:
        raise Unavailable("no package linux-image-cloud-amd64 in the package lists")
    with tempfile.TemporaryDirectory(dir=cache()) as unpacked:
        unpack([kernel[1], "busybox-static"], unpacked)
        copy_kernel(unpacked, folder, MODULES)


class Guest:
    """The files of the guests of one run."""

    def __init__(self, folder):
        self.files = folder_at_once("qemu-guest", fetch_guest)
        self.folder = folder
        self.kernel = os.path.join(self.files, "vmlinuz")
        self.initrd = os.path.join(folder, "initrd")
        churn = os.path.join(folder, "churn")
        call("cc", "-static", "-O2", "-Wall", "-o", churn, f"{HERE}/guest/churn.c", "-lpthread")
        archive = Archive()
        for name in ["bin", "dev", "proc", "sys", "tmp", "root", "modules", "jobs"]:
            archive.add(name, 0o040755)
        archive.file("bin/busybox", f"{self.files}/busybox")
        for applet in call(f"{self.files}/busybox", "--list").decode().split():
            if applet != "busybox" and "/" not in applet:
                archive.add(f"bin/{applet}", 0o120777, b"busybox")
        archive.file("churn", churn)
        archive.file("init", f"{HERE}/guest/init")
        for file in sorted(os.listdir(f"{HERE}/guest")):
            if "." not in file and file != "init":
                archive.file(f"jobs/{file}", f"{HERE}/guest/{file}")
        archive.file("modules/order", f"{self.files}/order")
        for file in sorted(glob.glob(f"{self.files}/*.ko")):
            archive.file(f"modules/{os.path.basename(file)}", file)
        archive.add("dev/console", 0o020600, device=(5, 1))
        archive.add("dev/null", 0o020666, device=(1, 3))
        with open(self.initrd, "wb") as file:
            file.write(archive.finish())

    def boot(self, job, extra=""):
        """QEMU's arguments that boot it."""
        line = f"console=ttyS0 panic=-1 softkvm.job={job} {extra}".strip()
        return ["-kernel", self.kernel, "-initrd", self.initrd, "-append", line]

    def disk(self, name, mib):
        """A raw disk whose first half is noise. Returns its path and the half's MD5."""
        path = os.path.join(self.folder, name)
        noise = random.Random(name).randbytes(mib << 19)
        with open(path, "wb") as file:
            file.write(noise)
            file.truncate(mib << 20)
        return path, hashlib.md5(noise).hexdigest()

    def qcow2(self, name, mib, contents=None):
        """An empty qcow2 image over a raw one, or with nothing below it: a header and three tables.

        (The format's description: docs/interop/qcow2.txt of QEMU. Clusters of 64 KiB, version 3.)"""
        cluster = 1 << 16
        backing = (contents or "").encode()
        extension = struct.pack(">II8s", 0xE2792ACA, 3, b"raw") if backing else b""
        extension += struct.pack(">II", 0, 0)
        header = struct.pack(
            ">4sIQIIQIIQQIIQQQQII", b"QFI\xfb", 3, 104 + len(extension) if backing else 0, len(backing), 16, mib << 20,
            0, max(1, (mib << 20) // (cluster * cluster // 8) + 1), 3 * cluster, cluster, 1, 0, 0, 0, 0, 0, 4, 104,
        )
        image = bytearray(4 * cluster)
        image[: len(header)] = header
        image[104 : 104 + len(extension) + len(backing)] = extension + backing
        image[cluster : cluster + 8] = struct.pack(">Q", 2 * cluster)
        for used in range(4):
            image[2 * cluster + 2 * used : 2 * cluster + 2 * used + 2] = struct.pack(">H", 1)
        path = os.path.join(self.folder, name)
        with open(path, "wb") as file:
            file.write(image)
        return path


class Archive:
    """A newc archive, as the kernel unpacks it."""

    def __init__(self):
        self.bytes = bytearray()
        self.inode = 0

    def file(self, name, path):
        """A file, executable if it is not a module."""
        with open(path, "rb") as file:
            self.add(name, 0o100755, file.read())

    def add(self, name, mode, contents=b"", device=(0, 0)):
        """Anything."""
        self.inode += 1
        numbers = [self.inode, mode, 0, 0, 1, 0, len(contents), 0, 0, *device, len(name) + 1, 0]
        self.bytes += b"070701" + b"".join(b"%08x" % number for number in numbers) + name.encode() + b"\0"
        self.bytes += bytes(-len(self.bytes) % 4) + contents
        self.bytes += bytes(-len(self.bytes) % 4)

    def finish(self):
        """All of it."""
        self.add("TRAILER!!!", 0)
        return bytes(self.bytes)
