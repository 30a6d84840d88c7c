//! What an adapter offers, as far as shaders differ by it, and how they are made for it.

use crate::{code::Arithmetic, gemm::Cells, gemv};

/// How shaders are made, for tests and measurements; `None`: as suits the adapter.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tuning {
    /// Sums over subgroups where the adapter has them, or never.
    pub subgroups: Option<bool>,
    /// Products in packed bytes rather than in 32-bit floats.
    pub packed: Option<bool>,
    /// Copies of a look-up table in workgroup memory: a power of two up to 32.
    pub copies: Option<usize>,
    /// Workgroups that a dispatch for one token is given.
    pub workgroups: Option<usize>,
    /// Several teams of threads in a workgroup for one token, or one.
    pub teams: Option<bool>,
    /// Prompts by cooperative matrices where the adapter has them, or never.
    pub matrices: Option<bool>,
    /// Linears by the plain shader that the fast ones are held to.
    pub plain: bool,
    /// Whether the driver's code checks every index and loop.
    pub checked: bool,
}

/// Which subgroups the adapter runs a workgroup as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Subgroups {
    /// The shaders use none.
    None,
    /// Of so many threads, a power of two and at least 8.
    Fixed(usize),
    /// Of different sizes.
    Varying { smallest: usize, largest: usize },
}

impl Subgroups {
    pub(crate) fn of(info: &wgpu::AdapterInfo) -> Self {
        let [smallest, largest] = [info.subgroup_min_size, info.subgroup_max_size].map(|n| n.max(1) as usize);
        if smallest == largest && largest >= 8 && largest.is_power_of_two() {
            Self::Fixed(largest)
        } else {
            Self::Varying { smallest, largest }
        }
    }

    /// Threads of the smallest; where there are none, of what is summed in their stead.
    pub(crate) fn smallest(self) -> usize {
        match self {
            Self::None => 8,
            Self::Fixed(threads) | Self::Varying { smallest: threads, .. } => threads,
        }
    }

    pub(crate) fn largest(self) -> usize {
        match self {
            Self::None => 8,
            Self::Fixed(threads) | Self::Varying { largest: threads, .. } => threads,
        }
    }
}

/// What the adapter offers, as far as shaders differ by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Target {
    pub subgroups: Subgroups,
    /// How products with activations are computed.
    pub arithmetic: Arithmetic,
    /// Copies of a look-up table in workgroup memory, a power of two up to 32.
    pub copies: usize,
    /// The most threads of a workgroup.
    pub most_threads: usize,
    /// Whether several teams of threads share a workgroup, where a dispatch is for one token.
    pub teams: bool,
    /// Whether there are cooperative matrices of 16 by 16, f16 with sums in f32, and subgroups of 32.
    pub matrices: bool,
    /// What a thread has of a tile of many tokens.
    pub cells: Cells,
    /// Workgroup memory, in bytes.
    pub workgroup_bytes: usize,
    /// Whether linears run plainly.
    pub plain: bool,
}

impl Target {
    /// For an adapter, where `tuning` does not say.
    pub(crate) fn new(
        info: &wgpu::AdapterInfo,
        limits: &wgpu::Limits,
        tuning: Tuning,
        subgroups: Subgroups,
        matrices: bool,
    ) -> Self {
        // Metal has no product of packed bytes; elsewhere drivers have, or make one of a few instructions.
        let packed = tuning.packed.unwrap_or(info.backend != wgpu::Backend::Metal);
        // On Metal a workgroup of many threads may not get the registers it needs.
        let discrete = info.device_type == wgpu::DeviceType::DiscreteGpu;
        let teams = tuning.teams.unwrap_or(packed && discrete) && matches!(subgroups, Subgroups::Fixed(_));
        let usual_copies = match info.device_type {
            wgpu::DeviceType::Cpu => 1,
            _ if teams && limits.max_compute_workgroup_storage_size as usize >= gemv::LARGE => 32,
            _ if teams => 16,
            _ => 4,
        };
        Self {
            subgroups,
            matrices,
            workgroup_bytes: limits.max_compute_workgroup_storage_size as usize,
            arithmetic: if packed { Arithmetic::Packed } else { Arithmetic::Float },
            copies: tuning.copies.unwrap_or(usual_copies),
            most_threads: limits.max_compute_invocations_per_workgroup as usize,
            teams,
            cells: match info.device_type {
                wgpu::DeviceType::Cpu => Cells::EMULATED,
                _ => Cells::USUAL,
            },
            plain: tuning.plain,
        }
    }
}
