//! KVM_SET_GUEST_DEBUG: breakpoints, watchpoints and single steps that belong to user space (KVM api 4.87).

use super::tests::Guest;
use crate::VcpuExit;
use kvm_api::uapi::*;

/// The DR6 that reads when nothing happened.
const DR6: u64 = 0xffff_0ff0;
const ON: u32 = KVM_GUESTDBG_ENABLE;

fn set(g: &Guest, control: u32, address: [u64; 4], dr7: u64) {
    let mut d = kvm_guest_debug { control, ..Default::default() };
    d.arch.debugreg[..4].copy_from_slice(&address);
    d.arch.debugreg[7] = dr7;
    g.vcpu.set_guest_debug(&d).unwrap();
}

/// Exception, address and DR6 of the KVM_EXIT_DEBUG that comes next.
fn stop(g: &mut Guest) -> (u32, u64, u64) {
    match g.vcpu.run().unwrap() {
        VcpuExit::Debug(d) => (d.exception, d.pc, d.dr6),
        other => panic!("{other:?}"),
    }
}

fn skip(g: &Guest, bytes: i64) {
    let mut r = g.vcpu.get_regs().unwrap();
    r.rip = r.rip.wrapping_add_signed(bytes);
    g.vcpu.set_regs(&r).unwrap();
}

#[test]
fn breakpoints_on_instructions() {
    // 1000: int3; 1001: nop; 1002: hlt
    let mut g = Guest::new(&[0xcc, 0x90, 0xf4]);
    set(&g, ON | KVM_GUESTDBG_USE_SW_BP, [0; 4], 0);
    assert_eq!(stop(&mut g), (3, 0x1000, DR6));
    skip(&g, 1);
    for n in 0..4 {
        let mut address = [0; 4];
        address[n] = 0x1001;
        set(&g, ON | KVM_GUESTDBG_USE_HW_BP, address, 0x400 | 2 << (2 * n));
        // The guest does not get past it, however often it runs.
        assert_eq!(stop(&mut g), (1, 0x1001, DR6 | 1 << n));
    }
    set(&g, 0, [0; 4], 0);
    assert!(matches!(g.vcpu.run().unwrap(), VcpuExit::Hlt));
}

#[test]
fn watchpoints_on_data() {
    // 1000: mov [2000h], ax; 1003: mov ax, [2000h]; 1006: hlt
    let mut g = Guest::new(&[0xa3, 0x00, 0x20, 0xa1, 0x00, 0x20, 0xf4]);
    for n in 0..4 {
        let mut address = [0; 4];
        address[n] = 0x2000;
        // Writes of two bytes.
        set(&g, ON | KVM_GUESTDBG_USE_HW_BP, address, 0x400 | 2 << (2 * n) | 5 << (16 + 4 * n));
        assert_eq!(stop(&mut g), (1, 0x1003, DR6 | 1 << n));
        skip(&g, -3);
        // A neighbour is nobody's.
        address[n] = 0x2002;
        set(&g, ON | KVM_GUESTDBG_USE_HW_BP, address, 0x400 | 2 << (2 * n) | 5 << (16 + 4 * n));
        assert!(matches!(g.vcpu.run().unwrap(), VcpuExit::Hlt));
        skip(&g, -7);
    }
    // Reads and writes.
    set(&g, ON | KVM_GUESTDBG_USE_HW_BP, [0x2001, 0, 0, 0], 0x400 | 2 | 3 << 16);
    assert_eq!(stop(&mut g), (1, 0x1003, DR6 | 1));
    assert_eq!(stop(&mut g), (1, 0x1006, DR6 | 1));
    // The guest's own registers have not changed.
    let d = g.vcpu.get_debug_regs().unwrap();
    assert_eq!((d.db, d.dr6, d.dr7), ([0; 4], DR6, 0x400));
}

