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

/// A text, as far as it decides where thoughts end.
#[derive(Clone, Copy)]
pub(crate) struct Text<'a> {
    pub policy: &'a dyn Policy,
    pub tokens: &'a [u32],
    /// As [`Sequence`] has them.
    pub given: &'a [Range<u32>],
}

/// A thought that has gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Gone {
    /// Its positions, those that were given among them included, which stay.
    pub positions: Range<usize>,
    /// Where its gists end: it went when they were written.
    pub gists_end: usize,
}

impl<'a> Text<'a> {
    /// What follows the token at a position: nothing behind one that was given.
    fn following(&self, position: usize) -> &'a [u32] {
        let following = self.policy.follow(self.tokens[position]);
        match !following.is_empty() && self.is_given(position) {
            true => &[],
            false => following,
        }
    }

    fn is_given(&self, position: usize) -> bool {
        let after = self.given.partition_point(|range| range.end as usize <= position);
        self.given
            .get(after)
            .is_some_and(|range| range.start as usize <= position)
    }

    /// Where the gists behind the token at a position end, and all that follows it, if all of that is in the text.
    fn gists_of(&self, position: usize) -> Option<(usize, usize)> {
        let Trigger::Thought { gists } = self.policy.spec().trigger else {
            return None;
        };
        let following = self.following(position).len();
        let end = position + 1 + following;
        (following > 0 && end <= self.tokens.len()).then_some((position + 1 + gists, end))
    }

    fn next_gists(&self, start: usize) -> Option<usize> {
        (start..self.tokens.len()).find_map(|position| self.gists_of(position).map(|(gists, _)| gists))
    }

    /// The thought behind the one whose gists end at a position.
    fn next(&self, gists: usize) -> Thought {
        let Trigger::Thought { gists: count } = self.policy.spec().trigger else {
            return Thought::default();
        };
        let start = self.gists_of(gists - count - 1).map_or(gists, |(_, end)| end);
        Thought {
            start,
            end: self.next_gists(start),
        }
    }

    /// Whether what is to follow tokens does, wherever the context has room for it.
    pub fn is_followed(&self, context: usize) -> bool {
        let mut position = 0;
        while position < self.tokens.len() {
            let following = self.following(position);
            position += 1;
            let end = position + following.len();
            if following.is_empty() || end > context {
                continue;
            }
            let is_there = self.tokens.get(position..end) == Some(following);
            if !is_there || (position..end).any(|position| self.is_given(position)) {
                return false;
            }
            position = end;
        }
        true
    }

    /// The thoughts that have gone once so many tokens are written.
    pub fn gone(&self, written: usize) -> Vec<Gone> {
        self.recall(written).0
    }

    /// The same, and the thought after them.
    fn recall(&self, written: usize) -> (Vec<Gone>, Thought) {
        let mut gone = Vec::new();
        let Trigger::Thought { gists } = self.policy.spec().trigger else {
            return (gone, Thought::default());
        };
        let mut thought = Thought {
            start: 0,
            end: self.next_gists(0),
        };
        while let Some(end) = thought.end.filter(|&end| end <= written) {
            gone.push(Gone {
                positions: thought.start..end - gists,
                gists_end: end,
            });
            thought = self.next(end);
        }
        (gone, thought)
    }
}

impl Sequence {
    fn text(&self) -> Text<'_> {
        Text {
            policy: &*self.policy,
            tokens: &self.tokens,
            given: &self.given,
        }
    }

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
            self.thought.end = self.text().gists_of(last).map(|(gists, _)| gists);
        }
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
        if let Some(gists) = self.thought.end {
            self.thought = self.text().next(gists);
        }
    }

    /// After the text and what is written of it were set: the thought under way.
    pub(crate) fn recall_thought(&mut self) {
        self.thought = self.text().recall(self.written).1;
    }

    /// After the text was shortened: what follows its last tokens is put back, if a part of it is gone.
    pub(super) fn restore_following(&mut self) {
        if self.thought.end.is_none() {
            return;
        }
        self.thought.end = self.text().next_gists(self.thought.start);
        let policy = Arc::clone(&self.policy);
        let len = self.tokens.len();
        for position in self.thought.start..len {
            let missing = match self.text().following(position).len() {
                following if following > 0 && position + 1 + following > len => len - position - 1,
                _ => continue,
            };
            let missing = &policy.follow(self.tokens[position])[missing..];
            if missing.len() <= self.room() {
                self.push(missing);
                self.thought.end = self.thought.end.or(self.text().next_gists(position));
            }
            return;
        }
    }
}
