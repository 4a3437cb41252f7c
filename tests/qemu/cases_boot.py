"""Boots: each machine, each division of the interrupt controllers, one and two processors, disk and network."""

import hashlib
import random
import socketserver
import threading
import time

import qemu
from machine import Failed, Qemu

FILE = random.Random("network").randbytes(3 << 20)


class Server(socketserver.BaseRequestHandler):
    """Gives out one file to who asks for it."""

    def handle(self):
        """A connection."""
        self.request.settimeout(60)
        if self.request.recv(64).startswith(b"file"):
            self.request.sendall(FILE)


def devices(machine, disk, file_format="raw", network=True):
    """QEMU's arguments for a disk and a network on a machine's bus."""
    bus = "device" if machine == "microvm" else "pci"
    result = ["-drive", f"file={disk},if=none,id=disk,format={file_format},cache=writeback"]
    result += ["-device", f"virtio-blk-{bus},drive=disk"]
    if network:
        rom = ",romfile=" if bus == "pci" else ""
        result += ["-netdev", "user,id=net", "-device", f"virtio-net-{bus},netdev=net{rom}"]
    return result


def expect(vm, word, *wanted):
    """The guest said this, once, after "== word"."""
    if vm.said(word) != list(wanted):
        raise Failed(f"{word}: {vm.said(word)}, not {list(wanted)}")


def boot(run, name, machine, irqchip, cpus):
    """A guest that reads and writes its disk, uses its network and looks at its clocks."""
    disk, digest = run.guest.disk(f"{name}.disk", 32)
    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    arguments = ["-M", machine, "-cpu", "host", "-smp", str(cpus), "-m", "256", *devices(machine, disk)]
    arguments += run.guest.boot("boot", f"softkvm.port={server.server_address[1]}")
    try:
        with Qemu(run, name, arguments, f"kvm,kernel-irqchip={irqchip}") as vm:
            vm.wait("^== start boot")
            started = time.monotonic() - vm.start
            vm.wait("^== end boot")
            host_now = time.time()
            vm.finish()
            vm.check()
    finally:
        server.shutdown()
        server.server_close()
    expect(vm, "cpus", str(cpus))
    expect(vm, "clocksource", "kvm-clock")
    expect(vm, "disk read", digest)
    expect(vm, "disk written", digest)
    expect(vm, "ping", "")
    expect(vm, "fetched", hashlib.md5(FILE).hexdigest())
    expect(vm, "ran on", *map(str, range(cpus)))
    with open(disk, "rb") as file:
        data = file.read()
    if data[: len(data) // 2] != data[len(data) // 2 :]:
        raise Failed("the disk's halves differ")
    before, after = map(float, vm.said("slept")[0].split())
    if not 1.9 < after - before < 6:
        raise Failed(f"two seconds took {after - before}")
    if abs(int(vm.said("date")[0]) - host_now) > 10:
        raise Failed(f"the guest's date is {vm.said('date')[0]}, the host's {host_now:.0f}")
    return f"init after {started:.1f} s"


def with_qemu(run, program, body):
    """Does something with another QEMU than the run's."""
    usual = run.qemu
    run.qemu = program
    try:
        return f"QEMU {program.version}: {body()}"
    finally:
        run.qemu = usual


def matrix(run, name, machine, irqchip, cpus):
    """A boot with the run's QEMU, or with another one where it cannot do this at all."""
    if irqchip == "off" and cpus > 1 and run.qemu.version in qemu.SPINNING:
        return with_qemu(run, qemu.older(), lambda: boot(run, name, machine, irqchip, cpus))
    return boot(run, name, machine, irqchip, cpus)


CASES = {}
for _machine in ("pc", "q35", "microvm"):
    for _irqchip in ("on", "split", "off"):
        for _cpus in (1, 2):
            CASES[f"boot-{_machine}-{_irqchip}-{_cpus}"] = (
                lambda run, name, m=_machine, i=_irqchip, c=_cpus: matrix(run, name, m, i, c)
            )


def newer(run, name, machine, irqchip, cpus):
    """The same with the QEMU of the backports."""
    return with_qemu(run, qemu.backports(), lambda: boot(run, name, machine, irqchip, cpus))


CASES["newer-pc"] = lambda run, name: newer(run, name, "pc", "on", 1)
CASES["newer-q35"] = lambda run, name: newer(run, name, "q35", "split", 2)
