//! Descriptors and the objects that they stand for.
//!
//! A descriptor of ours is a file in memory, and is known by its identity (`st_dev`, `st_ino`), which is asked for at each
//! ioctl: a duplicate is the same object, wherever it came from, and a number that was closed and used again is another.
//!
//! How long an object lives: each has two open file descriptions of its file. One is the program's, and holds a lock
//! (flock) for as long as anybody anywhere refers to it: a duplicate, a mapping, a message on its way through a
//! socket, a child. The other is ours; when it can take the lock, the program's is gone. It is asked whenever the program
//! closes or unmaps one of ours. So a child's close never takes anything from its parent, and nothing is counted.
//!
//! A vCPU keeps its VM alive, in `kvm-ioctl-layer`; this list need not know.

use crate::raw::{self, Identity, sys};
use crate::{owner, private};
use core::sync::atomic::Ordering::{Acquire, Relaxed, SeqCst};
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64};
use kvm_api::errno::{Errno, Result};
use kvm_ioctl_layer::dispatch::Object;
use kvm_ioctl_layer::{Kvm, VcpuFd, VmFd};
use parking_lot::RwLock;
use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;

/// What a descriptor stands for.
#[derive(Clone)]
pub enum Held {
    /// `/dev/kvm`.
    System(Arc<Kvm>),
    /// A VM.
    Vm(Arc<VmFd>),
    /// A vCPU, whose file is its run page, with its id and the VM that it keeps alive.
    Vcpu(Arc<VcpuFd>, u64, Arc<VmFd>),
}

impl Held {
    /// The object, for dispatch.
    pub fn object(&self) -> Object<'_> {
        match self {
            Held::System(o) => Object::System(o),
            Held::Vm(o) => Object::Vm(o),
            Held::Vcpu(o, ..) => Object::Vcpu(o),
        }
    }

    /// What /proc says of such a descriptor where the kernel made it.
    pub fn link(&self) -> String {
        match self {
            Held::System(_) => "/dev/kvm".into(),
            Held::Vm(_) => "anon_inode:kvm-vm".into(),
            Held::Vcpu(_, id, _) => format!("anon_inode:kvm-vcpu:{id}"),
        }
    }
}

struct Entry {
    held: Held,
    /// Our description of the file; a vCPU's is its run page's.
    file: i32,
    /// The program has the same description, for want of /proc: nothing tells when it is gone.
    immortal: bool,
}

impl Drop for Entry {
    fn drop(&mut self) {
        if !matches!(self.held, Held::Vcpu(..)) {
            private::close(self.file);
        }
    }
}

/// The kernel numbers its files in memory one after the other: the number is hash enough, at each ioctl.
#[derive(Default)]
struct ByNumber(u64);

impl Hasher for ByNumber {
    fn finish(&self) -> u64 {
        // The table takes its tag from the top.
        self.0.wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }

    fn write(&mut self, bytes: &[u8]) {
        for b in bytes {
            self.write_u64(u64::from(*b));
        }
    }

    fn write_u64(&mut self, n: u64) {
        self.0 = self.0.rotate_left(32) ^ n;
    }
}

/// Ranges of addresses, merged where they meet: start to end.
#[derive(Default)]
struct Ranges(BTreeMap<u64, u64>);

impl Ranges {
    fn add(&mut self, mut start: u64, mut end: u64) {
        while let Some((&s, &e)) = self.0.range(..=end).next_back().filter(|r| *r.1 >= start) {
            if s <= start && end <= e {
                return;
            }
            self.0.remove(&s);
            (start, end) = (start.min(s), end.max(e));
        }
        self.0.insert(start, end);
    }

    fn touch(&self, start: u64, end: u64) -> bool {
        self.0.range(..end).next_back().is_some_and(|(_, &e)| e > start)
    }

    fn clear(&mut self) {
        self.0.clear();
    }
}

/// The objects of this process.
#[derive(Default)]
struct Objects {
    by_identity: RwLock<HashMap<Identity, Entry, BuildHasherDefault<ByNumber>>>,
    /// Where guests' memory lies: whoever unmaps something there has to tell the VMs.
    guest_memory: RwLock<Ranges>,
}

