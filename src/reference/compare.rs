//! How exact is exact enough: every element of a kernel's result against the f64 reference.
//!
//! The error of an element is `|got - truth| / scale`, where the scale is the largest magnitude of its
//! row, the last axis. It may be at most `factor` times the worst error of the f32 reference on the same
//! inputs (the yardstick), or `floor` where that is larger.

use std::fmt;

use crate::Variant;

/// The allowed error of one kind of result.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Tolerance {
    /// Times the yardstick.
    pub factor: f64,
    /// Allowed whatever the yardstick.
    pub floor: f64,
}

impl Tolerance {
    /// Sums in f32 in another order than the reference's, and WGSL's exp, which may be off by 3 + 2|x| ULP.
    pub const FORWARD: Self = Self {
        factor: 4.0,
        floor: 4e-6,
    };
    /// Gradients are sums of products of which each has the error of a forward pass, and of differences of such
    /// (`dp - delta`), which the row scale of [`compare_with`] does not shrink with the result.
    pub const GRADIENT: Self = Self {
        factor: 8.0,
        floor: 1e-5,
    };
    /// The same for the results of `variant`: matrix units round factors, weights among them, to f16.
    pub fn of(self, variant: Variant) -> Self {
        match variant {
            Variant::Cooperative => Self {
                floor: 4e-3,
                ..self
            },
            _ => self,
        }
    }

    /// As [`FORWARD`](Self::FORWARD), with errors that a recurrence carries from step to step.
    pub const RECURRENT: Self = Self {
        factor: 8.0,
        floor: 1e-5,
    };
    /// [`RECURRENT`](Self::RECURRENT) for the states of `variant`: the factors of matrix units have 22 bits of 24.
    pub fn recurrent(variant: Variant) -> Self {
        match variant {
            Variant::Cooperative => Self {
                factor: 32.0,
                floor: 4e-5,
            },
            _ => Self::RECURRENT,
        }
    }
}

/// What a comparison found.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Agreement {
    /// The worst error of an element, relative to its row.
    pub error: f64,
    /// The error that was allowed.
    pub allowed: f64,
}

/// The worst element of a result that differs.
#[derive(Debug, Clone, PartialEq)]
pub struct Difference {
    /// The tensor.
    pub name: String,
    /// Where, one index per axis.
    pub index: Vec<usize>,
    /// The element found.
    pub got: f32,
    /// The f64 reference.
    pub expected: f64,
    /// Its error relative to the row; infinite for an element that is not finite.
    pub error: f64,
    /// The error that was allowed.
    pub allowed: f64,
    /// How many elements differ.
    pub count: usize,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            name,
            index,
            got,
            expected,
            error,
            allowed,
            count,
        } = self;
        write!(
            f,
            "{name}{index:?}: got {got:e}, expected {expected:e}; error {error:.2e} of the row, \
             allowed {allowed:.2e}; {count} elements differ"
        )
    }
}

impl std::error::Error for Difference {}

/// Compares every element of `got` with `truth`; `shape` has the row as its last axis.
///
/// A truth of -infinity (a `log_sum_exp` of no keys) must be met exactly, and so must a row of zeros.
///
/// # Errors
/// The worst [`Difference`], if any element is off by more than `tolerance`.
///
/// # Panics
/// If the lengths do not agree with `shape`.
pub fn compare(
    name: &str,
    shape: &[usize],
    got: &[f32],
    truth: &[f64],
    yardstick: &[f32],
    tolerance: Tolerance,
) -> Result<Agreement, Difference> {
    compare_with(name, shape, got, truth, truth, yardstick, tolerance)
}

/// [`compare`] with rows scaled by the largest magnitude in `magnitude`: for sums that cancel, the same sums over
/// absolute values. What is exactly 0 in f64 is the rounding error of its terms in honest f32.
///
/// # Errors
/// The worst [`Difference`], if any element is off by more than `tolerance`.
///
/// # Panics
/// If the lengths do not agree with `shape`.
pub fn compare_with(
    name: &str,
    shape: &[usize],
    got: &[f32],
    truth: &[f64],
    magnitude: &[f64],
    yardstick: &[f32],
    tolerance: Tolerance,
) -> Result<Agreement, Difference> {
    let len: usize = shape.iter().product();
    assert_eq!(
        (got.len(), truth.len(), magnitude.len(), yardstick.len()),
        (len, len, len, len),
        "{name}: {shape:?}"
    );
    let row = shape.last().copied().unwrap_or(1).max(1);
    let errors = |values: &[f32]| -> Vec<f64> {
        let rows = values.chunks(row).zip(truth.chunks(row));
        rows.zip(magnitude.chunks(row))
            .flat_map(|((got, truth), magnitude)| row_errors(got, truth, magnitude))
            .collect()
    };
    let worst_yardstick = errors(yardstick)
        .into_iter()
        .filter(|error| error.is_finite())
        .fold(0.0, f64::max);
    let allowed = (tolerance.factor * worst_yardstick).max(tolerance.floor);
    let errors = errors(got);
    let count = errors.iter().filter(|&&error| error > allowed).count();
    let worst = errors
        .iter()
        .copied()
        .enumerate()
        .max_by(|(_, a), (_, b)| a.total_cmp(b));
    let (at, error) = worst.unwrap_or((0, 0.0));
    if count == 0 {
        return Ok(Agreement { error, allowed });
    }
    Err(Difference {
        name: name.to_owned(),
        index: unravel(at, shape),
        got: got[at],
        expected: truth[at],
        error,
        allowed,
        count,
    })
}

fn row_errors(got: &[f32], truth: &[f64], magnitude: &[f64]) -> Vec<f64> {
    let finite = magnitude.iter().filter(|magnitude| magnitude.is_finite());
    let scale = finite.fold(0.0, |scale: f64, magnitude| scale.max(magnitude.abs()));
    let error = |(&got, &truth): (&f32, &f64)| {
        if f64::from(got) == truth {
            0.0
        } else if !got.is_finite() || !truth.is_finite() || scale == 0.0 {
            f64::INFINITY
        } else {
            (f64::from(got) - truth).abs() / scale
        }
    };
    got.iter().zip(truth).map(error).collect()
}

fn unravel(mut at: usize, shape: &[usize]) -> Vec<usize> {
    let mut index: Vec<usize> = shape
        .iter()
        .rev()
        .map(|&len| {
            let i = at % len.max(1);
            at /= len.max(1);
            i
        })
        .collect();
    index.reverse();
    index
}
