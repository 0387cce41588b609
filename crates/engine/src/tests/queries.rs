//! The queries that a policy stores are of the budget.

use std::sync::Arc;

use reasoning_rpc_core::{Aggregation, Policy, PolicyKind, RpcOptions};

use super::{run_pending, start, tiny, write};
use crate::{Engine, Error, Sequence};

const P: usize = 24;
/// 3 layers of 4 query heads of 16 float32 each, in blocks of 16 entries.
const QUERY_BLOCKS: usize = (3 * P * 4 * 16 * 4usize).div_ceil(BLOCK);
const BLOCK: usize = 16 * (2 * 16 * 4 + 4);
/// Of 3 layers and 2 KV heads, for 16 entries or fewer.
const ENTRY_BLOCKS: usize = 6;

fn lookahead() -> Arc<dyn Policy> {
    let options = RpcOptions {
        interval: P,
        window: 6,
        aggregation: Some(Aggregation::KvHead),
        ..RpcOptions::default()
    };
    PolicyKind::Lookahead.build(options).unwrap()
}

fn with_blocks(blocks: usize) -> Engine {
    tiny(|options| options.budget = Some(blocks * BLOCK))
}

fn promised(sequence: &Sequence) -> usize {
    sequence.cache.as_ref().unwrap().promised()
}

#[test]
fn an_answer_is_refused_whose_queries_do_not_fit() {
    let blocks = ENTRY_BLOCKS + QUERY_BLOCKS;
    let engine = with_blocks(blocks - 1);
    let mut sequence = start(&engine, lookahead(), &[1, 2, 3]);
    let refused = Error::Budget {
        needed: blocks * BLOCK,
        queries: QUERY_BLOCKS * BLOCK,
        available: (blocks - 1) * BLOCK,
    };
    assert_eq!(sequence.reserve(10), Err(refused.clone()));
    assert_eq!(engine.step(&mut [&mut sequence]), Err(refused.clone()));
    let text = refused.to_string();
    assert!(
        text.contains(&format!("{} of them for the queries", QUERY_BLOCKS * BLOCK)),
        "{text}"
    );
    assert_eq!((engine.budget().1, promised(&sequence)), (0, 0));

    let engine = with_blocks(blocks);
    let mut sequence = start(&engine, lookahead(), &[1, 2, 3]);
    sequence.reserve(10).unwrap();
    assert_eq!(promised(&sequence), blocks * BLOCK);
    write(&engine, &mut sequence, 10);
    assert_eq!((engine.budget().1, promised(&sequence)), (blocks * BLOCK, 0));
    assert_eq!(sequence.stats().cache_peak_bytes, blocks * BLOCK);
    assert_eq!(engine.metrics().budget_peak_bytes, (blocks * BLOCK) as u64);
    // They are there as long as the sequence is.
    sequence.rewind(3).unwrap();
    assert_eq!(sequence.stats().cache_bytes, blocks * BLOCK);
    drop(sequence);
    assert_eq!(engine.budget().1, 0);
}

#[test]
fn a_fork_and_a_saved_sequence_take_queries_of_their_own() {
    // A fork's entries are shared; it needs a copy of each open block, of every KV head of a layer.
    let whole = 2 * (ENTRY_BLOCKS + QUERY_BLOCKS);
    for (blocks, fits) in [(whole, true), (whole - 1, false)] {
        let engine = with_blocks(blocks);
        let mut sequence = start(&engine, lookahead(), &[1, 2, 3]);
        write(&engine, &mut sequence, 2);
        run_pending(&engine, &mut sequence);
        let before = engine.budget().1;
        match sequence.fork() {
            Ok(mut fork) => {
                assert!(fits);
                let ours = write(&engine, &mut sequence, 5);
                assert_eq!(write(&engine, &mut fork, 5), ours);
                assert_eq!(engine.budget().1, whole * BLOCK);
            }
            Err(error) => {
                assert!(!fits && matches!(error, Error::Budget { .. }), "{error}");
                assert_eq!((engine.budget().1, promised(&sequence)), (before, 0));
            }
        }
        let mut bytes = Vec::new();
        sequence.save(&mut bytes).unwrap();
        assert_eq!(engine.restore(&bytes).is_ok(), fits);
        drop(sequence);
        assert_eq!(engine.budget().1, 0);
    }
}
