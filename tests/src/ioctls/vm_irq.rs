//! Interrupt controllers, the PIT, routes, and eventfds.

use super::Session;
use super::front::Fd;
use kvm_api::nr::*;
use kvm_api::uapi::*;
use kvm_ioctl_layer::user_mem::set_member;
use std::os::fd::AsRawFd;

fn line(irq: u32, level: u32) -> kvm_irq_level {
    let mut l = kvm_irq_level { level, ..Default::default() };
    set_member(&mut l, 0, &irq);
    l
}

fn split_irqchip(pins: u64) -> kvm_enable_cap {
    kvm_enable_cap { cap: KVM_CAP_SPLIT_IRQCHIP, args: [pins, 0, 0, 0], ..Default::default() }
}

/// What a VM's interrupt controllers answer, whichever it has.
fn questions(s: &mut Session<'_>, vm: Fd) {
    for id in [0u32, 1, 2, 3, u32::MAX] {
        let mut chip = kvm_irqchip { chip_id: id, ..Default::default() };
        s.fill(&format!("get chip {id}"), vm, KVM_GET_IRQCHIP, &mut chip);
        s.pass(&format!("set chip {id}"), vm, KVM_SET_IRQCHIP, &chip);
    }
    for irq in [0, 1, 15, 16, 23, 24, 1023, 1024, 4095, 4096, u32::MAX] {
        for level in [1, 0, 2] {
            s.pass(&format!("line {irq} {level}"), vm, KVM_IRQ_LINE, &line(irq, level));
            s.pass(&format!("line {irq} 0"), vm, KVM_IRQ_LINE, &line(irq, 0));
            let mut l = line(irq, level);
            s.fill(&format!("line {irq} {level} with status"), vm, KVM_IRQ_LINE_STATUS, &mut l);
            let mut l = line(irq, level);
            s.fill(&format!("line {irq} {level} again with status"), vm, KVM_IRQ_LINE_STATUS, &mut l);
            s.pass(&format!("line {irq} low"), vm, KVM_IRQ_LINE, &line(irq, 0));
        }
    }
    for (address_lo, address_hi, data, flags) in [
        (0xfee0_0000u32, 0u32, 0x31u32, 0u32),
        (0xfee0_0000, 0, 0x31, 1),
        (0xfee0_0000, 0, 0x31, 2),
        (0xfee0_0000, 0, 0x10, 0),
        (0xfee0_0000, 0x100, 0x31, 0),
        (0xfee0_0000, 1, 0x31, 0),
        (0, 0, 0x31, 0),
        (0xfeef_f000, 0, 0x31, 0),
        (0xfee0_0000, 0, 0xffff_ffff, 0),
    ] {
        let m = kvm_msi { address_lo, address_hi, data, flags, ..Default::default() };
        s.pass(&format!("msi {address_hi:x}:{address_lo:x} {data:#x} flags {flags}"), vm, KVM_SIGNAL_MSI, &m);
    }
}

/// KVM_CREATE_IRQCHIP, and what it makes.
pub fn irqchip(s: &mut Session<'_>) {
    let vm = s.vm();
    s.number("irqchip", vm, KVM_CREATE_IRQCHIP, 0);
    s.number("again", vm, KVM_CREATE_IRQCHIP, 0);
    s.pass("split as well", vm, KVM_ENABLE_CAP, &split_irqchip(24));
    s.number("boot cpu", vm, KVM_SET_BOOT_CPU_ID, 1);
    questions(s, vm);
    let vcpu = s.vcpu(vm, 0);
    questions(s, vm);
    let interrupt = kvm_interrupt { irq: 0x20 };
    s.pass("interrupt of a vCPU", vcpu, KVM_INTERRUPT, &interrupt);
    // All bits of each chip's state, as they come back.
    for id in 0..3u32 {
        for byte in [0u8, 0x55, 0xff] {
            let mut chip = kvm_irqchip { chip_id: id, ..Default::default() };
            // The IOAPIC's redirection entries have bits that the hardware owns.
            let fill = if id == 2 { vec![byte & 0x7f; 16] } else { vec![byte; 16] };
            for (n, b) in fill.iter().enumerate() {
                set_member(&mut chip, 8 + n, b);
            }
            s.pass(&format!("chip {id} all {byte:#x}"), vm, KVM_SET_IRQCHIP, &chip);
            let mut back = kvm_irqchip { chip_id: id, ..Default::default() };
            s.fill(&format!("chip {id} after {byte:#x}"), vm, KVM_GET_IRQCHIP, &mut back);
        }
    }
}

