//! Writing and checking the answers: many at once, through the engine's scheduler.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use reasoning_rpc_engine::core::Policy;
use reasoning_rpc_engine::sampling::SamplingOptions;
use reasoning_rpc_engine::scheduler::{Next, Scheduler, SchedulerOptions};
use reasoning_rpc_engine::text::Message;
use reasoning_rpc_engine::{Engine, Event, GenerateOptions, Sequence, SequenceOptions, StopReason};
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::answers::{Answers, Record};
use crate::check::VERSION;
use crate::error::{Error, Result};
use crate::problems::{COMPLETION_STOPS, Problem, ProblemSet, hex};
use crate::sandbox::Sandbox;

/// What is asked, and how answers are written; the same for every model and policy.
pub struct Setup {
    /// The problems.
    pub sets: Vec<ProblemSet>,
    /// Answers to each problem.
    pub samples: usize,
    /// How tokens are drawn. Its seed decides the seeds of all answers: the same for every policy.
    pub sampling: SamplingOptions,
    /// The most tokens of an answer.
    pub max_tokens: usize,
    /// Whether prompts go through the chat template; if absent, questions do and texts to continue do not.
    pub chat: Option<bool>,
    /// A system message before a question.
    pub system: Option<String>,
    /// Answers that are written at once.
    pub rows: usize,
    /// Where programs run; absent if no problem needs it.
    pub sandbox: Option<Sandbox>,
}

/// A model, opened.
pub struct Model<'a> {
    /// What reports call it.
    pub name: String,
    /// [`digest`] of its folder.
    pub digest: String,
    /// The engine.
    pub engine: &'a Engine,
}

/// A policy to compare.
pub struct Contender {
    /// What reports call it.
    pub label: String,
    /// The policy.
    pub policy: Arc<dyn Policy>,
    /// The policy and its options, in words: what it is known by where it has no recipe.
    pub description: String,
}

/// What the caller sees and says while answers are written.
pub trait Watch: Sync {
    /// So many answers of one policy are there, of so many; the first ones may have been there before.
    fn progress(&self, policy: &str, done: usize, total: usize);
    /// Whether to stop: answers under way are dropped.
    fn stop(&self) -> bool;
}

/// SHA-256 of a model's manifest, which has the hashes of all its files.
///
/// # Errors
/// [`Error::File`].
pub fn digest(folder: &Path) -> Result<String> {
    let path = folder.join("manifest.json");
    let bytes = std::fs::read(&path).map_err(|error| Error::file(&path, error))?;
    Ok(hex(&Sha256::digest(bytes)))
}

/// One answer to write.
struct Job<'a> {
    set: &'a ProblemSet,
    problem: &'a Problem,
    sample: usize,
    seed: u64,
    key: String,
}

impl Setup {
    /// Writes and checks the answers of one model under one policy that `answers` does not have yet, and gives all
    /// of them, in the order of the problems. None if it was stopped.
    ///
    /// # Errors
    /// The engine's, or that of a file or of the sandbox. Finished answers are kept.
    pub fn run(
        &self,
        model: &Model<'_>,
        contender: &Contender,
        answers: &Answers,
        watch: &dyn Watch,
    ) -> Result<Option<Vec<Record>>> {
        let jobs = self.jobs(model, contender);
        let mut records = jobs
            .iter()
            .map(|job| self.kept(job, model, contender, answers))
            .collect::<Result<Vec<_>>>()?;
        let missing: Vec<usize> = (0..jobs.len())
            .filter(|&index| records[index].is_none())
            .collect();
        let done = AtomicUsize::new(jobs.len() - missing.len());
        watch.progress(&contender.label, done.load(Ordering::Relaxed), jobs.len());
        if missing.is_empty() {
            return Ok(records.into_iter().collect());
        }
        let options = SchedulerOptions {
            max_rows: self.rows,
            ..SchedulerOptions::default()
        };
        let scheduler = Scheduler::new(model.engine, options)?;
        let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
        let written = Mutex::new(Vec::new());
        let stop = || failed.load(Ordering::Relaxed) || watch.stop();
        let work = || -> Result<()> {
            while let Some(&index) = missing.get(next.fetch_add(1, Ordering::Relaxed)) {
                let Some(record) = self.answer(&scheduler, model, contender, &jobs[index], &stop)? else {
                    return Ok(());
                };
                answers.add(&record)?;
                written
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push((index, record));
                let done = done.fetch_add(1, Ordering::Relaxed) + 1;
                watch.progress(&contender.label, done, jobs.len());
            }
            Ok(())
        };
        let results: Vec<Result<()>> = std::thread::scope(|scope| {
            let worker = || work().inspect_err(|_| failed.store(true, Ordering::Relaxed));
            let threads: Vec<_> = (0..self.rows).map(|_| scope.spawn(worker)).collect();
            threads
                .into_iter()
                .map(|thread| {
                    let panicked = |_| Err(Error::File("a thread that wrote answers panicked".into()));
                    thread.join().unwrap_or_else(panicked)
                })
                .collect()
        });
        results.into_iter().collect::<Result<()>>()?;
        for (index, record) in written.into_inner().unwrap_or_else(PoisonError::into_inner) {
            records[index] = Some(record);
        }
        Ok(records.into_iter().collect())
    }

