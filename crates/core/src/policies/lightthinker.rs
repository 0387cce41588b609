//! LightThinker (arXiv 2502.15589): a model that was trained for it sums a thought up in gist tokens, and the thought
//! goes.

use crate::plan::{LayerPlan, PlanError};
use crate::policy::{LayerView, Policy, Spec, Trigger};
use crate::schedule::OptionError;

/// The policy `lightthinker`. When the text gets one of the delimiters, the gist tokens are put behind it, and see the
/// prompt, the gists of earlier thoughts, this thought and each other, causally. Then the thought goes, its delimiter
/// included: everything generated since the last gists, or the token after them. The gists stay for good. Positions
/// are true indices in the text, in which gists count, as with the published code's `rolling_rope` off.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LightThinker {
    /// Ascending, each once.
    delimiters: Vec<u32>,
    /// The gists, and the token after them.
    follow: Vec<u32>,
    gists: usize,
}

impl LightThinker {
    /// Thoughts end with one of `delimiters`; `gists` take their place. `resume` is put behind them, sees the gists in
    /// the thought's place, and stays too: the published models' `continue` token. Without it, the token after the
    /// gists is drawn from the logits of the last one, which has seen the thought.
    ///
    /// # Errors
    /// There are no delimiters or no gists, or a delimiter is among the tokens that are put behind it.
    pub fn new(mut delimiters: Vec<u32>, gists: Vec<u32>, resume: Option<u32>) -> Result<Self, OptionError> {
        for (name, ids) in [("delimiters", &delimiters), ("gists", &gists)] {
            if ids.is_empty() {
                return Err(OptionError(format!("{name}: expected token ids, found none")));
            }
        }
        delimiters.sort_unstable();
        delimiters.dedup();
        let count = gists.len();
        let mut follow = gists;
        follow.extend(resume);
        match follow.iter().find(|id| delimiters.binary_search(id).is_ok()) {
            Some(id) => Err(OptionError(format!(
                "gists: expected ids that are no delimiters, found {id}"
            ))),
            None => Ok(Self {
                delimiters,
                follow,
                gists: count,
            }),
        }
    }

    /// The ids that end a thought, ascending.
    pub fn delimiters(&self) -> &[u32] {
        &self.delimiters
    }

    /// The ids that take a thought's place.
    pub fn gists(&self) -> &[u32] {
        &self.follow[..self.gists]
    }

    /// The id behind them.
    pub fn resume(&self) -> Option<u32> {
        self.follow.get(self.gists).copied()
    }

    /// In words.
    pub fn describe(&self) -> String {
        let (delimiters, gists) = (self.delimiters(), self.gists());
        let mut text = format!("lightthinker, delimiters {delimiters:?}, gists {gists:?}");
        if let Some(resume) = self.resume() {
            text += &format!(", then {resume}");
        }
        text
    }
}

impl Policy for LightThinker {
    fn name(&self) -> &str {
        "lightthinker"
    }

    fn spec(&self) -> Spec {
        Spec {
            trigger: Trigger::Thought { gists: self.gists },
            ..Spec::default()
        }
    }

    /// Where thoughts end is not known before: a text of one thought keeps everything.
    fn peak_generated(&self, generated: usize) -> usize {
        generated
    }

    fn plan(&self, _view: &LayerView<'_>, plan: &mut LayerPlan<'_>) -> Result<(), PlanError> {
        plan.room(0, 0)?;
        plan.push_room(0)
    }

    fn follow(&self, token: u32) -> &[u32] {
        match self.delimiters.binary_search(&token).is_ok() {
            true => &self.follow,
            false => &[],
        }
    }
}
