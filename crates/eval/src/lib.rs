//! What compression costs on tasks: problems, checkers, a sandbox for programs, answers that are kept, paired
//! statistics, reports; the redundancy of texts; and the speed and memory of long answers.

pub mod analysis;
pub mod answers;
pub mod check;
pub mod entropy;
mod error;
pub mod plot;
pub mod problems;
pub mod report;
pub mod run;
pub mod sandbox;
pub mod statistics;
pub mod summary;
pub mod sweep;

pub use error::{Error, Result};
