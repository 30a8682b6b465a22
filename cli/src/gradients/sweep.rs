//! The norms of dL/dh_t of a network on a random input: of one backward pass, or step by step with a clip in between.

use gatefold::reference::recurrent::{
    Initial, Problem, Upstream, Weights, recurrent, recurrent_backward,
};
use gatefold::reference::{Real, convert};
use gatefold::{
    Direction, Gpu, Recurrent, RecurrentBackwardBuffers, RecurrentBuffers, RecurrentConfig,
    RecurrentShape, RecurrentWeights, wgpu,
};

use super::networks::Network;
use crate::error::Result;
use crate::ops::Random;

/// A network with its input and the gradient that arrives at its last state.
pub struct Sweep<'a> {
    network: &'a Network,
    width: usize,
    seq_len: usize,
    input: Vec<f32>,
    last: Vec<f32>,
}

impl<'a> Sweep<'a> {
    pub fn new(network: &'a Network, seq_len: usize, seed: u64) -> Self {
        let gates = network.cell.num_gates() as usize;
        let width = network.weights.bias_ih.len() / gates;
        let mut random = Random::new(seed ^ 0x5eed);
        let input = random.normals(seq_len * width, 0.0, 1.0);
        let direction = random.normals(width, 0.0, 1.0);
        let norm = norm(&direction);
        Self {
            network,
            width,
            seq_len,
            input,
            last: direction
                .iter()
                .map(|x| (f64::from(*x) / norm) as f32)
                .collect(),
        }
    }

    fn config(&self) -> RecurrentConfig {
        RecurrentConfig {
            cell: self.network.cell,
            input_size: self.width as u32,
            hidden_size: self.width as u32,
            gradients: true,
            ..Default::default()
        }
    }

    fn has_cell(&self) -> bool {
        self.network.cell.has_cell_state()
    }

    /// The library's own norms, of one backward pass.
    pub fn whole(&self, gpu: &Gpu) -> Result<Vec<f32>> {
        let device = Device::new(self, gpu, self.seq_len as u32)?;
        let norms = gpu.zeros("grad_norms", 4 * self.seq_len as u64)?;
        let input = gpu.upload("input", &self.input)?;
        let last = gpu.upload("grad_h_n", &self.last)?;
        let bound = device.op.bind(
            device.shape,
            RecurrentBuffers {
                reserve: Some(device.reserve.slice(..)),
                ..device.buffers(&input)
            },
        )?;
        let backward = RecurrentBackwardBuffers {
            grad_h_n: Some(last.slice(..)),
            grad_norms: Some(norms.slice(..)),
            ..device.backward_buffers(&input)
        };
        let backward = device.op.bind_backward(device.shape, backward)?;
        gpu.run(|pass| {
            bound.record(pass);
            backward.record(pass);
            Ok(())
        })?;
        Ok(gpu.download(&norms)?)
    }

    /// A step at a time: what is handed back to the step before, of the cell state too, is scaled down to a norm of
    /// at most `clip`.
    pub fn clipped(&self, gpu: &Gpu, clip: f32) -> Result<Vec<f32>> {
        let device = Device::new(self, gpu, 1)?;
        let state = |name| gpu.zeros(name, 4 * self.width as u64);
        let zeros = vec![0.0_f32; self.width];
        let (mut h, mut c) = (zeros.clone(), zeros.clone());
        let (h_n, c_n) = (state("h_n")?, state("c_n")?);
        let (grad_h_0, grad_c_0) = (state("grad_h_0")?, state("grad_c_0")?);
        let mut steps = Vec::new();
        for x in self.input.chunks(self.width) {
            let tensors = [x, &h, &c].map(|values| gpu.upload("step", values));
            let [input, h_0, c_0] = tensors;
            let (input, h_0, c_0) = (input?, h_0?, c_0?);
            let buffers = RecurrentBuffers {
                h_0: Some(h_0.slice(..)),
                c_0: self.has_cell().then(|| c_0.slice(..)),
                h_n: Some(h_n.slice(..)),
                c_n: self.has_cell().then(|| c_n.slice(..)),
                reserve: Some(device.reserve.slice(..)),
                ..device.buffers(&input)
            };
            let bound = device.op.bind(device.shape, buffers)?;
            gpu.run(|pass| {
                bound.record(pass);
                Ok(())
            })?;
            (h, c) = (gpu.download(&h_n)?, gpu.download(&c_n)?);
            steps.push((input, bound));
        }
        let (mut dh, mut dc) = (self.last.clone(), zeros);
        let mut norms = Vec::new();
        for (input, forward) in steps.iter().rev() {
            clip_to(&mut dh, &mut dc, clip.into());
            norms.push(norm(&dh) as f32);
            let (grad_h_n, grad_c_n) = (gpu.upload("grad", &dh)?, gpu.upload("grad", &dc)?);
            let buffers = RecurrentBackwardBuffers {
                grad_h_n: Some(grad_h_n.slice(..)),
                grad_c_n: self.has_cell().then(|| grad_c_n.slice(..)),
                grad_h_0: Some(grad_h_0.slice(..)),
                grad_c_0: self.has_cell().then(|| grad_c_0.slice(..)),
                ..device.backward_buffers(input)
            };
            let backward = device.op.bind_backward(device.shape, buffers)?;
            // the reserve is that of the last step: this step's forward pass makes its own again
            gpu.run(|pass| {
                forward.record(pass);
                backward.record(pass);
                Ok(())
            })?;
            (dh, dc) = (gpu.download(&grad_h_0)?, gpu.download(&grad_c_0)?);
        }
        norms.reverse();
        Ok(norms)
    }

