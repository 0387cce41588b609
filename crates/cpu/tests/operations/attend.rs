use crate::cache::{Cache, bits};
use crate::rng::{ForElement, Rng, for_elements};
use crate::{EXP, U, logit_error, paths};
use reasoning_rpc_cpu::{
    ATTEND_CHUNK, Element, Heads, HeadsMut, Layout, Scratch, Simd, attend, attend_chunks, chunk_floats,
    merge_chunks,
};

/// One call's arguments: queries are the `kv_head`th group of a packed `[tokens, heads * head_dim]` tensor.
struct Call {
    head_dim: usize,
    group: usize,
    tokens: usize,
    before: usize,
    token_stride: usize,
    offset: usize,
    queries: Vec<f32>,
    scale: f32,
}

impl Call {
    fn random(rng: &mut Rng, most_entries: usize) -> Call {
        let head_dim = rng.head_dim();
        let group = if rng.coin(0.7) {
            rng.between(1, 8)
        } else {
            rng.between(9, 17)
        };
        let tokens = if rng.coin(0.5) {
            rng.between(1, 3)
        } else {
            rng.between(1, 80)
        };
        let before = if rng.coin(0.2) {
            0
        } else {
            rng.between(0, most_entries)
        };
        Call::of(rng, head_dim, group, tokens, before)
    }

    fn of(rng: &mut Rng, head_dim: usize, group: usize, tokens: usize, before: usize) -> Call {
        let offset = rng.between(0, 2) * group * head_dim;
        let token_stride = offset + group * head_dim + rng.between(0, 1) * head_dim;
        let queries = rng.normals(tokens * token_stride);
        Call {
            head_dim,
            group,
            tokens,
            before,
            token_stride,
            offset,
            queries,
            scale: 1.0 / (head_dim as f32).sqrt(),
        }
    }

    fn end(&self) -> usize {
        self.before + self.tokens
    }

    fn query(&self, token: usize, head: usize) -> &[f32] {
        &self.queries[token * self.token_stride + self.offset + head * self.head_dim..][..self.head_dim]
    }

    /// The output of all tokens, given to `attend` in calls of the sizes that `split` returns; `[tokens, group, head_dim]`.
    fn run<E: Element>(&self, simd: Simd, cache: &Cache<E>, mut split: impl FnMut() -> usize) -> Vec<f32> {
        let mut out = vec![f32::NAN; self.queries.len()];
        let mut scratch = Scratch::new();
        let queries = Heads::new(
            &self.queries[self.offset..],
            self.tokens,
            self.group,
            self.head_dim,
            self.token_stride,
        )
        .unwrap();
        let mut heads = HeadsMut::new(
            &mut out[self.offset..],
            self.tokens,
            self.group,
            self.head_dim,
            self.token_stride,
        )
        .unwrap();
        let mut first = 0;
        while first < self.tokens {
            let range = first..(first + split()).min(self.tokens);
            // No more entries than the last token of the call sees.
            let pages = cache.pages_of(self.before + range.end);
            let part = queries.tokens_in(range.clone()).unwrap();
            let mut to = heads.tokens_in(range.clone()).unwrap();
            attend(
                simd,
                &pages,
                self.before + first,
                part,
                &mut to,
                self.scale,
                &mut scratch,
            )
            .unwrap();
            first = range.end;
        }
        let mut packed = Vec::new();
        for (i, token) in out.chunks(self.token_stride).enumerate() {
            let (others, ours) = (&token[..self.offset], &token[self.offset..]);
            let (ours, behind) = ours.split_at(self.group * self.head_dim);
            assert!(
                others.iter().chain(behind).all(|x| x.is_nan()),
                "wrote outside of its heads at token {i}"
            );
            packed.extend_from_slice(ours);
        }
        packed
    }

    /// The formula in `f64`, and a bound on the error of each number.
    fn reference<E: Element>(&self, cache: &Cache<E>) -> Vec<(f64, f64)> {
        let mut all = Vec::new();
        for t in 0..self.tokens {
            for g in 0..self.group {
                all.extend(self.reference_of(cache, t, g));
            }
        }
        all
    }

