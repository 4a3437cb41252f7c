//! A raw ioctl: number and argument as a program passes them, to the object behind its file descriptor.
//!
//! Size and direction come from the table, user memory through [`UserMemory`], meaning from the objects. Descriptors'
//! numbers are not known here: an ioctl that makes one answers with the object, and who owns the descriptors wraps it.

use crate::table::{self, FdKind, Handler};
use crate::user_mem::{Plain, UserMemory, bytes_of, from_bytes};
use crate::{Kvm, VcpuFd, VmFd};
use kvm_api::errno::{Errno, Result};
use kvm_api::uapi::*;

/// What a file descriptor stands for.
#[derive(Clone, Copy, Debug)]
pub enum Object<'a> {
    /// `/dev/kvm`.
    System(&'a Kvm),
    /// A VM.
    Vm(&'a VmFd),
    /// A vCPU.
    Vcpu(&'a VcpuFd),
}

impl Object<'_> {
    /// Its kind, as the table has it.
    pub fn kind(&self) -> FdKind {
        match self {
            Object::System(_) => FdKind::System,
            Object::Vm(_) => FdKind::Vm,
            Object::Vcpu(_) => FdKind::Vcpu,
        }
    }
}

/// What an ioctl returns.
#[derive(Debug)]
pub enum Answer {
    /// A number.
    Value(i32),
    /// A new VM, which wants a descriptor.
    Vm(VmFd),
    /// A new vCPU, which wants a descriptor.
    Vcpu(VcpuFd),
    /// A file, whose descriptor is the answer.
    File(std::fs::File),
}

/// One call on its way.
pub struct Call<'a> {
    /// The third argument of ioctl.
    pub arg: u64,
    /// The caller's memory.
    pub memory: &'a dyn UserMemory,
}

impl Call<'_> {
    /// The structure at the argument.
    pub fn input<T: Plain>(&self) -> Result<T> {
        self.input_at(self.arg)
    }

    /// A structure at any address of the caller.
    pub fn input_at<T: Plain>(&self, address: u64) -> Result<T> {
        let mut bytes = vec![0; size_of::<T>()];
        self.memory.read(address, &mut bytes)?;
        Ok(from_bytes(&bytes))
    }

    /// Stores a structure at the argument.
    pub fn output<T: Plain>(&self, t: &T) -> Result<Answer> {
        self.memory.write(self.arg, bytes_of(t))?;
        Ok(Answer::Value(0))
    }

    /// Stores a structure at any address of the caller.
    pub fn store<T: Plain>(&self, address: u64, t: &T) -> Result<Answer> {
        self.memory.write(address, bytes_of(t))?;
        Ok(Answer::Value(0))
    }

    /// A list behind a header at the argument.
    pub fn list<T: Plain>(&self, header: u64, count: usize) -> Result<Vec<T>> {
        let size = size_of::<T>();
        let mut bytes = vec![0; size * count];
        self.memory.read(self.arg.wrapping_add(header), &mut bytes)?;
        Ok(bytes.chunks_exact(size).map(from_bytes).collect())
    }

    /// Stores a list behind a header.
    pub fn store_list<T: Plain>(&self, header: u64, list: &[T]) -> Result {
        let bytes: Vec<u8> = list.iter().flat_map(bytes_of).copied().collect();
        self.memory.write(self.arg.wrapping_add(header), &bytes)
    }
}

/// Performs an ioctl. KVM_RUN is not one of these: it needs the vCPU exclusively (see [`VcpuFd::run`]).
pub fn dispatch(object: Object<'_>, nr: u32, arg: u64, memory: &dyn UserMemory) -> Result<Answer> {
    let row = table::find(object.kind(), nr).ok_or(unknown(object.kind()))?;
    let call = Call { arg, memory };
    match (row.handler, object) {
        (Handler::System(f), Object::System(o)) => f(o, &call),
        (Handler::Vm(f), Object::Vm(o)) => f(o, &call),
        (Handler::Vcpu(f), Object::Vcpu(o)) => f(o, &call),
        (Handler::Errno(e), _) => Err(e),
        _ => Err(unknown(object.kind())),
    }
}

/// What an unknown number is answered with: a kernel says ENOTTY for a VM, EINVAL for the others.
pub fn unknown(kind: FdKind) -> Errno {
    match kind {
        FdKind::Vm => Errno::ENOTTY,
        FdKind::System | FdKind::Vcpu => Errno::EINVAL,
    }
}

pub(crate) fn ok(r: crate::Result) -> Result<Answer> {
    r.map(|()| Answer::Value(0)).map_err(errno)
}

pub(crate) fn errno(e: crate::Error) -> Errno {
    Errno(e.errno())
}

/// KVM's limit on one list of MSRs.
const MAX_IO_MSRS: u32 = 256;

