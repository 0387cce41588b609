//! How the calling thread rounds: ONNX Runtime has its own threads flush denormals to zero, and the one that opens a
//! process's first session, for good.

#![allow(unsafe_code)] // a register that the standard library has no words for

/// Gives the thread back the mode that it had.
pub(super) struct FloatMode {
    #[cfg(target_arch = "x86_64")]
    before: u32,
}

impl FloatMode {
    /// Whatever is done meanwhile, the mode stays what it is.
    pub(super) fn kept() -> Self {
        Self {
            #[cfg(target_arch = "x86_64")]
            before: x86::read(),
        }
    }

    /// As ONNX Runtime's own threads: denormals are read and written as zero.
    pub(super) fn flushing() -> Self {
        let kept = Self::kept();
        #[cfg(target_arch = "x86_64")]
        x86::write(kept.before | x86::FLUSH_TO_ZERO | x86::DENORMALS_ARE_ZERO);
        kept
    }
}

impl Drop for FloatMode {
    fn drop(&mut self) {
        #[cfg(target_arch = "x86_64")]
        x86::write(self.before);
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::asm;

    pub(super) const FLUSH_TO_ZERO: u32 = 1 << 15;
    pub(super) const DENORMALS_ARE_ZERO: u32 = 1 << 6;

    pub(super) fn read() -> u32 {
        let mut mode = 0u32;
        // SAFETY: stores the register into four bytes of ours.
        unsafe { asm!("stmxcsr [{}]", in(reg) &raw mut mode, options(nostack, preserves_flags)) };
        mode
    }

    pub(super) fn write(mode: u32) {
        // SAFETY: loads the register from four bytes of ours: a mode that was read, or one with two bits more that every
        // CPU of this architecture has. No code of ours relies on denormals: ONNX Runtime's threads run it in either mode.
        unsafe { asm!("ldmxcsr [{}]", in(reg) &raw const mode, options(nostack, preserves_flags)) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn half_of_the_smallest() -> f64 {
        std::hint::black_box(f64::MIN_POSITIVE) * std::hint::black_box(0.5)
    }

    #[test]
    fn a_mode_ends_with_its_value() {
        assert!(half_of_the_smallest() > 0.0);
        let flushing = FloatMode::flushing();
        let within = half_of_the_smallest();
        drop(flushing);
        assert_eq!(within, 0.0);
        assert!(half_of_the_smallest() > 0.0);
    }

    /// A host's threads round as before, whatever of ours they call.
    #[test]
    fn engines_leave_the_mode_as_it_is() {
        let model = reasoning_rpc_test_support::model("golden/qwen2_p32-cached");
        let work = move || {
            let engine = crate::Engine::open(&crate::EngineOptions::new(model)).unwrap();
            assert!(half_of_the_smallest() > 0.0, "opening");
            let mut sequence = engine
                .sequence(crate::SequenceOptions {
                    policy: std::sync::Arc::new(reasoning_rpc_core::NoCompression),
                    sampling: crate::sampling::SamplingOptions::GREEDY,
                    record_kept: false,
                })
                .unwrap();
            sequence.append_tokens(&[1, 2, 3]).unwrap();
            engine.step(&mut [&mut sequence]).unwrap();
            assert!(half_of_the_smallest() > 0.0, "a step");
        };
        std::thread::spawn(work).join().unwrap();
    }
}
