//! A step of training: forward, and the gradients of input and weights.

use gatefold::reference::compare::{Difference, Tolerance, compare};
use gatefold::reference::{Real, attention as reference};
use gatefold::{
    AttentionBackwardBuffers, AttentionBackwardGiven, AttentionBuffers, AttentionGiven,
    AttentionShape, Bound, Causal, Gemm, GemmBuffers, GemmConfig, GemmShape, Layout, Plan, wgpu,
};

use super::linear::{Known, Linear, Weights};
use super::{Attention, GEMM};
use crate::error::Result;
use crate::race::course::{Course, Entry, Facts};

/// Queries at the end that a training is judged by.
const TAIL: usize = 32;

/// The products of a training, one after another.
struct Products<'a> {
    course: &'a Course,
    plans: Vec<Plan>,
    bounds: Vec<Bound>,
    seq_len: u32,
}

impl Products<'_> {
    fn add(
        &mut self,
        config: GemmConfig,
        [m, n, k]: [u32; 3],
        buffers: GemmBuffers<'_>,
    ) -> Result<()> {
        let gemm = Gemm::new(self.course.gpu.context(), config)?;
        let shape = GemmShape::new(&config, m, n, k);
        self.plans.push(gemm.plan(shape)?);
        self.bounds.push(gemm.bind(shape, buffers)?);
        Ok(())
    }

    /// `output = input weight + bias`
    fn forward(&mut self, a: &wgpu::Buffer, of: &Weights, output: &wgpu::Buffer) -> Result<()> {
        let width = self.course.width;
        let shape = [self.course.rows(self.seq_len), width, width];
        let buffers = GemmBuffers {
            a: a.slice(..),
            b: of.weight.slice(..),
            bias: Some(of.bias.slice(..)),
            output: output.slice(..),
        };
        self.add(GEMM, shape, buffers)
    }

    /// From the gradient of an output to those of weight and bias, in one buffer, one behind the other, and to that of
    /// the input, or on top of it.
    fn backward(
        &mut self,
        [input, grad, ones]: [&wgpu::Buffer; 3],
        of: &Weights,
        grad_weight: &wgpu::Buffer,
        grad_input: (wgpu::BufferSlice<'_>, bool),
    ) -> Result<()> {
        let (width, rows) = (self.course.width, self.course.rows(self.seq_len));
        let bias_start = weight_gradient_size(width) / 2;
        let weight = GemmConfig {
            transpose_a: true,
            bias: false,
            ..GEMM
        };
        let buffers = GemmBuffers {
            a: input.slice(..),
            b: grad.slice(..),
            bias: None,
            output: grad_weight.slice(..bias_start),
        };
        self.add(weight, [width, width, rows], buffers)?;
        let bias = GemmConfig {
            bias: false,
            ..GEMM
        };
        let buffers = GemmBuffers {
            a: ones.slice(..),
            output: grad_weight.slice(bias_start..),
            ..buffers
        };
        self.add(bias, [1, width, rows], buffers)?;
        let (output, accumulate) = grad_input;
        let back = GemmConfig {
            transpose_b: true,
            bias: false,
            accumulate,
            ..GEMM
        };
        let buffers = GemmBuffers {
            a: grad.slice(..),
            b: of.weight.slice(..),
            bias: None,
            output,
        };
        self.add(back, [rows, width, width], buffers)
    }
}

/// Bytes of the gradients of a weight and, from the middle on, of its bias.
fn weight_gradient_size(width: u32) -> u64 {
    2 * (4 * u64::from(width) * u64::from(width)).next_multiple_of(256)
}

