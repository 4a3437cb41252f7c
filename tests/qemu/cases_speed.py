"""What it costs: an idle guest's share of a processor, and the time of a boot beside softkvm's own machine and TCG."""

import os
import statistics
import subprocess
import time

from machine import Failed, Qemu


def idle(run, name, type_, irqchip, cpus):
    """A guest that sleeps, for ten seconds after it has settled."""
    arguments = ["-M", type_, "-cpu", "host", "-smp", str(cpus), "-m", "128", *run.guest.boot("idle")]
    with Qemu(run, name, arguments, f"kvm,kernel-irqchip={irqchip}") as vm:
        vm.wait("^== idle")
        time.sleep(5)
        shares = []
        for _ in range(3):
            before, start = vm.cpu_seconds(), time.monotonic()
            time.sleep(10)
            shares.append(100 * (vm.cpu_seconds() - before) / (time.monotonic() - start))
        vm.check()
        vm.monitor("quit")
        vm.finish()
    # A neighbour on the host's processors can only make it look worse.
    share = min(shares)
    if share >= 3:
        raise Failed(f"{share:.2f} % of a processor, idle")
    return f"{share:.2f} % of a processor"


def speed(run, name):
    """From start to the guest's end, in turns; the processor time tells on a busy host."""
    rounds = {"softkvm demo": [], "QEMU on softkvm": [], "QEMU TCG": []}
    for number in range(3):
        before, start = os.times(), time.monotonic()
        subprocess.run([run.softkvm, "demo", "--run", "true"], check=True, capture_output=True)
        after = os.times()
        spent = after.children_user + after.children_system - before.children_user - before.children_system
        rounds["softkvm demo"].append((time.monotonic() - start, spent))
        for what, accel, cpu in (("QEMU on softkvm", "kvm", "host"), ("QEMU TCG", "tcg", "max")):
            arguments = ["-M", "q35", "-cpu", cpu, "-m", "512", *run.guest.boot("quiet", "quiet")]
            with Qemu(run, f"{name}.{accel}.{number}", arguments, accel) as vm:
                vm.wait("^== end")
                rounds[what].append((time.monotonic() - vm.start, vm.cpu_seconds()))
                vm.finish()
    median = statistics.median
    return "; ".join(
        f"{what} {median(s for s, _ in seen):.1f} s ({median(c for _, c in seen):.1f} s of processor)"
        for what, seen in rounds.items()
    )


CASES = {
    "idle-pc-on-1": lambda run, name: idle(run, name, "pc", "on", 1),
    "idle-q35-split-2": lambda run, name: idle(run, name, "q35", "split", 2),
    "idle-pc-off-1": lambda run, name: idle(run, name, "pc", "off", 1),
    "speed": speed,
}