    fn reference_of<E: Element>(&self, cache: &Cache<E>, token: usize, head: usize) -> Vec<(f64, f64)> {
        let query = self.query(token, head);
        let seen = self.before + token + 1;
        let scale = f64::from(self.scale);
        let mut worst = 0.0f64;
        let logits: Vec<f64> = (0..seen)
            .map(|e| {
                let products = query
                    .iter()
                    .zip(cache.key(e))
                    .map(|(q, k)| f64::from(*q) * f64::from(k.to_f32()));
                let (sum, magnitude) = products.fold((0.0, 0.0), |(s, m), p| (s + p, m + p.abs()));
                worst = worst.max(logit_error(self.head_dim, scale.abs() * magnitude));
                scale * sum
            })
            .collect();
        let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let smallest = logits.iter().copied().fold(f64::INFINITY, f64::min);
        let weights: Vec<f64> = logits.iter().map(|l| (l - largest).exp()).collect();
        let total: f64 = weights.iter().sum();
        // A weight's relative error: that of its logit and of the maximum subtracted from it; the rounding of that difference and of
        // the differences of maxima it is rescaled by, which add up to at most the range of the logits; one exponential and one
        // product per tile; then the summation, 64 terms in a tile, a fused multiplication and addition per tile, the tree, and for the
        // total the same again; the same once more for each chunk that is merged; and the division.
        let tiles = (seen.div_ceil(64) + 2 * seen.div_ceil(ATTEND_CHUNK)) as f64;
        let weight = 2.0 * worst + U * (largest - smallest) + tiles * (EXP + U) + EXP;
        let relative = 2.0 * (weight.exp_m1() + (64.0 + 2.0 * tiles + 6.0) * U) + U;
        (0..self.head_dim)
            .map(|d| {
                let terms = weights
                    .iter()
                    .enumerate()
                    .map(|(e, w)| w / total * f64::from(cache.value(e)[d].to_f32()));
                let (sum, magnitude) = terms.fold((0.0, 0.0), |(s, m), t| (s + t, m + t.abs()));
                // Weights below e^-87.3 of the largest are dropped.
                (sum, relative * magnitude + seen as f64 * 1e-37 * 65504.0)
            })
            .collect()
    }

    fn check<E: Element>(&self, simd: Simd, cache: &Cache<E>) {
        let out = self.run(simd, cache, || usize::MAX);
        for (i, (&found, (expected, bound))) in out.iter().zip(self.reference(cache)).enumerate() {
            let error = (f64::from(found) - expected).abs();
            assert!(
                error <= bound,
                "{} {}: token {} head {} dim {}: {found} for {expected}, off by {error:e}, allowed {bound:e} (D={} group={} tokens={} before={})",
                simd.name(),
                E::NAME,
                i / self.head_dim / self.group,
                i / self.head_dim % self.group,
                i % self.head_dim,
                self.head_dim,
                self.group,
                self.tokens,
                self.before
            );
        }
    }
}

fn filled<E: Element>(head_dim: usize, len: usize, rng: &mut Rng) -> Cache<E> {
    let mut cache = Cache::random(head_dim, len, rng);
    for e in 0..len {
        cache.write(e, &rng.normals(head_dim), &rng.normals(head_dim));
    }
    cache
}

/// The same entries in another layout.
fn moved<E: Element>(cache: &Cache<E>, mut to: Cache<E>) -> Cache<E> {
    for e in 0..cache.len() {
        let (key, value): (Vec<f32>, Vec<f32>) = cache
            .key(e)
            .iter()
            .zip(cache.value(e))
            .map(|(k, v)| (k.to_f32(), v.to_f32()))
            .unzip();
        to.write(e, &key, &value);
    }
    to
}

#[test]
fn agrees_with_the_formula() {
    struct Test(Rng);
    impl ForElement for Test {
        fn run<E: Element>(&mut self) {
            for simd in paths() {
                for _ in 0..40 {
                    let call = Call::random(&mut self.0, 400);
                    let cache = filled::<E>(call.head_dim, call.end(), &mut self.0);
                    call.check(simd, &cache);
                }
            }
        }
    }
    for_elements(&mut Test(Rng::new()));
}

#[test]
fn every_head_dimension_and_group() {
    struct Test(Rng);
    impl ForElement for Test {
        fn run<E: Element>(&mut self) {
            let rng = &mut self.0;
            for simd in paths() {
                for head_dim in (8..=256).step_by(8) {
                    let (group, tokens, before) =
                        (rng.between(1, 17), rng.between(1, 5), rng.between(0, 150));
                    let call = Call::of(rng, head_dim, group, tokens, before);
                    call.check(simd, &filled::<E>(head_dim, call.end(), rng));
                }
                for group in 1..=17 {
                    let (tokens, before) = (rng.between(1, 5), rng.between(0, 150));
                    let call = Call::of(rng, 64, group, tokens, before);
                    call.check(simd, &filled::<E>(64, call.end(), rng));
                }
            }
        }
    }
    for_elements(&mut Test(Rng::new()));
}

