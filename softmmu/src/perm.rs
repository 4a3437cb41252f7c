//! The permission table: WP, SMEP, SMAP, NX and protection keys in one function (SDM vol. 3A, 4.6).
//!
//! Not here: how rights are gathered from paging-structure entries (`walk`, `spte`).

use crate::access::{Access, AccessKind};
use x86_arch::control::{Cr0, Cr4};
use x86_arch::{Efer, PageFaultErrorCode, PagingMode};

/// What a translation allows, gathered over all its levels.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct PageRights {
    /// User-mode address: U/S is 1 at every level.
    pub user: bool,
    /// R/W is 1 at every level.
    pub write: bool,
    /// XD is 0 at every level, or IA32_EFER.NXE is 0.
    pub execute: bool,
    /// The protection key of the entry that maps the page.
    pub pkey: u8,
}

impl PageRights {
    /// No restriction: paging is off.
    pub const ALL: PageRights = PageRights { user: true, write: true, execute: true, pkey: 0 };

    /// Both sets of restrictions; the key is `lower`'s.
    pub const fn and(self, lower: PageRights) -> PageRights {
        PageRights {
            user: self.user && lower.user,
            write: self.write && lower.write,
            execute: self.execute && lower.execute,
            pkey: lower.pkey,
        }
    }
}

/// The register bits that the rules depend on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PermissionRules {
    /// CR0.WP.
    pub wp: bool,
    /// CR4.SMEP.
    pub smep: bool,
    /// CR4.SMAP.
    pub smap: bool,
    /// PKRU, where CR4.PKE and the paging mode make it count; else 0, which allows everything.
    pub pkru: u32,
    /// Whether error codes tell instruction fetches apart (SDM vol. 3A, 4.7, I/D flag).
    pub fetch_reported: bool,
    /// Paging is on at all.
    pub paging: bool,
}

impl PermissionRules {
    /// The rules under these registers.
    pub fn new(cr0: Cr0, cr4: Cr4, efer: Efer, pkru: u32) -> PermissionRules {
        let mode = PagingMode::of(cr0, cr4, efer);
        let keys = cr4.contains(Cr4::PKE) && matches!(mode, PagingMode::Level4 | PagingMode::Level5);
        PermissionRules {
            wp: cr0.contains(Cr0::WP),
            smep: cr4.contains(Cr4::SMEP),
            smap: cr4.contains(Cr4::SMAP),
            pkru: if keys { pkru } else { 0 },
            fetch_reported: cr4.contains(Cr4::SMEP) || (cr4.contains(Cr4::PAE) && efer.contains(Efer::NXE)),
            paging: mode != PagingMode::None,
        }
    }

    /// The bits of an error code that describe the access itself.
    pub fn describe(&self, access: Access) -> PageFaultErrorCode {
        let mut code = PageFaultErrorCode::empty();
        code.set(PageFaultErrorCode::W, access.is_write());
        code.set(PageFaultErrorCode::U, access.user);
        code.set(PageFaultErrorCode::I, access.is_execute() && self.fetch_reported);
        code
    }

    /// Whether a present translation with these rights allows the access; else the error code's P and PK bits.
    /// `ac` is EFLAGS.AC.
    pub fn check(&self, rights: PageRights, access: Access, ac: bool) -> Result<(), PageFaultErrorCode> {
        if !self.paging {
            return Ok(());
        }
        let allowed = if access.user {
            rights.user
                && match access.kind {
                    AccessKind::Read => true,
                    AccessKind::Write => rights.write,
                    AccessKind::Execute => rights.execute,
                }
        } else {
            // SMAP keeps explicit accesses out unless AC is set, implicit ones always.
            let prevented = self.smap && rights.user && (access.implicit || !ac);
            match access.kind {
                AccessKind::Read => !prevented,
                AccessKind::Write => !prevented && (rights.write || !self.wp),
                AccessKind::Execute => rights.execute && !(self.smep && rights.user),
            }
        };
        let key_refuses = rights.user && !access.is_execute() && self.key_refuses(rights.pkey, access);
        if allowed && !key_refuses {
            return Ok(());
        }
        let mut code = PageFaultErrorCode::P;
        code.set(PageFaultErrorCode::PK, key_refuses);
        Err(code)
    }

