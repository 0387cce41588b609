//! What the answers come to: paired by problem, each policy against the full cache.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::answers::Record;
use crate::statistics::{mcnemar, median, wilson};

/// One model on one problem set under one policy.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// The model's name.
    pub model: String,
    /// The problem set's name.
    pub set: String,
    /// The policy's label.
    pub policy: String,
    /// Problems that were answered.
    pub problems: usize,
    /// Answers to each of them.
    pub samples: usize,
    /// pass@1: the mean over problems of the share of right answers; none if nothing could be checked.
    pub accuracy: Option<f64>,
    /// Wilson's 95% interval of it, problems as trials.
    pub interval: Option<(f64, f64)>,
    /// For instructions.
    pub instructions: Option<Instructions>,
    /// Beside the full cache, on the problems that both answered.
    pub against_none: Option<Paired>,
    /// The share of answers that ended by themselves.
    pub finish_rate: f64,
    /// Tokens of an answer.
    pub mean_tokens: f64,
    /// Tokens that half of the answers do not exceed.
    pub median_tokens: f64,
    /// Tokens a second of one answer while others were written beside it, compressions included; none if no step
    /// was run.
    pub tokens_per_second: Option<f64>,
    /// Compressions of an answer.
    pub mean_compressions: f64,
    /// Peak bytes of an answer's cache, the mean.
    pub mean_peak_bytes: f64,
    /// Peak bytes of an answer's cache, the largest.
    pub peak_bytes: usize,
    /// The largest peak of an answer that would use all tokens that it may.
    pub bound_bytes: usize,
}

/// How instructions were followed.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Instructions {
    /// The share of answers that follow all of theirs strictly.
    pub answers_strict: f64,
    /// The share of answers that follow all of theirs loosely.
    pub answers_loose: f64,
    /// The share of instructions that are followed strictly.
    pub strict: f64,
    /// The share of instructions that are followed loosely.
    pub loose: f64,
}

/// Two policies on the same problems.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Paired {
    /// Problems that both answered.
    pub problems: usize,
    /// Those on which the full cache has more right answers.
    pub better_none: usize,
    /// Those on which this policy has more.
    pub better_this: usize,
    /// McNemar's exact two-sided test of these two.
    pub p: f64,
}

/// Right answers and answers of each problem.
type Problems = BTreeMap<String, (usize, usize)>;

fn by_problem(records: &[&Record]) -> Problems {
    let mut problems = Problems::new();
    for record in records {
        if let Some(passed) = record.score.passed {
            let (right, all) = problems.entry(record.problem.clone()).or_default();
            *right += usize::from(passed);
            *all += 1;
        }
    }
    problems
}

fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (mut sum, mut count) = (0.0, 0usize);
    for value in values {
        sum += value;
        count += 1;
    }
    if count == 0 { 0.0 } else { sum / count as f64 }
}

/// A row for each model, set and policy, in the order in which the answers name them. `none` is the label of the
/// full cache.
pub fn rows(records: &[Record], none: &str) -> Vec<Row> {
    type Group<'a> = ((&'a str, &'a str, &'a str), Vec<&'a Record>);
    let mut groups: Vec<Group<'_>> = Vec::new();
    for record in records {
        let name = (record.model.as_str(), record.set.as_str(), record.policy.as_str());
        match groups.iter_mut().find(|(found, _)| *found == name) {
            Some((_, group)) => group.push(record),
            None => groups.push((name, vec![record])),
        }
    }
    // All policies of one set beside each other.
    let order: Vec<(&str, &str)> = groups.iter().map(|((model, set, _), _)| (*model, *set)).collect();
    let place = |name: (&str, &str)| order.iter().position(|&found| found == name);
    groups.sort_by_key(|((model, set, _), _)| place((model, set)));
    let full = |model: &str, set: &str| {
        let group = groups.iter().find(|(name, _)| *name == (model, set, none));
        group.map(|(_, records)| by_problem(records))
    };
    groups
        .iter()
        .map(|((model, set, policy), records)| {
            let against = if *policy == none { None } else { full(model, set) };
            row(model, set, policy, records, against)
        })
        .collect()
}

