//! Causal self-attention as a contestant, with its projections of query, key, value and output.

mod linear;
mod training;

use gatefold::reference::compare::{Difference, Tolerance, compare};
use gatefold::reference::{Real, attention as reference};
use gatefold::{
    Attention as Operation, AttentionBuffers, AttentionConfig, AttentionGiven, AttentionShape,
    Bound, Causal, ElementType, Gemm, GemmBuffers, GemmConfig, GemmShape, Layout, Plan, wgpu,
};
use serde_json::{Value, json};

use linear::{Known, Linear, Weights};

use super::Contestant;
use super::course::{Course, Entry, Facts, Random};
use crate::error::Result;

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
        self.training(course, seq_len).map(Some)
    }

    fn check_training(
        &mut self,
        course: &Course,
        seq_len: u32,
        got: &[f32],
    ) -> Result<f64, Difference> {
        self.judge_training(course, seq_len, got)
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
}
