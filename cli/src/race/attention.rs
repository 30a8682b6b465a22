//! Causal self-attention as a contestant, with its projections of query, key, value and output.

use gatefold::reference::compare::{Difference, Tolerance, compare};
use gatefold::reference::{Real, attention as reference, convert, gemm::gemm};
use gatefold::{
    Attention as Operation, AttentionBackwardBuffers, AttentionBackwardGiven, AttentionBuffers,
    AttentionConfig, AttentionGiven, AttentionShape, Bound, Causal, ElementType, Gemm, GemmBuffers,
    GemmConfig, GemmShape, Layout, Plan, wgpu,
};
use serde_json::{Value, json};

use super::Contestant;
use super::course::{Course, Entry, Facts, Random};
use crate::error::Result;

/// `x weight + bias`, with weight `[width, columns]`.
struct Linear {
    weight: Vec<f32>,
    bias: Vec<f32>,
}

impl Linear {
    fn new(random: &mut Random, width: usize) -> Self {
        let bound = 1.0 / (width as f32).sqrt();
        Self {
            weight: random.uniform(width * width, bound),
            bias: random.uniform(width, bound),
        }
    }

    /// One product for what several would compute of the same input.
    fn joined(parts: &[Self], width: usize) -> Self {
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
    fn back<R: Real>(&self, width: usize, grad: &[R]) -> Vec<R> {
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

    fn expected<R: Real>(&self, width: usize, input: &[R]) -> Vec<R> {
        let (weight, bias) = (convert(&self.weight), convert(&self.bias));
        gemm(width, width, input, &weight, Some(&bias))
    }
}

/// A [`Linear`] on the device.
struct Weights {
    weight: wgpu::Buffer,
    bias: wgpu::Buffer,
    columns: u32,
}

pub struct Attention {
    operation: Operation,
    gemm: Gemm,
    /// Of query, key and value.
    inner: [Linear; 3],
    outer: Linear,
    inner_weights: Vec<Weights>,
    outer_weights: Weights,
    exact: Known<f64>,
    single: Known<f32>,
}

const GEMM: GemmConfig = GemmConfig {
    transpose_a: false,
    transpose_b: false,
    bias: true,
    accumulate: false,
    a_element: ElementType::F32,
    b_element: ElementType::F32,
    variant: None,
};

impl Attention {
    pub fn new(course: &Course) -> Result<Self> {
        let width = course.width as usize;
        let mut random = Random::new("attention");
        let inner = [(); 3].map(|()| Linear::new(&mut random, width));
        let outer = Linear::new(&mut random, width);
        let upload = |linear: &Linear| -> Result<Weights> {
            Ok(Weights {
                weight: course.gpu.upload("weight", &linear.weight)?,
                bias: course.gpu.upload("bias", &linear.bias)?,
                columns: linear.bias.len() as u32,
            })
        };
        let inner_weights = if is_packed(course) {
            vec![upload(&Linear::joined(&inner, width))?]
        } else {
            inner.iter().map(upload).collect::<Result<_>>()?
        };
        let config = AttentionConfig {
            head_dim: course.width / course.heads,
            causal: Causal::TopLeft,
            ..Default::default()
        };
        let context = course.gpu.context();
        Ok(Self {
            operation: Operation::new(context, config)?,
            gemm: Gemm::new(context, GEMM)?,
            inner_weights,
            outer_weights: upload(&outer)?,
            inner,
            outer,
            exact: Known::new(course),
            single: Known::new(course),
        })
    }

    /// Query, key and value: their buffers, and how they get there.
    fn project_in(
        &self,
        course: &Course,
        seq_len: u32,
    ) -> Result<(Vec<wgpu::Buffer>, Vec<Plan>, Vec<Bound>)> {
        let (mut buffers, mut plans, mut bounds) = (Vec::new(), Vec::new(), Vec::new());
        for weights in &self.inner_weights {
            let size = course.size(seq_len, weights.columns);
            let buffer = course.gpu.zeros("projected", size)?;
            let input = course.input.slice(..);
            let (plan, bound) = self.project(course, seq_len, input, weights, buffer.slice(..))?;
            buffers.push(buffer);
            plans.push(plan);
            bounds.push(bound);
        }
        Ok((buffers, plans, bounds))
    }

    /// One projection of all tokens.
    fn project(
        &self,
        course: &Course,
        seq_len: u32,
        input: wgpu::BufferSlice<'_>,
        weights: &Weights,
        output: wgpu::BufferSlice<'_>,
    ) -> Result<(Plan, Bound)> {
        let shape = GemmShape::new(&GEMM, course.rows(seq_len), weights.columns, course.width);
        let buffers = GemmBuffers {
            a: input,
            b: weights.weight.slice(..),
            bias: Some(weights.bias.slice(..)),
            output,
        };
        Ok((self.gemm.plan(shape)?, self.gemm.bind(shape, buffers)?))
    }

    fn attention_shape(&self, course: &Course, seq_len: u32) -> AttentionShape {
        let Course { width, batch, .. } = *course;
        let layout = |token: u32| Layout::Strides {
            batch: token,
            head: width / course.heads,
            token: batch * token,
        };
        let inner = layout(if is_packed(course) { 3 * width } else { width });
        AttentionShape {
            output_layout: layout(width),
            ..AttentionShape::new(batch, course.heads, course.heads, seq_len, seq_len)
                .with_layout(inner)
        }
    }

    /// The output of some queries of a judged sequence: each needs the keys up to its own only.
    fn expected<R: Real>(
        &self,
        course: &Course,
        known: &Known<R>,
        sequence: usize,
        queries: &[usize],
    ) -> Vec<R> {
        let (width, heads) = (course.width as usize, course.heads as usize);
        let dim = width / heads;
        let [query, ..] = &self.inner;
        let (keys, values) = &known.keys_and_values[sequence];
        let by_heads = |tokens: &[R], len: usize| -> Vec<R> {
            let rows = (0..heads).flat_map(|head| (0..len).map(move |row| (head, row)));
            rows.flat_map(|(head, row)| &tokens[row * width + head * dim..][..dim])
                .copied()
                .collect()
        };
        let rows = queries.iter().flat_map(|&at| {
            let problem = reference::Problem::plain(1, heads, heads, 1, at + 1, dim, dim);
            let input: Vec<R> = course.tokens(course.judged()[sequence], at..at + 1);
            let query = query.expected(width, &input);
            let (key, value) = (by_heads(keys, at + 1), by_heads(values, at + 1));
            let row = reference::attention(&problem, &query, &key, &value).output;
            if course.projections {
                self.outer.expected(width, &row)
            } else {
                row
            }
        });
        rows.collect()
    }
}

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

impl Contestant for Attention {
    fn op(&self) -> &'static str {
        "attention"
    }

    fn order(&self) -> i32 {
        2
    }

    fn shape(&self, course: &Course, seq_len: u32) -> Vec<(&'static str, Value)> {
        let head_dim = course.width / course.heads;
        vec![
            ("batch", json!(course.batch)),
            ("heads", json!(course.heads)),
            ("kv_heads", json!(course.heads)),
            ("q_len", json!(seq_len)),
            ("kv_len", json!(seq_len)),
            ("head_dim", json!(head_dim)),
            ("value_dim", json!(head_dim)),
            ("causal", json!("top-left")),
        ]
    }

    fn enter(&self, course: &Course, seq_len: u32) -> Result<Entry> {
        let gpu = &course.gpu;
        let (projected, mut plans, mut inner) = self.project_in(course, seq_len)?;
        let slice = |tensor: u64| match &projected[..] {
            [packed] => packed.slice(4 * tensor * u64::from(course.width)..),
            apart => apart[tensor as usize].slice(..),
        };
        let output = course.output(seq_len)?;
        let middle = gpu.zeros("attended", course.size(seq_len, course.width))?;
        let attended = if course.projections {
            middle.slice(..)
        } else {
            output.slice()
        };
        let shape = self.attention_shape(course, seq_len);
        let buffers = AttentionBuffers::new(slice(0), slice(1), slice(2), attended);
        let attention = self.operation.bind(shape, buffers)?;
        let plan = self.operation.plan(shape, AttentionGiven::default())?;
        let mut facts = Facts {
            variant: plan.variant.to_string(),
            tier: None,
            kernel: plan.describe.clone(),
            flops: plan.flops,
            bytes: plan.bytes,
            memory_bytes: course.size(seq_len, 4 * course.width),
        };
        if !course.projections {
            return Ok(Entry {
                facts,
                output,
                before: inner,
                timed: vec![attention],
                timed_is_whole: true,
            });
        }
        let (last, outer) = self.project(
            course,
            seq_len,
            middle.slice(..),
            &self.outer_weights,
            output.slice(),
        )?;
        plans.push(last);
        facts.flops += plans.iter().map(|plan| plan.flops).sum::<f64>();
        facts.bytes += plans.iter().map(|plan| plan.bytes).sum::<f64>();
        // input, query, key, value, attended, output; four matrices with their biases
        let width = u64::from(course.width);
        facts.memory_bytes = course.size(seq_len, 6 * course.width) + 16 * width * (width + 1);
        inner.extend([attention, outer]);
        Ok(Entry::whole(facts, output, inner))
    }

    fn check(&mut self, course: &Course, seq_len: u32, got: &[f32]) -> Result<f64, Difference> {
        let seq_len = seq_len as usize;
        let [_, key, value] = &self.inner;
        self.exact.extend(course, key, value, seq_len);
        self.single.extend(course, key, value, seq_len);
        let queries = sample(seq_len);
        let judged = course.judged();
        let (mut truth, mut yardstick, mut sampled) = (Vec::new(), Vec::new(), Vec::new());
        for (i, &sequence) in judged.iter().enumerate() {
            truth.extend(self.expected(course, &self.exact, i, &queries));
            yardstick.extend(self.expected(course, &self.single, i, &queries));
            for &at in &queries {
                sampled.extend(course.pick(got, sequence, at..at + 1));
            }
        }
        let shape = [judged.len(), queries.len(), course.width as usize];
        let tolerance = Tolerance::FORWARD;
        let agreement = compare("output", &shape, &sampled, &truth, &yardstick, tolerance);
        agreement.map(|agreement| agreement.error)
    }

    fn enter_training(&self, course: &Course, seq_len: u32) -> Result<Option<Entry>> {
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
        Ok(Some(Entry::whole(facts, grad_input, bounds)))
    }

    fn check_training(
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
}

/// Keys and values of the judged sequences, as far as they were needed.
struct Known<R> {
    keys_and_values: Vec<(Vec<R>, Vec<R>)>,
}

impl<R: Real> Known<R> {
    fn new(course: &Course) -> Self {
        let judged = course.judged();
        Self {
            keys_and_values: judged.iter().map(|_| Default::default()).collect(),
        }
    }

    fn extend(&mut self, course: &Course, key: &Linear, value: &Linear, seq_len: usize) {
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

/// Whether query, key and value come from one product, as slices of one buffer: they must start at
/// multiples of 256 bytes, the strictest alignment that a device may ask for.
fn is_packed(course: &Course) -> bool {
    course.width.is_multiple_of(64)
}

/// Queries at the edges of tiles, at both ends and in between.
fn sample(seq_len: usize) -> Vec<usize> {
    let edges = [0, 1, 7, 8, 31, 32, 63, 64];
    let between = (1..8).map(|eighth| seq_len * eighth / 8);
    let ends = [seq_len.saturating_sub(2), seq_len - 1];
    let mut queries: Vec<_> = edges.into_iter().chain(between).chain(ends).collect();
    queries.retain(|&query| query < seq_len);
    queries.sort_unstable();
    queries.dedup();
    queries
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_have_both_ends_and_stay_within() {
        for seq_len in [1, 2, 9, 64, 1000] {
            let queries = sample(seq_len);
            assert_eq!((queries[0], queries[queries.len() - 1]), (0, seq_len - 1));
            assert!(queries.is_sorted_by(|a, b| a < b));
        }
    }

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