/// A query's bits do not depend on what else is in the call, nor on how the cache lies in memory.
#[test]
fn bits_do_not_depend_on_the_call_or_the_layout() {
    struct Test(Rng);
    impl ForElement for Test {
        fn run<E: Element>(&mut self) {
            let rng = &mut self.0;
            for simd in paths() {
                for i in 0..25 {
                    let call = Call::random(rng, if i % 8 == 0 { 1200 } else { 300 });
                    let cache = filled::<E>(call.head_dim, call.end(), rng);
                    let whole = bits(&call.run(simd, &cache, || usize::MAX));
                    assert_eq!(whole, bits(&call.run(simd, &cache, || 1)), "token by token");
                    assert_eq!(
                        whole,
                        bits(&call.run(simd, &cache, || rng.between(1, 40))),
                        "in chunks"
                    );

                    let dense = Cache::new(Layout::contiguous(call.end(), call.head_dim), 1, rng);
                    let dense = moved(&cache, dense);
                    assert_eq!(
                        whole,
                        bits(&call.run(simd, &dense, || rng.between(1, 40))),
                        "dense"
                    );
                    let paged = moved(&cache, Cache::random(call.head_dim, call.end(), rng));
                    assert_eq!(
                        whole,
                        bits(&call.run(simd, &paged, || rng.between(1, 40))),
                        "other pages"
                    );

                    // Each head alone.
                    for head in 0..call.group {
                        let alone = Call {
                            group: 1,
                            offset: call.offset + head * call.head_dim,
                            queries: call.queries.clone(),
                            ..call
                        };
                        let out = bits(&alone.run(simd, &cache, || rng.between(1, 40)));
                        for (t, token) in out.chunks(call.head_dim).enumerate() {
                            let at = (t * call.group + head) * call.head_dim;
                            assert_eq!(
                                token,
                                &whole[at..at + call.head_dim],
                                "head {head} of token {t} alone"
                            );
                        }
                    }
                }
            }
        }
    }
    for_elements(&mut Test(Rng::new()));
}

/// However the chunks of a cache are shared out, merging gives the bits of one call.
#[test]
fn bits_do_not_depend_on_who_attends_which_chunk() {
    struct Test(Rng);
    impl ForElement for Test {
        fn run<E: Element>(&mut self) {
            let rng = &mut self.0;
            for simd in paths() {
                for _ in 0..6 {
                    let call = Call::random(rng, 3000);
                    let cache = filled::<E>(call.head_dim, call.end(), rng);
                    let whole = bits(&call.run(simd, &cache, || usize::MAX));
                    let queries = Heads::new(
                        &call.queries[call.offset..],
                        call.tokens,
                        call.group,
                        call.head_dim,
                        call.token_stride,
                    )
                    .unwrap();
                    let chunks = call.end().div_ceil(ATTEND_CHUNK);
                    let floats = call.tokens * call.group * chunk_floats(call.head_dim);
                    let mut partial = vec![f32::NAN; chunks * floats];
                    let mut first = 0;
                    while first < chunks {
                        let range = first..(first + rng.between(1, 3)).min(chunks);
                        first = range.end;
                        let part = &mut partial[range.start * floats..range.end * floats];
                        let (pages, mut scratch) = (cache.pages(), Scratch::new());
                        let result = attend_chunks(
                            simd,
                            &pages,
                            call.before,
                            queries,
                            range,
                            part,
                            None,
                            call.scale,
                            &mut scratch,
                        );
                        result.unwrap();
                    }
                    let width = call.group * call.head_dim;
                    let mut out = vec![0.0; call.tokens * width];
                    let mut heads =
                        HeadsMut::new(&mut out, call.tokens, call.group, call.head_dim, width).unwrap();
                    merge_chunks(simd, &mut partial, &mut heads).unwrap();
                    assert_eq!(whole, bits(&out), "{chunks} chunks");
                }
            }
        }
    }
    for_elements(&mut Test(Rng::new()));
}

