"""gdb on a guest's kernel: QEMU's -S and -gdb, which is KVM_SET_GUEST_DEBUG and KVM_EXIT_DEBUG.

A breakpoint in software must wait until the kernel has looked at its own code (ftrace does so when it starts).

The kernel has no debug information here; where its symbols are, a guest tells (without KASLR)."""

import os
import re
import shutil
import subprocess

from cases_move import free_port
from guest import Unavailable
from machine import Failed, Qemu

SCRIPT = """
set pagination off
set confirm off
set width 0
set architecture i386:x86-64
set tcp connect-timeout 60
target remote 127.0.0.1:{port}
printf "== reset %lx %lx\\n", $rip, $cr0
hbreak *{start_kernel}
continue
printf "== hardware %lx\\n", $rip
delete
hbreak *{do_nanosleep}
continue
printf "== again %lx\\n", $rip
delete
break *{do_nanosleep}
continue
printf "== software %lx\\n", $rip
continue
printf "== software %lx\\n", $rip
stepi
printf "== step %lx\\n", $rip
stepi
printf "== step %lx\\n", $rip
stepi
printf "== step %lx\\n", $rip
delete
x/4i {do_nanosleep}
watch *(int *){panic_timeout}
continue
printf "== watched %d\\n", *(int *){panic_timeout}
continue
printf "== watched %d\\n", *(int *){panic_timeout}
delete
awatch *(int *){panic_timeout}
continue
printf "== accessed %d\\n", *(int *){panic_timeout}
delete
hbreak *{do_nanosleep}
continue
printf "== again %lx\\n", $rip
break *{schedule}
continue
# A sleep that is over before it began does not get there.
while $rip == {do_nanosleep}
continue
end
printf "== other %lx\\n", $rip
delete
info threads
monitor info status
set *(int *){panic_timeout} = 77
printf "== set %d\\n", *(int *){panic_timeout}
detach
"""


def symbols(run, name):
    """Addresses, from a guest that tells them."""
    if not hasattr(run, "symbols"):
        arguments = ["-M", "pc", "-cpu", "host", "-m", "256", *run.guest.boot("symbols", "nokaslr")]
        with Qemu(run, f"{name}.symbols", arguments) as vm:
            vm.wait("^== end symbols")
            vm.finish()
            vm.check()
        run.symbols = {line.split()[2]: "0x" + line.split()[0] for line in vm.said("symbol")}
    return run.symbols


def debugger(run, name, type_, irqchip, cpus):
    """Breakpoints in software and hardware, single steps, watchpoints."""
    gdb = shutil.which("gdb")
    if not gdb:
        raise Unavailable("no gdb on this host")
    known = symbols(run, name)
    port = free_port()
    script = os.path.join(run.folder, f"{name}.gdb")
    with open(script, "w", encoding="utf-8") as file:
        file.write(SCRIPT.format(port=port, **known))
    arguments = ["-M", type_, "-cpu", "host", "-smp", str(cpus), "-m", "256", "-S", "-gdb", f"tcp:127.0.0.1:{port}"]
    arguments += run.guest.boot("calls", "nokaslr")
    with Qemu(run, name, arguments, f"kvm,kernel-irqchip={irqchip}") as vm:
        vm.monitor("query-status")
        log = os.path.join(run.folder, f"{name}.gdb-output")
        with open(log, "w", encoding="utf-8") as file:
            try:
                command = [gdb, "-nx", "-batch", "-x", script]
                subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                               timeout=run.limit, check=False)
            except subprocess.TimeoutExpired:
                pass
        with open(log, encoding="utf-8") as file:
            said = file.read()
        vm.check()
        last = said.strip().splitlines()[-3:]

        def hexes(word):
            return [int(value.split()[0], 16) for value in re.findall(rf"^== {word} (.*)$", said, re.M)]

        def numbers(word):
            return [int(value) for value in re.findall(rf"^== {word} (\d+)$", said, re.M)]

        address = {symbol: int(value, 16) for symbol, value in known.items()}
        wanted = [
            ("reset", [0xFFF0]), ("hardware", [address["start_kernel"]]),
            ("software", [address["do_nanosleep"]] * 2), ("again", [address["do_nanosleep"]] * 2),
            ("other", [address["schedule"]]),
        ]
        for word, value in wanted:
            if hexes(word) != value:
                raise Failed(f"{word}: {[hex(v) for v in hexes(word)]}, not {[hex(v) for v in value]}; gdb: {last}")
        code = [int(line, 16) for line in re.findall(r"^ *(0x[0-9a-f]+):\t", said, re.M)]
        if len(hexes("step")) != 3 or hexes("step")[0] != code[1]:
            raise Failed(f"steps: {[hex(v) for v in hexes('step')]} in {[hex(v) for v in code]}; gdb: {last}")
        values = numbers("watched")
        shown = [tuple(map(int, pair)) for pair in re.findall(r"Old value = (\d+)\nNew value = (\d+)", said)]
        if len(values) != 2 or [new for _, new in shown[:2]] != values or values[1] != values[0] % 90 + 1:
            raise Failed(f"watched {values}, gdb has shown {shown}; gdb: {last}")
        if len(numbers("accessed")) != 1 or numbers("set") != [77]:
            raise Failed(f"accessed {numbers('accessed')}, set {numbers('set')}; gdb: {last}")
        if len(re.findall(r"Thread 1\.\d+ ", said.split("Id   Target Id")[-1])) != cpus:
            raise Failed(f"not {cpus} threads; gdb: {last}")
        # Without the debugger the guest goes on.
        since = len(vm.text)
        vm.wait(r"^== call \d+\n== call \d+\n", since=since)
        vm.check()
        vm.monitor("quit")
        vm.finish()
    return "hardware and software breakpoints, steps, watchpoints"


CASES = {
    "gdb-pc-on-1": lambda run, name: debugger(run, name, "pc", "on", 1),
    "gdb-q35-on-2": lambda run, name: debugger(run, name, "q35", "on", 2),
    "gdb-q35-split-2": lambda run, name: debugger(run, name, "q35", "split", 2),
    "gdb-pc-off-1": lambda run, name: debugger(run, name, "pc", "off", 1),
}
