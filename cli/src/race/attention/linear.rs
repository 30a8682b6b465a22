//! A projection, and what of keys and values the reference has projected so far.

use gatefold::reference::{Real, convert, gemm::gemm};
use gatefold::wgpu;

use crate::race::course::{Course, Random};

/// `x weight + bias`, with weight `[width, columns]`.
pub struct Linear {
    pub weight: Vec<f32>,
    pub bias: Vec<f32>,
}

impl Linear {
    pub fn new(random: &mut Random, width: usize) -> Self {
        let bound = 1.0 / (width as f32).sqrt();
        Self {
            weight: random.uniform(width * width, bound),
            bias: random.uniform(width, bound),
        }
    }

    /// One product for what several would compute of the same input.
    pub fn joined(parts: &[Self], width: usize) -> Self {
        let row = |row: usize| {
            let of_row = move |part: &Self| part.weight[row * width..][..width].to_vec();
            parts.iter().flat_map(of_row)
        };
        Self {
            weight: (0..width).flat_map(row).collect(),
            bias: parts.iter().flat_map(|part| part.bias.clone()).collect(),
        }
    }

    /// What a gradient of the output is for the input.
    pub fn back<R: Real>(&self, width: usize, grad: &[R]) -> Vec<R> {
        let weight: Vec<R> = convert(&self.weight);
        let dot = |a: &[R], b: &[R]| {
            let products = a.iter().zip(b).map(|(&a, &b)| a * b);
            products.fold(R::ZERO, |sum, product| sum + product)
        };
        let rows = grad.chunks_exact(width);
        rows.flat_map(|grad| {
            weight
                .chunks_exact(width)
                .map(move |weight| dot(grad, weight))
        })
        .collect()
    }

    pub fn expected<R: Real>(&self, width: usize, input: &[R]) -> Vec<R> {
        let (weight, bias) = (convert(&self.weight), convert(&self.bias));
        gemm(width, width, input, &weight, Some(&bias))
    }
}

/// A [`Linear`] on the device.
pub struct Weights {
    pub weight: wgpu::Buffer,
    pub bias: wgpu::Buffer,
    pub columns: u32,
}

/// Keys and values of the judged sequences, as far as they were needed.
pub struct Known<R> {
    pub keys_and_values: Vec<(Vec<R>, Vec<R>)>,
}

impl<R: Real> Known<R> {
    pub fn new(course: &Course) -> Self {
        let judged = course.judged();
        Self {
            keys_and_values: judged.iter().map(|_| Default::default()).collect(),
        }
    }

    pub fn extend(&mut self, course: &Course, key: &Linear, value: &Linear, seq_len: usize) {
        let width = course.width as usize;
        for (sequence, (keys, values)) in course.judged().into_iter().zip(&mut self.keys_and_values)
        {
            let known = keys.len() / width;
            let input: Vec<R> = course.tokens(sequence, known..seq_len.max(known));
            keys.extend(key.expected(width, &input));
            values.extend(value.expected(width, &input));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn joined_columns_are_those_of_the_parts() {
        let part = |first: f32| Linear {
            weight: (0..4).map(|i| first + i as f32).collect(),
            bias: vec![first; 2],
        };
        let joined = Linear::joined(&[part(0.0), part(10.0)], 2);
        assert_eq!(joined.weight, [0.0, 1.0, 10.0, 11.0, 2.0, 3.0, 12.0, 13.0]);
        assert_eq!(joined.bias, [0.0, 0.0, 10.0, 10.0]);
    }
}