/// What a token does not see may hold anything, within the chunk too.
#[test]
fn later_entries_contribute_nothing() {
    struct Test(Rng);
    impl ForElement for Test {
        fn run<E: Element>(&mut self) {
            let rng = &mut self.0;
            for simd in paths() {
                for _ in 0..10 {
                    let call = Call::random(rng, 200);
                    let mut cache = filled::<E>(call.head_dim, call.end(), rng);
                    let clean = bits(&call.run(simd, &cache, || usize::MAX));
                    // The last third of the chunk's entries become NaN; the tokens before do not see them.
                    let poisoned = call.tokens - call.tokens / 3;
                    let nan = vec![f32::NAN; call.head_dim];
                    for e in call.before + poisoned..call.end() {
                        cache.write(e, &nan, &nan);
                    }
                    let out = call.run(simd, &cache, || usize::MAX);
                    let row = call.group * call.head_dim;
                    assert_eq!(&clean[..poisoned * row], &bits(&out)[..poisoned * row]);
                    assert!(
                        out[poisoned * row..].iter().all(|x| x.is_nan()),
                        "a NaN that is seen must show"
                    );
                }
            }
        }
    }
    for_elements(&mut Test(Rng::new()));
}

#[test]
fn long_caches_stay_accurate() {
    struct Test(Rng);
    impl ForElement for Test {
        fn run<E: Element>(&mut self) {
            let rng = &mut self.0;
            for simd in paths() {
                let call = Call::of(rng, 64, 3, 2, 33_000);
                let cache = filled::<E>(64, call.end(), rng);
                call.check(simd, &cache);
            }
        }
    }
    for_elements(&mut Test(Rng::new()));
}

#[test]
fn logits_of_ten_thousand_are_safe() {
    struct Test(Rng);
    impl ForElement for Test {
        fn run<E: Element>(&mut self) {
            let rng = &mut self.0;
            for simd in paths() {
                for rising in [true, false] {
                    let mut call = Call::of(rng, 64, 2, 3, 300);
                    let mut cache = filled::<E>(64, call.end(), rng);
                    // Keys along one axis from -1e4 to 1e4 (or back): the running maximum moves at every tile, or never.
                    for e in 0..call.end() {
                        let along = e as f32 / call.end() as f32 * 2.0 - 1.0;
                        let mut key = vec![0.0; 64];
                        key[5] = if rising { 1e4 * along } else { -1e4 * along };
                        cache.write(e, &key, &rng.normals(64));
                    }
                    call.scale = 1.0;
                    for token in call.queries.chunks_mut(64) {
                        token.fill(0.0);
                        token[5] = 1.0;
                    }
                    call.check(simd, &cache);
                    // All logits equal and enormous: the mean of the values.
                    for e in 0..call.end() {
                        cache.write(e, &[1e4; 64], &[e as f32; 64]);
                    }
                    let out = call.run(simd, &cache, || usize::MAX);
                    let mean = call.before as f32 / 2.0;
                    let bound = 2.0 * (64.0 + 20.0) * U as f32 * mean;
                    assert!((out[0] - mean).abs() <= bound, "{} for {mean}", out[0]);
                }
            }
        }
    }
    for_elements(&mut Test(Rng::new()));
}

#[test]
fn a_single_entry_is_its_value() {
    struct Test(Rng);
    impl ForElement for Test {
        fn run<E: Element>(&mut self) {
            let rng = &mut self.0;
            for simd in paths() {
                let call = Call::of(rng, 72, 5, 1, 0);
                let cache = filled::<E>(72, 1, rng);
                let out = call.run(simd, &cache, || usize::MAX);
                for head in out.chunks(72) {
                    assert_eq!(bits(head), bits(cache.value(0)));
                }
            }
        }
    }
    for_elements(&mut Test(Rng::new()));
}