    /// Protection keys for user pages: data accesses only (SDM vol. 3A, 4.6.2).
    fn key_refuses(&self, pkey: u8, access: Access) -> bool {
        let bits = self.pkru >> (2 * u32::from(pkey & 15)) & 3;
        let (access_disabled, write_disabled) = (bits & 1 != 0, bits & 2 != 0);
        access_disabled || (access.is_write() && write_disabled && (access.user || self.wp))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OK: Option<u32> = None;
    const P: Option<u32> = Some(1);
    const PK: Option<u32> = Some(0x21);

    fn rights(text: &str) -> PageRights {
        PageRights {
            user: text.contains('u'),
            write: text.contains('w'),
            execute: text.contains('x'),
            pkey: if text.contains('1') { 1 } else { 0 },
        }
    }

    fn rules(text: &str) -> PermissionRules {
        let has = |word| text.split(' ').any(|w| w == word);
        PermissionRules {
            wp: has("wp"),
            smep: has("smep"),
            smap: has("smap"),
            pkru: (if has("ad1") { 0b0100 } else { 0 }) | (if has("wd1") { 0b1000 } else { 0 }),
            fetch_reported: true,
            paging: !has("nopaging"),
        }
    }

    /// SDM vol. 3A, 4.6.1 and 4.6.2, a row for each sentence. Columns: user read, write, fetch; supervisor read, write, fetch; the
    /// same with EFLAGS.AC (read, write); implicit read.
    #[test]
    fn the_matrix() {
        for (registers, page, expected) in [
            ("", "uwx", [OK, OK, OK, OK, OK, OK, OK, OK, OK]),
            ("", "ux", [OK, P, OK, OK, OK, OK, OK, OK, OK]),
            ("wp", "ux", [OK, P, OK, OK, P, OK, OK, P, OK]),
            ("wp", "uw", [OK, OK, P, OK, OK, P, OK, OK, OK]),
            ("wp", "wx", [P, P, P, OK, OK, OK, OK, OK, OK]),
            ("wp", "x", [P, P, P, OK, P, OK, OK, P, OK]),
            ("", "", [P, P, P, OK, OK, P, OK, OK, OK]),
            ("smep wp", "uwx", [OK, OK, OK, OK, OK, P, OK, OK, OK]),
            ("smep wp", "wx", [P, P, P, OK, OK, OK, OK, OK, OK]),
            ("smap wp", "uwx", [OK, OK, OK, P, P, OK, OK, OK, P]),
            ("smap", "ux", [OK, P, OK, P, P, OK, OK, OK, P]),
            ("smap wp", "ux", [OK, P, OK, P, P, OK, OK, P, P]),
            ("smap wp", "wx", [P, P, P, OK, OK, OK, OK, OK, OK]),
            ("ad1 wp", "uwx1", [PK, PK, OK, PK, PK, OK, PK, PK, PK]),
            ("wd1 wp", "uwx1", [OK, PK, OK, OK, PK, OK, OK, PK, OK]),
            ("wd1", "uwx1", [OK, PK, OK, OK, OK, OK, OK, OK, OK]),
            ("ad1 wd1 wp", "uwx", [OK, OK, OK, OK, OK, OK, OK, OK, OK]),
            ("ad1 wp", "wx1", [P, P, P, OK, OK, OK, OK, OK, OK]),
            ("wd1 wp", "ux1", [OK, PK, OK, OK, PK, OK, OK, PK, OK]),
            ("nopaging wp smep smap", "", [OK, OK, OK, OK, OK, OK, OK, OK, OK]),
        ] {
            let (rules, page_rights) = (rules(registers), rights(page));
            let accesses = [
                (Access::read(true), false),
                (Access::write(true), false),
                (Access::execute(true), false),
                (Access::read(false), false),
                (Access::write(false), false),
                (Access::execute(false), false),
                (Access::read(false), true),
                (Access::write(false), true),
                (Access::implicit(AccessKind::Read), true),
            ];
            let got =
                accesses.map(|(access, ac)| rules.check(page_rights, access, ac).err().map(|c| c.bits()));
            assert_eq!(got, expected, "registers: {registers}; page: {page}");
        }
    }

    #[test]
    fn what_counts_when() {
        let on = Cr0::PE | Cr0::PG | Cr0::WP;
        let long = Efer::LME | Efer::LMA;
        assert_eq!(PermissionRules::new(on, Cr4::PAE | Cr4::PKE, long, 5).pkru, 5);
        assert_eq!(PermissionRules::new(on, Cr4::PAE, long, 5).pkru, 0, "CR4.PKE is 0");
        assert_eq!(
            PermissionRules::new(on, Cr4::PAE | Cr4::PKE, Efer::empty(), 5).pkru,
            0,
            "not in long mode"
        );
        let fetch = |cr4, efer| {
            PermissionRules::new(on, cr4, efer, 0)
                .describe(Access::execute(false))
                .contains(PageFaultErrorCode::I)
        };
        assert!(!fetch(Cr4::PAE, Efer::empty()));
        assert!(fetch(Cr4::PAE, Efer::NXE));
        assert!(!fetch(Cr4::empty(), Efer::NXE), "NXE counts with PAE only");
        assert!(fetch(Cr4::SMEP, Efer::empty()));
    }
}
