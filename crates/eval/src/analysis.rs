//! Texts side by side: how much each repeats itself, and what policies kept of it.

use std::sync::Arc;

use reasoning_rpc_engine::core::Policy;
use reasoning_rpc_engine::sampling::SamplingOptions;
use reasoning_rpc_engine::{Engine, Sequence, SequenceOptions};
use serde::Serialize;

use crate::entropy::{ENTROPY_LENGTHS, Mean, Moment, REDUNDANCY_LENGTHS, Trace, entropy, redundancy};
use crate::error::{Error, Result};
use crate::plot::{Table, bars, escape, lines, page};

/// One text.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Text {
    /// Its name.
    pub name: String,
    /// Its tokens.
    pub tokens: usize,
    /// Those that are different.
    pub distinct: usize,
    /// Entropy in bits, for each of [`ENTROPY_LENGTHS`].
    pub entropy: [f64; 3],
    /// Redundancy, for each of [`REDUNDANCY_LENGTHS`].
    pub redundancy: [Option<f64>; 3],
}

/// What one policy kept of one text.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Kept {
    /// The text's name.
    pub name: String,
    /// The policy's.
    pub policy: String,
    /// Each compression.
    pub moments: Vec<Moment>,
}

/// Everything.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Analysis {
    /// The texts.
    pub texts: Vec<Text>,
    /// What was kept of them.
    pub kept: Vec<Kept>,
}

impl Text {
    /// The figures of a text.
    pub fn of(name: &str, tokens: &[u32]) -> Self {
        let mut distinct = tokens.to_vec();
        distinct.sort_unstable();
        distinct.dedup();
        Self {
            name: name.to_owned(),
            tokens: tokens.len(),
            distinct: distinct.len(),
            entropy: ENTROPY_LENGTHS.map(|n| entropy(tokens, n)),
            redundancy: REDUNDANCY_LENGTHS.map(|n| redundancy(tokens, n)),
        }
    }
}

/// Reads a text as if the model had written it behind its first `prompt_tokens`, and notes what the policy kept. None
/// if `stop` says so.
///
/// # Errors
/// The engine's; [`Error::Problem`] if there is nothing behind the prompt.
pub fn read(
    engine: &Engine,
    policy: Arc<dyn Policy>,
    tokens: &[u32],
    prompt_tokens: usize,
    seed: u64,
    stop: &dyn Fn() -> bool,
) -> Result<Option<Trace>> {
    let mut sequence = engine.sequence(SequenceOptions {
        policy,
        sampling: SamplingOptions {
            seed,
            ..SamplingOptions::GREEDY
        },
        record_kept: true,
    })?;
    if !read_into(engine, &mut sequence, tokens, prompt_tokens, &mut |_| !stop())? {
        return Ok(None);
    }
    Ok(Some(Trace {
        prompt_ids: tokens[..prompt_tokens].to_vec(),
        tokens: tokens[prompt_tokens..].to_vec(),
        compressions: sequence.compressions().iter().map(Into::into).collect(),
    }))
}

/// Has an empty sequence read a text as if it had written it behind its first `prompt_tokens`: all but the last token,
/// which is never run in an answer either. `go_on` is told before each step how many tokens were run; false if it said no.
///
/// # Errors
/// The engine's; [`Error::Problem`] if there is nothing behind the prompt.
pub fn read_into(
    engine: &Engine,
    sequence: &mut Sequence,
    tokens: &[u32],
    prompt_tokens: usize,
    go_on: &mut dyn FnMut(usize) -> bool,
) -> Result<bool> {
    let behind = match prompt_tokens {
        0 => None,
        _ => tokens.get(prompt_tokens..).and_then(<[u32]>::split_last),
    };
    let Some((_, run)) = behind else {
        return Err(Error::Problem(format!(
            "expected more tokens than the {prompt_tokens} of a prompt of at least one, found {}",
            tokens.len()
        )));
    };
    sequence.append_tokens(&tokens[..prompt_tokens])?;
    sequence.reserve(run.len() + 1)?;
    for &token in run {
        sequence.accept(token)?;
    }
    while sequence.pending() > 0 {
        if !go_on(tokens.len() - 1 - sequence.pending()) {
            return Ok(false);
        }
        engine.step(&mut [&mut *sequence])?;
    }
    Ok(true)
}

fn percent(share: Option<f64>) -> String {
    share.map_or_else(|| "-".into(), |share| format!("{:.1}%", share * 100.0))
}

/// The mean over compressions.
fn over(moments: &[Moment], of: fn(&Moment) -> [Option<f64>; 3], index: usize) -> Option<f64> {
    let mut mean = Mean::default();
    moments.iter().for_each(|moment| mean.add(of(moment)[index]));
    mean.value()
}

