//! Sums of numbers of which only the logarithms fit.

/// The logarithm of the mean of the exponentials of `terms`. Of no terms: minus infinity.
pub(super) fn ln_mean_exp(terms: impl Iterator<Item = f64>) -> f64 {
    let terms: Vec<f64> = terms.collect();
    ln_sum_exp(&terms) - (terms.len().max(1) as f64).ln()
}

/// The logarithm of the sum of the exponentials of `terms`.
pub(super) fn ln_sum_exp(terms: &[f64]) -> f64 {
    let largest = terms.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if largest == f64::NEG_INFINITY {
        return largest;
    }
    largest + terms.iter().map(|term| (term - largest).exp()).sum::<f64>().ln()
}

/// `count · ln(factor)`, where nothing to the power of nothing is one.
pub(super) fn times_ln(count: u64, factor: f64) -> f64 {
    if count == 0 {
        return 0.0;
    }
    count as f64 * factor.ln()
}
