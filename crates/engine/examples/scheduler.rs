//! How much faster several answers are written together than one alone, at short context.
//!
//!     cargo run --release -p reasoning-rpc-engine --example scheduler -- MODEL_FOLDER [TOKENS [ROUNDS [THREADS]]]
//!
//! Each round writes TOKENS tokens once alone ([`Sequence::generate`], without a scheduler) and once in 1, 2, 4
//! and 8 sequences through a scheduler, prompts of 16 tokens included; the rounds alternate, and the median of
//! each is printed, with how many answers differed from those that their sequences write alone: none should.

use std::error::Error;
use std::sync::Arc;
use std::time::Instant;

use reasoning_rpc_core::NoCompression;
use reasoning_rpc_engine::sampling::SamplingOptions;
use reasoning_rpc_engine::scheduler::{Next, Scheduler, SchedulerOptions};
use reasoning_rpc_engine::{
    Engine, EngineOptions, Event, GenerateOptions, Result, Sequence, SequenceOptions,
};

const ROWS: [usize; 4] = [1, 2, 4, 8];
const PROMPT: usize = 16;

fn begin(engine: &Engine, row: usize) -> Result<Sequence> {
    let mut sequence = engine.sequence(SequenceOptions {
        policy: Arc::new(NoCompression),
        sampling: SamplingOptions::GREEDY,
        record_kept: false,
    })?;
    let vocab = engine.model().manifest().dimensions.vocab_size as u64;
    // Any ids will do; those of a linear congruential generator.
    let mut state = row as u64 + 1;
    let prompt: Vec<u32> = (0..PROMPT)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            ((state >> 33) % vocab) as u32
        })
        .collect();
    sequence.append_tokens(&prompt)?;
    Ok(sequence)
}

/// The tokens of row 0, and tokens per second.
fn alone(engine: &Engine, options: &GenerateOptions, row: usize) -> Result<(Vec<u32>, f64)> {
    let mut sequence = begin(engine, row)?;
    let start = Instant::now();
    let mut answer = sequence.generate(options)?;
    let mut tokens = Vec::new();
    while let Some(event) = answer.next_event()? {
        if let Event::Token { id, .. } = event {
            tokens.push(id);
        }
    }
    let rate = tokens.len() as f64 / start.elapsed().as_secs_f64();
    Ok((tokens, rate))
}

/// The tokens of each row, tokens per second of all rows, and rows per step.
fn together(engine: &Engine, options: &GenerateOptions, rows: usize) -> Result<(Vec<Vec<u32>>, f64, f64)> {
    let scheduler = Scheduler::new(engine, SchedulerOptions::default())?;
    let sequences = (0..rows)
        .map(|row| begin(engine, row))
        .collect::<Result<Vec<_>>>()?;
    let start = Instant::now();
    let mut answers = Vec::new();
    for sequence in sequences {
        answers.push(scheduler.submit(sequence, options)?);
    }
    let mut tokens = vec![Vec::new(); rows];
    let mut text = String::new();
    // In turns, so that no queue is full for long.
    let mut left: Vec<usize> = (0..rows).collect();
    while let Some(&row) = left.first() {
        left.rotate_left(1);
        match answers[row].next(&mut text, None)? {
            Next::Event(Event::Token { id, .. }) => tokens[row].push(id),
            Next::Event(Event::Prefill { .. }) | Next::Pending => {}
            Next::Event(Event::End { .. }) | Next::Ended => left.retain(|&other| other != row),
        }
    }
    let count: usize = tokens.iter().map(Vec::len).sum();
    let rate = count as f64 / start.elapsed().as_secs_f64();
    let metrics = scheduler.metrics();
    Ok((tokens, rate, metrics.rows as f64 / metrics.steps as f64))
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() -> std::result::Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |index: usize, default: usize| -> std::result::Result<usize, Box<dyn Error>> {
        arguments.get(index).map_or(Ok(default), |text| Ok(text.parse()?))
    };
    let model = arguments
        .first()
        .ok_or("expected MODEL_FOLDER [TOKENS [ROUNDS [THREADS]]]")?;
    let (tokens, rounds) = (number(1, 64)?, number(2, 5)?.max(1));
    let engine = Engine::open(&EngineOptions {
        threads: number(3, 0)?,
        verify_weights: false,
        ..EngineOptions::new(model)
    })?;
    let options = GenerateOptions {
        max_tokens: Some(tokens),
        ignore_eos: true,
        ..GenerateOptions::default()
    };
    let expected = (0..ROWS[ROWS.len() - 1])
        .map(|row| alone(&engine, &options, row).map(|found| found.0))
        .collect::<Result<Vec<_>>>()?;

    let mut rates = vec![Vec::new(); 1 + ROWS.len()];
    let (mut per_step, mut different) = ([0.0; ROWS.len()], [0; ROWS.len()]);
    for _ in 0..rounds {
        rates[0].push(alone(&engine, &options, 0)?.1);
        for (index, rows) in ROWS.into_iter().enumerate() {
            let (found, rate, rows_per_step) = together(&engine, &options, rows)?;
            different[index] += found.iter().zip(&expected).filter(|(a, b)| a != b).count();
            rates[1 + index].push(rate);
            per_step[index] = rows_per_step;
        }
    }
    let alone = median(&mut rates[0]);
    println!(
        "{model}: {tokens} tokens after {PROMPT}, {:?}, median of {rounds} rounds",
        engine.simd()
    );
    println!("alone        {alone:8.1} tokens/s");
    for (index, rows) in ROWS.into_iter().enumerate() {
        let rate = median(&mut rates[1 + index]);
        println!(
            "{rows} at once    {rate:8.1} tokens/s  {:5.2} times  {:5.2} rows per step  {} answers differ",
            rate / alone,
            per_step[index],
            different[index]
        );
    }
    Ok(())
}