    fn problem(&self, seq_len: usize) -> Problem {
        Problem {
            cell: self.network.cell,
            input_size: self.width,
            hidden_size: self.width,
            proj_size: None,
            num_layers: 1,
            direction: Direction::Forward,
            dropout: 0.0,
            seed: 0,
            activations: None,
            clip: None,
            truncate: None,
            seq_len,
            batch: 1,
        }
    }

    /// The same norms from the reference.
    pub fn reference<R: Real>(&self, clip: Option<f32>) -> Vec<R> {
        let weights: [Weights<R>; 1] = [self.network.weights.convert()];
        let input: Vec<R> = convert(&self.input);
        let last: Vec<R> = convert(&self.last);
        let none = Initial {
            h_0: None,
            c_0: None,
            lengths: None,
        };
        let Some(clip) = clip else {
            let upstream = Upstream {
                output: None,
                h_n: Some(&last[..]),
                c_n: None,
            };
            let problem = self.problem(self.seq_len);
            let [gradients, _] = recurrent_backward(&problem, &input, &weights, none, upstream);
            return gradients.norms;
        };
        let step = self.problem(1);
        let zeros = vec![R::ZERO; self.width];
        let (mut h, mut c) = (zeros.clone(), zeros.clone());
        let mut before = Vec::new();
        for x in input.chunks(self.width) {
            before.push((h.clone(), c.clone()));
            let initial = self.initial(&h, &c);
            let after = recurrent(&step, x, &weights, initial);
            h = after.h_n;
            c = if self.has_cell() { after.c_n } else { c };
        }
        let (mut dh, mut dc) = (last, zeros);
        let mut norms = Vec::new();
        for (x, (h, c)) in input.chunks(self.width).zip(&before).rev() {
            clip_to(&mut dh, &mut dc, clip.into());
            norms.push(R::from_f64(norm(&dh)));
            let upstream = Upstream {
                output: None,
                h_n: Some(&dh[..]),
                c_n: self.has_cell().then_some(&dc[..]),
            };
            let initial = self.initial(h, c);
            let [gradients, _] = recurrent_backward(&step, x, &weights, initial, upstream);
            dh = gradients.h_0;
            dc = if self.has_cell() { gradients.c_0 } else { dc };
        }
        norms.reverse();
        norms
    }

    fn initial<'s, R>(&self, h: &'s [R], c: &'s [R]) -> Initial<'s, R> {
        Initial {
            h_0: Some(h),
            c_0: self.has_cell().then_some(c),
            lengths: None,
        }
    }
}

fn norm<R: Real>(values: &[R]) -> f64 {
    let squares = values.iter().map(|x| x.to_f64() * x.to_f64());
    squares.sum::<f64>().sqrt()
}

