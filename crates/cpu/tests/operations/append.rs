use crate::cache::{Cache, bits};
use crate::paths;
use crate::rng::{ForElement, Rng, for_elements};
use half::{bf16, f16};
use reasoning_rpc_cpu::{Element, Layout, append};

#[test]
fn stores_one_entry_and_nothing_else() {
    struct Test(Rng);
    impl ForElement for Test {
        fn run<E: Element>(&mut self) {
            let rng = &mut self.0;
            for simd in paths() {
                for _ in 0..30 {
                    let (head_dim, len) = (rng.head_dim(), rng.between(1, 40));
                    let mut cache = Cache::<E>::random(head_dim, len, rng);
                    let mut expected = Vec::new();
                    for e in 0..len {
                        let (key, value) = (rng.normals(head_dim), rng.normals(head_dim));
                        let mut pages = cache.pages_mut();
                        append(simd, &mut pages, e, &key, &value).unwrap();
                        assert_eq!(pages.len(), e + 1);
                        cache.set_len(e + 1);
                        expected.push((key, value));
                    }
                    // Overwrite one.
                    let at = rng.between(0, len - 1);
                    expected[at].0.reverse();
                    append(simd, &mut cache.pages_mut(), at, &expected[at].0, &expected[at].1).unwrap();
                    let rounded =
                        |row: &[f32]| bits(&row.iter().map(|&x| E::from_f32(x)).collect::<Vec<E>>());
                    for (e, (key, value)) in expected.iter().enumerate() {
                        assert_eq!(
                            (bits(cache.key(e)), bits(cache.value(e))),
                            (rounded(key), rounded(value))
                        );
                    }
                    assert!(cache.untouched_elsewhere(len));
                }
            }
        }
    }
    for_elements(&mut Test(Rng::new()));
}

/// `f16` as every instruction set rounds it, against the definition: nearest, ties to even, saturating, NaN stays NaN.
#[test]
fn f16_rounds_to_nearest_even_and_saturates() {
    let rng = &mut Rng::new();
    let mut numbers: Vec<f32> = vec![
        0.0,
        -0.0,
        1.0,
        65504.0,
        65519.0,
        65520.0,
        65536.0,
        1e30,
        f32::MAX,
        f32::INFINITY,
        f32::NEG_INFINITY,
        -65520.0,
        -1e9,
        f32::MIN_POSITIVE,
        1e-40,
        f32::NAN,
        -f32::NAN,
    ];
    // Every finite `f16`, the ties between it and the next, and the numbers beside the ties.
    for code in 0..0x7bff_u16 {
        let (a, b) = (exact(code), exact(code + 1));
        let tie = ((a + b) / 2.0) as f32;
        numbers.extend([a as f32, -a as f32, tie, tie.next_up(), tie.next_down(), -tie]);
    }
    numbers.extend((0..1000).map(|_| f32::from_bits(rng.between(0, u32::MAX as usize) as u32)));
    while !numbers.len().is_multiple_of(64) {
        numbers.push(0.5);
    }
    for simd in paths() {
        let mut cache = Cache::<f16>::new(Layout::contiguous(16, 64), 1, rng);
        for row in numbers.chunks(64) {
            append(simd, &mut cache.pages_mut(), 0, row, row).unwrap();
            for (&x, &found) in row.iter().zip(cache.key(0)) {
                let expected = nearest(x);
                if x.is_nan() {
                    assert!(found.is_nan(), "{}: {x}", simd.name());
                } else {
                    assert_eq!(found.to_bits(), expected, "{}: {x:e} became {found}", simd.name());
                }
                assert!(
                    x.is_nan() || f16::from_f32(x).to_bits() == expected || x.abs() >= 65520.0,
                    "half itself"
                );
            }
        }
    }
    // And back.
    for code in 0..=u16::MAX {
        let (ours, theirs) = (
            Element::to_f32(f16::from_bits(code)),
            f16::from_bits(code).to_f32(),
        );
        assert!(
            ours.to_bits() == theirs.to_bits() || ours.is_nan() && theirs.is_nan(),
            "{code:#06x}"
        );
    }
}