/// KVM_CAP_SPLIT_IRQCHIP.
pub fn split(s: &mut Session<'_>) {
    for pins in [0u64, 1, 24, 4096, 4097, u64::MAX] {
        let vm = s.vm();
        s.pass(&format!("{pins} pins"), vm, KVM_ENABLE_CAP, &split_irqchip(pins));
        s.pass("again", vm, KVM_ENABLE_CAP, &split_irqchip(pins));
        s.number("irqchip as well", vm, KVM_CREATE_IRQCHIP, 0);
        s.pass("pit", vm, KVM_CREATE_PIT2, &kvm_pit_config::default());
    }
    let vm = s.vm();
    s.pass("24 pins", vm, KVM_ENABLE_CAP, &split_irqchip(24));
    questions(s, vm);
    let vcpu = s.vcpu(vm, 0);
    questions(s, vm);
    for irq in [0u32, 0x20, 255, 256, u32::MAX] {
        s.pass(&format!("interrupt {irq}"), vcpu, KVM_INTERRUPT, &kvm_interrupt { irq });
    }
}

/// Without any controller.
pub fn none(s: &mut Session<'_>) {
    let vm = s.vm();
    questions(s, vm);
    let vcpu = s.vcpu(vm, 0);
    questions(s, vm);
    for irq in [0u32, 0x20, 0x21, 255, 256, u32::MAX] {
        s.pass(&format!("interrupt {irq}"), vcpu, KVM_INTERRUPT, &kvm_interrupt { irq });
    }
}

/// The PIT.
pub fn pit(s: &mut Session<'_>) {
    let vm = s.vm();
    let ask = |s: &mut Session<'_>, vm: Fd, when: &str| {
        s.pass(&format!("get {when}"), vm, KVM_GET_PIT, &kvm_pit_state::default());
        s.pass(&format!("get2 {when}"), vm, KVM_GET_PIT2, &kvm_pit_state2::default());
        s.pass(&format!("set {when}"), vm, KVM_SET_PIT, &kvm_pit_state::default());
        s.pass(&format!("set2 {when}"), vm, KVM_SET_PIT2, &kvm_pit_state2::default());
        for on in [0, 1, 2, 256, 257] {
            let mut control = [0u8; 32];
            control[0] = on as u8;
            control[1] = (on >> 8) as u8;
            s.pass_bytes(&format!("reinject {on} {when}"), vm, KVM_REINJECT_CONTROL, &control);
        }
    };
    ask(s, vm, "without a pit");
    s.number("old pit without an irqchip", vm, KVM_CREATE_PIT, 0);
    s.pass("pit without an irqchip", vm, KVM_CREATE_PIT2, &kvm_pit_config::default());
    s.number("irqchip", vm, KVM_CREATE_IRQCHIP, 0);
    for flags in (1..32).map(|n| 1 << n) {
        s.pass(
            &format!("flags {flags:#x}"),
            vm,
            KVM_CREATE_PIT2,
            &kvm_pit_config { flags, ..Default::default() },
        );
        if flags == 2 {
            ask(s, vm, "after flags 2");
        }
    }
    s.pass("pit", vm, KVM_CREATE_PIT2, &kvm_pit_config { flags: 1, ..Default::default() });
    s.pass("pit again", vm, KVM_CREATE_PIT2, &kvm_pit_config::default());
    s.number("old pit", vm, KVM_CREATE_PIT, 0);
    ask(s, vm, "with a pit");
    for flags in [1u32, 2, 4, 0x8000_0000] {
        let p = kvm_pit_state2 { flags, ..Default::default() };
        s.pass(&format!("state flags {flags:#x}"), vm, KVM_SET_PIT2, &p);
        let back: kvm_pit_state2 = s.get(vm, KVM_GET_PIT2);
        s.observe("flags", i64::from(back.flags));
    }
    for mode in 0..8u8 {
        let mut p = kvm_pit_state2::default();
        p.channels[2].mode = mode;
        p.channels[2].rw_mode = mode;
        p.channels[2].count = 0x1_0000;
        s.pass(&format!("channel 2, mode {mode}"), vm, KVM_SET_PIT2, &p);
    }
}

