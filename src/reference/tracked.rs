//! A number that knows how large the terms are of which it is the sum.
//!
//! An exact zero in f64, made of terms that cancel, is the rounding error of these terms in honest f32: an
//! error has to be judged by their size. Computing a reference in this type gives the sizes of all results, for
//! [`compare_with`](super::compare::compare_with). It is the running error analysis of Wilkinson, to first order.

use std::cmp::Ordering;
use std::ops::{Add, AddAssign, Div, Mul, Neg, Sub};

use super::Real;

/// A value in f64, and the size of the terms that make it up.
#[derive(Debug, Clone, Copy)]
pub struct Tracked {
    /// The number.
    pub value: f64,
    /// The size of what it is made of; at least `value.abs()`.
    pub magnitude: f64,
}

impl Tracked {
    fn new(value: f64, magnitude: f64) -> Self {
        Self {
            value,
            magnitude: magnitude.max(value.abs()),
        }
    }

    /// A function of `self` with this value and slope.
    fn function(self, value: f64, slope: f64) -> Self {
        Self::new(value, finite(slope.abs() * self.magnitude))
    }
}

/// Past what f64 holds nothing is known, and nothing is excused.
fn finite(magnitude: f64) -> f64 {
    if magnitude.is_finite() {
        magnitude
    } else {
        0.0
    }
}

/// The magnitudes of results.
pub fn magnitudes(values: &[Tracked]) -> Vec<f64> {
    values.iter().map(|value| value.magnitude).collect()
}

impl PartialEq for Tracked {
    fn eq(&self, other: &Self) -> bool {
        self.value == other.value
    }
}

impl PartialOrd for Tracked {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        self.value.partial_cmp(&other.value)
    }
}

impl Add for Tracked {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self::new(self.value + other.value, self.magnitude + other.magnitude)
    }
}

impl Sub for Tracked {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        Self::new(self.value - other.value, self.magnitude + other.magnitude)
    }
}

impl Mul for Tracked {
    type Output = Self;
    fn mul(self, other: Self) -> Self {
        // to first order; the product of both magnitudes would grow with every step of a recurrence
        let own = self.magnitude * other.value.abs();
        let others = self.value.abs() * other.magnitude;
        Self::new(self.value * other.value, finite(own.max(others)))
    }
}

impl Div for Tracked {
    type Output = Self;
    fn div(self, other: Self) -> Self {
        let value = self.value / other.value;
        let own = finite(self.magnitude / other.value.abs());
        let others = finite(value.abs() * finite(other.magnitude / other.value.abs()));
        Self::new(value, own.max(others))
    }
}

impl Neg for Tracked {
    type Output = Self;
    fn neg(self) -> Self {
        Self::new(-self.value, self.magnitude)
    }
}

impl AddAssign for Tracked {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl Real for Tracked {
    const ZERO: Self = Self {
        value: 0.0,
        magnitude: 0.0,
    };
    const ONE: Self = Self {
        value: 1.0,
        magnitude: 1.0,
    };
    const NEG_INFINITY: Self = Self {
        value: f64::NEG_INFINITY,
        magnitude: f64::INFINITY,
    };
    fn from_f64(x: f64) -> Self {
        Self::new(x, x.abs())
    }
    fn to_f64(self) -> f64 {
        self.value
    }
    fn exp(self) -> Self {
        self.function(self.value.exp(), self.value.exp())
    }
    fn exp_m1(self) -> Self {
        self.function(self.value.exp_m1(), self.value.exp())
    }
    fn ln(self) -> Self {
        self.function(self.value.ln(), self.value.recip())
    }
    fn ln_1p(self) -> Self {
        self.function(self.value.ln_1p(), (1.0 + self.value).recip())
    }
    fn tanh(self) -> Self {
        let value = self.value.tanh();
        self.function(value, 1.0 - value * value)
    }
    fn max(self, other: Self) -> Self {
        if self.value.is_nan() || self.value >= other.value {
            self
        } else {
            other
        }
    }
    fn min(self, other: Self) -> Self {
        if self.value.is_nan() || self.value <= other.value {
            self
        } else {
            other
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cancels_keeps_its_size() {
        let number = Tracked::from_f64;
        let zero = number(3.0) * number(2.0) - number(6.0);
        assert_eq!((zero.value, zero.magnitude), (0.0, 12.0));
        let quotient = zero / number(-4.0);
        assert_eq!((quotient.value, quotient.magnitude), (0.0, 3.0));
        let flat = number(100.0).tanh();
        assert_eq!((flat.value, flat.magnitude), (1.0, 1.0));
        let closed = number(1.0) / (number(1.0) + number(800.0).exp());
        assert_eq!((closed.value, closed.magnitude), (0.0, 0.0));
    }
}
