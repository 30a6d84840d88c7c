use crate::{Batch, KvPages, Machine, MachineError, MachineInfo, MachineOptions, Program, Weights};

/// The reference machine: plain f32, one thread, the executable definition of every instruction.
#[derive(Debug)]
pub struct ReferenceMachine {}

impl ReferenceMachine {
    /// Decodes the weights to f32 and takes all buffers.
    ///
    /// # Errors
    /// Weights that cannot be had, and options that the model or this machine does not support.
    pub fn new(_weights: &dyn Weights, _options: &MachineOptions) -> Result<Self, MachineError> {
        todo!()
    }
}

impl Machine for ReferenceMachine {
    fn info(&self) -> MachineInfo {
        todo!()
    }

    fn program(&self) -> &Program {
        todo!()
    }

    fn options(&self) -> &MachineOptions {
        todo!()
    }

    fn kv(&self) -> &KvPages {
        todo!()
    }

    fn kv_mut(&mut self) -> &mut KvPages {
        todo!()
    }

    fn run(&mut self, _batch: &Batch<'_>, _logits: &mut [f32]) -> Result<(), MachineError> {
        todo!()
    }
}
