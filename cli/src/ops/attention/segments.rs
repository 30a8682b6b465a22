//! What the reference makes of a call: packed sequences one by one, pages put in order.

use gatefold::reference::attention::{
    self as reference, Broadcast, Dropout, Gradients, Problem, attention, backward,
};
use gatefold::reference::{Real, convert};
use gatefold::{AttentionShape, Chosen};

use super::Attention;
use crate::error::Result;
use crate::tensors::{Data, Tensor, Tensors, floats, get, integers};

/// The small tensors of a call, as the reference reads them.
pub struct Small {
    bias: Vec<f32>,
    mask: Vec<bool>,
    kv_lengths: Vec<u32>,
    alibi_slopes: Vec<f32>,
    sinks: Vec<f32>,
}

/// A dense problem: all of a call, or one of its packed sequences.
pub struct Segment {
    /// Batch rows of the call that it has.
    batch: std::ops::Range<usize>,
    q_len: usize,
    kv_len: usize,
    /// First tokens in the packed tensors.
    tokens: Option<[usize; 2]>,
    pub query: Vec<f32>,
    pub key: Vec<f32>,
    pub value: Vec<f32>,
    pub grad_output: Vec<f32>,
}

pub fn small(problem: &Attention, inputs: &Tensors) -> Result<Small> {
    let config = &problem.config;
    let if_given = |given: bool, name| match given {
        true => floats(inputs, name).map(<[f32]>::to_vec),
        false => Ok(Vec::new()),
    };
    let mask = match config.mask {
        true => match &get(inputs, "mask")?.data {
            Data::Bool(mask) => mask.clone(),
            _ => Vec::new(),
        },
        false => Vec::new(),
    };
    let kv_lengths = match problem.kv_lengths {
        true => whole(inputs, "kv_lengths")?
            .iter()
            .map(|&len| len as u32)
            .collect(),
        false => Vec::new(),
    };
    Ok(Small {
        bias: if_given(config.bias.is_some(), "bias")?,
        mask,
        kv_lengths,
        alibi_slopes: if_given(config.alibi, "alibi_slopes")?,
        sinks: if_given(config.sinks, "sinks")?,
    })
}

/// Numbers that options.rs has found not to be negative, or that nobody needs.
fn whole(inputs: &Tensors, name: &str) -> Result<Vec<usize>> {
    let numbers = integers(inputs, name)?.iter();
    Ok(numbers.map(|&x| usize::try_from(x).unwrap_or(0)).collect())
}

pub fn segments(problem: &Attention, inputs: &Tensors) -> Result<Vec<Segment>> {
    let shape = &problem.shape;
    let grad_output = |inputs| match problem.grad {
        true => floats(inputs, "grad_output").map(<[f32]>::to_vec),
        false => Ok(Vec::new()),
    };
    let [query, key, value] = super::INPUTS.map(|name| floats(inputs, name).map(<[f32]>::to_vec));
    let (query, key, value) = (query?, key?, value?);
    let grad_output = grad_output(inputs)?;
    let [heads, kv_heads] = [shape.num_heads, shape.num_kv_heads].map(|len| len as usize);
    let dims = [problem.config.head_dim, problem.config.value_dim()].map(|len| len as usize);
    if shape.packed.is_some() {
        let [q_starts, k_starts] = [
            whole(inputs, "cu_seqlens_q")?,
            whole(inputs, "cu_seqlens_k")?,
        ];
        let segment = |n: usize| {
            let (q, k) = (q_starts[n]..q_starts[n + 1], k_starts[n]..k_starts[n + 1]);
            let of = |x: &[f32], tokens: &std::ops::Range<usize>, heads: usize, dim: usize| {
                heads_first(
                    &x[tokens.start * heads * dim..tokens.end * heads * dim],
                    heads,
                    dim,
                )
            };
            let grad_output = match problem.grad {
                true => of(&grad_output, &q, heads, dims[1]),
                false => Vec::new(),
            };
            Segment {
                batch: n..n + 1,
                q_len: q.len(),
                kv_len: k.len(),
                tokens: Some([q.start, k.start]),
                query: of(&query, &q, heads, dims[0]),
                key: of(&key, &k, kv_heads, dims[0]),
                value: of(&value, &k, kv_heads, dims[1]),
                grad_output,
            }
        };
        return Ok((0..shape.batch as usize).map(segment).collect());
    }
    let (key, value) = match shape.paged {
        Some(paged) => {
            let table = whole(inputs, "block_table")?;
            let gather = |pages: &[f32], dim: usize| {
                let (row, size) = (paged.max_blocks as usize, paged.block_size as usize);
                let mut dense = Vec::new();
                for b in 0..shape.batch as usize {
                    for h in 0..kv_heads {
                        for j in 0..shape.kv_len as usize {
                            let page = table[b * row + j / size].min(paged.num_blocks as usize - 1);
                            let at = ((page * kv_heads + h) * size + j % size) * dim;
                            dense.extend_from_slice(&pages[at..at + dim]);
                        }
                    }
                }
                dense
            };
            (gather(&key, dims[0]), gather(&value, dims[1]))
        }
        None => (key, value),
    };
    Ok(vec![Segment {
        batch: 0..shape.batch as usize,
        q_len: shape.q_len as usize,
        kv_len: shape.kv_len as usize,
        tokens: None,
        query,
        key,
        value,
        grad_output,
    }])
}

