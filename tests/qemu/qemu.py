"""Which QEMU: the one named, the host's, or one out of Debian's packages, unpacked into the cache and run from there."""

import glob
import os
import re
import shutil
import subprocess

from guest import Unavailable, apt_options, cache, call, folder_at_once, unpack

PROGRAM = "qemu-system-x86_64"
BACKPORTS = "http://deb.debian.org/debian"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"


class Program:
    """A QEMU and how it is started."""

    def __init__(self, program, unpacked=None, firmware=None):
        self.program = program
        self.unpacked = unpacked
        self.firmware = firmware or unpacked
        command, environment = self.command()
        try:
            text = subprocess.run([command[0], "--version"], check=True, capture_output=True, env=environment).stdout
        except (OSError, subprocess.CalledProcessError) as error:
            said = getattr(error, "stderr", b"") or b""
            raise Unavailable(f"{program}: {error} {said.decode('utf-8', 'replace').strip()}") from error
        found = re.search(rb"version (\S+)", text)
        self.version = found[1].decode() if found else "?"

    def command(self):
        """The beginning of a command, and its environment."""
        environment = dict(os.environ)
        command = [self.program]
        if self.unpacked:
            libraries = [f"{self.unpacked}/{place}/x86_64-linux-gnu" for place in ("usr/lib", "lib")]
            libraries += glob.glob(f"{self.unpacked}/usr/lib/x86_64-linux-gnu/*/")
            environment["LD_LIBRARY_PATH"] = ":".join(libraries)
            environment["QEMU_MODULE_DIR"] = f"{self.unpacked}/usr/lib/x86_64-linux-gnu/qemu"
        if self.firmware:
            for place in ("usr/share/qemu", "usr/share/seabios", "usr/lib/ipxe/qemu"):
                command += ["-L", os.path.join(self.firmware, place)]
        return command, environment


def find(named):
    """The QEMU of this run."""
    if named:
        return Program(named)
    if installed := shutil.which(PROGRAM):
        return Program(installed)
    unpacked = os.path.join(cache(), "qemu")
    program = f"{unpacked}/usr/bin/{PROGRAM}"
    if os.path.exists(program):
        return Program(program, unpacked)
    raise Unavailable(f"no {PROGRAM} in PATH nor in the cache; `softkvm bench` fetches one")


# Versions whose application processors, with QEMU's own local APICs, spin in QEMU after their SIPI: nobody takes
# CPU_INTERRUPT_SIPI back, on whatever KVM (seen in Debian's 7.2.22; 7.2.18 is well).
SPINNING = ("7.2.22",)


def older():
    """Another version of the release's QEMU that the package lists have."""
    lists = call("apt-cache", "madison", "qemu-system-x86").decode()
    versions = [line.split("|")[1].strip() for line in lists.splitlines()]
    if len(set(versions)) < 2:
        raise Unavailable("the package lists have one version of QEMU only")
    installed = folder_at_once("qemu-older", lambda folder: unpack([f"qemu-system-x86={versions[-1]}"], folder))
    # Its firmware and libraries are those of the installed one.
    program = Program(f"{installed}/usr/bin/{PROGRAM}", firmware="/")
    if program.version.split()[0] in SPINNING:
        raise Unavailable(f"{program.version} is no better")
    return program


def backports_lists():
    """The suite of the release's backports, and the options by which apt's programs use it, with fresh package lists."""
    with open("/etc/os-release", encoding="utf-8") as file:
        release = re.search(r"^VERSION_CODENAME=(\w+)", file.read(), re.M)
    if not release or not os.path.exists(KEYRING):
        raise Unavailable("this host is not a Debian with backports")
    suite = f"{release[1]}-backports"
    apt = os.path.join(cache(), "apt-backports")
    for place in ("lists/partial", "cache/archives/partial"):
        os.makedirs(os.path.join(apt, place), exist_ok=True)
    sources = os.path.join(apt, "sources.list")
    with open(sources, "w", encoding="utf-8") as file:
        for name in (release[1], f"{release[1]}-updates", suite):
            file.write(f"deb [signed-by={KEYRING}] {BACKPORTS} {name} main\n")
    options = ["-o", f"Dir::Etc::SourceList={sources}", "-o", "Dir::Etc::SourceParts=-"]
    options += ["-o", f"Dir::State::Lists={apt}/lists", "-o", f"Dir::Cache={apt}/cache"]
    call("apt-get", *apt_options(options), "update")
    return suite, options


def backports():
    """The release's backport of a newer QEMU."""

    def fill(folder):
        suite, options = backports_lists()
        plan = call(
            "apt-get", *apt_options(options), "-s", "--no-install-recommends", "-t", suite, "install",
            "qemu-system-x86", "seabios",
        ).decode()
        packages = re.findall(r"^Inst (\S+) (?:\[[^]]*\] )?\((\S+)", plan, re.M)
        if not packages:
            raise Unavailable(f"apt would install nothing of {suite}")
        downloads = os.path.join(folder, "downloads")
        os.mkdir(downloads)
        names = [f"{name}={version}" for name, version in packages]
        call("apt-get", *apt_options(options), "download", *names, cwd=downloads)
        for file in glob.glob(f"{downloads}/*.deb"):
            call("dpkg-deb", "-x", file, folder)
        shutil.rmtree(downloads)

    unpacked = folder_at_once("qemu-backports", fill)
    return Program(f"{unpacked}/usr/bin/{PROGRAM}", unpacked)
