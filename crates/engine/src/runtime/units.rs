//! How the attention of a step is shared out among threads.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use reasoning_rpc_cpu::{ATTEND_CHUNK, ATTEND_TOKEN_TILE, chunk_floats};

/// Units for each thread: enough that none waits long for the last.
const UNITS_PER_THREAD: usize = 4;
/// The least chunks of a unit: handing one out costs about what reading a few dozen entries does.
const LEAST_CHUNKS: usize = 2;

/// Some tokens of a row, with some chunks of one KV head's cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Unit {
    pub row: usize,
    pub kv_head: usize,
    /// Among the tokens of the step.
    pub tokens: Range<usize>,
    /// All that the tokens see, unless it is shared.
    pub chunks: Range<usize>,
    /// If others work on other chunks for the same tokens: which of `Units::shared`.
    pub shared: Option<usize>,
}

/// The results of a cache whose chunks several units work on.
#[derive(Debug)]
pub(super) struct Shared {
    /// Units that are not done yet; the last one merges.
    left: AtomicUsize,
    /// Among the floats of all results.
    pub floats: Range<usize>,
    /// Those of one chunk.
    pub chunk: usize,
}

impl Shared {
    /// Whether all others are done. Their results are visible then.
    pub(super) fn is_last(&self) -> bool {
        self.left.fetch_sub(1, Ordering::AcqRel) == 1
    }
}

/// Reused from node to node.
#[derive(Default)]
pub(super) struct Units {
    pub list: Vec<Unit>,
    pub shared: Vec<Shared>,
    /// Floats of the shared results together.
    pub floats: usize,
}

/// What [`Units::plan`] must know.
pub(super) struct Shape {
    pub kv_heads: usize,
    pub group: usize,
    pub head_dim: usize,
    pub threads: usize,
}

impl Units {
    /// Shares out rows: `row` gives the tokens of a row and the entries before them in a KV head's cache.
    ///
    /// Prefill is cut along the tokens. What is still more than a fair share, such as a single token with a long cache, is cut along
    /// the cache, between chunks, which changes no bits.
    pub(super) fn plan(
        &mut self,
        rows: usize,
        row: impl Fn(usize, usize) -> (Range<usize>, usize),
        shape: &Shape,
    ) {
        self.list.clear();
        self.shared.clear();
        self.floats = 0;
        // Entries that queries of one KV head meet.
        let all: usize = (0..shape.kv_heads)
            .flat_map(|kv_head| (0..rows).map(move |index| (kv_head, index)))
            .map(|(kv_head, index)| {
                let (tokens, before) = row(index, kv_head);
                tokens.len() * (before + tokens.len())
            })
            .sum();
        let fair = all / (shape.threads * UNITS_PER_THREAD).max(1);
        // Neighbouring units share a KV head's pages.
        for kv_head in 0..shape.kv_heads {
            for index in 0..rows {
                let (tokens, before) = row(index, kv_head);
                let mut start = tokens.start;
                while start < tokens.end {
                    let tile = start..(start + ATTEND_TOKEN_TILE).min(tokens.end);
                    let end = before + tile.end - tokens.start;
                    self.push(index, kv_head, tile.clone(), end, fair, shape);
                    start = tile.end;
                }
            }
        }
    }

    fn push(
        &mut self,
        row: usize,
        kv_head: usize,
        tokens: Range<usize>,
        end: usize,
        fair: usize,
        shape: &Shape,
    ) {
        let chunks = end.div_ceil(ATTEND_CHUNK);
        let most = (fair / tokens.len() / ATTEND_CHUNK).max(LEAST_CHUNKS);
        let parts = chunks.div_ceil(most);
        if shape.threads < 2 || parts < 2 {
            self.list.push(Unit {
                row,
                kv_head,
                tokens,
                chunks: 0..chunks,
                shared: None,
            });
            return;
        }
        let chunk = tokens.len() * shape.group * chunk_floats(shape.head_dim);
        let floats = self.floats..self.floats + chunks * chunk;
        self.floats = floats.end;
        self.shared.push(Shared {
            left: AtomicUsize::new(parts),
            floats,
            chunk,
        });
        for part in 0..parts {
            self.list.push(Unit {
                row,
                kv_head,
                tokens: tokens.clone(),
                chunks: chunks * part / parts..chunks * (part + 1) / parts,
                shared: Some(self.shared.len() - 1),
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(rows: &[(usize, usize)], shape: &Shape) -> Units {
        let mut units = Units::default();
        let offset = |row: usize| rows[..row].iter().map(|row| row.0).sum::<usize>();
        let row = |row: usize, _| (offset(row)..offset(row + 1), rows[row].1);
        units.plan(rows.len(), row, shape);
        units
    }

    #[test]
    fn everything_is_attended_once_and_no_unit_is_large() {
        for (kv_heads, threads) in [(1, 2), (2, 2), (3, 2), (8, 16), (3, 1)] {
            let shape = Shape {
                kv_heads,
                group: 3,
                head_dim: 64,
                threads,
            };
            let cases: [&[(usize, usize)]; 5] = [
                &[(1, 0)],
                &[(1, 32_767)],
                &[(1, 40_000), (1, 10), (1, 3000), (5, 511)],
                &[(300, 0), (1, 20_000)],
                &[(33, 8000)],
            ];
            for rows in cases {
                let units = plan(rows, &shape);
                let mut pairs = 0;
                let cost = |unit: &Unit, before: usize| {
                    let entries =
                        (unit.chunks.end * ATTEND_CHUNK).min(before) - unit.chunks.start * ATTEND_CHUNK;
                    unit.tokens.len() * entries
                };
                let mut start = 0;
                let mut largest = 0;
                for (index, &(tokens, before)) in rows.iter().enumerate() {
                    for kv_head in 0..kv_heads {
                        for token in start..start + tokens {
                            let mine = units.list.iter().filter(|unit| {
                                unit.row == index && unit.kv_head == kv_head && unit.tokens.contains(&token)
                            });
                            let mut next = 0;
                            for unit in mine {
                                assert_eq!(unit.chunks.start, next, "in order, without gaps");
                                next = unit.chunks.end;
                                let end = before + unit.tokens.end - start;
                                assert!(unit.chunks.end <= end.div_ceil(ATTEND_CHUNK));
                                if token == unit.tokens.start {
                                    pairs += cost(unit, end);
                                    largest = largest.max(cost(unit, end));
                                }
                            }
                            assert!(next * ATTEND_CHUNK > before + token - start);
                        }
                    }
                    start += tokens;
                }
                if threads > 1 {
                    let least = ATTEND_TOKEN_TILE * LEAST_CHUNKS * ATTEND_CHUNK;
                    assert!(
                        largest <= (pairs / threads / 2).max(least),
                        "{largest} of {pairs}"
                    );
                } else {
                    assert!(units.shared.is_empty());
                }
                let left: usize = units
                    .shared
                    .iter()
                    .map(|shared| shared.left.load(Ordering::Relaxed))
                    .sum();
                assert_eq!(
                    left,
                    units.list.iter().filter(|unit| unit.shared.is_some()).count()
                );
            }
        }
    }
}
