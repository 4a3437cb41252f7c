"""Guests that are stopped and go on elsewhere or earlier: savevm and loadvm, migration over a socket.

The guest is under load all the time (guest/churn): memory that it checks, timers, a disk."""

import os
import re
import socket
import time

from cases_boot import devices
from machine import Failed, Qemu

MIB = 128
LINE = r"^== churn (\d+) s (\d+) ms real (\d+) rounds (\d+) ticks (\d+) wrong (\d+) backwards (\d+)$"


def machine(run, type_, cpus, disk, file_format, extra=(), load=32):
    """The arguments of such a guest."""
    arguments = ["-M", type_, "-cpu", "host", "-smp", str(cpus), "-m", str(MIB)]
    arguments += devices(type_, disk, file_format, network=False)
    return [*arguments, *run.guest.boot("churn", f"softkvm.mib={load} softkvm.threads={cpus}"), *extra]


def lines(vm, count, since=0):
    """Waits for so many more lines of the load; returns them as numbers."""
    end = time.monotonic() + vm.run.limit
    while True:
        with vm.changed:
            text = vm.text[since:]
        found = [list(map(int, line)) for line in re.findall(LINE, text, re.M)]
        if len(found) >= count:
            return found
        left = end - time.monotonic()
        if left <= 0:
            raise Failed(f"{len(found)} lines of the load in time, not {count}; last: {text[-300:]!r} {vm.stderr()}")
        if vm.reader is None:
            raise Failed(f"ended under load: {text[-300:]!r} {vm.stderr()}")
        time.sleep(0.2)


def sane(vm, found):
    """The load found nothing wrong, goes on, and its clocks are steady."""
    vm.check()
    for before, after in zip(found, found[1:]):
        if after[0] != before[0] + 1 or after[3] <= before[3] or after[4] <= before[4]:
            raise Failed(f"the load does not go on: {before} then {after}")
    if found[-1][5] or found[-1][6]:
        raise Failed(f"memory or clocks are wrong: {found[-1]}")


def human(vm, line):
    """A command of the human monitor that says nothing when it succeeds."""
    said = vm.monitor.human(line).strip()
    if said:
        raise Failed(f"{line}: {said}")


def loadvm(run, name, type_, irqchip, cpus):
    """A snapshot, from which the same process goes on, and then another one."""
    raw, _ = run.guest.disk(f"{name}.disk", 8)
    disk = run.guest.qcow2(f"{name}.qcow2", 8, raw)
    accel = f"kvm,kernel-irqchip={irqchip}"
    with Qemu(run, name, machine(run, type_, cpus, disk, "qcow2"), accel) as vm:
        lines(vm, 4)
        human(vm, "savevm first")
        saved = lines(vm, 0)[-1]
        lines(vm, saved[0] + 4)
        since = len(vm.text)
        human(vm, "loadvm first")
        found = lines(vm, 5, since)
        # A line of the time after the snapshot may still have been under way.
        while found[0][0] > saved[0] + 3:
            found.pop(0)
        sane(vm, found)
        if found[0][0] > saved[0] + 3:
            raise Failed(f"saved after {saved}, went on with {found[0]}")
        vm.monitor("stop")
        human(vm, "savevm second")
        last = lines(vm, 0)[-1]
        vm.monitor("quit")
        vm.finish()
    with Qemu(run, f"{name}.again", machine(run, type_, cpus, disk, "qcow2", ["-loadvm", "second"]), accel) as vm:
        # It was saved stopped, and is started by its loading.
        vm.monitor("cont")
        found = lines(vm, 6)
        sane(vm, found)
        if not last[0] < found[0][0] <= last[0] + 2:
            raise Failed(f"saved after {last}, went on in another process with {found[0]}")
        vm.monitor("quit")
        vm.finish()
    return f"{found[-1][3]} pages checked"


INFORMATION = ["info registers -a", "info lapic 0", "info lapic 1", "info pic"]


def state(vm, name):
    """What the monitor tells of a stopped machine, and the file with its memory."""
    memory = os.path.join(vm.folder, f"{name}.memory")
    vm.monitor("pmemsave", val=0, size=MIB << 20, filename=memory)
    return {line: vm.monitor.human(line) for line in INFORMATION}, memory