/// `[tokens, heads, dim]` to `[heads, tokens, dim]`.
fn heads_first<T: Copy>(x: &[T], heads: usize, dim: usize) -> Vec<T> {
    let tokens = x.len() / (heads * dim).max(1);
    let rows = (0..heads).flat_map(|h| (0..tokens).map(move |t| t * heads + h));
    rows.flat_map(|row| x[row * dim..][..dim].iter().copied())
        .collect()
}

impl Segment {
    pub fn problem<'a>(
        &self,
        call: &Attention,
        small: &'a Small,
        sliced: &'a Sliced,
    ) -> Problem<'a> {
        let (shape, config) = (&call.shape, &call.config);
        let plain = Problem::plain(
            self.batch.len(),
            shape.num_heads as usize,
            shape.num_kv_heads as usize,
            self.q_len,
            self.kv_len,
            config.head_dim as usize,
            config.value_dim() as usize,
        );
        Problem {
            scale: config.scale(),
            softcap: config.softcap.map(f64::from),
            causal: config.causal,
            window_left: config.window_left,
            window_right: config.window_right,
            dropout: config.dropout.map(|probability| Dropout {
                probability,
                seed: shape.seed,
            }),
            first_batch: self.batch.start,
            bias: config.bias.map(|_| Broadcast {
                shape: sliced.bias_shape,
                values: &sliced.bias,
            }),
            mask: config.mask.then_some(Broadcast {
                shape: sliced.mask_shape,
                values: &sliced.mask,
            }),
            kv_lengths: call
                .kv_lengths
                .then(|| &small.kv_lengths[self.batch.clone()]),
            alibi_slopes: config.alibi.then_some(&small.alibi_slopes),
            sinks: config.sinks.then_some(&small.sinks),
            ..plain
        }
    }

    /// Bias and mask of a segment, which of a packed sequence are a part of those of the call.
    pub fn sliced(&self, call: &Attention, small: &Small) -> Sliced {
        let (bias_shape, bias) = self.slice(&four(&call.bias_shape), &small.bias);
        let (mask_shape, mask) = self.slice(&four(&call.mask_shape), &small.mask);
        Sliced {
            bias_shape,
            bias,
            mask_shape,
            mask,
        }
    }

    fn slice<T: Copy>(&self, shape: &[usize; 4], values: &[T]) -> ([usize; 4], Vec<T>) {
        if values.is_empty() || self.tokens.is_none() {
            return (*shape, values.to_vec());
        }
        let own = [
            1,
            shape[1],
            shape[2].min(self.q_len),
            shape[3].min(self.kv_len),
        ];
        let first = if shape[0] == 1 { 0 } else { self.batch.start };
        let mut out = Vec::new();
        for h in 0..own[1] {
            for i in 0..own[2] {
                let at = ((first * shape[1] + h) * shape[2] + i) * shape[3];
                out.extend_from_slice(&values[at..at + own[3]]);
            }
        }
        (own, out)
    }
}

/// See [`Segment::sliced`].
pub struct Sliced {
    bias_shape: [usize; 4],
    bias: Vec<f32>,
    mask_shape: [usize; 4],
    mask: Vec<bool>,
}

/// Aligned right.
fn four(shape: &[usize]) -> [usize; 4] {
    let mut all = [1; 4];
    all[4 - shape.len()..].copy_from_slice(shape);
    all
}

/// Every output of a call by name, flat.
#[derive(Default)]
pub struct Results<R> {
    pub output: Vec<R>,
    pub log_sum_exp: Vec<R>,
    pub weights: Vec<R>,
    pub gradients: Option<Gradients<R>>,
}

/// How the gradients of a segment are computed: themselves, or their magnitudes.
pub type Backward<R> = fn(&Problem, &[R], &[R], &[R], &[R]) -> Gradients<R>;

