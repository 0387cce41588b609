use crate::error::Error;
use crate::vector::{Kernel, Portable};
use std::fmt;

/// Environment variable read by [`Simd::from_env`]: `portable`, `avx2` or `avx512`.
pub const SIMD_ENV: &str = "RRPC_SIMD";

/// An instruction set that every operation has a path for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Simd {
    /// Plain Rust, whatever the target's baseline gives.
    Portable,
    /// AVX2 with FMA and F16C.
    Avx2,
    /// AVX-512 F, BW, VL and DQ, with what `Avx2` needs.
    Avx512,
}

impl Simd {
    /// All of them, slowest first.
    pub const ALL: [Simd; 3] = [Simd::Portable, Simd::Avx2, Simd::Avx512];

    /// Whether this CPU, its operating system and this build can run it.
    #[inline]
    pub fn is_available(self) -> bool {
        match self {
            Simd::Portable => true,
            #[cfg(target_arch = "x86_64")]
            Simd::Avx2 => {
                is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("f16c")
            }
            #[cfg(target_arch = "x86_64")]
            Simd::Avx512 => {
                Simd::Avx2.is_available()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512dq")
            }
            #[cfg(not(target_arch = "x86_64"))]
            _ => false,
        }
    }

    /// The fastest one available.
    pub fn best() -> Simd {
        *Simd::ALL
            .iter()
            .rev()
            .find(|simd| simd.is_available())
            .unwrap_or(&Simd::Portable)
    }

    /// The one named by `RRPC_SIMD`, or [`Simd::best`] when that is not set.
    ///
    /// # Errors
    /// [`SimdError`] when the variable holds anything but a name of an available one.
    pub fn from_env() -> Result<Simd, SimdError> {
        match std::env::var_os(SIMD_ENV) {
            None => Ok(Simd::best()),
            Some(value) => Simd::parse(&value.to_string_lossy()),
        }
    }

    /// The one of that name (exactly as [`Simd::name`] gives it), if this CPU has it.
    ///
    /// # Errors
    /// [`SimdError::Unknown`] for another name, [`SimdError::Unavailable`] when this CPU lacks it.
    pub fn parse(name: &str) -> Result<Simd, SimdError> {
        match Simd::ALL.into_iter().find(|simd| simd.name() == name) {
            None => Err(SimdError::Unknown {
                name: name.to_owned(),
            }),
            Some(simd) if simd.is_available() => Ok(simd),
            Some(simd) => Err(SimdError::Unavailable { simd }),
        }
    }

    /// `portable`, `avx2` or `avx512`.
    pub fn name(self) -> &'static str {
        match self {
            Simd::Portable => "portable",
            Simd::Avx2 => "avx2",
            Simd::Avx512 => "avx512",
        }
    }

    /// [`Error::SimdUnavailable`] unless it can run here.
    #[inline]
    pub(crate) fn check(self) -> Result<(), Error> {
        if self.is_available() {
            Ok(())
        } else {
            Err(Error::SimdUnavailable { simd: self })
        }
    }

    /// Runs `kernel` compiled for this instruction set.
    ///
    /// # Safety
    /// The set is available, and the kernel's own arguments meet its contract.
    #[inline]
    pub(crate) unsafe fn run<K: Kernel>(self, kernel: K) -> K::Output {
        // SAFETY: the caller vouches for the instruction set and for the kernel's arguments.
        unsafe {
            match self {
                Simd::Portable => kernel.run::<Portable>(),
                #[cfg(target_arch = "x86_64")]
                Simd::Avx2 => run_avx2(kernel),
                #[cfg(target_arch = "x86_64")]
                Simd::Avx512 => run_avx512(kernel),
                #[cfg(not(target_arch = "x86_64"))]
                _ => kernel.run::<Portable>(),
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
#[inline(never)]
pub(crate) unsafe fn run_avx2<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: as for `Simd::run`; this function's features are those of the vector.
    unsafe { kernel.run::<crate::vector::Avx2>() }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq")]
#[inline(never)]
pub(crate) unsafe fn run_avx512<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: as for `Simd::run`; this function's features are those of the vector.
    unsafe { kernel.run::<crate::vector::Avx512>() }
}

/// Why an instruction set asked for by name cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SimdError {
    /// No instruction set of that name.
    Unknown {
        /// The name given.
        name: String,
    },
    /// This CPU or build lacks it.
    Unavailable {
        /// The set asked for.
        simd: Simd,
    },
}

impl fmt::Display for SimdError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SimdError::Unknown { name } => write!(
                f,
                "unknown instruction set {name:?}: expected portable, avx2 or avx512"
            ),
            SimdError::Unavailable { simd } => {
                write!(
                    f,
                    "this CPU or build cannot run {}; its best is {}",
                    simd.name(),
                    Simd::best().name()
                )
            }
        }
    }
}

impl std::error::Error for SimdError {}
