"""Ten minutes of a guest whose programs are read from a disk larger than its memory, run, and checked, in rotation.

The programs are made here: an ELF file of pages of noise, with a few instructions at a place by chance in each page and
a jump to the next one, in an order by chance. Every page is executed, no two are alike, and what the program prints
depends on all of them. Debian's openssl is on the disk too, if `softkvm demo` can have it."""

import hashlib
import os
import random
import shutil
import struct
import subprocess
import tempfile

from cases_boot import devices
from guest import call
from machine import Failed, Qemu

PAGE = 4096
PROGRAM_PAGES = 1024
PROGRAMS = 250
BASE = 0x40000000
MASK = (1 << 64) - 1

# Prints RAX in hexadecimal, and exits.
PRINT = bytes.fromhex(
    "4883ec20" "4889e7" "b910000000"  # sub rsp, 32; mov rdi, rsp; mov ecx, 16
    "48c1c004" "89c2" "83e20f"  # digit: rol rax, 4; mov edx, eax; and edx, 15
    "80c230" "80fa39" "7603" "80c227"  # add dl, '0'; cmp dl, '9'; jbe store; add dl, 'a' - '9' - 1
    "8817" "48ffc7" "ffc9" "75e3"  # store: mov [rdi], dl; inc rdi; dec ecx; jnz digit
    "c6070a"  # mov byte [rdi], 10
    "b801000000" "bf01000000" "4889e6" "ba11000000" "0f05"  # write(1, rsp, 17)
    "b83c000000" "31ff" "0f05"  # exit(0)
)


def program(seed):
    """A program and what it prints."""
    chance = random.Random(seed)
    image = bytearray(chance.randbytes(PROGRAM_PAGES * PAGE))
    header = struct.pack("<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01", 2, 62, 1, 0, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    header += struct.pack("<IIQQQQQQ", 1, 5, 0, BASE, BASE, len(image), len(image), PAGE)
    order = list(range(PROGRAM_PAGES))
    chance.shuffle(order)
    # Behind the header, and so that nothing reaches into another page.
    places = [page * PAGE + chance.randrange(len(header), PAGE - 128) for page in order]
    value = 0
    for place, following in zip(places, places[1:] + [None]):
        flip, factor = chance.getrandbits(31), chance.getrandbits(31) | 1
        code = b"" if value else b"\x31\xc0"
        code += struct.pack("<HI", 0x3548, flip) + struct.pack("<HBI", 0x6948, 0xC0, factor) + b"\x48\xc1\xc0\x0b"
        value = ((value ^ flip) * factor) & MASK
        value = (value << 11 | value >> 53) & MASK
        if following is None:
            code += PRINT
        else:
            code += b"\xe9" + struct.pack("<i", following - (place + len(code) + 5))
        image[place : place + len(code)] = code
    image[: len(header)] = header
    image[24:32] = struct.pack("<Q", BASE + places[0])
    return bytes(image), f"{value:016x}"


def disk(run):
    """The disk. Returns its path and the size of what is run from it."""
    path = os.path.join(run.folder, "endurance.disk")
    with tempfile.TemporaryDirectory(dir=run.folder) as folder:
        demo = [run.softkvm, "demo", "--packages", "openssl", "--print-root"]
        found = subprocess.run(demo, capture_output=True, check=False)
        if found.returncode == 0:
            subprocess.run(["cp", "-a", found.stdout.decode().strip() + "/.", folder], check=True)
        os.makedirs(f"{folder}/run", exist_ok=True)
        with open(f"{folder}/list", "w", encoding="utf-8") as names:
            for number in range(PROGRAMS):
                image, value = program(number)
                with open(f"{folder}/run/{number}", "wb") as file:
                    file.write(image)
                os.chmod(f"{folder}/run/{number}", 0o755)
                digests = hashlib.sha256(image).hexdigest(), hashlib.md5(image).hexdigest()
                names.write(f"{digests[0]} {digests[1]} {number} {value}\n")
        size = int(call("du", "-sm", folder).split()[0])
        mke2fs = shutil.which("mke2fs") or "/sbin/mke2fs"
        call(mke2fs, "-q", "-t", "ext4", "-d", folder, path, f"{size * 11 // 10 + 64}M")
    return path, size


def endurance(run, name):
    """The guest."""
    path, size = disk(run)
    try:
        arguments = ["-M", "q35", "-cpu", "host", "-smp", "2", "-m", "256", *devices("q35", path, network=False)]
        arguments += run.guest.boot("endurance", f"softkvm.seconds={int(run.minutes * 60)}")
        with Qemu(run, name, arguments) as vm:
            vm.wait("^== end endurance", limit=run.minutes * 60 + 2 * run.limit)
            vm.finish()
            vm.check()
    finally:
        os.unlink(path)
    checked = [int(line) for worker in (0, 1) for line in vm.said(f"endurance {worker} checked")]
    read = [int(line.split()[1]) for line in vm.said("vmstat") if line.startswith("pgpgin")]
    if len(checked) != 2 or not all(checked) or not read:
        raise Failed(f"checked {checked}, read {read}")
    return f"{size} MiB; {sum(checked)} programs checked, {2 * sum(checked)} runs, {read[0] >> 10} MiB read by the guest"


CASES = {"endurance": endurance}
