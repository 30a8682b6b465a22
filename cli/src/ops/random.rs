//! Inputs for `bench` and `verify`.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// The same seed gives the same numbers.
pub struct Random(StdRng);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(StdRng::seed_from_u64(seed))
    }

    /// Roughly normal, one in fifty three times as wide: a softmax over them is neither flat nor one-hot.
    pub fn normals(&mut self, len: usize, mean: f32, deviation: f32) -> Vec<f32> {
        (0..len)
            .map(|_| {
                // four uniform numbers have a deviation of 1 / sqrt(3)
                let sum: f32 = (0..4).map(|_| self.0.random::<f32>()).sum();
                let wide = if self.0.random::<f32>() < 0.02 {
                    3.0
                } else {
                    1.0
                };
                mean + wide * deviation * 3.0_f32.sqrt() * (sum - 2.0)
            })
            .collect()
    }

    /// In `-bound..bound`.
    pub fn uniform(&mut self, len: usize, bound: f32) -> Vec<f32> {
        (0..len)
            .map(|_| bound * (2.0 * self.0.random::<f32>() - 1.0))
            .collect()
    }
}
