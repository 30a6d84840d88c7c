use upg_codec::Isa;
use upg_pdvm::{
    Batch, KvPages, Machine, MachineError, MachineInfo, MachineOptions, Program, Weights, lower,
};

/// The CPU machine.
pub struct CpuMachine {
    program: Program,
    options: MachineOptions,
    pages: KvPages,
}

impl CpuMachine {
    /// Loads `weights` in the layout that `isa` wants; `progress` is told the fraction done, from 0 to 1.
    ///
    /// # Errors
    /// Where the weights cannot be had, or the options make no sense.
    pub fn new(
        weights: &dyn Weights,
        options: &MachineOptions,
        isa: Isa,
        progress: &mut dyn FnMut(f32),
    ) -> Result<Self, MachineError> {
        let _ = isa;
        progress(1.0);
        Ok(Self {
            program: lower(weights.config()),
            options: options.clone(),
            pages: KvPages::new(options.context, options.sequences),
        })
    }
}

impl Machine for CpuMachine {
    fn info(&self) -> MachineInfo {
        MachineInfo { name: "cpu", detail: String::new(), weight_bytes: 0, kv_bytes_per_token: 0 }
    }

    fn program(&self) -> &Program {
        &self.program
    }

    fn options(&self) -> &MachineOptions {
        &self.options
    }

    fn kv(&self) -> &KvPages {
        &self.pages
    }

    fn kv_mut(&mut self) -> &mut KvPages {
        &mut self.pages
    }

    fn run(&mut self, _batch: &Batch<'_>, _logits: &mut [f32]) -> Result<(), MachineError> {
        Err(MachineError::Unsupported("the CPU machine is under construction".into()))
    }
}
