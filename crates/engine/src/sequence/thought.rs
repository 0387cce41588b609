//! Thoughts that go when they are summed up: where one began, and where what sums it up ends.

use std::ops::Range;
use std::sync::Arc;

use reasoning_rpc_core::{Policy, Trigger};

use super::Sequence;
use crate::error::{Error, Result};

/// The thought under way, in text positions.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Thought {
    /// Where it began.
    start: usize,
    /// Where its gists end, once its last token is in the text; the thought goes when they are written.
    pub end: Option<usize>,
}

/// Checks the ids that a policy puts behind others.
///
/// # Errors
/// [`Error::InvalidArgument`]: one is not in the vocabulary.
pub(super) fn check(policy: &dyn Policy, vocab: usize) -> Result<()> {
    if !matches!(policy.spec().trigger, Trigger::Thought { .. }) {
        return Ok(());
    }
    let mut ids = (0..vocab as u32).flat_map(|token| policy.follow(token));
    match ids.find(|&&id| id as usize >= vocab) {
        Some(id) => Err(Error::InvalidArgument(format!(
            "policy {:?}: expected ids of 0 to {}, found {id}",
            policy.name(),
            vocab - 1
        ))),
        None => Ok(()),
    }
}

impl Sequence {
    /// Puts behind the last token what follows it.
    pub(super) fn push_following(&mut self, token: u32) {
        let policy = Arc::clone(&self.policy);
        let following = policy.follow(token);
        // At the end of the context there is no use for them.
        if following.is_empty() || following.len() > self.room() {
            return;
        }
        let last = self.tokens.len() - 1;
        self.push(following);
        if self.thought.end.is_none() {
            self.thought.end = self.gists_of(last).map(|(gists, _)| gists);
        }
    }

    /// Where the gists behind the token at a position end, and all that follows it, if all of that is in the text.
    fn gists_of(&self, position: usize) -> Option<(usize, usize)> {
        let Trigger::Thought { gists } = self.policy.spec().trigger else {
            return None;
        };
        let following = self.policy.follow(self.tokens[position]).len();
        let given = self.given.iter().any(|range| range.contains(&(position as u32)));
        let end = position + 1 + following;
        (following > 0 && !given && end <= self.tokens.len()).then_some((position + 1 + gists, end))
    }

    /// What stays when the thought goes: the text before it, and what was given in it.
    pub(super) fn stays(&self) -> Vec<Range<u32>> {
        let start = self.thought.start as u32;
        let later = self.given.iter().filter(|range| range.end > start);
        let later = later.map(|range| range.start.max(start)..range.end);
        std::iter::once(0..start).chain(later).collect()
    }

    /// After a thought has gone: the next one, which may have ended already, if the text was known.
    pub(super) fn begin_thought(&mut self) {
        let Some(gists) = self.thought.end else {
            return;
        };
        let Trigger::Thought { gists: count } = self.policy.spec().trigger else {
            return;
        };
        let after = self.gists_of(gists - count - 1).map_or(gists, |(_, end)| end);
        self.thought = Thought {
            start: after,
            end: self.next_gists(after),
        };
    }

    fn next_gists(&self, start: usize) -> Option<usize> {
        (start..self.tokens.len()).find_map(|position| self.gists_of(position).map(|(gists, _)| gists))
    }

    /// After the text was shortened: what follows its last tokens is put back, if a part of it is gone.
    pub(super) fn restore_following(&mut self) {
        if self.thought.end.is_none() {
            return;
        }
        self.thought.end = self.next_gists(self.thought.start);
        let policy = Arc::clone(&self.policy);
        let len = self.tokens.len();
        for position in self.thought.start..len {
            let following = policy.follow(self.tokens[position]);
            let given = self.given.iter().any(|range| range.contains(&(position as u32)));
            if given || following.is_empty() || position + 1 + following.len() <= len {
                continue;
            }
            let missing = &following[len - position - 1..];
            if missing.len() <= self.room() {
                self.push(missing);
                self.thought.end = self.thought.end.or(self.next_gists(position));
            }
            return;
        }
    }
}