/// All outputs of the call.
pub fn results<R: Real>(
    call: &Attention,
    inputs: &Tensors,
    backward: Option<Backward<R>>,
) -> Result<Results<R>> {
    let small = small(call, inputs)?;
    let [query_dims, key_dims, value_dims, output_dims] = call.dims();
    let zeros = |dims: &[usize]| vec![R::ZERO; dims.iter().product()];
    let mut all = Results {
        output: zeros(&output_dims),
        log_sum_exp: vec![R::NEG_INFINITY; call.log_sum_exp_dims().iter().product()],
        weights: Vec::new(),
        gradients: None,
    };
    let bias_dims = four(&call.bias_shape);
    let mut gradients = Gradients {
        query: zeros(&query_dims),
        key: zeros(&key_dims),
        value: zeros(&value_dims),
        bias: zeros(if call.config.bias.is_some() {
            &bias_dims
        } else {
            &[0]
        }),
        sinks: zeros(&[if call.config.sinks {
            call.shape.num_heads as usize
        } else {
            0
        }]),
    };
    for segment in segments(call, inputs)? {
        let sliced = segment.sliced(call, &small);
        let problem = segment.problem(call, &small, &sliced);
        let [query, key, value] =
            [&segment.query, &segment.key, &segment.value].map(|x| convert::<R>(x));
        let grad_output = convert::<R>(&segment.grad_output);
        let forward = attention(&problem, &query, &key, &value);
        if let Some(chosen) = call.weights {
            let weights = reference::weights(&problem, &query, &key);
            all.weights = rows_of(&weights, &call.shape, chosen);
        }
        let own = backward.map(|backward| backward(&problem, &query, &key, &value, &grad_output));
        let Some([q, k]) = segment.tokens else {
            all.output = forward.output;
            all.log_sum_exp = forward.log_sum_exp;
            gradients = own.unwrap_or(gradients);
            continue;
        };
        scatter(&forward.output, &output_dims, q, &mut all.output);
        for (h, row) in forward.log_sum_exp.chunks(segment.q_len.max(1)).enumerate() {
            all.log_sum_exp[h * output_dims[0] + q..][..row.len()].copy_from_slice(row);
        }
        if let Some(own) = own {
            scatter(&own.query, &query_dims, q, &mut gradients.query);
            scatter(&own.key, &key_dims, k, &mut gradients.key);
            scatter(&own.value, &value_dims, k, &mut gradients.value);
            for (sum, &own) in gradients.sinks.iter_mut().zip(&own.sinks) {
                *sum += own;
            }
            segment.add_bias(&own.bias, &bias_dims, &mut gradients.bias);
        }
    }
    all.gradients = backward.map(|_| gradients);
    Ok(all)
}

/// `[heads, tokens, dim]` into a tensor `[all tokens, heads, dim]` from token `first` on.
fn scatter<R: Copy>(x: &[R], dims: &[usize], first: usize, out: &mut [R]) {
    let (heads, dim) = (dims[1], dims[2]);
    let tokens = x.len() / (heads * dim);
    for (row, x) in x.chunks(dim).enumerate() {
        let (h, t) = (row / tokens, row % tokens);
        out[((first + t) * heads + h) * dim..][..dim].copy_from_slice(x);
    }
}

impl Segment {
    /// Adds a packed sequence's gradient to the call's, of which it is a part.
    fn add_bias<R: Real>(&self, own: &[R], dims: &[usize; 4], sum: &mut [R]) {
        let first = if dims[0] == 1 { 0 } else { self.batch.start };
        let (rows, keys) = (dims[2].min(self.q_len), dims[3].min(self.kv_len));
        for (at, &own) in own.iter().enumerate() {
            let (h, i, j) = (at / keys / rows, at / keys % rows, at % keys);
            sum[((first * dims[1] + h) * dims[2] + i) * dims[3] + j] += own;
        }
    }
}

/// The rows that are chosen, out of those of all heads and queries.
fn rows_of<R: Real>(weights: &[R], shape: &AttentionShape, chosen: Chosen) -> Vec<R> {
    let [batch, heads, q_len, kv_len] =
        [shape.batch, shape.num_heads, shape.q_len, shape.kv_len].map(|len| len as usize);
    let first = chosen.first_row as usize * kv_len;
    let len = chosen.num_rows as usize * kv_len;
    let own = chosen.first_head as usize..(chosen.first_head + chosen.num_heads) as usize;
    let heads = (0..batch).flat_map(|b| own.clone().map(move |h| b * heads + h));
    heads
        .flat_map(|head| &weights[head * q_len * kv_len + first..][..len])
        .copied()
        .collect()
}

/// All outputs in f64, as tensors.
pub fn truth(call: &Attention, inputs: &Tensors) -> Result<Tensors> {
    let results = results::<f64>(call, inputs, call.grad.then_some(backward))?;
    let [.., output_dims] = call.dims();
    let mut tensors = vec![
        ("output", output_dims, results.output),
        ("log_sum_exp", call.log_sum_exp_dims(), results.log_sum_exp),
    ];
    if let Some(chosen) = call.weights {
        tensors.push(("weights", call.weights_dims(chosen), results.weights));
    }
    if let Some(gradients) = results.gradients {
        let values = [
            gradients.query,
            gradients.key,
            gradients.value,
            gradients.bias,
            gradients.sinks,
        ];
        for (name, dims) in call.gradients() {
            tensors.push((name, dims, pick(name, &values)));
        }
    }
    let named =
        |(name, dims, values): (&str, Vec<usize>, _)| (name.to_owned(), Tensor::f64(&dims, values));
    Ok(tensors.into_iter().map(named).collect())
}

/// Of query, key, value, bias, sinks.
pub fn pick<R: Copy>(name: &str, values: &[Vec<R>; 5]) -> Vec<R> {
    let at = match name {
        "grad_query" => 0,
        "grad_key" => 1,
        "grad_value" => 2,
        "grad_bias" => 3,
        _ => 4,
    };
    values[at].clone()
}
