//! What `safepoint` is built on: atomics, a lock, a condition, a futex.
//!
//! A file of its own so that `tests/safepoint_loom.rs` can put a model checker's in their place. Not here: how they are used.

pub(crate) use crate::futex;
pub(crate) use parking_lot::{Condvar, Mutex};
pub(crate) use std::sync::atomic::{AtomicU32, AtomicU64};
