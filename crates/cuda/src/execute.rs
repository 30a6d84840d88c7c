//! The two ways to run the program over one token: a persistent kernel, or a graph of one launch an instruction.

use std::{ffi::c_void, ptr};

use cudarc::driver::sys::{self, CUdeviceptr};
use upg_pdvm::MachineError;

use crate::{
    abi::{Run, Sizes},
    driver::{Device, Kernel, check},
    plan::Block,
};

/// How the program is executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Execution {
    /// The whole program in one cooperative kernel.
    Persistent,
    /// A CUDA graph of one launch an instruction, each begun while the one before it ends where the card can.
    Graph,
}

impl Execution {
    /// Its name, as `UPG_CUDA` takes it.
    pub const fn name(self) -> &'static str {
        match self {
            Execution::Persistent => "persistent",
            Execution::Graph => "graph",
        }
    }
}

/// The kernels' launches.
pub(crate) struct Launcher {
    pub program: Kernel,
    pub instruction: Kernel,
    /// Chooses the likeliest token.
    pub likeliest: Kernel,
    pub grid: usize,
    pub block: Block,
    /// Whether a launch may begin before the one before it has ended.
    pub overlap: bool,
}

impl Launcher {
    /// Starts the persistent kernel.
    pub(crate) fn persistent(&self, device: &Device, run: &Run) -> Result<(), MachineError> {
        device.count(1);
        let (mut run, mut sizes) = (*run, self.block.sizes);
        let mut arguments = [(&raw mut run).cast::<c_void>(), (&raw mut sizes).cast()];
        // SAFETY: the arguments are those of `run_program` in `kernels/decode.cu`, whose sizes the compilation checked;
        // the launch copies them. The buffers that they name live as long as the machine.
        let result = unsafe {
            sys::cuLaunchCooperativeKernel(
                self.program.0,
                self.grid as u32,
                1,
                1,
                (self.block.warps * 32) as u32,
                1,
                1,
                self.block.shared as u32,
                device.stream(),
                arguments.as_mut_ptr(),
            )
        };
        check(result, "starting the persistent kernel")
    }

    /// Starts the choice of the likeliest of `vocab` tokens: written to `next`, where a run finds its token, and to `found`.
    pub(crate) fn choose(
        &self,
        device: &Device,
        (logits, vocab): (CUdeviceptr, usize),
        vote: CUdeviceptr,
        next: CUdeviceptr,
        found: CUdeviceptr,
    ) -> Result<(), MachineError> {
        const BLOCKS: usize = 64;
        const THREADS: usize = 256;
        let (mut logits, mut vocab, mut vote, mut next, mut found) =
            (logits, vocab as i32, vote, next, found);
        let mut arguments = [
            (&raw mut logits).cast::<c_void>(),
            (&raw mut vocab).cast(),
            (&raw mut vote).cast(),
            (&raw mut next).cast(),
            (&raw mut found).cast(),
        ];
        // SAFETY: the arguments are those of `likeliest` in `kernels/decode.cu`; the caller's buffers outlive the run.
        unsafe { self.likeliest.launch(device, [BLOCKS, 1, 1], THREADS, 0, &mut arguments) }
    }

    /// Starts instruction `i` alone.
    fn one(&self, device: &Device, run: &Run, i: usize) -> Result<(), MachineError> {
        let id = sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
        let value = sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 };
        let mut attribute = sys::CUlaunchAttribute { id, pad: [0; 4], value };
        let config = sys::CUlaunchConfig {
            gridDimX: self.grid as u32,
            gridDimY: 1,
            gridDimZ: 1,
            blockDimX: (self.block.warps * 32) as u32,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: self.block.shared as u32,
            hStream: device.stream(),
            attrs: &raw mut attribute,
            numAttrs: self.overlap.into(),
        };
        let (mut run, mut i, mut sizes): (Run, i32, Sizes) = (*run, i as i32, self.block.sizes);
        let mut arguments = [(&raw mut run).cast::<c_void>(), (&raw mut i).cast(), (&raw mut sizes).cast()];
        // SAFETY: as above, for `run_instruction`.
        let result = unsafe {
            sys::cuLaunchKernelEx(&config, self.instruction.0, arguments.as_mut_ptr(), ptr::null_mut())
        };
        check(result, "starting an instruction")
    }
}

/// An instantiated CUDA graph of a program's first instructions.
pub(crate) struct Graph {
    executable: sys::CUgraphExec,
    launches: usize,
}

// SAFETY: it may be launched from any thread in which its context is current.
unsafe impl Send for Graph {}

impl Graph {
    /// Records the instructions of `run`.
    pub(crate) fn record(device: &Device, launcher: &Launcher, run: &Run) -> Result<Self, MachineError> {
        let (mut graph, mut executable) = (ptr::null_mut(), ptr::null_mut());
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream is alive and captures nothing else; the graph is ours to destroy.
        unsafe {
            check(sys::cuStreamBeginCapture_v2(device.stream(), mode), "recording the graph")?;
            let launched = (0..run.instructions as usize).try_for_each(|i| launcher.one(device, run, i));
            let ended = check(sys::cuStreamEndCapture(device.stream(), &mut graph), "recording the graph");
            launched.and(ended)?;
            let made = sys::cuGraphInstantiateWithFlags(&mut executable, graph, 0);
            sys::cuGraphDestroy(graph);
            check(made, "making the graph")?;
        }
        Ok(Self { executable, launches: run.instructions as usize })
    }

    /// Starts it.
    pub(crate) fn launch(&self, device: &Device) -> Result<(), MachineError> {
        device.count(self.launches);
        // SAFETY: graph and stream are alive, and so are the buffers that the graph's kernels use.
        check(unsafe { sys::cuGraphLaunch(self.executable, device.stream()) }, "starting the graph")
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: whoever drops it has waited for it.
        unsafe { sys::cuGraphExecDestroy(self.executable) };
    }
}
