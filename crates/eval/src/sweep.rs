//! Speed and memory against the length of the answer: the paper's efficiency figure, measured.

use std::sync::Arc;
use std::time::Instant;

use reasoning_rpc_engine::core::Policy;
use reasoning_rpc_engine::sampling::SamplingOptions;
use reasoning_rpc_engine::{Engine, Sequence, SequenceOptions};
use serde::Serialize;

use crate::error::{Error, Result};
use crate::plot::{Table, escape, human, lines, page};
use crate::statistics;

/// What is measured; the same for every policy.
#[derive(Debug, Clone, PartialEq)]
pub struct Sweep {
    /// Lengths of the answer at which figures are read, ascending.
    pub lengths: Vec<usize>,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Answers that are written together.
    pub batch: usize,
    /// Seeds the prompts.
    pub seed: u64,
}

/// Figures at one length.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Point {
    /// Tokens of each answer.
    pub length: usize,
    /// Tokens a second of all answers together, from the first token to this length, compressions included.
    pub tokens_per_second: f64,
    /// Tokens a second since the length before.
    pub tokens_per_second_since: f64,
    /// The most bytes that the caches of all answers had together.
    pub peak_bytes: usize,
    /// Compressions of one answer.
    pub compressions: usize,
}

/// One policy.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Curve {
    /// Its label.
    pub policy: String,
    /// A point for each length that was reached.
    pub points: Vec<Point>,
    /// Why it was not measured further, such as a cache that does not fit the budget.
    pub ended: Option<String>,
}

/// All policies of a model.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Figure {
    /// The version of the program that measured it.
    pub version: &'static str,
    /// What was set, by name.
    pub setup: Vec<(String, String)>,
    /// The curves.
    pub curves: Vec<Curve>,
}

impl Sweep {
    /// Measures one policy: `batch` greedy answers, as long as the longest length whatever they say, stepped
    /// together. `progress` hears how many tokens of each answer are there, and answers whether to go on; none if it
    /// does not.
    ///
    /// # Errors
    /// The engine's, but for a budget or a context that has no room: that ends the curve.
    pub fn measure(
        &self,
        engine: &Engine,
        label: &str,
        policy: &Arc<dyn Policy>,
        progress: &mut dyn FnMut(usize) -> bool,
    ) -> Result<Option<Curve>> {
        let mut curve = Curve {
            policy: label.to_owned(),
            points: Vec::new(),
            ended: None,
        };
        // As far as there is room: the caches of longer answers may not fit.
        let mut lengths = self.lengths.clone();
        let mut sequences = loop {
            let Some(&longest) = lengths.last() else {
                return Ok(Some(curve));
            };
            match self.begin(engine, policy, longest) {
                Ok(sequences) => break sequences,
                Err(
                    error @ (reasoning_rpc_engine::Error::Budget { .. }
                    | reasoning_rpc_engine::Error::Context { .. }),
                ) => {
                    curve.ended = Some(format!("{longest} tokens: {error}"));
                    lengths.pop();
                }
                Err(error) => return Err(error.into()),
            }
        };
        // Prompts first: they are no part of the figure.
        for sequence in &mut sequences {
            while sequence.pending() > 0 {
                engine.step(&mut [&mut *sequence])?;
            }
        }
        let (start, mut last) = (Instant::now(), (0usize, 0.0));
        let mut written = 0;
        for length in lengths {
            while written < length {
                let mut rows: Vec<&mut Sequence> = sequences.iter_mut().collect();
                for sequence in &mut rows {
                    sequence.sample()?;
                }
                written += 1;
                // The last token is run as well, so that each length costs as many steps as it has tokens.
                engine.step(&mut rows)?;
                if written % 16 == 0 && !progress(written) {
                    return Ok(None);
                }
            }
            let seconds = start.elapsed().as_secs_f64();
            let rate = |tokens: usize, seconds: f64| (tokens * self.batch) as f64 / seconds.max(1e-9);
            curve.points.push(Point {
                length,
                tokens_per_second: rate(length, seconds),
                tokens_per_second_since: rate(length - last.0, seconds - last.1),
                peak_bytes: sequences
                    .iter()
                    .map(|sequence| sequence.stats().cache_peak_bytes)
                    .sum(),
                compressions: sequences
                    .iter()
                    .map(|sequence| sequence.stats().compressions)
                    .max()
                    .unwrap_or(0),
            });
            last = (length, seconds);
        }
        Ok(Some(curve))
    }

    fn begin(
        &self,
        engine: &Engine,
        policy: &Arc<dyn Policy>,
        longest: usize,
    ) -> reasoning_rpc_engine::Result<Vec<Sequence>> {
        let model = engine.model();
        let vocab = match model.tokenizer() {
            Ok(tokenizer) => tokenizer.vocab_size() as usize,
            Err(_) => model.manifest().dimensions.vocab_size,
        };
        let mut state = self.seed;
        let mut sequences = Vec::with_capacity(self.batch);
        for _ in 0..self.batch {
            let mut sequence = engine.sequence(SequenceOptions {
                policy: Arc::clone(policy),
                sampling: SamplingOptions {
                    seed: self.seed,
                    ..SamplingOptions::GREEDY
                },
                record_kept: false,
            })?;
            // Any ids cost the same; those of a linear congruential generator.
            let prompt: Vec<u32> = (0..self.prompt_tokens)
                .map(|_| {
                    state = state
                        .wrapping_mul(6_364_136_223_846_793_005)
                        .wrapping_add(1_442_695_040_888_963_407);
                    ((state >> 33) % vocab as u64) as u32
                })
                .collect();
            sequence.append_tokens(&prompt)?;
            if longest > sequence.room() {
                return Err(reasoning_rpc_engine::Error::Context {
                    needed: self.prompt_tokens + longest,
                    context: model.manifest().dimensions.max_positions,
                });
            }
            // One more than an answer of this length: its last token is run.
            sequence.reserve(longest + 1)?;
            sequences.push(sequence);
        }
        Ok(sequences)
    }
}