/// Code without a breakpoint runs in blocks, up to the instruction that has one.
#[test]
fn breakpoints_amid_straight_code() {
    // 1000: inc eax; eight times; 1010: jmp 1000
    let mut code = [0x66, 0x40].repeat(8);
    code.extend([0xeb, 0xee]);
    let mut g = Guest::new(&code);
    let enabled = 0x400 | 2 | 2 << 2;
    set(&g, ON | KVM_GUESTDBG_USE_HW_BP, [0x1006, 0x1010, 0, 0], enabled);
    let mut regs = g.vcpu.get_regs().unwrap();
    regs.rax = 0;
    g.vcpu.set_regs(&regs).unwrap();
    for (pc, bit, rax) in [(0x1006, 1, 3), (0x1010, 2, 8), (0x1006, 1, 11)] {
        assert_eq!(stop(&mut g), (1, pc, DR6 | bit));
        let regs = g.vcpu.get_regs().unwrap();
        assert_eq!((regs.rip, regs.rax), (pc, rax));
        // Past it, as a debugger does: without the breakpoint, by one step.
        set(&g, ON | KVM_GUESTDBG_SINGLESTEP, [0; 4], 0);
        stop(&mut g);
        set(&g, ON | KVM_GUESTDBG_USE_HW_BP, [0x1006, 0x1010, 0, 0], enabled);
    }
}

#[test]
fn general_detect() {
    // 1000: mov eax, dr0; 1003: hlt
    let mut g = Guest::new(&[0x0f, 0x21, 0xc0, 0xf4]);
    set(&g, ON | KVM_GUESTDBG_USE_HW_BP, [0; 4], 0x400 | 1 << 13);
    assert_eq!(stop(&mut g), (1, 0x1000, DR6 | 1 << 13));
    set(&g, 0, [0; 4], 0);
    assert!(matches!(g.vcpu.run().unwrap(), VcpuExit::Hlt));
}

/// A debugger gives the guest an INT3 that is not its own, with the vCPU still in front of it.
#[test]
fn an_int3_that_is_the_guest_s() {
    // 1000: int3; 1001: nop; 1002: hlt; the vector leads to an IRET.
    let mut g = Guest::new(&[0xcc, 0x90, 0xf4]);
    g.poke(0xc, &[0x00, 0x08, 0, 0]);
    g.poke(0x800, &[0xcf]);
    let mut r = g.vcpu.get_regs().unwrap();
    r.rsp = 0x700;
    g.vcpu.set_regs(&r).unwrap();
    set(&g, ON | KVM_GUESTDBG_USE_SW_BP, [0; 4], 0);
    assert_eq!(stop(&mut g), (3, 0x1000, DR6));
    let mut e = g.vcpu.get_vcpu_events().unwrap();
    (e.exception.injected, e.exception.nr) = (1, 3);
    g.vcpu.set_vcpu_events(&e).unwrap();
    assert!(matches!(g.vcpu.run().unwrap(), VcpuExit::Hlt));
}

#[test]
fn steps_without_interrupts() {
    let mut g = Guest::new(&[0x90, 0x90, 0xf4]);
    let fresh = g.vcpu.get_regs().unwrap();
    for block in [false, true] {
        g.vcpu.set_regs(&fresh).unwrap();
        g.vcpu.nmi().unwrap();
        let control = ON | KVM_GUESTDBG_SINGLESTEP | if block { KVM_GUESTDBG_BLOCKIRQ } else { 0 };
        set(&g, control, [0; 4], 0);
        let (exception, pc, dr6) = stop(&mut g);
        assert_eq!((exception, dr6), (1, DR6 | 1 << 14));
        // The vector table is zeros: an NMI that is let through leaves for 0000:0000.
        assert_eq!(pc == 0x1001, block, "{pc:#x}");
        if block {
            assert_eq!(g.vcpu.get_vcpu_events().unwrap().nmi.pending, 1, "it waits");
        }
    }
}