    fn jobs(&self, model: &Model<'_>, contender: &Contender) -> Vec<Job<'_>> {
        let mut jobs = Vec::new();
        for set in &self.sets {
            for problem in &set.problems {
                for sample in 0..self.samples {
                    let seed = seed(self.sampling.seed, problem, sample);
                    let key = self.key(model, contender, problem, sample, seed);
                    jobs.push(Job {
                        set,
                        problem,
                        sample,
                        seed,
                        key,
                    });
                }
            }
        }
        jobs
    }

    /// All that decides an answer, but for the machine's instructions.
    fn key(
        &self,
        model: &Model<'_>,
        contender: &Contender,
        problem: &Problem,
        sample: usize,
        seed: u64,
    ) -> String {
        let s = &self.sampling;
        let policy = match contender.policy.recipe() {
            Some(recipe) => format!("{recipe:?}"),
            None => contender.description.clone(),
        };
        let all = json!({
            "version": 1,
            "model": model.digest,
            "cache": model.engine.cache_type().name(),
            "policy": policy,
            "sampling": [s.temperature, s.top_p, s.min_p, s.repetition_penalty],
            "top_k": s.top_k,
            "seed": seed,
            "sample": sample,
            "max_tokens": self.max_tokens,
            "chat": self.is_chat(problem),
            "system": self.system,
            "stop": self.stops(problem),
            "problem": problem.id,
            "prompt": problem.prompt,
            "checker": format!("{:?}", problem.checker),
        });
        hex(&Sha256::digest(all.to_string()))
    }

    /// An answer that is there, under the names that this run has for things, checked as this run does.
    fn kept(
        &self,
        job: &Job<'_>,
        model: &Model<'_>,
        contender: &Contender,
        answers: &Answers,
    ) -> Result<Option<Record>> {
        let Some(record) = answers.get(&job.key) else {
            return Ok(None);
        };
        if record.simd != model.engine.simd().name() {
            return Ok(None);
        }
        let mut record = Record {
            model: model.name.clone(),
            policy: contender.label.clone(),
            set: job.set.name.clone(),
            ..record.clone()
        };
        let checked_by = self.checked_by(job.problem);
        if record.checked_by != checked_by {
            record.score = job.problem.checker.check(&record.text, self.sandbox.as_ref())?;
            record.checked_by = checked_by;
            answers.add(&record)?;
        }
        Ok(Some(record))
    }

    fn checked_by(&self, problem: &Problem) -> String {
        match &self.sandbox {
            Some(sandbox) if problem.checker.needs_sandbox() => format!("{VERSION} {:?}", sandbox.limits()),
            _ => VERSION.to_string(),
        }
    }

    /// Whether a problem goes through the chat template.
    pub fn is_chat(&self, problem: &Problem) -> bool {
        self.chat.unwrap_or(!problem.completion)
    }

    fn stops(&self, problem: &Problem) -> Vec<String> {
        match problem.completion && !self.is_chat(problem) {
            true => COMPLETION_STOPS.map(str::to_owned).to_vec(),
            false => Vec::new(),
        }
    }

    fn begin(&self, engine: &Engine, contender: &Contender, job: &Job<'_>) -> Result<Sequence> {
        let mut sequence = engine.sequence(SequenceOptions {
            policy: Arc::clone(&contender.policy),
            sampling: SamplingOptions {
                seed: job.seed,
                ..self.sampling
            },
            record_kept: false,
        })?;
        match self.is_chat(job.problem) {
            true => {
                let system = self
                    .system
                    .iter()
                    .map(|text| Message::new("system", text.clone()));
                let user = Message::new("user", job.problem.prompt.clone());
                sequence.append_chat(&system.chain([user]).collect::<Vec<_>>())?;
            }
            false => sequence.append_text(&job.problem.prompt)?,
        }
        Ok(sequence)
    }

    /// Writes and checks one answer; none if it was stopped.
    fn answer(
        &self,
        scheduler: &Scheduler,
        model: &Model<'_>,
        contender: &Contender,
        job: &Job<'_>,
        stop: &dyn Fn() -> bool,
    ) -> Result<Option<Record>> {
        if stop() {
            return Ok(None);
        }
        let sequence = self.begin(model.engine, contender, job)?;
        let prompt_tokens = sequence.tokens().len();
        let most = self.max_tokens.min(sequence.room()).max(1);
        let shape = model.engine.cache_shape();
        let bound = contender
            .policy
            .promised_entries(prompt_tokens, most - 1, shape.block_entries);
        let options = GenerateOptions {
            max_tokens: Some(self.max_tokens),
            stop: self.stops(job.problem),
            ignore_eos: false,
        };
        let answer = scheduler
            .submit(sequence, &options)
            .map_err(|refused| Error::from(refused.error))?;
        let (mut text, mut piece, mut tokens) = (String::new(), String::new(), 0);
        let reason = loop {
            match answer.next(&mut piece, Some(Duration::from_millis(200)))? {
                Next::Event(Event::Prefill { .. }) => {}
                Next::Event(Event::Token { text: more, .. }) => {
                    text.push_str(more);
                    tokens += 1;
                }
                Next::Event(Event::End { reason, text: more }) => {
                    text.push_str(more);
                    break reason;
                }
                Next::Pending if stop() => answer.cancel(),
                Next::Pending => {}
                Next::Ended => break StopReason::Cancelled,
            }
            if stop() {
                answer.cancel();
            }
        };
        let stats = match answer.take_sequence() {
            Some(sequence) => sequence.stats(),
            None => return Ok(None),
        };
        if reason == StopReason::Cancelled {
            return Ok(None);
        }
        let score = job.problem.checker.check(&text, self.sandbox.as_ref())?;
        Ok(Some(Record {
            key: job.key.clone(),
            model: model.name.clone(),
            policy: contender.label.clone(),
            set: job.set.name.clone(),
            problem: job.problem.id.clone(),
            sample: job.sample,
            seed: job.seed,
            text,
            stop_reason: reason.name().into(),
            prompt_tokens,
            tokens,
            decode_tokens: stats.decode_tokens,
            decode_seconds: stats.decode_time.as_secs_f64(),
            compaction_seconds: stats.compaction_time.as_secs_f64(),
            compressions: stats.compressions,
            cache_peak_bytes: stats.cache_peak_bytes,
            cache_bound_bytes: shape.bytes(bound) + model.engine.query_bytes(&*contender.policy),
            simd: model.engine.simd().name().into(),
            checked_by: self.checked_by(job.problem),
            score,
        }))
    }
}

/// The seed of one answer: its own, whatever else is asked.
fn seed(base: u64, problem: &Problem, sample: usize) -> u64 {
    let text = format!("{base} {sample} {}", problem.prompt);
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&Sha256::digest(text)[..8]);
    u64::from_le_bytes(bytes)
}
