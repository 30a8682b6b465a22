//! What every operation means, on the CPU.
//!
//! One plain function per operation, generic over [`Real`]: in f64 it is the truth that kernels are
//! compared with, in f32 the yardstick for how exact single precision can be. [`compare`] says how.

pub mod additive_attention;
pub mod attention;
pub mod compare;
pub mod gemm;
pub mod gradient_clip;
pub mod min_recurrent;
pub mod recurrent;
pub mod scan;
pub mod tracked;

use std::ops::{Add, AddAssign, Div, Mul, Neg, Sub};

/// f32 or f64.
pub trait Real:
    Copy
    + PartialOrd
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
    + AddAssign
{
    /// 0
    const ZERO: Self;
    /// 1
    const ONE: Self;
    /// -infinity
    const NEG_INFINITY: Self;
    /// Rounds to this type.
    fn from_f64(x: f64) -> Self;
    /// Exact.
    fn to_f64(self) -> f64;
    /// e to the power of `self`
    fn exp(self) -> Self;
    /// `exp(self) - 1`, with the digits of a small `self`
    fn exp_m1(self) -> Self;
    /// natural logarithm
    fn ln(self) -> Self;
    /// `ln(1 + self)`, with the digits of a small `self`
    fn ln_1p(self) -> Self;
    /// hyperbolic tangent
    fn tanh(self) -> Self;
    /// the larger of the two, NaN if one is
    fn max(self, other: Self) -> Self;
    /// the smaller of the two, NaN if one is
    fn min(self, other: Self) -> Self;
}

macro_rules! real {
    ($type:ident) => {
        impl Real for $type {
            const ZERO: Self = 0.0;
            const ONE: Self = 1.0;
            const NEG_INFINITY: Self = $type::NEG_INFINITY;
            fn from_f64(x: f64) -> Self {
                x as $type
            }
            fn to_f64(self) -> f64 {
                self.into()
            }
            fn exp(self) -> Self {
                $type::exp(self)
            }
            fn exp_m1(self) -> Self {
                $type::exp_m1(self)
            }
            fn ln(self) -> Self {
                $type::ln(self)
            }
            fn ln_1p(self) -> Self {
                $type::ln_1p(self)
            }
            fn tanh(self) -> Self {
                $type::tanh(self)
            }
            fn max(self, other: Self) -> Self {
                if self.is_nan() || self > other {
                    self
                } else {
                    other
                }
            }
            fn min(self, other: Self) -> Self {
                if self.is_nan() || self < other {
                    self
                } else {
                    other
                }
            }
        }
    };
}
real!(f32);
real!(f64);

/// The same numbers in another precision.
pub fn convert<R: Real>(x: &[f32]) -> Vec<R> {
    x.iter().map(|&x| R::from_f64(x.into())).collect()
}
