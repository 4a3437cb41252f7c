//! Tests of the whole: the walker and the shadow MMU against the naive walker, exclusive sections under stress.

mod shadowing;
mod walking;
