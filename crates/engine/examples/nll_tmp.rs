use reasoning_rpc_core::NoCompression;
use reasoning_rpc_engine::sampling::SamplingOptions;
use reasoning_rpc_engine::{CacheType, Engine, EngineOptions, SequenceOptions};
use std::sync::Arc;
fn main() {
    let f: serde_json::Value = serde_json::from_str(
        &std::fs::read_to_string("/work/main/tests/golden/smollm2/forced_group/expected.json").unwrap(),
    )
    .unwrap();
    let ints = |v: &serde_json::Value| -> Vec<u32> {
        v.as_array()
            .unwrap()
            .iter()
            .map(|x| x.as_u64().unwrap() as u32)
            .collect()
    };
    let (prompt, text) = (ints(&f["prompt"]), ints(&f["forced"]));
    for name in std::env::args().skip(1) {
        let e = Engine::open(&EngineOptions {
            cache_type: Some(CacheType::F32),
            ..EngineOptions::new(&name)
        })
        .unwrap();
        let mut s = e
            .sequence(SequenceOptions {
                policy: Arc::new(NoCompression),
                sampling: SamplingOptions::GREEDY,
                record_kept: false,
            })
            .unwrap();
        s.append_tokens(&prompt).unwrap();
        let mut sum = 0.0;
        let t = std::time::Instant::now();
        for &tok in &text {
            while s.pending() > 0 {
                e.step(&mut [&mut s]).unwrap();
            }
            let l = s.logits().unwrap();
            let max = f64::from(l.iter().copied().fold(f32::MIN, f32::max));
            let tot: f64 = l.iter().map(|&x| (f64::from(x) - max).exp()).sum();
            sum += max + tot.ln() - f64::from(l[tok as usize]);
            s.accept(tok).unwrap();
        }
        println!("{name} {:.4} ({:?})", sum / text.len() as f64, t.elapsed());
    }
}