static OBJECTS: AtomicPtr<Objects> = AtomicPtr::new(core::ptr::null_mut());
/// The device that files in memory are on; 0 before the first.
static DEVICE: AtomicU64 = AtomicU64::new(0);
/// A descriptor was closed whose object lives on, by a mapping or a duplicate.
static ORPHANS: AtomicBool = AtomicBool::new(false);

/// In a child made by fork: the parent's objects are not ours, and their locks may be held by threads that are not
/// here. They stay where they are, never to be touched.
pub fn adopt_after_fork() {
    if owner::forked() {
        owner::adopt(|| {
            OBJECTS.store(core::ptr::null_mut(), SeqCst);
            crate::signals::adopt();
        });
    }
}

fn objects() -> Option<&'static Objects> {
    adopt_after_fork();
    // SAFETY: null, or a box that was leaked.
    unsafe { OBJECTS.load(Acquire).as_ref() }
}

fn objects_or_new() -> &'static Objects {
    if let Some(o) = objects() {
        return o;
    }
    let new = Box::into_raw(Box::<Objects>::default());
    match OBJECTS.compare_exchange(core::ptr::null_mut(), new, SeqCst, SeqCst) {
        // SAFETY: just leaked, and valid for ever.
        Ok(_) => unsafe { &*new },
        // SAFETY: `new` was not published; `other` was, and is valid for ever.
        Err(other) => unsafe {
            drop(Box::from_raw(new));
            &*other
        },
    }
}

/// Whether this process has ever had an object: all else can be skipped when not.
#[inline]
pub fn is_active() -> bool {
    !OBJECTS.load(Relaxed).is_null()
}

/// Whether this process, or the one that it is a copy of, has ever had an object.
#[inline]
pub fn has_been() -> bool {
    DEVICE.load(Relaxed) != 0
}

/// Whether a file is where ours are, or its parent's.
#[inline]
pub fn on_our_device(id: Identity) -> bool {
    has_been() && id.dev == DEVICE.load(Relaxed)
}

/// Whether a file of this device may be ours. No lock.
#[inline]
pub fn may_be(id: Identity) -> bool {
    id.dev == DEVICE.load(Relaxed) && is_active()
}

/// The object of an identity.
pub fn find(id: Identity) -> Option<Held> {
    if !may_be(id) {
        return None;
    }
    objects()?.by_identity.read().get(&id).map(|e| e.held.clone())
}

/// The object of a descriptor.
pub fn find_fd(fd: i32) -> Option<(Identity, Held)> {
    let id = raw::identity(fd)?;
    let held = find(id)?;
    crate::descriptors::note(fd);
    Some((id, held))
}

/// Whether a descriptor is one of an object of another process: a parent's, or a sender's.
pub fn is_foreign(fd: i32) -> bool {
    let (mut name, mut link) = ([0; 32], [0; 64]);
    raw::readlink(raw::fd_path(fd, &mut name), &mut link).is_some_and(|l| l.starts_with(MEMFD_LINK))
}

/// What our files' links in /proc begin with.
pub const MEMFD_LINK: &[u8] = b"/memfd:softkvm-";

fn memfd(name: &core::ffi::CStr) -> Result<i32> {
    // SAFETY: a C string.
    match unsafe { sys!(SYS_memfd_create, name.as_ptr(), libc::MFD_CLOEXEC) } {
        fd if fd >= 0 => Ok(private::hide(fd as i32)),
        e => Err(Errno(-e as i32)),
    }
}