/// Both by the same factor, so that their norm together is at most `clip`.
fn clip_to<R: Real>(dh: &mut [R], dc: &mut [R], clip: f64) {
    let norm = norm(dh).hypot(norm(dc));
    if norm > clip {
        let factor = R::from_f64(clip / norm);
        dh.iter_mut().chain(dc).for_each(|x| *x = *x * factor);
    }
}

/// The operation with the buffers that its passes share.
struct Device {
    op: Recurrent,
    shape: RecurrentShape,
    packed: wgpu::Buffer,
    output: wgpu::Buffer,
    reserve: wgpu::Buffer,
    scratch: wgpu::Buffer,
}

impl Device {
    fn new(sweep: &Sweep<'_>, gpu: &Gpu, seq_len: u32) -> Result<Self> {
        let op = Recurrent::new(gpu.context(), sweep.config())?;
        let shape = RecurrentShape {
            seq_len,
            batch: 1,
            seed: 0,
        };
        let scratch = op
            .scratch_size(shape)?
            .max(op.backward_scratch_size(shape)?);
        let zeros = |name, size: u64| gpu.zeros(name, size.max(4));
        Ok(Self {
            packed: pack(gpu, &op, &sweep.network.weights)?,
            output: zeros("output", 4 * u64::from(seq_len) * sweep.width as u64)?,
            reserve: zeros("reserve", op.reserve_size(shape)?)?,
            scratch: zeros("scratch", scratch)?,
            op,
            shape,
        })
    }

    fn buffers<'a>(&'a self, input: &'a wgpu::Buffer) -> RecurrentBuffers<'a> {
        RecurrentBuffers::new(
            input.slice(..),
            self.packed.slice(..),
            self.output.slice(..),
            self.scratch.slice(..),
        )
    }

    fn backward_buffers<'a>(&'a self, input: &'a wgpu::Buffer) -> RecurrentBackwardBuffers<'a> {
        RecurrentBackwardBuffers::new(
            input.slice(..),
            self.packed.slice(..),
            self.reserve.slice(..),
            self.scratch.slice(..),
        )
    }
}

fn pack(gpu: &Gpu, op: &Recurrent, weights: &Weights<f32>) -> Result<wgpu::Buffer> {
    let upload = |values: &[f32]| gpu.upload("weights", values);
    let (weight_ih, weight_hh) = (upload(&weights.weight_ih)?, upload(&weights.weight_hh)?);
    let (bias_ih, bias_hh) = (upload(&weights.bias_ih)?, upload(&weights.bias_hh)?);
    let given = RecurrentWeights {
        weight_ih: weight_ih.slice(..),
        weight_hh: weight_hh.slice(..),
        bias: Some((bias_ih.slice(..), bias_hh.slice(..))),
        peephole: None,
        weight_hr: None,
    };
    let packed = gpu.zeros("packed", op.packed_size())?;
    gpu.run(|pass| op.pack_weights(pass, &[given], packed.slice(..)))?;
    Ok(packed)
}

#[cfg(test)]
mod tests {
    use super::super::networks::networks;
    use super::*;
    use gatefold::Cell;

    #[test]
    fn a_clip_that_is_never_reached_changes_nothing() {
        for network in networks(6, 1) {
            let sweep = Sweep::new(&network, 5, 1);
            let (whole, stepped) = (sweep.reference::<f64>(None), sweep.reference(Some(1e9)));
            for (whole, stepped) in whole.iter().zip(&stepped) {
                let stepped: &f64 = stepped;
                assert!((whole - stepped).abs() < 1e-12, "{}", network.name);
            }
        }
    }

    #[test]
    fn a_rotation_scales_by_its_radius() {
        let all = networks(8, 1);
        for (network, radius) in all.iter().zip([0.9_f64, 1.0, 1.1]) {
            assert_eq!(network.cell, Cell::RnnTanh);
            let norms = Sweep::new(network, 10, 1).reference::<f64>(None);
            assert!((norms[9] - 1.0).abs() < 1e-6);
            assert!((norms[0] / radius.powi(9) - 1.0).abs() < 1e-3, "{radius}");
        }
    }

    #[test]
    fn clipped_gradients_stay_below() {
        for network in networks(6, 1) {
            let norms = Sweep::new(&network, 20, 1).reference::<f64>(Some(0.5));
            assert!(norms.iter().all(|&norm| norm <= 0.5 + 1e-6));
        }
    }
}
