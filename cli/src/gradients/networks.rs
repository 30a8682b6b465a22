//! The networks whose gradients are drawn, and the weights that make them what they are.

use gatefold::Cell;
use gatefold::reference::recurrent::Weights;

use crate::ops::Random;

/// A network of one layer, as wide as its input.
pub struct Network {
    pub name: &'static str,
    pub cell: Cell,
    pub weights: Weights<f32>,
}

impl Network {
    pub fn op(&self) -> &'static str {
        match self.cell {
            Cell::RnnTanh | Cell::RnnRelu => "rnn",
            Cell::Lstm | Cell::LstmCoupled => "lstm",
            Cell::Gru | Cell::GruResetBefore => "gru",
        }
    }
}

/// Of the inputs' weights where the state is to stay where tanh is a straight line.
const SMALL: f32 = 1e-4;

pub fn networks(width: usize, seed: u64) -> Vec<Network> {
    let radius = |name, radius: f64| {
        let mut random = Random::new(seed);
        let rotation = rotation(&mut random, width);
        Network {
            name,
            cell: Cell::RnnTanh,
            weights: Weights {
                weight_ih: random.normals(width * width, 0.0, SMALL),
                weight_hh: rotation.iter().map(|&x| (radius * x) as f32).collect(),
                ..zeros(width)
            },
        }
    };
    vec![
        radius("RNN, radius 0.9", 0.9),
        radius("RNN, radius 1.0", 1.0),
        radius("RNN, radius 1.1", 1.1),
        identity(width, seed),
        lstm("LSTM, forget bias 0", 0.0, width, seed),
        lstm("LSTM, forget bias 1", 1.0, width, seed),
        gru(width, seed),
    ]
}

/// Le, Jaitly and Hinton 2015: a ReLU network that starts out by handing its state on.
fn identity(width: usize, seed: u64) -> Network {
    let mut random = Random::new(seed);
    let diagonal = |at: usize| if at / width == at % width { 1.0 } else { 0.0 };
    Network {
        name: "ReLU, identity start",
        cell: Cell::RnnRelu,
        weights: Weights {
            weight_ih: random.normals(width * width, 0.0, 1e-3),
            weight_hh: (0..width * width).map(diagonal).collect(),
            ..zeros(width)
        },
    }
}

/// As PyTorch initialises it, but for the biases.
fn lstm(name: &'static str, forget: f32, width: usize, seed: u64) -> Network {
    let mut weights = usual(4, width, seed);
    weights.bias_ih = vec![0.0; 4 * width];
    weights.bias_ih[width..2 * width].fill(forget);
    Network {
        name,
        cell: Cell::Lstm,
        weights,
    }
}

fn gru(width: usize, seed: u64) -> Network {
    Network {
        name: "GRU",
        cell: Cell::Gru,
        weights: usual(3, width, seed),
    }
}

/// Uniform within 1 / sqrt(width).
fn usual(gates: usize, width: usize, seed: u64) -> Weights<f32> {
    let mut random = Random::new(seed);
    let bound = 1.0 / (width as f32).sqrt();
    let rows = gates * width;
    Weights {
        weight_ih: random.uniform(rows * width, bound),
        weight_hh: random.uniform(rows * width, bound),
        bias_ih: vec![0.0; rows],
        bias_hh: vec![0.0; rows],
        peephole: Vec::new(),
        weight_hr: Vec::new(),
    }
}

fn zeros(width: usize) -> Weights<f32> {
    Weights {
        weight_ih: Vec::new(),
        weight_hh: Vec::new(),
        bias_ih: vec![0.0; width],
        bias_hh: vec![0.0; width],
        peephole: Vec::new(),
        weight_hr: Vec::new(),
    }
}

/// A random orthogonal matrix, by Gram and Schmidt, twice over: all its eigenvalues have magnitude 1, and it changes
/// the length of no vector.
fn rotation(random: &mut Random, width: usize) -> Vec<f64> {
    let mut rows: Vec<Vec<f64>> = Vec::new();
    while rows.len() < width {
        let values = random.normals(width, 0.0, 1.0);
        let mut row: Vec<f64> = values.into_iter().map(f64::from).collect();
        for _ in 0..2 {
            for other in &rows {
                let product = dot(&row, other);
                row.iter_mut()
                    .zip(other)
                    .for_each(|(x, y)| *x -= product * y);
            }
            let norm = dot(&row, &row).sqrt();
            row.iter_mut().for_each(|x| *x /= norm);
        }
        // what is left of a vector in the others' span is rounding error
        if row.iter().all(|x| x.is_finite()) {
            rows.push(row);
        }
    }
    rows.concat()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rotations_keep_lengths_and_angles() {
        let width = 9;
        let rotation = rotation(&mut Random::new(3), width);
        for i in 0..width {
            for j in 0..width {
                let product = dot(
                    &rotation[i * width..][..width],
                    &rotation[j * width..][..width],
                );
                let expected = if i == j { 1.0 } else { 0.0 };
                assert!((product - expected).abs() < 1e-12, "{i} {j}: {product}");
            }
        }
    }
}