pub(crate) fn get_msr_indices(c: &Call<'_>, list: &[u32]) -> Result<Answer> {
    let room: u32 = c.input()?;
    c.memory.write(c.arg, &(list.len() as u32).to_le_bytes())?;
    if (room as usize) < list.len() {
        return Err(Errno::E2BIG);
    }
    c.store_list(4, list)?;
    Ok(Answer::Value(0))
}

pub(crate) fn get_msrs(
    c: &Call<'_>,
    f: impl FnOnce(&mut [kvm_msr_entry]) -> Result<usize>,
) -> Result<Answer> {
    let count: u32 = c.input()?;
    if count >= MAX_IO_MSRS {
        return Err(Errno::E2BIG);
    }
    let mut entries = c.list::<kvm_msr_entry>(8, count as usize)?;
    let done = f(&mut entries)?;
    c.store_list(8, &entries)?;
    Ok(Answer::Value(done as i32))
}

pub(crate) fn set_msrs(c: &Call<'_>, f: impl FnOnce(&[kvm_msr_entry]) -> Result<usize>) -> Result<Answer> {
    let count: u32 = c.input()?;
    if count >= MAX_IO_MSRS {
        return Err(Errno::E2BIG);
    }
    let entries = c.list::<kvm_msr_entry>(8, count as usize)?;
    Ok(Answer::Value(f(&entries)? as i32))
}

pub(crate) fn get_cpuid(c: &Call<'_>, rows: Vec<kvm_cpuid_entry2>) -> Result<Answer> {
    let room: u32 = c.input()?;
    if (room as usize) < rows.len() {
        return Err(Errno::E2BIG);
    }
    c.store_list(8, &rows)?;
    c.memory.write(c.arg, &(rows.len() as u32).to_le_bytes())?;
    Ok(Answer::Value(0))
}