/// A finite, non-negative `f16` by its definition.
fn exact(code: u16) -> f64 {
    let (exponent, fraction) = (i32::from(code >> 10), f64::from(code & 0x3ff));
    if exponent == 0 {
        fraction * 2f64.powi(-24)
    } else {
        (1024.0 + fraction) * 2f64.powi(exponent - 25)
    }
}

/// The code of the `f16` nearest to x by bisection.
fn nearest(x: f32) -> u16 {
    let magnitude = f64::from(x.abs());
    let (mut low, mut high) = (0u16, 0x7bff);
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        if exact(middle) <= magnitude {
            low = middle;
        } else {
            high = middle;
        }
    }
    let (down, up) = (magnitude - exact(low), exact(high) - magnitude);
    let code = if down < up || (down == up && low.is_multiple_of(2)) {
        low
    } else {
        high
    };
    code | if x.is_sign_negative() { 0x8000 } else { 0 }
}

/// `bf16` as every instruction set rounds it: from every code, the numbers around the middle between it and the next, by definition;
/// and every code back.
#[test]
fn bf16_rounds_to_nearest_even() {
    let rng = &mut Rng::new();
    for simd in paths() {
        for head_dim in [64, 8, 24] {
            let mut cache = Cache::<bf16>::new(Layout::contiguous(1, head_dim), 1, rng);
            let mut store = |numbers: &[f32], expected: &[u16]| {
                append(simd, &mut cache.pages_mut(), 0, numbers, numbers).unwrap();
                for ((&x, &expected), (&key, &value)) in
                    (numbers.iter().zip(expected)).zip(cache.key(0).iter().zip(cache.value(0)))
                {
                    let found = key.to_bits();
                    assert_eq!(found, expected, "{}: {x:e} ({:#x})", simd.name(), x.to_bits());
                    assert_eq!(found, value.to_bits());
                    assert_eq!(found, <bf16 as Element>::from_f32(x).to_bits());
                    assert_eq!(found, bf16::from_f32(x).to_bits(), "half itself");
                }
            };
            // Each code with six continuations: itself, up to the middle, the middle, behind it, up to the next code.
            let lower = [0u32, 1, 0x7fff, 0x8000, 0x8001, 0xffff];
            let (mut numbers, mut expected) = (Vec::new(), Vec::new());
            for code in 0..=u16::MAX {
                for lower in lower {
                    let bits = u32::from(code) << 16 | lower;
                    let up = match lower {
                        0..0x8000 => 0,
                        0x8000 => code & 1,
                        _ => 1,
                    };
                    // A NaN stays one: quiet, with what it keeps of its payload.
                    let nan = f32::from_bits(bits).is_nan();
                    numbers.push(f32::from_bits(bits));
                    expected.push(if nan { code | 0x40 } else { code + up });
                    if numbers.len() == head_dim {
                        store(&numbers, &expected);
                        numbers.clear();
                        expected.clear();
                    }
                }
            }
            assert!(numbers.is_empty());
        }
    }
    for code in 0..=u16::MAX {
        let ours = Element::to_f32(bf16::from_bits(code));
        assert_eq!(ours.to_bits(), u32::from(code) << 16);
    }
}

/// `bf16` has the denormals of `f32`: they are stored as they are even by threads that flush them.
#[cfg(target_arch = "x86_64")]
#[test]
fn bf16_keeps_denormals_on_threads_that_flush_them() {
    let rng = &mut Rng::new();
    for simd in paths() {
        let numbers: Vec<f32> = (0..64)
            .map(|_| f32::from_bits(rng.between(0, 0x007f_ffff) as u32))
            .collect();
        let mut cache = Cache::<bf16>::new(Layout::contiguous(1, 64), 1, rng);
        crate::flushing(|| append(simd, &mut cache.pages_mut(), 0, &numbers, &numbers)).unwrap();
        for (x, found) in numbers.iter().zip(cache.key(0)) {
            assert_eq!(found.to_bits(), bf16::from_f32(*x).to_bits(), "{}", simd.name());
        }
    }
}
