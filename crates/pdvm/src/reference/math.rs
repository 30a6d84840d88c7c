/// Lanes of a dot product: independent sums, so that the compiler may vectorise them.
const LANES: usize = 16;

/// `Σ a·b`. The lanes' sums are f32; they are joined in f64.
pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let (a_chunks, a_rest) = a.as_chunks::<LANES>();
    let (b_chunks, b_rest) = b.as_chunks::<LANES>();
    let mut lanes = [0.0f32; LANES];
    for (a, b) in a_chunks.iter().zip(b_chunks) {
        for i in 0..LANES {
            lanes[i] += a[i] * b[i];
        }
    }
    let rest: f64 = a_rest.iter().zip(b_rest).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
    (join(&lanes) + rest) as f32
}

/// The lanes' sum. Apart from the loop above: seen together, the compiler would use vectors of two lanes in both.
#[inline(never)]
fn join(lanes: &[f32; LANES]) -> f64 {
    let mut sums = lanes.map(f64::from);
    for half in [8, 4, 2, 1] {
        for i in 0..half {
            sums[i] += sums[half + i];
        }
    }
    sums[0]
}

/// `y = x / sqrt(mean(x²) + eps)` for each vector of `width` numbers (Zhang and Sennrich 2019, without gains).
pub(super) fn norm(x: &[f32], y: &mut [f32], width: usize, eps: f32) {
    for (x, y) in x.chunks_exact(width).zip(y.chunks_exact_mut(width)) {
        let square: f64 = x.iter().map(|x| f64::from(*x).powi(2)).sum();
        let scale = 1.0 / (square / width as f64 + f64::from(eps)).sqrt();
        for (x, y) in x.iter().zip(y) {
            *y = (f64::from(*x) * scale) as f32;
        }
    }
}

/// `exp(x) / Σ exp(x)`, in place.
pub(super) fn softmax(x: &mut [f32]) {
    let max = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let exp = |x: f32| (f64::from(x) - f64::from(max)).exp();
    let sum: f64 = x.iter().map(|x| exp(*x)).sum();
    for x in x {
        *x = (exp(*x) / sum) as f32;
    }
}

/// `x · sigmoid(x)`.
pub(super) fn silu(x: f32) -> f32 {
    let x = f64::from(x);
    (x / (1.0 + (-x).exp())) as f32
}

/// `x += y`.
pub(super) fn add(x: &mut [f32], y: &[f32]) {
    for (x, y) in x.iter_mut().zip(y) {
        *x += y;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dot_counts_lanes_and_rest() {
        let a: Vec<f32> = (1..=37).map(|i| i as f32).collect();
        assert_eq!(dot(&a, &a), (37 * 38 * 75 / 6) as f32);
    }

    #[test]
    fn softmax_survives_large_scores() {
        let mut x = [1000.0, 999.0, -1000.0];
        softmax(&mut x);
        let e = 1f32.exp();
        assert!((x[0] - e / (1.0 + e)).abs() < 1e-7 && (x[0] + x[1] - 1.0).abs() < 1e-7 && x[2] == 0.0);
    }

    #[test]
    fn silu_is_finite_everywhere() {
        assert_eq!(silu(-1e4), 0.0);
        assert_eq!(silu(1e4), 1e4);
        assert!((silu(1.0) - 0.731_058_6).abs() < 1e-7);
    }
}