fn route(gsi: u32, kind: u32, flags: u32, chip: u32, pin: u32) -> kvm_irq_routing_entry {
    let mut e = kvm_irq_routing_entry { gsi, type_: kind, flags, ..Default::default() };
    set_member(&mut e, 16, &chip);
    set_member(&mut e, 20, &pin);
    e
}

/// KVM_SET_GSI_ROUTING.
pub fn routing(s: &mut Session<'_>) {
    let table = |count: u32, flags: u32, entries: &[kvm_irq_routing_entry]| {
        let mut b = count.to_le_bytes().to_vec();
        b.extend(flags.to_le_bytes());
        for e in entries {
            b.extend(kvm_ioctl_layer::user_mem::bytes_of(e));
        }
        b
    };
    for chips in ["none", "full", "split"] {
        let vm = s.vm();
        match chips {
            "full" => {
                s.number("irqchip", vm, KVM_CREATE_IRQCHIP, 0);
            }
            "split" => {
                s.pass("split", vm, KVM_ENABLE_CAP, &split_irqchip(24));
            }
            _ => {}
        }
        let tries: &[(&str, Vec<u8>)] = &[
            ("nothing", table(0, 0, &[])),
            ("flags", table(0, 1, &[])),
            ("4097 routes", table(4097, 0, &[])),
            ("as many as there are numbers", table(u32::MAX, 0, &[])),
            ("pin", table(1, 0, &[route(5, 1, 0, 2, 5)])),
            ("pin of the pic", table(1, 0, &[route(5, 1, 0, 0, 5)])),
            ("pin 8 of the master", table(1, 0, &[route(5, 1, 0, 0, 8)])),
            ("pin 16 of the slave", table(1, 0, &[route(5, 1, 0, 1, 16)])),
            ("pin 24 of the ioapic", table(1, 0, &[route(5, 1, 0, 2, 24)])),
            ("chip 3", table(1, 0, &[route(5, 1, 0, 3, 5)])),
            ("pin with flags", table(1, 0, &[route(5, 1, 1, 2, 5)])),
            ("message", table(1, 0, &[route(5, 2, 0, 0xfee0_0000, 0)])),
            ("message with a device", table(1, 0, &[route(5, 2, 1, 0xfee0_0000, 0)])),
            ("message with other flags", table(1, 0, &[route(5, 2, 2, 0xfee0_0000, 0)])),
            ("message to far", table(1, 0, &[route(5, 2, 0, 0xfee0_0000, 1)])),
            ("type 0", table(1, 0, &[route(5, 0, 0, 0, 0)])),
            ("type 3", table(1, 0, &[route(5, 3, 0, 0, 0)])),
            ("type 4", table(1, 0, &[route(5, 4, 0, 0, 0)])),
            ("type 5", table(1, 0, &[route(5, 5, 0, 0, 0)])),
            ("type 99", table(1, 0, &[route(5, 99, 0, 0, 0)])),
            ("gsi 4095", table(1, 0, &[route(4095, 2, 0, 0xfee0_0000, 0)])),
            ("gsi 4096", table(1, 0, &[route(4096, 2, 0, 0xfee0_0000, 0)])),
            ("two pins of one gsi", table(2, 0, &[route(5, 1, 0, 2, 5), route(5, 1, 0, 2, 6)])),
            ("a pic and an ioapic pin", table(2, 0, &[route(5, 1, 0, 0, 5), route(5, 1, 0, 2, 6)])),
            (
                "pin and message of one gsi",
                table(2, 0, &[route(5, 1, 0, 2, 5), route(5, 2, 0, 0xfee0_0000, 0)]),
            ),
            (
                "the same message twice",
                table(2, 0, &[route(5, 2, 0, 0xfee0_0000, 0), route(5, 2, 0, 0xfee0_0000, 0)]),
            ),
            (
                "three chips and one more",
                table(
                    4,
                    0,
                    &[
                        route(5, 1, 0, 0, 5),
                        route(5, 1, 0, 1, 6),
                        route(5, 1, 0, 2, 6),
                        route(5, 2, 0, 0xfee0_0000, 0),
                    ],
                ),
            ),
        ];
        for (name, bytes) in tries {
            s.pass_bytes(&format!("{chips}: {name}"), vm, KVM_SET_GSI_ROUTING, bytes);
        }
        let at = s.pages.read_only() + 4096 - 8;
        s.number(&format!("{chips}: a header alone"), vm, KVM_SET_GSI_ROUTING, at);
    }
}

