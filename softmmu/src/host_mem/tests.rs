//! Faults under access give `HostFault` and nothing worse.
