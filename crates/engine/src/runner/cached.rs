//! Graphs of the `cached` flavour: any mixture of rows in one run, caches in the block pool.

use std::path::Path;
use std::sync::Arc;

use ort::environment::Environment;
use reasoning_rpc_cpu::Simd;

use super::{Runner, Step};
use crate::error::{Error, Result};
use crate::model::Weights;
use crate::runtime::{AttentionState, Input, Output, Session, operator_domain};

pub(crate) struct CachedRunner {
    session: Session,
    state: Arc<AttentionState>,
    vocab: usize,
}

impl CachedRunner {
    pub(crate) fn open(
        environment: &Environment,
        graph: &Path,
        threads: usize,
        simd: Simd,
        vocab: usize,
        weights: Option<Arc<Weights>>,
    ) -> Result<Self> {
        let state = Arc::new(AttentionState::new(simd, threads));
        let domain = operator_domain(&state)?;
        Ok(Self {
            session: Session::open(environment, graph, threads, Some(domain), weights)?,
            state,
            vocab,
        })
    }

    #[cfg(test)]
    pub(crate) fn plant(&self, fault: Option<crate::runtime::Fault>) {
        *self.state.fault.lock().unwrap() = fault;
    }
}

impl Runner for CachedRunner {
    fn run(&mut self, step: &mut Step) -> Result<()> {
        std::mem::swap(&mut self.state.step().rows, &mut step.rows);
        let (tokens, rows, logits_rows) = (
            step.ids.len() as i64,
            step.slots.len() as i64,
            step.logits_rows.len(),
        );
        step.logits.resize(logits_rows * self.vocab, 0.0);
        let result = self.session.run(
            &[
                (c"input_ids", &[tokens], Input::I64(&step.ids)),
                (c"positions", &[tokens], Input::I64(&step.positions)),
                (c"row_offsets", &[rows + 1], Input::I32(&step.row_offsets)),
                (c"slots", &[rows], Input::I64(&step.slots)),
                (
                    c"logits_rows",
                    &[logits_rows as i64],
                    Input::I32(&step.logits_rows),
                ),
            ],
            &[(
                c"logits",
                &[logits_rows as i64, self.vocab as i64],
                Output::new(&mut step.logits),
            )],
        );
        let mut context = self.state.step();
        std::mem::swap(&mut context.rows, &mut step.rows);
        step.times = std::mem::take(&mut context.times);
        // The operator's own words say more than the runtime's.
        match (result, context.failure.take()) {
            (Ok(()), None) => Ok(()),
            (_, Some(failure)) => Err(failure),
            (Err(error), None) => Err(match error {
                Error::Runtime(text) => Error::Runtime(format!("the graph failed: {text}")),
                other => other,
            }),
        }
    }
}