/// One curve from those of several rounds: the median of each figure.
pub fn median(curves: &[Curve]) -> Option<Curve> {
    let first = curves.first()?;
    let middle = |index: usize, of: fn(&Point) -> f64| {
        let mut values: Vec<f64> = curves
            .iter()
            .filter_map(|curve| curve.points.get(index))
            .map(of)
            .collect();
        statistics::median(&mut values).unwrap_or(0.0)
    };
    let point = |(index, point): (usize, &Point)| Point {
        tokens_per_second: middle(index, |point| point.tokens_per_second),
        tokens_per_second_since: middle(index, |point| point.tokens_per_second_since),
        ..point.clone()
    };
    Some(Curve {
        points: first.points.iter().enumerate().map(point).collect(),
        ..first.clone()
    })
}

/// Refuses a sweep that measures nothing.
///
/// # Errors
/// [`Error::Problem`].
pub fn check(sweep: &Sweep) -> Result<()> {
    let ascending =
        sweep.lengths.is_sorted_by(|a, b| a < b) && sweep.lengths.first().is_some_and(|&first| first > 0);
    match ascending && sweep.prompt_tokens > 0 && sweep.batch > 0 {
        true => Ok(()),
        false => Err(Error::Problem(format!(
            "sweep: expected lengths that ascend, and at least one token of prompt and one answer, found {:?}, {} and {}",
            sweep.lengths, sweep.prompt_tokens, sweep.batch
        ))),
    }
}

impl Figure {
    fn table(&self) -> Table {
        let mut table = Table::new(&[
            "policy",
            "tokens of an answer",
            "tokens/s to here",
            "tokens/s since the last",
            "peak bytes",
            "compressions",
        ]);
        for curve in &self.curves {
            for point in &curve.points {
                table.rows.push(vec![
                    curve.policy.clone(),
                    point.length.to_string(),
                    format!("{:.1}", point.tokens_per_second),
                    format!("{:.1}", point.tokens_per_second_since),
                    human(point.peak_bytes as f64),
                    point.compressions.to_string(),
                ]);
            }
        }
        table
    }

    fn ended(&self) -> impl Iterator<Item = String> {
        let of = |curve: &Curve| {
            curve
                .ended
                .as_ref()
                .map(|why| format!("{} was not measured at {why}", curve.policy))
        };
        self.curves.iter().filter_map(of)
    }

    /// As Markdown.
    pub fn markdown(&self) -> String {
        let mut text = String::from("# Speed and memory against the length of the answer\n\n");
        for (name, value) in &self.setup {
            text += &format!("- {name}: {value}\n");
        }
        text += &format!("\n{}\n", self.table().markdown());
        self.ended().for_each(|line| text += &format!("- {line}\n"));
        text
    }

    /// As a page of its own, with plots.
    pub fn html(&self) -> String {
        let mut body = String::from("<ul>\n");
        for (name, value) in &self.setup {
            body += &format!("<li>{}: {}</li>\n", escape(name), escape(value));
        }
        body += "</ul>\n";
        let series = |of: fn(&Point) -> f64| -> Vec<(String, Vec<(f64, f64)>)> {
            let points = |curve: &Curve| {
                curve
                    .points
                    .iter()
                    .map(|point| (point.length as f64, of(point)))
                    .collect()
            };
            self.curves
                .iter()
                .map(|curve| (curve.policy.clone(), points(curve)))
                .collect()
        };
        let x = "tokens of an answer";
        body += &lines(
            "Speed, from the first token",
            x,
            "tokens/s",
            &series(|point| point.tokens_per_second),
        );
        body += &lines(
            "Speed since the length before",
            x,
            "tokens/s",
            &series(|point| point.tokens_per_second_since),
        );
        let bytes = series(|point| point.peak_bytes as f64 / f64::from(1 << 20));
        body += &lines("Peak memory of the caches", x, "MiB", &bytes);
        body += &self.table().html();
        self.ended()
            .for_each(|line| body += &format!("<p>{}</p>\n", escape(&line)));
        page("Speed and memory against the length of the answer", &body)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_must_ascend() {
        let sweep = |lengths: &[usize], prompt_tokens, batch| Sweep {
            lengths: lengths.to_vec(),
            prompt_tokens,
            batch,
            seed: 0,
        };
        assert!(check(&sweep(&[1, 2, 8], 1, 1)).is_ok());
        for bad in [
            sweep(&[], 1, 1),
            sweep(&[0, 2], 1, 1),
            sweep(&[2, 2], 1, 1),
            sweep(&[1], 0, 1),
            sweep(&[1], 1, 0),
        ] {
            assert!(check(&bad).is_err());
        }
    }

    #[test]
    fn a_curve_that_ended_says_why() {
        let figure = Figure {
            version: "0",
            setup: vec![("model".into(), "<m>".into())],
            curves: vec![Curve {
                policy: "none".into(),
                points: vec![Point {
                    length: 64,
                    tokens_per_second: 12.34,
                    tokens_per_second_since: 11.0,
                    peak_bytes: 2048,
                    compressions: 0,
                }],
                ended: Some("128 tokens: cache budget".into()),
            }],
        };
        let markdown = figure.markdown();
        assert!(markdown.contains("| none | 64 | 12.3 | 11.0 | 2.0 KiB | 0 |"));
        assert!(markdown.contains("- none was not measured at 128 tokens: cache budget"));
        let html = figure.html();
        assert!(html.matches("<svg").count() == 3 && html.contains("&lt;m&gt;"));
    }
}
