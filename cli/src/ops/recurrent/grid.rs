//! Problems that are made up: the grid of `bench`, what `info` shows, random tensors.

use gatefold::{Cell, Direction, ElementType, Given, RecurrentConfig, RecurrentShape};

use super::check::Sample;
use super::gradients::arriving_names;
use super::options::{BenchOptions, Format, cell, checkpoints, tier};
use super::{Op, Recurrent};
use crate::args::BenchCommon;
use crate::args::list::{List, product, values};
use crate::error::{Error, Result};
use crate::ops::Problem;
use crate::ops::random::Random;
use crate::tensors::{Tensor, Tensors};

/// Of batch, seq_len, input_size, hidden_size, layers; with biases, without states.
pub fn problem(cell: Cell, sizes: [u32; 5], direction: Direction) -> Recurrent {
    let [batch, seq_len, input_size, hidden_size, num_layers] = sizes;
    let op = match cell {
        Cell::RnnTanh | Cell::RnnRelu => Op::Rnn,
        Cell::Lstm | Cell::LstmCoupled => Op::Lstm,
        Cell::Gru | Cell::GruResetBefore => Op::Gru,
    };
    Recurrent {
        op,
        config: RecurrentConfig {
            cell,
            input_size,
            hidden_size,
            num_layers,
            direction,
            ..Default::default()
        },
        shape: RecurrentShape {
            seq_len,
            batch,
            seed: 0,
        },
        given: Given {
            h_n: true,
            c_n: op == Op::Lstm,
            ..Default::default()
        },
        grad: false,
        arriving: [false; 3],
        bias: true,
        format: Format::Pytorch,
        batch_first: false,
    }
}

impl Recurrent {
    /// Asks for the backward pass, too.
    pub fn with_gradients(&mut self, arriving: [bool; 3]) {
        self.grad = true;
        self.arriving = arriving;
        self.config.gradients = true;
        self.given.reserve = true;
    }

    /// The tensors of the caller's and the device's alike.
    pub fn set_batch_first(&mut self, batch_first: bool) {
        (self.batch_first, self.config.batch_first) = (batch_first, batch_first);
    }
}

pub fn grid(op: Op, common: &BenchCommon, options: &BenchOptions) -> Result<Vec<Box<dyn Problem>>> {
    let given: [(&str, &[List], u32); 5] = [
        ("--batch", &options.batch, 1),
        ("--seq-len", &options.seq_len, 64),
        ("--input-size", &options.input_size, 256),
        ("--hidden-size", &options.hidden_size, 256),
        ("--layers", &options.layers, 1),
    ];
    let mut axes = Vec::new();
    for (flag, lists, default) in given {
        let axis = values(lists).unwrap_or(vec![default]);
        if axis.contains(&0) {
            return Err(Error::usage(format_args!(
                "{flag} is 0, expected at least 1"
            )));
        }
        axes.push(axis);
    }
    let direction = match options.bidirectional {
        true => Direction::Bidirectional,
        false => Direction::Forward,
    };
    let checkpoint_every = checkpoints(common.grad, options.checkpoint_every)?;
    let (cell, tier) = (cell(op, options.nonlinearity)?, tier(options.tier)?);
    // one row without a projection if none is asked for
    let projections = values(&options.proj_size).unwrap_or(vec![0]);
    if !options.proj_size.is_empty() {
        if op != Op::Lstm {
            return Err(Error::usage("--proj-size: only an lstm has a projection"));
        }
        if projections.contains(&0) {
            return Err(Error::usage("--proj-size is 0, expected at least 1"));
        }
    }
    axes.push(projections);
    let row = |row: Vec<u32>| {
        let mut problem = problem(cell, [row[0], row[1], row[2], row[3], row[4]], direction);
        (problem.config.element, problem.config.weights) = (common.dtype, common.dtype);
        problem.set_batch_first(options.batch_first);
        problem.config.tier = tier;
        problem.config.checkpoint_every = checkpoint_every;
        if common.grad {
            problem.with_gradients([true, false, false]);
        }
        problem.config.proj_size = (row[5] > 0).then_some(row[5]);
        problem.possible()?;
        Ok(Box::new(problem) as Box<dyn Problem>)
    };
    product(&axes).into_iter().map(row).collect()
}

