//! Exceptions: vectors, classes and the double-fault table (SDM vol. 3A, 6.3, 6.15).

/// An exception or interrupt vector with a name of its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[repr(u8)]
pub enum Vector {
    /// #DE, divide error.
    De = 0,
    /// #DB, debug.
    Db = 1,
    /// Non-maskable interrupt.
    Nmi = 2,
    /// #BP, breakpoint.
    Bp = 3,
    /// #OF, overflow.
    Of = 4,
    /// #BR, bound range exceeded.
    Br = 5,
    /// #UD, invalid opcode.
    Ud = 6,
    /// #NM, device not available.
    Nm = 7,
    /// #DF, double fault.
    Df = 8,
    /// #TS, invalid TSS.
    Ts = 10,
    /// #NP, segment not present.
    Np = 11,
    /// #SS, stack fault.
    Ss = 12,
    /// #GP, general protection.
    Gp = 13,
    /// #PF, page fault.
    Pf = 14,
    /// #MF, x87 floating-point error.
    Mf = 16,
    /// #AC, alignment check.
    Ac = 17,
    /// #MC, machine check.
    Mc = 18,
    /// #XM, SIMD floating-point exception.
    Xm = 19,
}

impl Vector {
    /// The named exception with this number.
    pub const fn from_number(n: u8) -> Option<Vector> {
        Some(match n {
            0 => Vector::De,
            1 => Vector::Db,
            2 => Vector::Nmi,
            3 => Vector::Bp,
            4 => Vector::Of,
            5 => Vector::Br,
            6 => Vector::Ud,
            7 => Vector::Nm,
            8 => Vector::Df,
            10 => Vector::Ts,
            11 => Vector::Np,
            12 => Vector::Ss,
            13 => Vector::Gp,
            14 => Vector::Pf,
            16 => Vector::Mf,
            17 => Vector::Ac,
            18 => Vector::Mc,
            19 => Vector::Xm,
            _ => return None,
        })
    }

    /// Whether delivery pushes an error code.
    pub const fn has_error_code(self) -> bool {
        matches!(
            self,
            Vector::Df | Vector::Ts | Vector::Np | Vector::Ss | Vector::Gp | Vector::Pf | Vector::Ac
        )
    }

    /// The class for the double-fault table (SDM vol. 3A, table 6-4).
    pub const fn class(self) -> Class {
        match self {
            Vector::De | Vector::Ts | Vector::Np | Vector::Ss | Vector::Gp => Class::Contributory,
            Vector::Pf => Class::PageFault,
            _ => Class::Benign,
        }
    }
}

/// The classes of SDM vol. 3A, table 6-4.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Class {
    /// Handled serially.
    Benign,
    /// Two of these make a double fault.
    Contributory,
    /// #PF: followed by itself or a contributory exception it makes a double fault.
    PageFault,
}

/// What a second event makes of a first (SDM vol. 3A, table 6-5).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Escalation {
    /// Handle the second one; the first happens again when its instruction is restarted.
    Serial,
    /// Deliver #DF instead.
    DoubleFault,
    /// Shut down: a triple fault.
    Shutdown,
}

/// SDM vol. 3A, table 6-5. `first` is the exception whose delivery raised `second`.
pub const fn escalate(first: Vector, second: Vector) -> Escalation {
    match (first, first.class(), second.class()) {
        (Vector::Df, _, Class::Contributory | Class::PageFault) => Escalation::Shutdown,
        (_, Class::Contributory, Class::Contributory) => Escalation::DoubleFault,
        (_, Class::PageFault, Class::Contributory | Class::PageFault) => Escalation::DoubleFault,
        _ => Escalation::Serial,
    }
}

/// An exception that an instruction raised: what will be delivered.
///
/// The faulting linear address of a #PF travels beside it and becomes CR2 at delivery.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Exception {
    /// Which exception.
    pub vector: Vector,
    /// The error code to push, for those that have one.
    pub error_code: u32,
}

impl Exception {
    /// An exception without an error code (or with a zero one).
    #[inline(always)]
    pub const fn new(vector: Vector) -> Exception {
        Exception { vector, error_code: 0 }
    }

    /// An exception with an error code.
    #[inline(always)]
    pub const fn with_code(vector: Vector, error_code: u32) -> Exception {
        Exception { vector, error_code }
    }

    /// #UD.
    pub const UD: Exception = Exception::new(Vector::Ud);
    /// #NM.
    pub const NM: Exception = Exception::new(Vector::Nm);
    /// #DE.
    pub const DE: Exception = Exception::new(Vector::De);
    /// #GP(0).
    pub const GP0: Exception = Exception::new(Vector::Gp);
    /// #SS(0).
    pub const SS0: Exception = Exception::new(Vector::Ss);
}