fn eventfd() -> vmm_sys_util::eventfd::EventFd {
    vmm_sys_util::eventfd::EventFd::new(libc::EFD_NONBLOCK).expect("eventfds can be made")
}

/// KVM_IRQFD.
pub fn irqfd(s: &mut Session<'_>) {
    let (a, b, c) = (eventfd(), eventfd(), eventfd());
    let file = std::fs::File::open("/dev/null").expect("it is everywhere");
    let (pa, pb, pc, pf) =
        (a.as_raw_fd() as u32, b.as_raw_fd() as u32, c.as_raw_fd() as u32, file.as_raw_fd() as u32);
    for chips in ["none", "full", "split"] {
        let vm = s.vm();
        match chips {
            "full" => s.number("irqchip", vm, KVM_CREATE_IRQCHIP, 0),
            "split" => s.pass("split", vm, KVM_ENABLE_CAP, &split_irqchip(24)),
            _ => 0,
        };
        let own = vm as u32;
        let tries: &[(&str, u32, u32, u32, u32)] = &[
            ("deassigned before", pa, 4, 1, 0),
            ("a bad descriptor", u32::MAX, 4, 0, 0),
            ("a number that is none", 100_000, 4, 0, 0),
            ("a file", pf, 4, 0, 0),
            ("a file deassigned", pf, 4, 1, 0),
            ("flag 2", pa, 4, 4, 0),
            ("flag 31", pa, 4, 1 << 31, 0),
            ("gsi 4096", pa, 4096, 0, 0),
            ("gsi of all ones", pa, u32::MAX, 0, 0),
            ("good", pa, 4, 0, 0),
            ("the same", pa, 4, 0, 0),
            ("the same for another gsi", pa, 5, 0, 0),
            ("another for the same gsi", pb, 4, 0, 0),
            ("deassigned with another gsi", pa, 7, 1, 0),
            ("deassigned", pa, 4, 1, 0),
            ("deassigned again", pa, 4, 1, 0),
            ("resample", pa, 6, 2, pc),
            ("resample by a bad descriptor", pc, 7, 2, u32::MAX),
            ("resample by a file", pc, 7, 2, pf),
            ("resample by itself", pc, 8, 2, pc),
            ("resample, deassigned", pa, 6, 3, pc),
            ("deassign and resample of nothing", pa, 6, 3, u32::MAX),
        ];
        let _ = own;
        for (name, fd, gsi, flags, resamplefd) in tries {
            let args = kvm_irqfd {
                fd: *fd,
                gsi: *gsi,
                flags: *flags,
                resamplefd: *resamplefd,
                ..Default::default()
            };
            s.pass(&format!("{chips}: {name}"), vm, KVM_IRQFD, &args);
        }
        s.close(vm);
    }
}

