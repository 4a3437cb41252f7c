//! What softkvm's tests share: skips that are told, and the workspace's shape.
//!
//! The tests themselves are in `tests/tests/`, a file per subject. Unit tests stand beside the code that they test.

pub mod client;
pub mod fuzz;
pub mod getset;
pub mod guest;
pub mod ioctl_fuzz;
pub mod ioctls;
pub mod machine;
pub mod oracle;
pub mod program;
pub mod skip;
pub mod workspace;