/// A scratch that has served a larger call, and holds its leftovers, changes nothing; a warm one does not grow.
#[test]
fn scratch_is_reused() {
    let rng = &mut Rng::new();
    for simd in paths() {
        let small = Call::of(rng, 40, 3, 2, 70);
        let cache = filled::<f32>(40, small.end(), rng);
        let expected = bits(&small.run(simd, &cache, || usize::MAX));
        let large = Call::of(rng, 256, 4, 40, 100);
        let mut nan = Cache::<f32>::random(256, large.end(), rng);
        for e in 0..large.end() {
            nan.write(e, &[f32::NAN; 256], &[f32::NAN; 256]);
        }
        let mut scratch = Scratch::new();
        let mut sizes = Vec::new();
        for (call, cache) in [(&large, &nan), (&small, &cache), (&large, &nan), (&small, &cache)] {
            let mut out = vec![0.0; call.queries.len()];
            let heads =
                |data| Heads::new(data, call.tokens, call.group, call.head_dim, call.token_stride).unwrap();
            let mut to = HeadsMut::new(
                &mut out[call.offset..],
                call.tokens,
                call.group,
                call.head_dim,
                call.token_stride,
            )
            .unwrap();
            attend(
                simd,
                &cache.pages(),
                call.before,
                heads(&call.queries[call.offset..]),
                &mut to,
                call.scale,
                &mut scratch,
            )
            .unwrap();
            sizes.push(scratch.bytes());
            if call.head_dim == 40 {
                let row = call.group * call.head_dim;
                let ours: Vec<f32> = out
                    .chunks(call.token_stride)
                    .flat_map(|token| token[call.offset..][..row].to_vec())
                    .collect();
                assert_eq!(bits(&ours), expected);
            }
        }
        assert!(sizes.iter().all(|&size| size == sizes[0]), "{sizes:?}");
        assert!(sizes[0] <= reasoning_rpc_cpu::attend_scratch_bytes::<f32>(40, 4, 256) + 64);
    }
}

/// Several KV heads write interleaved parts of one tensor at the same time.
#[test]
fn heads_in_parallel() {
    let rng = &mut Rng::new();
    let (kv_heads, group, head_dim, tokens) = (4, 3, 64, 20);
    let width = kv_heads * group * head_dim;
    let queries = rng.normals(tokens * width);
    let caches: Vec<Cache<f32>> = (0..kv_heads)
        .map(|_| filled(head_dim, 90 + tokens, rng))
        .collect();
    let views: Vec<_> = caches.iter().map(Cache::pages).collect();
    for simd in paths() {
        let run = |kv: usize, out: *mut f32| {
            let at = kv * group * head_dim;
            let heads = Heads::new(&queries[at..], tokens, group, head_dim, width).unwrap();
            // SAFETY: each KV head has its own part of every token's row, and the tensor outlives the threads.
            let mut to = unsafe { HeadsMut::from_raw(out.add(at), tokens, group, head_dim, width) }.unwrap();
            attend(simd, &views[kv], 90, heads, &mut to, 0.125, &mut Scratch::new()).unwrap();
        };
        let mut one_by_one = vec![0.0f32; tokens * width];
        for kv in 0..kv_heads {
            run(kv, one_by_one.as_mut_ptr());
        }
        let mut together = vec![0.0f32; tokens * width];
        let base = together.as_mut_ptr() as usize;
        std::thread::scope(|scope| {
            for kv in 0..kv_heads {
                let run = &run;
                scope.spawn(move || run(kv, base as *mut f32));
            }
        });
        assert_eq!(bits(&one_by_one), bits(&together));
    }
}

/// Runtimes set their threads to flush denormals; `f16` denormals are ordinary numbers in `f32` and must survive that.
#[cfg(target_arch = "x86_64")]
#[test]
fn flushing_denormals_changes_nothing() {
    use crate::flushing;
    use half::f16;
    use reasoning_rpc_cpu::append;

    let rng = &mut Rng::new();
    for simd in paths() {
        let call = Call::of(rng, 64, 3, 4, 100);
        let mut cache = Cache::<f16>::random(64, call.end(), rng);
        let tiny = |rng: &mut Rng| -> Vec<f32> { rng.normals(64).iter().map(|x| x * 2e-5).collect() };
        for e in 0..call.end() {
            cache.write(e, &tiny(rng), &tiny(rng));
        }
        assert!(cache.value(0).iter().any(|v| !v.is_normal()));
        let (key, value) = (tiny(rng), tiny(rng));
        let run = |cache: &mut Cache<f16>| {
            append(simd, &mut cache.pages_mut(), 7, &key, &value).unwrap();
            (
                bits(cache.key(7)),
                bits(cache.value(7)),
                bits(&call.run(simd, cache, || usize::MAX)),
            )
        };
        let kept = run(&mut cache);
        let flushed = flushing(|| run(&mut cache));
        assert_eq!(kept, flushed, "{}", simd.name());
    }
}
