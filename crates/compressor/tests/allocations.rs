//! Score, select, apply and compress allocate nothing.
#![allow(unsafe_code)]

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use common::*;
use reasoning_rpc_compressor::*;
use reasoning_rpc_core::{Budget, RpcOptions};
use reasoning_rpc_test_support::{Random, seed};

thread_local! {
    static COUNT: Cell<usize> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: it is the system's, and counts.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's contract.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn ahead(merges: bool) -> Selection {
    Selection::Lookahead {
        merges,
        rotary: Rotary {
            inv_freq: vec![0.5; 16],
            style: RotaryStyle::HalfSplit,
        },
    }
}

#[test]
fn nothing_is_allocated() {
    let mut random = Random::new(seed());
    let rpc = RpcOptions {
        interval: 16,
        window: 4,
        budget: Budget::Ratio(4),
        ..RpcOptions::default()
    };
    let selections = [
        Selection::Rpc,
        Selection::SnapKv,
        Selection::Streaming,
        Selection::Random { seed: 1 },
        ahead(false),
        ahead(true),
    ];
    let places = PLACES.into_iter().zip([Dtype::F32, Dtype::I8, Dtype::F16]);
    let cases = places.flat_map(|case| selections.iter().map(move |selection| (case, selection.clone())));
    for ((place, dtype), selection) in cases {
        let mut options = options(8, 2, 32, dtype, rpc);
        options.selection = selection;
        options.recorded_layers = 1;
        options.recorded_sequences = 2;
        let compressor = Compressor::new(&options).unwrap();
        let mut host = Host::new(place, (2, 32, dtype), &[[100, 7, 1], [60, 0, 0]], &mut random);
        host.fill(&mut random);
        let looks_ahead = matches!(options.selection, Selection::Lookahead { .. });
        let queries = random_numbers(&mut random, 2 * 16 * 8 * 32);
        for token in queries.chunks(2 * 8 * 32) {
            // SAFETY: two slots' queries.
            unsafe { compressor.record(0, None, 2, token.as_ptr().cast(), 8 * 32, 32, Dtype::F32) }.unwrap();
        }
        let mut memory = Memory::new(&compressor, &host.batch());
        let workspace = memory.workspace();
        let mut scores = vec![0.0; compressor.sizes(&host.batch()).unwrap().score_count];
        let layer = host.layer(0);
        let batch = host.batch();
        let window = Window::Recorded { slots: None };
        let before = COUNT.get();
        // SAFETY: the host's memory is what it says.
        let (done, mut plans) = unsafe {
            let scored = compressor.score(&layer, &batch, &window, &mut scores, workspace);
            let plan = match looks_ahead {
                true => compressor.plan(&layer, &batch, &window, workspace),
                false => compressor.select(0, &batch, &scores, workspace),
            };
            let plan = plan.unwrap();
            let applied = compressor.apply(&layer, &batch, &plan, workspace);
            let plans = compressor.compress(&layer, &batch, &window, workspace);
            (scored.and(applied), plans)
        };
        assert_eq!(COUNT.get(), before, "{place:?}");
        done.unwrap();
        assert!(plans.as_mut().unwrap().new_lengths[0] < 100);
    }
}
