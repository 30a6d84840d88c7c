use std::str::FromStr;

/// An instruction-set path. Chosen once at run time, never by build flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Isa {
    /// Plain Rust: the oracle.
    Scalar,
    /// 64-bit Arm with NEON.
    Neon,
    /// [`Isa::Neon`] with the dot products of Armv8.2 (`dotprod`).
    NeonDot,
    /// x86-64 with AVX2, FMA and F16C.
    Avx2,
    /// [`Isa::Avx2`] with AVX-VNNI and GFNI, which every processor that has the one has.
    AvxVnni,
    /// x86-64 with AVX-512 F, BW, VL, VBMI and VNNI.
    Avx512,
}

/// Why a path cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IsaError {
    /// The name is none of the known ones.
    #[error("unknown instruction set {0:?}: use one of scalar, neon, neon-dot, avx2, avx-vnni, avx512")]
    Unknown(String),
    /// This processor lacks it.
    #[error("this processor has no {}: unset UPG_ISA or use one of {}", .0.name(), names(&Isa::available()))]
    Unavailable(Isa),
}

impl Isa {
    /// Every path, the slowest of an architecture first.
    pub const ALL: [Isa; 6] = [Isa::Scalar, Isa::Neon, Isa::NeonDot, Isa::Avx2, Isa::AvxVnni, Isa::Avx512];

    /// The path's name, as `UPG_ISA` takes it.
    pub const fn name(self) -> &'static str {
        match self {
            Isa::Scalar => "scalar",
            Isa::Neon => "neon",
            Isa::NeonDot => "neon-dot",
            Isa::Avx2 => "avx2",
            Isa::AvxVnni => "avx-vnni",
            Isa::Avx512 => "avx512",
        }
    }

    /// Whether this processor (and operating system) can run the path.
    pub fn is_available(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c");
            match self {
                Isa::Scalar => true,
                Isa::Neon | Isa::NeonDot => false,
                Isa::Avx2 => avx2,
                Isa::AvxVnni => {
                    avx2 && is_x86_feature_detected!("avxvnni") && is_x86_feature_detected!("gfni")
                }
                Isa::Avx512 => {
                    avx2 && is_x86_feature_detected!("avx512f")
                        && is_x86_feature_detected!("avx512bw")
                        && is_x86_feature_detected!("avx512vl")
                        && is_x86_feature_detected!("avx512vbmi")
                        && is_x86_feature_detected!("avx512vnni")
                }
            }
        }
        #[cfg(target_arch = "aarch64")]
        {
            use std::arch::is_aarch64_feature_detected;
            match self {
                Isa::Scalar => true,
                Isa::Neon => is_aarch64_feature_detected!("neon"),
                Isa::NeonDot => {
                    is_aarch64_feature_detected!("neon") && is_aarch64_feature_detected!("dotprod")
                }
                Isa::Avx2 | Isa::AvxVnni | Isa::Avx512 => false,
            }
        }
        #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
        {
            self == Isa::Scalar
        }
    }

    /// The paths that this processor can run, slowest first: what tests iterate over.
    pub fn available() -> Vec<Isa> {
        Self::ALL.into_iter().filter(|isa| isa.is_available()).collect()
    }

    /// The fastest available path.
    pub fn best() -> Isa {
        Self::ALL.into_iter().rev().find(|isa| isa.is_available()).unwrap_or(Isa::Scalar)
    }

    /// What `UPG_ISA` asks for, or the fastest path where it is unset.
    ///
    /// # Errors
    /// Where `UPG_ISA` names an unknown path or one that this processor lacks.
    pub fn from_env() -> Result<Isa, IsaError> {
        match std::env::var("UPG_ISA") {
            Ok(name) => name.parse(),
            Err(_) => Ok(Self::best()),
        }
    }
}

impl FromStr for Isa {
    type Err = IsaError;

    fn from_str(name: &str) -> Result<Self, IsaError> {
        let isa = Self::ALL.into_iter().find(|isa| isa.name() == name);
        let isa = isa.ok_or_else(|| IsaError::Unknown(name.to_owned()))?;
        if isa.is_available() { Ok(isa) } else { Err(IsaError::Unavailable(isa)) }
    }
}

fn names(isas: &[Isa]) -> String {
    isas.iter().map(|isa| isa.name()).collect::<Vec<_>>().join(", ")
}
