//! Random guests: those of [`crate::fuzz`], set down through the API.

use super::super::machine::{Controllers, Plan, Start};
use crate::fuzz::Fuzzer;
use crate::fuzz::environment::RAM;
use crate::fuzz::random::Random;
use crate::fuzz::setting::Setting;
use kvm_api::uapi::*;
use kvm_ioctl_layer::soft::convert;

/// Steps that a random guest is run for: it may fault for ever and retire nothing.
const STEPS: u64 = 160;

/// The guest of a case. Its slices are steps, not instructions.
pub fn random(fuzzer: &mut Fuzzer, case: u64) -> Plan {
    let (mode, user, code) = fuzzer.code(case);
    let mut random = Random::new(case ^ 0x77);
    let setting = Setting { irqchip: false, numbers: random.one_in(2), controls: random.one_in(2) };
    let p = fuzzer.start(mode, user, &code, setting, &mut random);
    let v = &p.vcpu;
    let (mut regs, sregs) = (convert::regs(v), convert::sregs2(v, 0xfee0_0900));
    regs.rflags &= 0x3f_7fd7;
    regs.rflags |= 2;
    let mut xsave = v.xsave.bytes.to_vec();
    xsave[28..32].fill(0);
    let start = Start {
        regs: Some(regs),
        sregs: Some(sregs),
        xcr0: Some(v.xcr0.bits()),
        xsave: Some(xsave),
        debugregs: Some(kvm_debugregs {
            db: v.dr,
            dr6: v.dr6.bits(),
            dr7: v.dr7.bits() & 0xffff_ffff,
            ..Default::default()
        }),
        ..Start::default()
    };
    let controllers = random.pick(&[Controllers::Full, Controllers::None, Controllers::Split]);
    let mut plan = Plan::one(&format!("random {case:#x} ({mode:?})"), controllers, start, STEPS);
    plan.by_steps = true;
    plan.ram = RAM;
    plan.exception_payload = random.one_in(2);
    plan.user_msrs = random.one_in(2);
    plan.pieces = fuzzer
        .memory()
        .chunks(4096)
        .enumerate()
        .filter(|(_, page)| page.iter().any(|b| *b != 0))
        .map(|(n, page)| (n as u64 * 4096, page.to_vec()))
        .collect();
    plan
}
