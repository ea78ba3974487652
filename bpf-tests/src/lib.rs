//! Packet tests of Tulle's programs: a reference model, random worlds and
//! packets, and the loaded programs behind the same trait as the model. And
//! the benchmarks.

pub mod bench;
pub mod cases;
pub mod engine;
pub mod load;
pub mod model;
pub mod packet;
pub mod strategies;
pub mod time;