impl Analysis {
    fn texts_table(&self) -> Table {
        let mut table = Table::new(&[
            "text",
            "tokens",
            "distinct",
            "entropy, 1-grams",
            "2-grams",
            "3-grams",
            "redundancy, 1-grams",
            "2-grams",
            "4-grams",
        ]);
        for text in &self.texts {
            let mut row = vec![
                text.name.clone(),
                text.tokens.to_string(),
                text.distinct.to_string(),
            ];
            row.extend(text.entropy.map(|bits| format!("{bits:.2} bits")));
            row.extend(text.redundancy.map(percent));
            table.rows.push(row);
        }
        table
    }

    fn kept_table(&self) -> Table {
        let mut table = Table::new(&[
            "text, policy",
            "compressions",
            "whole text, 1-grams",
            "2-grams",
            "4-grams",
            "candidates, 1-grams",
            "2-grams",
            "4-grams",
            "kept, 1-grams",
            "2-grams",
            "4-grams",
        ]);
        for kept in &self.kept {
            let mut row = vec![
                format!("{}, {}", kept.name, kept.policy),
                kept.moments.len().to_string(),
            ];
            for of in [
                |m: &Moment| m.text,
                |m: &Moment| m.candidates,
                |m: &Moment| m.kept,
            ] {
                row.extend((0..3).map(|index| percent(over(&kept.moments, of, index))));
            }
            table.rows.push(row);
        }
        table
    }

    /// As Markdown.
    pub fn markdown(&self) -> String {
        let mut text = self.texts_table().markdown();
        if !self.kept.is_empty() {
            text += &format!(
                "\nRedundancy at compressions, the mean over them:\n\n{}",
                self.kept_table().markdown()
            );
        }
        text + "\n" + NOTES
    }

    /// As a page of its own, with plots.
    pub fn html(&self) -> String {
        let mut body = self.texts_table().html();
        for (index, n) in ENTROPY_LENGTHS.into_iter().enumerate() {
            let rows: Vec<_> = self
                .texts
                .iter()
                .map(|text| (text.name.clone(), text.entropy[index], None))
                .collect();
            body += &bars(&format!("Entropy of {n}-grams, bits"), &rows, |bits| {
                format!("{bits:.2}")
            });
        }
        for (index, n) in REDUNDANCY_LENGTHS.into_iter().enumerate() {
            let rows: Vec<_> = self
                .texts
                .iter()
                .map(|text| (text.name.clone(), text.redundancy[index].unwrap_or(0.0), None))
                .collect();
            body += &bars(&format!("Redundancy of {n}-grams"), &rows, |share| {
                percent(Some(share))
            });
        }
        if !self.kept.is_empty() {
            body += &format!(
                "<h2>At compressions, the mean over them</h2>\n{}",
                self.kept_table().html()
            );
            for (index, n) in REDUNDANCY_LENGTHS.into_iter().enumerate() {
                let mut series = Vec::new();
                for kept in &self.kept {
                    let points = |of: fn(&Moment) -> [Option<f64>; 3]| -> Vec<(f64, f64)> {
                        let point =
                            |moment: &Moment| Some((moment.at_token as f64, 100.0 * of(moment)[index]?));
                        kept.moments.iter().filter_map(point).collect()
                    };
                    let name = format!("{}, {}", kept.name, kept.policy);
                    series.push((format!("{name}: before"), points(|moment| moment.candidates)));
                    series.push((format!("{name}: kept"), points(|moment| moment.kept)));
                }
                let title = format!("Redundancy of {n}-grams, candidates and what was kept of them");
                body += &lines(&title, "generated tokens", "%", &series);
            }
        }
        body += &format!("<p>{}</p>\n", escape(NOTES));
        page("Entropy and redundancy", &body)
    }
}

const NOTES: &str = "Entropy is -sum p log2 p over the frequencies of token n-grams. Redundancy is 1 - distinct n-grams / \
n-grams. Of what a policy kept, n-grams are runs of n consecutive positions that were all kept; figures are means over \
layers and KV heads in which there is one. Candidates are generated tokens that were in the cache before a compression, \
the window's aside. Both grow with the length of a text: compare texts of one length.\n";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_side_by_side() {
        let moment = Moment {
            at_token: 40,
            text: [Some(0.5), Some(0.25), None],
            candidates: [Some(0.5), Some(0.25), None],
            kept: [Some(0.125), None, None],
        };
        let analysis = Analysis {
            texts: vec![Text::of("a", &[1, 2, 1, 3]), Text::of("b", &[5; 4])],
            kept: vec![Kept {
                name: "a".into(),
                policy: "rpc".into(),
                moments: vec![
                    moment.clone(),
                    Moment {
                        at_token: 80,
                        ..moment
                    },
                ],
            }],
        };
        let markdown = analysis.markdown();
        assert!(
            markdown.contains("| a | 4 | 3 | 1.50 bits | 1.58 bits | 1.00 bits | 25.0% | 0.0% | 0.0% |"),
            "{markdown}"
        );
        assert!(markdown.contains("| a, rpc | 2 | 50.0% | 25.0% | - | 50.0% | 25.0% | - | 12.5% | - | - |"));
        let html = analysis.html();
        assert_eq!(html.matches("<svg").count(), 9);
        assert!(!html.contains("NaN"));
    }
}
