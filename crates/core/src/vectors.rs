//! Products of keys and queries where a policy needs them: plain, in eight sums that a compiler keeps in
//! one register.

const LANES: usize = 8;

/// The sum of the products.
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let (a, a_rest) = a.as_chunks::<LANES>();
    let (b, b_rest) = b.as_chunks::<LANES>();
    let mut sums = [0.0f32; LANES];
    for (a, b) in a.iter().zip(b) {
        for lane in 0..LANES {
            sums[lane] += a[lane] * b[lane];
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(x, y)| x * y).sum();
    sums.iter().sum::<f32>() + rest
}

/// Scales a vector to length 1. One of zeros stays.
pub(crate) fn normalize(vector: &mut [f32]) {
    let square: f64 = vector.iter().map(|x| f64::from(*x) * f64::from(*x)).sum();
    if square > 0.0 {
        let factor = 1.0 / square.sqrt();
        vector
            .iter_mut()
            .for_each(|x| *x = (f64::from(*x) * factor) as f32);
    }
}
