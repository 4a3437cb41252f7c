//! Tests of the whole: the walker and the shadow MMU against the naive walker, each event by itself, threads under stress.

mod events;
mod shadowing;
mod threads;

mod walking;