/// Sizes of every day.
pub fn showcase() -> Vec<Box<dyn Problem>> {
    let sizes = [
        (Cell::RnnTanh, 128),
        (Cell::Lstm, 128),
        (Cell::Lstm, 512),
        (Cell::Gru, 128),
        (Cell::Gru, 512),
    ];
    let one = |(cell, hidden)| {
        let problem = problem(cell, [1, 512, hidden, hidden, 1], Direction::Forward);
        Box::new(problem) as Box<dyn Problem>
    };
    sizes.into_iter().map(one).collect()
}

/// PyTorch's names; weights somewhat larger than PyTorch's initialisation makes them.
pub fn random(problem: &Recurrent, seed: u64) -> Tensors {
    let p = problem.reference();
    let mut random = Random::new(seed);
    let mut tensors = Tensors::new();
    let mut add = |name: &str, shape: &[usize], deviation: f32| {
        let mut values = random.normals(shape.iter().product(), 0.0, deviation);
        let element = match name {
            "input" => problem.config.element,
            "h_0" | "c_0" => ElementType::F32,
            _ => problem.config.weights,
        };
        values
            .iter_mut()
            .for_each(|value| *value = element.round(*value));
        let tensor = Tensor {
            element,
            ..Tensor::f32(shape, values)
        };
        tensors.insert(name.to_owned(), tensor);
    };
    add("input", &[p.seq_len, p.batch, p.input_size], 1.0);
    let directions = p.direction.count() as usize;
    let rows = p.cell.num_gates() as usize * p.hidden_size;
    // a relu network has no bound: its states must not grow from step to step
    let gain = if p.cell == Cell::RnnRelu { 0.6 } else { 1.0 };
    let deviation = gain / (p.hidden_size as f32).sqrt();
    for layer in 0..p.num_layers {
        let width = match layer {
            0 => p.input_size,
            _ => directions * p.state_size(),
        };
        for direction in 0..directions {
            let reverse = if direction == 1 { "_reverse" } else { "" };
            let mut parameter = |stem: &str, shape: &[usize]| {
                add(&format!("{stem}_l{layer}{reverse}"), shape, deviation);
            };
            parameter("weight_ih", &[rows, width]);
            parameter("weight_hh", &[rows, p.state_size()]);
            if let Some(size) = p.proj_size {
                parameter("weight_hr", &[size, p.hidden_size]);
            }
            if problem.bias {
                parameter("bias_ih", &[rows]);
                parameter("bias_hh", &[rows]);
            }
        }
    }
    let states = |width| [p.num_layers * directions, p.batch, width];
    if problem.given.h_0 {
        add("h_0", &states(p.state_size()), 0.5);
    }
    if problem.given.c_0 {
        add("c_0", &states(p.hidden_size), 1.0);
    }
    if let (true, Some(input)) = (problem.batch_first, tensors.get_mut("input")) {
        *input = input.permuted(&[1, 0, 2]);
    }
    if problem.given.lengths {
        // a full one, an empty one, and some between
        let length = |row: usize| match row {
            0 => p.seq_len,
            1 => 0,
            _ => row * 7 % (p.seq_len + 1),
        };
        let lengths = (0..p.batch).map(|row| length(row) as i64).collect();
        let tensor = Tensor::i64(&[p.batch], lengths);
        tensors.insert("lengths".to_owned(), tensor);
    }
    let names = arriving_names(Format::Pytorch);
    let outputs = problem.forward_outputs();
    for ((names, wanted), arriving) in names.iter().zip(outputs).zip(problem.arriving) {
        if arriving {
            let mut values = random.normals(wanted.shape.iter().product(), 0.0, 1.0);
            if wanted.name == "output" {
                Sample::of(problem).keep(&p, &mut values);
            }
            let tensor = Tensor::f32(&wanted.shape, values).permuted(wanted.order);
            tensors.insert(names[0].to_owned(), tensor);
        }
    }
    tensors
}