def same_memory(here, there):
    """The memories are the same, but for what loading MSR_KVM_WALL_CLOCK writes, as KVM does: 12 bytes."""
    with open(here, "rb") as one, open(there, "rb") as other:
        address, pages = 0, []
        while a := one.read(4096):
            b = other.read(4096)
            if a != b:
                pages.append((hex(address), sum(x != y for x, y in zip(a, b))))
            address += len(a)
    if len(pages) > 1 or any(count > 12 for _, count in pages):
        raise Failed(f"memory differs after the move (address, bytes): {pages[:5]} in {len(pages)} pages")
    for file in (here, there):
        os.unlink(file)


def hop(source, target, place):
    """Moves a machine; returns the statistics of it. The target waits, stopped."""
    source.monitor("migrate-set-parameters", downtime_limit=3000, max_bandwidth=1 << 32, cpu_throttle_initial=30)
    source.monitor("migrate-set-capabilities", capabilities=[{"capability": "auto-converge", "state": True}])
    source.monitor("migrate", uri=place)
    end = time.monotonic() + source.run.limit
    while True:
        status = source.monitor("query-migrate")
        if status["status"] == "completed":
            break
        if status["status"] == "failed":
            raise Failed(f"the migration failed: {status.get('error-desc')} {source.stderr()} {target.stderr()}")
        if time.monotonic() > end:
            raise Failed(f"the migration does not come to its end: {status}")
        time.sleep(0.1)
    end = time.monotonic() + 30
    while target.monitor("query-status")["status"] in ("inmigrate", "finish-migrate"):
        if time.monotonic() > end:
            raise Failed("the target does not know that it has all")
        time.sleep(0.05)
    here, there = state(source, f"{source.name}.from"), state(target, f"{source.name}.to")
    for line in INFORMATION:
        if here[0][line] != there[0][line]:
            pairs = zip(here[0][line].splitlines(), there[0][line].splitlines())
            differing = [f"{a!r} became {b!r}" for a, b in pairs if a != b]
            raise Failed(f"{line}: {differing[:2]}")
    same_memory(here[1], there[1])
    return status["ram"]


def free_port():
    """A TCP port that nobody uses just now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def migrate(run, name, type_, accel, cpus, tcp=False, hops=2):
    """From QEMU to QEMU under load."""
    disk, _ = run.guest.disk(f"{name}.disk", 8)
    vm = Qemu(run, f"{name}.0", machine(run, type_, cpus, disk, "raw"), accel)
    passes = sent = 0
    try:
        found = lines(vm, 4)
        for number in range(1, hops + 1):
            place = f"tcp:127.0.0.1:{free_port()}" if tcp else f"unix:{run.folder}/{name}.{number}.socket"
            extra = ["-incoming", place, "-S"]
            target = Qemu(run, f"{name}.{number}", machine(run, type_, cpus, disk, "raw", extra), accel)
            try:
                target.monitor("query-status")
                statistics = hop(vm, target, place)
                before = lines(vm, 0)[-1:] or found[-1:]
                vm.monitor("quit")
                vm.finish()
                vm.check()
            except BaseException:
                target.__exit__()
                raise
            vm.__exit__()
            vm = target
            passes += statistics["dirty-sync-count"]
            sent += statistics["transferred"]
            vm.monitor("cont")
            found = lines(vm, 6)
            sane(vm, found)
            if not before[0][0] < found[0][0] <= before[0][0] + 2:
                raise Failed(f"after {before[0]} the guest went on with {found[0]}")
            if abs(found[-1][2] - time.time()) > 30:
                raise Failed(f"the guest's date is {found[-1][2]}, the host's {time.time():.0f}")
        if vm.said("disk")[-1:] == []:
            vm.wait("^== disk")
        vm.check()
        vm.monitor("quit")
        vm.finish()
    finally:
        vm.__exit__()
    if passes <= 2 * hops:
        raise Failed(f"only {passes} passes over the memory: there was nothing to log")
    return f"{hops} moves, {passes} passes, {sent >> 20} MiB, {found[-1][3]} pages checked"


CASES = {
    "loadvm": lambda run, name: loadvm(run, name, "pc", "on", 2),
    "loadvm-split": lambda run, name: loadvm(run, name, "q35", "split", 2),
    "loadvm-off": lambda run, name: loadvm(run, name, "pc", "off", 1),
    "migrate": lambda run, name: migrate(run, name, "pc", "kvm", 2, hops=3),
    "migrate-tcp-split": lambda run, name: migrate(run, name, "q35", "kvm,kernel-irqchip=split", 2, tcp=True),
    "migrate-off": lambda run, name: migrate(run, name, "q35", "kvm,kernel-irqchip=off", 1),
    "migrate-ring": lambda run, name: migrate(run, name, "q35", "kvm,dirty-ring-size=4096", 2),
}
