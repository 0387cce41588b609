use crate::rng::Rng;
use crate::{U, paths};
use reasoning_rpc_cpu::{rope_table, rotate};

#[test]
fn table_takes_the_angle_in_f32() {
    let inv_freq: Vec<f32> = (0..32).map(|i| 1e4f32.powf(-(i as f32) / 32.0)).collect();
    let positions = [0, 1, 77, 4095, 32_767, 131_071, 16_777_217, 2_000_000_011];
    let (mut cos, mut sin) = (vec![9.0; 3], vec![9.0]);
    rope_table(&positions, &inv_freq, 1.25, &mut cos, &mut sin);
    assert_eq!(
        (cos.len(), sin.len()),
        (positions.len() * 32, positions.len() * 32)
    );
    for (t, &position) in positions.iter().enumerate() {
        for (i, &frequency) in inv_freq.iter().enumerate() {
            let angle = f64::from(position as f32 * frequency);
            // Rounded to `f32`, multiplied, rounded again; `f64` itself is off by far less than another tenth of a rounding.
            let bound = 2.1 * U * 1.25;
            assert!(
                (f64::from(cos[t * 32 + i]) - 1.25 * angle.cos()).abs() <= bound,
                "cos of {position} at {i}"
            );
            assert!(
                (f64::from(sin[t * 32 + i]) - 1.25 * angle.sin()).abs() <= bound,
                "sin of {position} at {i}"
            );
        }
    }
}

#[test]
fn rotation_pairs_the_halves() {
    let rng = &mut Rng::new();
    for _ in 0..50 {
        let (head_dim, heads) = (rng.head_dim(), rng.between(0, 12));
        let half = head_dim / 2;
        let x = rng.normals(heads * head_dim);
        let (mut cos, mut sin) = (Vec::new(), Vec::new());
        let inv_freq: Vec<f32> = rng.normals(half);
        rope_table(
            &[rng.between(0, 100_000) as i64],
            &inv_freq,
            1.0,
            &mut cos,
            &mut sin,
        );
        for simd in paths() {
            let mut out = vec![f32::NAN; x.len()];
            rotate(simd, &x, &cos, &sin, head_dim, &mut out).unwrap();
            for h in 0..heads {
                for i in 0..half {
                    let (low, high) = (x[h * head_dim + i], x[h * head_dim + half + i]);
                    // Each operation rounded on its own: the same bits everywhere.
                    let expected = (low * cos[i] - high * sin[i], high * cos[i] + low * sin[i]);
                    assert_eq!((out[h * head_dim + i], out[h * head_dim + half + i]), expected);
                }
            }
        }
    }
}
