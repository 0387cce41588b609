//! Graphs of the `portable` flavour: stock operators over one contiguous float32 cache per
//! sequence, past and present in one buffer. Rows run one after the other.

use std::ffi::{CStr, CString};
use std::path::Path;
use std::ptr::NonNull;

use ort::environment::Environment;

use super::{Runner, Step};
use crate::error::{Error, Result};
use crate::model::Dimensions;
use crate::runtime::{Input, Output, Session};

pub(crate) struct PortableRunner {
    session: Session,
    dimensions: Dimensions,
    names: Vec<LayerNames>,
    queries: Vec<Vec<f32>>,
}

struct LayerNames {
    past_key: CString,
    past_value: CString,
    present_key: CString,
    present_value: CString,
    query: CString,
}

fn name(of: &str, layer: usize) -> Result<CString> {
    CString::new(format!("{of}_{layer}")).map_err(|error| Error::Internal(error.to_string()))
}

impl PortableRunner {
    pub(crate) fn open(
        environment: &Environment,
        graph: &Path,
        threads: usize,
        dimensions: Dimensions,
    ) -> Result<Self> {
        let names = (0..dimensions.num_layers)
            .map(|layer| {
                Ok(LayerNames {
                    past_key: name("past_key", layer)?,
                    past_value: name("past_value", layer)?,
                    present_key: name("present_key", layer)?,
                    present_value: name("present_value", layer)?,
                    query: name("query", layer)?,
                })
            })
            .collect::<Result<_>>()?;
        Ok(Self {
            session: Session::open(environment, graph, threads, None, None)?,
            dimensions,
            names,
            queries: vec![Vec::new(); dimensions.num_layers],
        })
    }

    fn run_row(&mut self, step: &mut Step, row: usize, logits: std::ops::Range<usize>) -> Result<()> {
        let d = self.dimensions;
        let width = d.num_heads * d.head_dim;
        let range = step.row_offsets[row] as usize..step.row_offsets[row + 1] as usize;
        let count = range.len();
        let logits_rows: Vec<i32> = step.logits_rows[logits.clone()]
            .iter()
            .map(|&index| index - step.row_offsets[row])
            .collect();
        let row = &mut step.rows[row];
        let len = row.cache.head(0, 0).len();
        let total = (len + count) as i32;
        let (last, total) = ([total - 1], [total]);
        let tokens = [1, count as i64];
        let logits_shape = [logits_rows.len() as i64, d.vocab_size as i64];
        let query_shape = [1, count as i64, width as i64];

        let mut buffers: Vec<(NonNull<f32>, NonNull<f32>)> = Vec::with_capacity(d.num_layers);
        let mut capacity = 0;
        for layer in 0..d.num_layers {
            let (keys, values, entries) = row
                .cache
                .contiguous(layer)
                .ok_or_else(|| Error::Internal("expected a contiguous cache, found blocks".into()))?;
            buffers.push((keys, values));
            capacity = entries;
        }
        let cache_shape = [1, d.num_kv_heads as i64, capacity as i64, d.head_dim as i64];
        let cache_len = d.num_kv_heads * capacity * d.head_dim;

        let mut inputs: Vec<(&CStr, &[i64], Input<'_>)> = vec![
            (c"input_ids", &tokens, Input::I64(&step.ids[range.clone()])),
            (c"positions", &tokens, Input::I64(&step.positions[range])),
            (c"seqlens_k", &[1], Input::I32(&last)),
            (c"total_sequence_length", &[], Input::I32(&total)),
            (c"logits_rows", &logits_shape[..1], Input::I32(&logits_rows)),
        ];
        let logits = &mut step.logits[logits.start * d.vocab_size..logits.end * d.vocab_size];
        let mut outputs: Vec<(&CStr, &[i64], Output)> = vec![(c"logits", &logits_shape, Output::new(logits))];
        for ((names, &(keys, values)), queries) in self.names.iter().zip(&buffers).zip(&mut self.queries) {
            let as_output = |data| Output { data, len: cache_len };
            inputs.push((&names.past_key, &cache_shape, Input::F32(keys, cache_len)));
            inputs.push((&names.past_value, &cache_shape, Input::F32(values, cache_len)));
            outputs.push((&names.present_key, &cache_shape, as_output(keys)));
            outputs.push((&names.present_value, &cache_shape, as_output(values)));
            queries.resize(count * width, 0.0);
            outputs.push((&names.query, &query_shape, Output::new(queries)));
        }
        self.session.run(&inputs, &outputs)?;

        if let Some(first) = row.first_generated {
            for (layer, queries) in self.queries.iter().enumerate() {
                let window = row.cache.window_mut(layer);
                for (generated, query) in (first..).zip(queries.chunks_exact(width)) {
                    window.record(generated, query);
                }
            }
        }
        Ok(())
    }
}

impl Runner for PortableRunner {
    fn run(&mut self, step: &mut Step) -> Result<()> {
        step.logits
            .resize(step.logits_rows.len() * self.dimensions.vocab_size, 0.0);
        let mut logits = 0;
        for row in 0..step.rows.len() {
            let end = step.row_offsets[row + 1];
            let count = step.logits_rows[logits..]
                .iter()
                .take_while(|&&index| index < end)
                .count();
            self.run_row(step, row, logits..logits + count)?;
            logits += count;
        }
        Ok(())
    }
}