/// KVM_IOEVENTFD.
pub fn ioeventfd(s: &mut Session<'_>) {
    let vm = s.vm();
    let (a, b) = (eventfd(), eventfd());
    let (pa, pb) = (a.as_raw_fd(), b.as_raw_fd());
    let file = std::fs::File::open("/dev/null").expect("it is everywhere");
    const MATCH: u32 = 1;
    const PIO: u32 = 2;
    const GONE: u32 = 4;
    let tries: &[(&str, i32, u64, u32, u32, u64)] = &[
        ("bad descriptor", -1, 0xf4, 1, PIO, 0),
        ("a file", file.as_raw_fd(), 0xf4, 1, PIO, 0),
        ("length 3", pa, 0xf4, 3, PIO, 0),
        ("length 16", pa, 0xf4, 16, PIO, 0),
        ("length 8 port", pa, 0xf4, 8, PIO, 0),
        ("the same by 8 gone", pa, 0xf4, 8, PIO | GONE, 0),
        ("any length, a match", pa, 0xf4, 0, PIO | MATCH, 0),
        ("that wraps", pa, u64::MAX, 8, 0, 0),
        ("that ends at the end", pa, u64::MAX - 7, 8, 0, 0),
        ("the last byte", pa, u64::MAX, 1, 0, 0),
        ("virtio ccw", pa, 0, 8, 8, 0),
        ("fast mmio flag", pa, 0, 0, 16, 0),
        ("flag 31", pa, 0xf4, 1, 1 << 31, 0),
        ("port", pa, 0xf4, 1, PIO, 0),
        ("the same", pa, 0xf4, 1, PIO, 0),
        ("by another", pb, 0xf4, 1, PIO, 0),
        ("another length", pb, 0xf4, 2, PIO, 0),
        ("any length", pb, 0xf4, 0, PIO, 0),
        ("with a match", pb, 0xf4, 1, PIO | MATCH, 7),
        ("the address in memory", pb, 0xf4, 1, 0, 0),
        ("a match", pa, 0x1000, 4, MATCH, 1),
        ("another match", pa, 0x1000, 4, MATCH, 2),
        ("the same match", pb, 0x1000, 4, MATCH, 2),
        ("a match beyond its length", pa, 0x1000, 1, MATCH, 0x1_0000_0001),
        ("gone by another descriptor", pb, 0x1000, 4, MATCH | GONE, 1),
        ("gone without the match", pa, 0x1000, 4, GONE, 1),
        ("gone by another length", pa, 0x1000, 8, MATCH | GONE, 1),
        ("gone", pa, 0x1000, 4, MATCH | GONE, 1),
        ("gone again", pa, 0x1000, 4, MATCH | GONE, 1),
        ("gone, odd length", pa, 0x1000, 5, GONE, 1),
        ("gone, bad descriptor", -1, 0x1000, 4, GONE, 1),
        ("any length in memory", pa, 0x2000, 0, 0, 0),
        ("any length again", pb, 0x2000, 0, 0, 0),
        ("a length beside any", pb, 0x2000, 4, 0, 0),
        ("any length gone", pa, 0x2000, 0, GONE, 0),
    ];
    for (name, fd, addr, len, flags, datamatch) in tries {
        let args = kvm_ioeventfd {
            fd: *fd,
            addr: *addr,
            len: *len,
            flags: *flags,
            datamatch: *datamatch,
            ..Default::default()
        };
        s.pass(name, vm, KVM_IOEVENTFD, &args);
    }
}
