//! A shadow page's role: what, besides its gfn, decides whether it can be used (mmu.txt, "Shadow pages").
//!
//! Packed into one word, because the role is half of the key under which shadow pages are found.

use crate::perm::PageRights;
use crate::walk::PagingContext;
use core::fmt;
use x86_arch::PagingMode;

/// mmu.txt's `role`, with the later kernels' bits that our modes need.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Role(u32);

macro_rules! flag {
    ($(#[$doc:meta])* $get:ident, $with:ident, $bit:literal) => {
        $(#[$doc])*
        pub const fn $get(self) -> bool {
            self.0 >> $bit & 1 != 0
        }

        /// This role with that bit set or clear.
        #[must_use]
        pub const fn $with(self, on: bool) -> Role {
            Role(self.0 & !(1 << $bit) | (on as u32) << $bit)
        }
    };
}

impl Role {
    /// 1: 4 KiB sptes; 2: 2 MiB; and so on.
    pub const fn level(self) -> u8 {
        (self.0 & 0xf) as u8
    }

    /// This role at another level.
    #[must_use]
    pub const fn with_level(self, level: u8) -> Role {
        Role(self.0 & !0xf | level as u32 & 0xf)
    }

    /// With 4-byte gptes: which part of the guest's table this page shadows.
    pub const fn quadrant(self) -> u8 {
        (self.0 >> 4 & 3) as u8
    }

    /// This role for another quadrant.
    #[must_use]
    pub const fn with_quadrant(self, quadrant: u8) -> Role {
        Role(self.0 & !0x30 | (quadrant as u32 & 3) << 4)
    }

    /// Inherited access: bit 0 execute, bit 1 write, bit 2 user.
    pub const fn access(self) -> u8 {
        (self.0 >> 6 & 7) as u8
    }

    /// This role with the rights that the levels above grant.
    #[must_use]
    pub const fn with_access(self, rights: PageRights) -> Role {
        let access = rights.execute as u32 | (rights.write as u32) << 1 | (rights.user as u32) << 2;
        Role(self.0 & !0x1c0 | access << 6)
    }

    flag!(
        /// The leaf sptes reachable from here are a linear range.
        direct, with_direct, 9
    );
    flag!(
        /// Unusable, and only here because a vCPU's root still points at it.
        invalid, with_invalid, 10
    );
    flag!(
        /// CR4.PAE: gptes are 8 bytes wide.
        cr4_pae, with_cr4_pae, 11
    );
    flag!(
        /// EFER.NXE.
        nxe, with_nxe, 12
    );
    flag!(
        /// CR0.WP.
        cr0_wp, with_cr0_wp, 13
    );
    flag!(
        /// CR4.SMEP without CR0.WP.
        smep_andnot_wp, with_smep_andnot_wp, 14
    );
    flag!(
        /// CR4.SMAP without CR0.WP.
        smap_andnot_wp, with_smap_andnot_wp, 15
    );
    flag!(
        /// CR4.PSE, which makes large pages of 4-byte gptes.
        cr4_pse, with_cr4_pse, 16
    );
    flag!(
        /// EFER.LMA: the gptes of 4- and 5-level paging have protection keys and other reserved bits than PAE's.
        lma, with_lma, 17
    );
    flag!(
        /// The address space is system-management mode's.
        smm, with_smm, 18
    );

    /// Direct pages: the protection key of the large page that the linear range is part of.
    pub const fn pkey(self) -> u8 {
        (self.0 >> 19 & 15) as u8
    }

    /// This role with a protection key.
    #[must_use]
    pub const fn with_pkey(self, pkey: u8) -> Role {
        Role(self.0 & !(15 << 19) | (pkey as u32 & 15) << 19)
    }

    /// This role for a physical-address width, which decides about reserved bits. vCPUs of one VM have the same, as a rule.
    #[must_use]
    const fn with_maxphyaddr(self, bits: u8) -> Role {
        Role(self.0 & !(0x3f << 23) | (bits as u32 & 0x3f) << 23)
    }

    /// What all pages of one context have in common.
    pub fn base(context: &PagingContext, as_id: u16) -> Role {
        let base = Role(0).with_smm(as_id != 0);
        if context.mode == PagingMode::None {
            return base.with_direct(true).with_access(PageRights::ALL);
        }
        let rules = &context.rules;
        base.with_access(PageRights::ALL)
            .with_cr4_pae(context.wide())
            .with_nxe(context.nxe)
            .with_cr0_wp(rules.wp)
            .with_smep_andnot_wp(rules.smep && !rules.wp)
            .with_smap_andnot_wp(rules.smap && !rules.wp)
            .with_cr4_pse(context.pse && !context.wide())
            .with_maxphyaddr(if context.wide() || context.pse { context.maxphyaddr } else { 0 })
            .with_lma(matches!(context.mode, PagingMode::Level4 | PagingMode::Level5))
    }

    /// The address space.
    pub const fn as_id(self) -> u16 {
        self.smm() as u16
    }
}

impl fmt::Debug for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let access = self.access();
        let letter = |bit: u8, letter: char| if access >> bit & 1 != 0 { letter } else { '-' };
        write!(f, "L{}{}{}{}", self.level(), letter(2, 'u'), letter(1, 'w'), letter(0, 'x'))?;
        if !self.cr4_pae() && !self.direct() {
            write!(f, " q{}", self.quadrant())?;
        }
        if self.pkey() != 0 {
            write!(f, " key{}", self.pkey())?;
        }
        for (on, name) in [
            (self.direct(), "direct"),
            (self.invalid(), "invalid"),
            (self.cr4_pae(), "pae"),
            (self.nxe(), "nxe"),
            (self.cr0_wp(), "wp"),
            (self.smep_andnot_wp(), "smep!wp"),
            (self.smap_andnot_wp(), "smap!wp"),
            (self.cr4_pse(), "pse"),
            (self.lma(), "lma"),
            (self.smm(), "smm"),
        ] {
            if on {
                write!(f, " {name}")?;
            }
        }
        Ok(())
    }
}