fn row(model: &str, set: &str, policy: &str, records: &[&Record], full: Option<Problems>) -> Row {
    let scored = by_problem(records);
    let accuracy =
        (!scored.is_empty()).then(|| mean(scored.values().map(|&(right, all)| right as f64 / all as f64)));
    let mut names: Vec<&str> = records.iter().map(|record| record.problem.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    let mut tokens: Vec<f64> = records.iter().map(|record| record.tokens as f64).collect();
    let seconds: f64 = records
        .iter()
        .map(|record| record.decode_seconds + record.compaction_seconds)
        .sum();
    let steps: usize = records.iter().map(|record| record.decode_tokens).sum();
    let most = |of: fn(&Record) -> usize| records.iter().map(|record| of(record)).max().unwrap_or(0);
    Row {
        model: model.into(),
        set: set.into(),
        policy: policy.into(),
        problems: names.len(),
        samples: records.iter().map(|record| record.sample + 1).max().unwrap_or(0),
        interval: accuracy.map(|accuracy| wilson(accuracy, scored.len())),
        accuracy,
        instructions: instructions(records),
        against_none: full
            .map(|full| paired(&full, &scored))
            .filter(|paired| paired.problems > 0),
        finish_rate: mean(
            records
                .iter()
                .map(|record| part(matches!(record.stop_reason.as_str(), "eos" | "stop"))),
        ),
        mean_tokens: mean(tokens.iter().copied()),
        median_tokens: median(&mut tokens).unwrap_or(0.0),
        tokens_per_second: (steps > 0 && seconds > 0.0).then(|| steps as f64 / seconds),
        mean_compressions: mean(records.iter().map(|record| record.compressions as f64)),
        mean_peak_bytes: mean(records.iter().map(|record| record.cache_peak_bytes as f64)),
        peak_bytes: most(|record| record.cache_peak_bytes),
        bound_bytes: most(|record| record.cache_bound_bytes),
    }
}

/// 1 for what is, 0 for what is not.
fn part(is: bool) -> f64 {
    f64::from(u8::from(is))
}

fn instructions(records: &[&Record]) -> Option<Instructions> {
    let checked = || records.iter().filter(|record| !record.score.strict.is_empty());
    checked().next()?;
    let share = |of: fn(&Record) -> &[bool]| mean(checked().flat_map(|record| of(record)).map(|&f| part(f)));
    let whole =
        |of: fn(&Record) -> &[bool]| mean(checked().map(|record| part(of(record).iter().all(|&f| f))));
    Some(Instructions {
        answers_strict: whole(|record| &record.score.strict),
        answers_loose: whole(|record| &record.score.loose),
        strict: share(|record| &record.score.strict),
        loose: share(|record| &record.score.loose),
    })
}

fn paired(full: &Problems, this: &Problems) -> Paired {
    let (mut problems, mut better_none, mut better_this) = (0, 0, 0);
    for (name, &(right, all)) in this {
        let Some(&(full_right, full_all)) = full.get(name) else {
            continue;
        };
        problems += 1;
        // Shares by cross multiplication; both have as many samples unless one was broken off.
        match (right * full_all).cmp(&(full_right * all)) {
            std::cmp::Ordering::Less => better_none += 1,
            std::cmp::Ordering::Greater => better_this += 1,
            std::cmp::Ordering::Equal => {}
        }
    }
    Paired {
        problems,
        better_none,
        better_this,
        p: mcnemar(better_none, better_this),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::answers::tests::record;

    fn answer(policy: &str, problem: usize, sample: usize, passed: bool) -> Record {
        let mut record = record("");
        record.policy = policy.into();
        record.problem = problem.to_string();
        record.sample = sample;
        record.score.passed = Some(passed);
        record.stop_reason = if problem == 0 {
            "length".into()
        } else {
            "eos".into()
        };
        record.tokens = 10 + problem;
        record
    }

    #[test]
    fn paired_on_the_same_problems() {
        let mut records = Vec::new();
        for problem in 0..10 {
            records.push(answer("none", problem, 0, problem < 8));
            // Wrong on 5, 6 and 7; right on 9.
            records.push(answer("rpc", problem, 0, problem < 5 || problem == 9));
        }
        // Answered by one alone.
        records.push(answer("none", 10, 0, true));
        let rows = rows(&records, "none");
        assert_eq!(rows.len(), 2);
        let (none, rpc) = (&rows[0], &rows[1]);
        assert_eq!(
            (none.policy.as_str(), none.problems, none.samples),
            ("none", 11, 1)
        );
        assert_eq!((none.accuracy, none.against_none), (Some(9.0 / 11.0), None));
        assert_eq!(rpc.accuracy, Some(0.6));
        assert_eq!(rpc.interval, Some(wilson(0.6, 10)));
        let paired = rpc.against_none.unwrap();
        assert_eq!(
            (paired.problems, paired.better_none, paired.better_this),
            (10, 3, 1)
        );
        assert_eq!(paired.p, mcnemar(3, 1));
        assert_eq!(
            (rpc.finish_rate, rpc.mean_tokens, rpc.median_tokens),
            (0.9, 14.5, 14.5)
        );
        assert_eq!(rpc.tokens_per_second, Some(18.0));
    }

    #[test]
    fn samples_are_not_trials() {
        let mut records = Vec::new();
        for sample in 0..4 {
            records.push(answer("none", 1, sample, sample < 3));
            records.push(answer("none", 2, sample, sample < 1));
            records.push(answer("rpc", 1, sample, sample < 2));
            records.push(answer("rpc", 2, sample, sample == 2));
        }
        let rows = rows(&records, "none");
        assert_eq!(rows[0].accuracy, Some(0.5));
        assert_eq!((rows[0].interval, rows[0].samples), (Some(wilson(0.5, 2)), 4));
        let paired = rows[1].against_none.unwrap();
        assert_eq!((paired.better_none, paired.better_this), (1, 0));
    }

    #[test]
    fn what_has_no_check_has_no_accuracy() {
        let mut one = answer("none", 1, 0, true);
        one.score.passed = None;
        let rows = rows(&[one], "none");
        assert_eq!(
            (rows[0].accuracy, rows[0].interval, rows[0].problems),
            (None, None, 1)
        );
        let mut one = answer("none", 1, 0, false);
        (one.score.strict, one.score.loose) = (vec![true, false], vec![true, true]);
        let found = super::rows(&[one], "none")[0].instructions.unwrap();
        assert_eq!((found.answers_strict, found.answers_loose), (0.0, 1.0));
        assert_eq!((found.strict, found.loose), (0.5, 1.0));
    }
}
