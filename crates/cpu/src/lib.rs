//! The CPU machine: runs the program with T8 kernels in AVX-512, AVX2 or scalar code on pinned threads.

mod machine;

pub use machine::CpuMachine;