/// Puts an object into the list; the program's descriptor for it. `flags` are open's.
pub fn add(held: Held, flags: i32) -> Result<i32> {
    let file = match &held {
        Held::System(_) => memfd(c"softkvm-system")?,
        Held::Vm(_) => memfd(c"softkvm-vm")?,
        Held::Vcpu(v, ..) => std::os::fd::AsRawFd::as_raw_fd(v.run_mapping().file()),
    };
    let mut entry = Entry { held, file, immortal: false };
    let mut name = [0; 32];
    let access = flags & (libc::O_ACCMODE | libc::O_CLOEXEC | libc::O_NONBLOCK);
    // SAFETY: a C string; a new description of the same file.
    let fd = unsafe { sys!(SYS_openat, libc::AT_FDCWD, raw::fd_path(file, &mut name).as_ptr(), access, 0) };
    let fd = match fd {
        fd if fd >= 0 => fd as i32,
        e if e == -i64::from(libc::EMFILE) || e == -i64::from(libc::ENFILE) => return Err(Errno(-e as i32)),
        _ => {
            // No /proc, or it is closed to a process that has changed its user.
            entry.immortal = true;
            let command = if flags & libc::O_CLOEXEC != 0 { libc::F_DUPFD_CLOEXEC } else { libc::F_DUPFD };
            // SAFETY: numbers only.
            match unsafe { sys!(SYS_fcntl, file, command, 0) } {
                fd if fd >= 0 => fd as i32,
                e => return Err(Errno(-e as i32)),
            }
        }
    };
    // SAFETY: numbers only.
    unsafe { sys!(SYS_flock, fd, libc::LOCK_EX | libc::LOCK_NB) };
    let Some(id) = raw::identity(fd) else { return Err(Errno::EBADF) };
    DEVICE.store(id.dev, SeqCst);
    reap();
    objects_or_new().by_identity.write().insert(id, entry);
    crate::descriptors::note(fd);
    Ok(fd)
}

/// Frees the objects that nobody refers to any more.
pub fn reap() {
    let Some(o) = objects() else { return };
    let mut gone = Vec::new();
    let mut closed = false;
    {
        let mut list = o.by_identity.write();
        list.retain(|_, e| {
            if e.immortal {
                return true;
            }
            // SAFETY: numbers only.
            let free = unsafe { sys!(SYS_flock, e.file, libc::LOCK_EX | libc::LOCK_NB) } == 0;
            if free {
                gone.push(e.held.clone());
            }
            closed |= free;
            !free
        });
        if list.is_empty() {
            o.guest_memory.write().clear();
            ORPHANS.store(false, Relaxed);
        }
    }
    // Outside the lock: a VM's end waits for its threads.
    drop(gone);
}

/// After a descriptor of ours was closed.
pub fn closed() {
    ORPHANS.store(true, Relaxed);
    reap();
}

/// Whether a mapping that goes may have been the last that kept an object.
#[inline]
pub fn has_orphans() -> bool {
    ORPHANS.load(Relaxed)
}

/// A memory slot was set.
pub fn add_guest_memory(start: u64, len: u64) {
    if let (Some(o), true) = (objects(), len != 0) {
        let mut list = o.guest_memory.write();
        list.add(start, start.saturating_add(len));
    }
}

/// The program has changed its mappings: every VM with memory there is told.
pub fn invalidate(start: u64, len: u64) {
    let Some(o) = objects() else { return };
    let end = start.saturating_add(len);
    if !o.guest_memory.read().touch(start, end) {
        return;
    }
    let mut vms: Vec<Arc<VmFd>> = Vec::new();
    for e in o.by_identity.read().values() {
        if let Held::Vm(vm) | Held::Vcpu(_, _, vm) = &e.held
            && !vms.iter().any(|v| Arc::ptr_eq(v, vm))
        {
            vms.push(vm.clone());
        }
    }
    for vm in vms {
        vm.backend().invalidate_hva(start, len);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_merge() {
        let mut r = Ranges::default();
        for (start, end, count) in [
            (10, 20, 1),
            (30, 40, 2),
            (12, 15, 2),
            (20, 25, 2),
            (50, 60, 3),
            (24, 55, 1),
            (0, 5, 2),
            (0, 100, 1),
        ] {
            r.add(start, end);
            assert_eq!(r.0.len(), count, "{start} to {end}");
            assert!(r.touch(start, start + 1) && r.touch(end - 1, end + 5));
        }
        assert!(r.touch(99, 100) && !r.touch(100, 200));
        r.clear();
        r.add(10, 20);
        assert!(!r.touch(0, 10) && r.touch(0, 11) && r.touch(19, 30) && !r.touch(20, 30));
    }
}
