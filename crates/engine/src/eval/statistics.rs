/// A mean and its standard error.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize)]
pub struct Estimate {
    /// The mean.
    pub value: f64,
    /// Its standard error; tokens count as independent.
    pub error: f64,
}

/// A running mean and variance (Welford 1962).
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Mean {
    count: usize,
    mean: f64,
    squares: f64,
}

impl Mean {
    pub(super) fn add(&mut self, value: f64) {
        self.count += 1;
        let before = value - self.mean;
        self.mean += before / self.count as f64;
        self.squares += before * (value - self.mean);
    }

    pub(super) fn count(&self) -> usize {
        self.count
    }

    pub(super) fn estimate(&self) -> Estimate {
        let n = self.count as f64;
        let error = if self.count < 2 { 0.0 } else { (self.squares / (n - 1.0) / n).sqrt() };
        Estimate { value: self.mean, error }
    }
}

/// The value below which the share `p` of the sorted values lies, interpolated between neighbours.
pub(super) fn percentile(sorted: &[f64], p: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else { return 0.0 };
    let at = p * last as f64;
    let below = at.floor();
    let (low, high) = (sorted[below as usize], sorted[last.min(below as usize + 1)]);
    low + (high - low) * (at - below)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mean_and_its_error() {
        let mut mean = Mean::default();
        [1.0, 2.0, 3.0, 6.0].into_iter().for_each(|value| mean.add(value));
        let estimate = mean.estimate();
        // Variance 14/3, over four values.
        assert!((estimate.value - 3.0).abs() < 1e-12);
        assert!((estimate.error - (14.0f64 / 3.0 / 4.0).sqrt()).abs() < 1e-12);
    }

    #[test]
    fn percentiles_interpolate() {
        let sorted = [0.0, 1.0, 2.0, 3.0, 4.0];
        assert_eq!(percentile(&sorted, 0.5), 2.0);
        assert_eq!(percentile(&sorted, 0.9), 3.6);
        assert_eq!(percentile(&sorted, 1.0), 4.0);
        assert_eq!(percentile(&[], 0.5), 0.0);
    }
}
