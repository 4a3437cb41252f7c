//! Table tests of the integer families, against the host's processor and against plain models.

mod atomics;
mod encodings;
mod faults;
mod native;
mod port_io;
mod privileged;
mod stack;
mod string;