impl Attention {
    pub(super) fn training(&self, course: &Course, seq_len: u32) -> Result<Entry> {
        let (gpu, width) = (&course.gpu, course.width);
        let tensor = || gpu.zeros("tensor", course.size(seq_len, width));
        let rows = course.rows(seq_len) as usize;
        let ones = gpu.upload("ones", &vec![1.0_f32; rows])?;
        let upload = |linear: &Linear| -> Result<Weights> {
            Ok(Weights {
                weight: gpu.upload("weight", &linear.weight)?,
                bias: gpu.upload("bias", &linear.bias)?,
                columns: width,
            })
        };
        let inner: Vec<Weights> = self.inner.iter().map(upload).collect::<Result<_>>()?;
        let mut products = Products {
            course,
            plans: Vec::new(),
            bounds: Vec::new(),
            seq_len,
        };
        let mut projected = Vec::new();
        for weights in &inner {
            let output = tensor()?;
            products.forward(&course.input, weights, &output)?;
            projected.push(output);
        }
        let layout = Layout::Strides {
            batch: width,
            head: width / course.heads,
            token: course.batch * width,
        };
        let (batch, heads) = (course.batch, course.heads);
        let shape = AttentionShape::new(batch, heads, heads, seq_len, seq_len).with_layout(layout);
        let rows = u64::from(course.heads) * u64::from(course.rows(seq_len));
        let log_sum_exp = gpu.zeros("log_sum_exp", 4 * rows)?;
        let scratch_size = self.operation.backward_scratch_size(shape)?;
        let scratch_size = scratch_size.max(self.operation.scratch_size(shape)?).max(4);
        let scratch = gpu.zeros("scratch", scratch_size)?;
        let (attended, output) = (tensor()?, tensor()?);
        let buffers = AttentionBuffers {
            scratch: Some(scratch.slice(..)),
            ..AttentionBuffers::new(
                projected[0].slice(..),
                projected[1].slice(..),
                projected[2].slice(..),
                attended.slice(..),
            )
            .log_sum_exp(log_sum_exp.slice(..))
        };
        let given = AttentionGiven {
            log_sum_exp: true,
            ..Default::default()
        };
        let forward = self.operation.plan(shape, given)?;
        let kernel = forward.describe.clone();
        let backward = self
            .operation
            .plan_backward(shape, AttentionBackwardGiven::default())?;
        products.plans.extend([forward, backward]);
        products.bounds.push(self.operation.bind(shape, buffers)?);
        products.forward(&attended, &self.outer_weights, &output)?;

        let grad_weights =
            (0..4).map(|_| gpu.zeros("gradients of the weights", weight_gradient_size(width)));
        let grad_weights: Vec<_> = grad_weights.collect::<Result<_, _>>()?;
        let grad_attended = tensor()?;
        let tensors = [&attended, &course.grad_output, &ones];
        let into = (grad_attended.slice(..), false);
        products.backward(tensors, &self.outer_weights, &grad_weights[3], into)?;
        let gradients = [tensor()?, tensor()?, tensor()?];
        let [grad_query, grad_key, grad_value] = gradients.each_ref().map(|grad| grad.slice(..));
        let buffers = AttentionBackwardBuffers {
            forward: buffers,
            grad_output: grad_attended.slice(..),
            grad_query,
            grad_key,
            grad_value,
            grad_bias: None,
            grad_sinks: None,
        };
        products
            .bounds
            .push(self.operation.bind_backward(shape, buffers)?);
        let grad_input = course.output(seq_len)?;
        for (i, weights) in inner.iter().enumerate() {
            let tensors = [&course.input, &gradients[i], &ones];
            let into = (grad_input.slice(), i > 0);
            products.backward(tensors, weights, &grad_weights[i], into)?;
        }
        let total = |of: fn(&Plan) -> f64| products.plans.iter().map(of).sum::<f64>();
        let weight_size = 4 * u64::from(width) * (u64::from(width) + 1);
        let facts = Facts {
            variant: products.plans[3].variant.to_string(),
            tier: None,
            kernel,
            flops: total(|plan| plan.flops),
            bytes: total(|plan| plan.bytes),
            // input, query, key, value, attended, output and their gradients; four weights and theirs
            memory_bytes: course.size(seq_len, 12 * width)
                + 4 * (weight_size + weight_gradient_size(width))
                + 4 * rows
                + scratch_size,
        };
        let Products { bounds, .. } = products;
        Ok(Entry::whole(facts, grad_input, bounds))
    }

    pub(super) fn judge_training(
        &mut self,
        course: &Course,
        seq_len: u32,
        got: &[f32],
    ) -> Result<f64, Difference> {
        let seq_len = seq_len as usize;
        let [_, key, value] = &self.inner;
        self.exact.extend(course, key, value, seq_len);
        self.single.extend(course, key, value, seq_len);
        let judged = course.judged();
        let first = seq_len.saturating_sub(TAIL);
        let (mut truth, mut yardstick, mut sampled) = (Vec::new(), Vec::new(), Vec::new());
        for (i, &sequence) in judged.iter().enumerate() {
            truth.extend(self.expected_gradients(course, &self.exact, i, seq_len));
            yardstick.extend(self.expected_gradients(course, &self.single, i, seq_len));
            sampled.extend(course.pick(got, sequence, first..seq_len));
        }
        let shape = [judged.len(), seq_len - first, course.width as usize];
        let tolerance = Tolerance::GRADIENT;
        let agreement = compare(
            "grad_input",
            &shape,
            &sampled,
            &truth,
            &yardstick,
            tolerance,
        );
        agreement.map(|agreement| agreement.error)
    }

    /// The gradients of the last inputs of a judged sequence: those of queries, keys and values that far back come from
    /// the last queries alone.
    fn expected_gradients<R: Real>(
        &self,
        course: &Course,
        known: &Known<R>,
        sequence: usize,
        seq_len: usize,
    ) -> Vec<R> {
        let (width, heads) = (course.width as usize, course.heads as usize);
        let (dim, first) = (width / heads, seq_len.saturating_sub(TAIL));
        let count = seq_len - first;
        let [query, key, value] = &self.inner;
        let judged = course.judged()[sequence];
        let input: Vec<R> = course.tokens(judged, first..seq_len);
        let grad: Vec<R> = course.gradients(judged, first..seq_len);
        let by_heads = |tokens: &[R], len: usize| -> Vec<R> {
            let rows = (0..heads).flat_map(|head| (0..len).map(move |row| (head, row)));
            rows.flat_map(|(head, row)| &tokens[row * width + head * dim..][..dim])
                .copied()
                .collect()
        };
        let back = |values: &[R], len: usize, linear: &Linear| {
            let token = |row: usize| {
                (0..width).map(move |at| values[((at / dim) * len + row) * dim + at % dim])
            };
            let tokens: Vec<R> = (len - count..len).flat_map(token).collect();
            linear.back(width, &tokens)
        };
        let (keys, values) = &known.keys_and_values[sequence];
        let problem = reference::Problem {
            causal: Causal::BottomRight,
            ..reference::Problem::plain(1, heads, heads, count, seq_len, dim, dim)
        };
        let gradients = reference::backward(
            &problem,
            &by_heads(&query.expected(width, &input), count),
            &by_heads(keys, seq_len),
            &by_heads(values, seq_len),
            &by_heads(&self.outer.back(width, &grad), count),
        );
        let parts = [
            back(&gradients.query, count, query),
            back(&gradients.key, seq_len, key),
            back(&gradients.value, seq_len, value),
        ];
        let sum = |at: usize| parts.iter().fold(R::ZERO, |sum, part| sum + part[at]);
        (0..count * width).map(sum).collect()
    }
}