pub(crate) fn cpuid_rows(c: &Call<'_>, old: bool) -> Result<Vec<kvm_cpuid_entry2>> {
    let count = c.input::<u32>()? as usize;
    if count > KVM_MAX_CPUID_ENTRIES {
        return Err(Errno::E2BIG);
    }
    if !old {
        return c.list(8, count);
    }
    // KVM_SET_CPUID: rows without an index.
    let rows = c.list::<kvm_cpuid_entry>(8, count)?;
    Ok(rows
        .iter()
        .map(|e| kvm_cpuid_entry2 {
            function: e.function,
            eax: e.eax,
            ebx: e.ebx,
            ecx: e.ecx,
            edx: e.edx,
            ..Default::default()
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::user_mem::OwnMemory;
    use kvm_api::nr::*;

    fn address<T>(t: &mut T) -> u64 {
        t as *mut T as u64
    }

    fn value(a: Result<Answer>) -> Result<i32> {
        a.map(|a| match a {
            Answer::Value(v) => v,
            a => panic!("{a:?}"),
        })
    }

    #[test]
    fn structures_travel_by_pointer() {
        let kvm = Kvm::new().unwrap();
        assert_eq!(value(dispatch(Object::System(&kvm), KVM_GET_API_VERSION, 0, &OwnMemory)), Ok(12));
        let Ok(Answer::Vm(vm)) = dispatch(Object::System(&kvm), KVM_CREATE_VM, 0, &OwnMemory) else {
            panic!("no VM");
        };
        let Ok(Answer::Vcpu(vcpu)) = dispatch(Object::Vm(&vm), KVM_CREATE_VCPU, 3, &OwnMemory) else {
            panic!("no vCPU");
        };
        let o = Object::Vcpu(&vcpu);
        let mut regs = kvm_regs::default();
        assert_eq!(value(dispatch(o, KVM_GET_REGS, address(&mut regs), &OwnMemory)), Ok(0));
        assert_eq!(regs.rip, 0xfff0);
        regs.rbx = 7;
        assert_eq!(value(dispatch(o, KVM_SET_REGS, address(&mut regs), &OwnMemory)), Ok(0));
        assert_eq!(vcpu.get_regs().unwrap().rbx, 7);
    }

    #[test]
    fn a_bad_pointer_is_efault_for_every_row_that_takes_one() {
        let kvm = Kvm::new().unwrap();
        let vm = kvm.create_vm().unwrap();
        vm.create_irq_chip().unwrap();
        vm.create_pit2(kvm_pit_config::default()).unwrap();
        let vcpu = vm.create_vcpu(0).unwrap();
        for row in table::TABLE {
            let size = kvm_api::nr::size_of_argument(row.nr);
            if size == 0 || matches!(row.handler, Handler::Errno(_) | Handler::Later) {
                continue;
            }
            let object = match row.fd {
                FdKind::System => Object::System(&kvm),
                FdKind::Vm => Object::Vm(&vm),
                FdKind::Vcpu => Object::Vcpu(&vcpu),
            };
            if row.nr == KVM_SET_IDENTITY_MAP_ADDR {
                // That there is a vCPU comes first.
                continue;
            }
            // A page that no process has, and one whose end is cut off.
            for arg in [8, 0xffff_8000_0000_0000] {
                let r = dispatch(object, row.nr, arg, &OwnMemory);
                assert_eq!(value(r), Err(Errno::EFAULT), "{}", row.name);
            }
        }
    }

    #[test]
    fn wrong_numbers_and_wrong_objects() {
        let kvm = Kvm::new().unwrap();
        let vm = kvm.create_vm().unwrap();
        let vcpu = vm.create_vcpu(0).unwrap();
        for nr in [0, 0xae3f, 0x5401, u32::MAX] {
            assert_eq!(value(dispatch(Object::System(&kvm), nr, 0, &OwnMemory)), Err(Errno::EINVAL));
            assert_eq!(value(dispatch(Object::Vm(&vm), nr, 0, &OwnMemory)), Err(Errno::ENOTTY));
            assert_eq!(value(dispatch(Object::Vcpu(&vcpu), nr, 0, &OwnMemory)), Err(Errno::EINVAL));
        }
        assert_eq!(value(dispatch(Object::Vm(&vm), KVM_GET_REGS, 0, &OwnMemory)), Err(Errno::ENOTTY));
        assert_eq!(
            value(dispatch(Object::Vm(&vm), KVM_SET_MEMORY_REGION, 0, &OwnMemory)),
            Err(Errno::ENOTTY)
        );
    }

    #[test]
    fn attributes() {
        let kvm = Kvm::new().unwrap();
        let vm = kvm.create_vm().unwrap();
        let vcpu = vm.create_vcpu(0).unwrap();
        let mut word = 0u64;
        let mut a = kvm_device_attr { addr: address(&mut word), ..Default::default() };
        let system = Object::System(&kvm);
        assert_eq!(value(dispatch(system, KVM_HAS_DEVICE_ATTR, address(&mut a), &OwnMemory)), Ok(0));
        assert_eq!(value(dispatch(system, KVM_GET_DEVICE_ATTR, address(&mut a), &OwnMemory)), Ok(0));
        assert_eq!(word & 3, 3, "x87 and SSE");
        let v = Object::Vcpu(&vcpu);
        *core::hint::black_box(&mut word) = 0x1234_5678;
        assert_eq!(value(dispatch(v, KVM_SET_DEVICE_ATTR, address(&mut a), &OwnMemory)), Ok(0));
        word = 0;
        assert_eq!(value(dispatch(v, KVM_GET_DEVICE_ATTR, address(&mut a), &OwnMemory)), Ok(0));
        assert_eq!(word, 0x1234_5678);
        a.attr = 1;
        for object in [system, v] {
            for nr in [KVM_HAS_DEVICE_ATTR, KVM_GET_DEVICE_ATTR] {
                assert_eq!(value(dispatch(object, nr, address(&mut a), &OwnMemory)), Err(Errno::ENXIO));
            }
        }
        a.attr = 0;
        a.addr = 8;
        assert_eq!(value(dispatch(v, KVM_GET_DEVICE_ATTR, address(&mut a), &OwnMemory)), Err(Errno::EFAULT));
        let vm = Object::Vm(&vm);
        assert_eq!(value(dispatch(vm, KVM_HAS_DEVICE_ATTR, address(&mut a), &OwnMemory)), Err(Errno::ENOTTY));
    }

    #[test]
    fn lists_and_their_sizes() {
        let kvm = Kvm::new().unwrap();
        let o = Object::System(&kvm);
        let mut small = [0u32, 0];
        assert_eq!(
            value(dispatch(o, KVM_GET_MSR_INDEX_LIST, address(&mut small), &OwnMemory)),
            Err(Errno::E2BIG)
        );
        let n = small[0] as usize;
        assert_eq!(n, kvm.get_msr_index_list().unwrap().as_slice().len());
        let mut list = vec![0u32; n + 1];
        list[0] = n as u32;
        assert_eq!(value(dispatch(o, KVM_GET_MSR_INDEX_LIST, list.as_mut_ptr() as u64, &OwnMemory)), Ok(0));
        assert!(list[1..].contains(&0x10));
        let mut cpuid = [1u32, 0, 0, 0];
        assert_eq!(
            value(dispatch(o, KVM_GET_SUPPORTED_CPUID, address(&mut cpuid), &OwnMemory)),
            Err(Errno::E2BIG)
        );
        let vm = kvm.create_vm().unwrap();
        let vcpu = vm.create_vcpu(0).unwrap();
        let v = Object::Vcpu(&vcpu);
        let mut msrs = [2u64, 0x174, 0x55, 0xdead_0000, 0];
        assert_eq!(value(dispatch(v, KVM_SET_MSRS, address(&mut msrs), &OwnMemory)), Ok(1));
        msrs[2] = 0;
        assert_eq!(value(dispatch(v, KVM_GET_MSRS, address(&mut msrs), &OwnMemory)), Ok(1));
        assert_eq!(msrs[2], 0x55);
        let mut many = [10_000u64];
        assert_eq!(value(dispatch(v, KVM_GET_MSRS, address(&mut many), &OwnMemory)), Err(Errno::E2BIG));
    }
}
