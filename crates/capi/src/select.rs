//! A callback that chooses what sequences keep, as a policy.

use std::ffi::c_void;
use std::sync::{Arc, OnceLock};

use reasoning_rpc_engine::core::{
    LayerPlan, LayerView, PlanError, Policy, Schedule, ScoreRule, Softmax, Spec, Trigger,
};

/// What a callback that selects is shown of one layer of a sequence, and where it answers. Lists of candidates are those
/// of every KV head, one head after the other, each from the oldest to the newest.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct rrpc_sequence_select_request {
    /// The size of what the library passes; fields at and behind it are not there.
    pub struct_size: usize,
    /// How many candidates each KV head has, `kv_heads` of them: generated entries before the window that were kept so
    /// far.
    pub candidates: *const u32,
    /// The candidates' scores: the attention that the window's queries give them, as RRPC_POLICY_RPC has it for each KV
    /// head (`softmax` says what it is shared out among), not pooled.
    pub scores: *const f32,
    /// The candidates' positions in the text, from 0 with the prompt counted: indices into rrpc_sequence_tokens.
    pub positions: *const u32,
    /// Out: room for as many indices as there are candidates: those that the first KV head keeps, counted from 0 among its
    /// candidates, ascending; behind them the second's, and so on.
    pub kept: *mut u32,
    /// Out: how many each KV head keeps, `kv_heads` of them. 0 before the call.
    pub kept_counts: *mut u32,
    /// The most that the KV heads of the layer may keep together: `kv_heads` times what RRPC_POLICY_RPC would keep.
    /// Layers and KV heads may keep less, and KV heads more than others.
    pub most: u64,
    /// The layer.
    pub layer: u32,
    /// KV heads.
    pub kv_heads: u32,
    /// Compressions of the sequence before this one.
    pub compressions: u32,
    /// 0.
    pub reserved: u32,
}

/// Selects what one layer of a sequence keeps, when a compression is due. Returns 0 to go on; anything else, and an answer
/// that cannot be, ends the call that generates with CALLBACK, and the sequence cannot be used any more.
///
/// The request and its arrays are the library's and valid during the call. It is called in threads of the
/// library's or the caller's, of different sequences (forks among them) in several at once. It may not use the sequence.
/// It must return: no exception and no longjmp may leave it.
pub type rrpc_sequence_select_callback = Option<
    unsafe extern "C-unwind" fn(request: *mut rrpc_sequence_select_request, user_data: *mut c_void) -> i32,
>;

/// Told that nothing uses `user_data` any more. It may come from any thread, in the call that lets the last use go, and may
/// not make calls of this library. It must return: no exception and no longjmp may leave it.
pub type rrpc_release_callback = Option<unsafe extern "C-unwind" fn(user_data: *mut c_void)>;

/// The callback as a policy.
pub(crate) struct Select {
    pub schedule: Schedule,
    pub softmax: Softmax,
    pub select: unsafe extern "C-unwind" fn(
        request: *mut rrpc_sequence_select_request,
        user_data: *mut c_void,
    ) -> i32,
    pub data: Arc<UserData>,
}

/// What a callback is passed.
pub(crate) struct UserData {
    pub pointer: *mut c_void,
    pub release: rrpc_release_callback,
    /// Set once it is the library's to release.
    pub taken: OnceLock<()>,
}

impl Drop for UserData {
    fn drop(&mut self) {
        if let (Some(release), Some(())) = (self.release, self.taken.get()) {
            // SAFETY: the host's function, on its own data; both may be used in any thread.
            unsafe { release(self.pointer) }
        }
    }
}

// SAFETY: the functions and their data are the host's, whose promise it is that both may be used in several threads at once:
// the documentation of rrpc_sequence_select_callback and rrpc_release_callback says so.
unsafe impl Send for UserData {}
// SAFETY: as above.
unsafe impl Sync for UserData {}

impl Policy for Select {
    fn name(&self) -> &str {
        "callback"
    }

    fn spec(&self) -> Spec {
        Spec {
            trigger: Trigger::Interval(self.schedule),
            scores: Some(match self.softmax {
                Softmax::Candidates => ScoreRule::WindowOverCandidates,
                Softmax::All => ScoreRule::WindowOverAll,
            }),
            per_kv_head: true,
            adaptive: true,
            positions: true,
            ..Spec::default()
        }
    }

    fn peak_generated(&self, generated: usize) -> usize {
        self.schedule.peak_generated(generated)
    }

    fn plan(&self, view: &LayerView<'_>, plan: &mut LayerPlan<'_>) -> Result<(), PlanError> {
        let refuse = |what: String| Err(PlanError::Select(format!("layer {}: {what}", view.layer)));
        let candidates: Vec<u32> = view.candidates.iter().map(|&count| count as u32).collect();
        let all = view.candidates.iter().sum();
        let most = self.schedule.kept(view.done) * candidates.len();
        let mut kept = vec![0u32; all];
        let mut counts = vec![0u32; candidates.len()];
        let mut request = rrpc_sequence_select_request {
            struct_size: size_of::<rrpc_sequence_select_request>(),
            candidates: candidates.as_ptr(),
            scores: view.scores.as_ptr(),
            positions: view.positions.as_ptr(),
            kept: kept.as_mut_ptr(),
            kept_counts: counts.as_mut_ptr(),
            most: most as u64,
            layer: view.layer as u32,
            kv_heads: candidates.len() as u32,
            compressions: view.done as u32,
            reserved: 0,
        };
        // SAFETY: the host's function, on a struct and arrays that live during the call and are as long as the struct's
        // documentation says; every pattern of bits is a valid number.
        let found = unsafe { (self.select)(&raw mut request, self.data.pointer) };
        if found != 0 {
            return refuse(format!("expected 0, found {found} from the callback"));
        }
        let sum: u64 = counts.iter().map(|&count| u64::from(count)).sum();
        if sum > most as u64 || sum > all as u64 {
            return refuse(format!(
                "kept_counts: expected at most {} in all, found {sum}",
                most.min(all)
            ));
        }
        let mut rest = kept.as_slice();
        for &count in &counts {
            plan.push_set(rest.split_off(..count as usize).unwrap_or_default())?;
        }
        // What is wrong with it is the caller's.
        plan.validate(view.candidates)
            .or_else(|error| refuse(error.to_string()))
    }
}
