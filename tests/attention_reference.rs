//! The reference of attention by itself: its gradients against finite differences, and what masks promise.

mod common;

use common::Random;
use gatefold::Causal;
use gatefold::reference::attention::{
    Broadcast, Dropout, Gradients, Problem, attention, backward, backward_magnitude, weights,
};

const BATCH: usize = 2;
const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const Q_LEN: usize = 5;
const KV_LEN: usize = 7;
const HEAD_DIM: usize = 3;
const VALUE_DIM: usize = 2;

/// Full shape of the scores.
const SCORES: [usize; 4] = [BATCH, HEADS, Q_LEN, KV_LEN];

/// What a problem borrows.
struct Tensors {
    bias: Vec<f32>,
    mask: Vec<bool>,
    lengths: [u32; BATCH],
    slopes: [f32; HEADS],
    sinks: [f32; HEADS],
}

impl Tensors {
    fn new() -> Self {
        let mut random = Random::new(11);
        let len = SCORES.iter().product();
        Self {
            bias: random.normals(len, 1.0),
            mask: random.normals(len, 1.0).iter().map(|&x| x < 0.8).collect(),
            lengths: [6, 3],
            slopes: [0.5, 0.25, 0.125, 0.0625],
            sinks: [0.3, -0.7, 1.1, 0.0],
        }
    }

    /// The leading elements, as a tensor of that shape.
    fn bias(&self, shape: [usize; 4]) -> Option<Broadcast<'_, f32>> {
        let values = &self.bias[..shape.iter().product()];
        Some(Broadcast { shape, values })
    }

    fn mask(&self, shape: [usize; 4]) -> Option<Broadcast<'_, bool>> {
        let values = &self.mask[..shape.iter().product()];
        Some(Broadcast { shape, values })
    }

    fn plain(&self) -> Problem<'_> {
        Problem::plain(BATCH, HEADS, KV_HEADS, Q_LEN, KV_LEN, HEAD_DIM, VALUE_DIM)
    }

    /// Every option alone, and some together.
    fn problems<'a>(&'a self) -> Vec<(&'static str, Problem<'a>)> {
        let [b, h, q, k] = SCORES;
        let dropout = Some(Dropout {
            probability: 0.3,
            seed: 0x1234_5678_9abc_def0,
        });
        let kv_lengths = Some(&self.lengths[..]);
        let (alibi_slopes, sinks) = (Some(&self.slopes[..]), Some(&self.sinks[..]));
        let mut problems = vec![("plain", self.plain())];
        let mut with = |name, change: &dyn Fn(&mut Problem<'a>)| {
            let mut problem = self.plain();
            change(&mut problem);
            problems.push((name, problem));
        };
        with("scale", &|p| p.scale = -0.8);
        with("softcap", &|p| p.softcap = Some(0.9));
        with("top-left", &|p| p.causal = Causal::TopLeft);
        with("bottom-right", &|p| p.causal = Causal::BottomRight);
        with("offset", &|p| p.causal = Causal::Offset(-2));
        with("window left", &|p| p.window_left = Some(1));
        with("window right", &|p| p.window_right = Some(2));
        with("dropout", &|p| p.dropout = dropout);
        with("bias", &|p| p.bias = self.bias(SCORES));
        with("bias of heads", &|p| p.bias = self.bias([1, h, 1, 1]));
        with("bias of rows", &|p| p.bias = self.bias([b, 1, 1, 1]));
        with("bias of queries", &|p| p.bias = self.bias([1, 1, q, 1]));
        with("bias of keys", &|p| p.bias = self.bias([1, 1, 1, k]));
        with("bias of heads and keys", &|p| {
            p.bias = self.bias([1, h, 1, k])
        });
        with("bias of rows and queries", &|p| {
            p.bias = self.bias([b, 1, q, 1])
        });
        with("mask", &|p| p.mask = self.mask(SCORES));
        with("mask of keys", &|p| p.mask = self.mask([b, 1, 1, k]));
        with("lengths", &|p| p.kv_lengths = kv_lengths);
        with("alibi", &|p| p.alibi_slopes = alibi_slopes);
        with("sinks", &|p| p.sinks = sinks);
        with("causal window with lengths", &|p| {
            p.causal = Causal::BottomRight;
            p.window_left = Some(2);
            p.kv_lengths = kv_lengths;
        });
        with("softcap, bias and sinks", &|p| {
            p.softcap = Some(1.1);
            p.bias = self.bias([b, 1, q, k]);
            p.sinks = sinks;
        });
        with("alibi with lengths and dropout", &|p| {
            p.causal = Causal::BottomRight;
            p.alibi_slopes = alibi_slopes;
            p.kv_lengths = kv_lengths;
            p.dropout = dropout;
            p.first_batch = 3;
        });
        with("rows without a key, and sinks", &|p| {
            p.causal = Causal::Offset(-3);
            p.window_left = Some(0);
            p.sinks = sinks;
        });
        with("everything", &|p| {
            p.scale = 0.7;
            p.softcap = Some(2.0);
            p.causal = Causal::Offset(2);
            p.window_left = Some(4);
            p.window_right = Some(0);
            p.dropout = dropout;
            p.first_batch = 1;
            p.bias = self.bias([1, h, q, k]);
            p.mask = self.mask([b, 1, q, k]);
            p.kv_lengths = kv_lengths;
            p.alibi_slopes = alibi_slopes;
            p.sinks = sinks;
        });
        problems
    }
}

/// query, key, value, grad_output
fn inputs(p: &Problem) -> [Vec<f64>; 4] {
    let mut random = Random::new(7);
    let keys = p.batch * p.num_kv_heads * p.kv_len;
    let queries = p.batch * p.num_heads * p.q_len;
    [
        queries * p.head_dim,
        keys * p.head_dim,
        keys * p.value_dim,
        queries * p.value_dim,
    ]
    .map(|len| {
        random
            .normals(len, 1.0)
            .into_iter()
            .map(f64::from)
            .collect()
    })
}

fn loss(p: &Problem, [query, key, value, grad_output]: &[Vec<f64>; 4]) -> f64 {
    let output = attention(p, query, key, value).output;
    output.iter().zip(grad_output).map(|(o, g)| o * g).sum()
}

fn gradients(p: &Problem, [query, key, value, grad_output]: &[Vec<f64>; 4]) -> Gradients<f64> {
    backward(p, query, key, value, grad_output)
}

fn assert_close(what: &str, i: usize, got: f64, want: f64, tolerance: f64) {
    let error = (got - want).abs();
    assert!(
        error <= tolerance * want.abs().max(1.0),
        "{what}[{i}]: got {got:e}, expected {want:e}"
    );
}

/// Moves an f32 by about `STEP`; the step itself is exact in f64.
fn moved(values: &[f32], i: usize, step: f32) -> Vec<f32> {
    let mut values = values.to_vec();
    values[i] += step;
    values
}

#[test]
fn gradients_are_finite_differences() {
    let tensors = Tensors::new();
    for (name, p) in tensors.problems() {
        let inputs = inputs(&p);
        let got = gradients(&p, &inputs);
        const STEP: f64 = 1e-5;
        for (tensor, grad) in [&got.query, &got.key, &got.value].into_iter().enumerate() {
            assert_eq!(grad.len(), inputs[tensor].len());
            assert!(grad.iter().any(|&g| g.abs() > 0.01), "{name}: trivial");
            for (i, &grad) in grad.iter().enumerate() {
                let at = |step: f64| {
                    let mut inputs = inputs.clone();
                    inputs[tensor][i] += step;
                    loss(&p, &inputs)
                };
                let difference = (at(STEP) - at(-STEP)) / (2.0 * STEP);
                assert_close(&format!("{name} {tensor}"), i, grad, difference, 1e-8);
            }
        }
        // bias and sinks are f32, where steps are larger: fourth order
        let slope = |values: &[f32], i: usize, loss_of: &dyn Fn(&[f32]) -> f64| {
            let at = |step: f32| {
                let moved = moved(values, i, step);
                (loss_of(&moved), f64::from(moved[i]))
            };
            const STEP: f32 = 1.0 / 512.0;
            let ((a, x), (b, y)) = (at(STEP), at(-STEP));
            let ((c, z), (d, w)) = (at(2.0 * STEP), at(-2.0 * STEP));
            (4.0 * (a - b) / (x - y) - (c - d) / (z - w)) / 3.0
        };
        if let Some(bias) = p.bias {
            assert_eq!(got.bias.len(), bias.values.len());
            for (i, &grad) in got.bias.iter().enumerate() {
                let loss_of = |values: &[f32]| {
                    let bias = Some(Broadcast { values, ..bias });
                    loss(&Problem { bias, ..p }, &inputs)
                };
                let difference = slope(bias.values, i, &loss_of);
                assert_close(&format!("{name} bias"), i, grad, difference, 1e-7);
            }
        }
        if let Some(sinks) = p.sinks {
            assert_eq!(got.sinks.len(), HEADS);
            for (i, &grad) in got.sinks.iter().enumerate() {
                let loss_of = |values: &[f32]| {
                    let sinks = Some(values);
                    loss(&Problem { sinks, ..p }, &inputs)
                };
                let difference = slope(sinks, i, &loss_of);
                assert_close(&format!("{name} sinks"), i, grad, difference, 1e-7);
            }
        }
    }
}

/// `[b, h, i, j]` of every score.
fn places() -> impl Iterator<Item = [usize; 4]> {
    let [_, h, q, k] = SCORES;
    let len = SCORES.iter().product();
    (0..len).map(move |at: usize| [at / k / q / h, at / k / q % h, at / k % q, at % k])
}

/// The masks of the documentation, one element at a time.
fn is_attended(p: &Problem, [b, h, i, j]: [usize; 4]) -> bool {
    let length = p
        .kv_lengths
        .map_or(KV_LEN as i64, |lengths| lengths[b].into());
    let offset = match p.causal {
        Causal::No | Causal::TopLeft => 0,
        Causal::BottomRight => length - Q_LEN as i64,
        Causal::Offset(offset) => offset.into(),
    };
    let (i_offset, key) = (i as i64 + offset, j as i64);
    key < length
        && (p.causal == Causal::No || key <= i_offset)
        && p.window_left
            .is_none_or(|left| key >= i_offset - i64::from(left))
        && p.window_right
            .is_none_or(|right| key <= i_offset + i64::from(right))
        && p.mask.is_none_or(|mask| mask.get(b, h, i, j))
        && p.bias.is_none_or(|bias| bias.get(b, h, i, j) > -1e30)
}

#[test]
fn weights_are_0_where_masked_and_sum_to_1_without_the_sinks_share() {
    let tensors = Tensors::new();
    for (name, p) in tensors.problems() {
        let [query, key, value, _] = inputs(&p);
        let weights = weights(&p, &query, &key);
        let got = attention(&p, &query, &key, &value);
        for (&weight, place) in weights.iter().zip(places()) {
            assert_eq!(weight > 0.0, is_attended(&p, place), "{name} {place:?}");
        }
        for (row, weights) in weights.chunks(KV_LEN).enumerate() {
            let logarithm = got.log_sum_exp[row];
            let sink = p.sinks.map(|sinks| f64::from(sinks[row / Q_LEN % HEADS]));
            let sum: f64 = weights.iter().sum();
            let share = sink.map_or(0.0, |sink| (sink - logarithm).exp());
            if sum == 0.0 {
                assert_eq!(logarithm, sink.unwrap_or(f64::NEG_INFINITY), "{name}");
                let output = &got.output[row * VALUE_DIM..][..VALUE_DIM];
                assert_eq!(output, [0.0; VALUE_DIM], "{name}");
            } else {
                assert_close(name, row, sum + share, 1.0, 1e-14);
            }
        }
    }
}

#[test]
fn masked_keys_do_not_reach_anything() {
    let tensors = Tensors::new();
    let mut some_are_masked = 0;
    for (name, p) in tensors.problems() {
        let inputs = inputs(&p);
        let mut reached = [false; BATCH * KV_HEADS * KV_LEN];
        let mut has_key = [false; BATCH * HEADS * Q_LEN];
        for place in places().filter(|&place| is_attended(&p, place)) {
            let [b, h, i, j] = place;
            reached[(b * KV_HEADS + h / (HEADS / KV_HEADS)) * KV_LEN + j] = true;
            has_key[(b * HEADS + h) * Q_LEN + i] = true;
        }
        let mut poisoned = inputs.clone();
        let mut poison = |tensor: usize, keep: &[bool]| {
            let dim = poisoned[tensor].len() / keep.len();
            for (row, &keep) in poisoned[tensor].chunks_mut(dim).zip(keep) {
                if !keep {
                    row.fill(f64::NAN);
                    some_are_masked += 1;
                }
            }
        };
        poison(0, &has_key);
        poison(1, &reached);
        poison(2, &reached);
        poison(3, &has_key);
        let [query, key, value, _] = &poisoned;
        let clean = attention(&p, &inputs[0], &inputs[1], &inputs[2]);
        assert_eq!(attention(&p, query, key, value), clean, "{name}");
        assert_eq!(gradients(&p, &poisoned), gradients(&p, &inputs), "{name}");
        let [query, key, value, grad_output] = &poisoned;
        let magnitude = backward_magnitude(&p, query, key, value, grad_output);
        assert!(magnitude.query.iter().all(|x| x.is_finite()), "{name}");
    }
    assert!(some_are_masked > 100);
}

#[test]
fn a_bias_of_minus_1e30_or_less_masks() {
    let tensors = Tensors::new();
    let mask: Vec<bool> = tensors.mask.clone();
    let plain = tensors.plain();
    let [query, key, value, grad_output] = inputs(&plain);
    let masked = Problem {
        mask: tensors.mask(SCORES),
        bias: tensors.bias(SCORES),
        ..plain
    };
    let want = attention(&masked, &query, &key, &value);
    let want_grad = backward(&masked, &query, &key, &value, &grad_output);
    for masking in [-1e30, f32::NEG_INFINITY, f32::MIN] {
        let bias: Vec<f32> = tensors
            .bias
            .iter()
            .zip(&mask)
            .map(|(&bias, &keep)| if keep { bias } else { masking })
            .collect();
        let biased = Problem {
            bias: Some(Broadcast {
                shape: SCORES,
                values: &bias,
            }),
            ..plain
        };
        assert_eq!(attention(&biased, &query, &key, &value), want);
        assert_eq!(
            backward(&biased, &query, &key, &value, &grad_output),
            want_grad
        );
    }
}

#[test]
fn magnitudes_bound_the_gradients() {
    let tensors = Tensors::new();
    for (name, p) in tensors.problems() {
        let inputs = inputs(&p);
        let grad = gradients(&p, &inputs);
        let [query, key, value, grad_output] = &inputs;
        let magnitude = backward_magnitude(&p, query, key, value, grad_output);
        for (grad, magnitude) in [
            (&grad.query, &magnitude.query),
            (&grad.key, &magnitude.key),
            (&grad.value, &magnitude.value),
            (&grad.bias, &magnitude.bias),
            (&grad.sinks, &magnitude.sinks),
        ] {
            assert_eq!(grad.len(), magnitude.len());
            for (grad, magnitude) in grad.iter().zip(magnitude) {
                assert!(grad.abs() <= magnitude * (1.0 + 1e-12) + 1e-300, "{name}");
            }
        }
        // of positive tensors the gradient of the values is a sum of magnitudes already
        let positive = inputs
            .clone()
            .map(|x| x.iter().map(|x| x.abs()).collect::<Vec<_>>());
        let [query, key, value, grad_output] = &positive;
        let magnitude = backward_magnitude(&p, query, key, value, grad_output);
        assert_eq!(magnitude.value, gradients(&p, &positive).value, "{name}");
    }
}

#[test]
fn dropout_keeps_as_many_as_asked_and_leaves_the_softmax_alone() {
    // values of 1: an output is the sum of the kept weights, times 1 / (1 - p)
    let (q_len, kv_len) = (64, 1000);
    let dropout = Some(Dropout {
        probability: 0.25,
        seed: 99,
    });
    let plain = Problem::plain(1, 1, 1, q_len, kv_len, 1, 1);
    let p = Problem { dropout, ..plain };
    let (query, key, value) = (vec![0.0f64; q_len], vec![0.0; kv_len], vec![1.0; kv_len]);
    let got = attention(&p, &query, &key, &value);
    let kept = got.output.iter().sum::<f64>() / q_len as f64 * 0.75;
    assert!((kept - 0.75).abs() < 0.01, "{kept}");
    assert!(got.output.iter().any(|&x| x != got.output[0]));
    let undropped = attention(&plain, &query, &key, &value);
    assert_eq!(got.log_sum_exp, undropped.log_sum_exp);
    assert_eq!(weights(&p, &query, &key), weights(&plain, &query, &key));

    let all = Some(Dropout {
        probability: 1.0,
        seed: 99,
    });
    let got = attention(
        &Problem {
            dropout: all,
            ..plain
        },
        &query,
        &key,
        &value,
    );
    assert!(got.output.iter().all(|&x| x == 0.0));
}

#[test]
fn dropout_numbers_batch_rows_from_the_first() {
    // the second batch row alone, as a problem of its own
    let tensors = Tensors::new();
    let dropout = Some(Dropout {
        probability: 0.4,
        seed: 5,
    });
    let both = Problem {
        dropout,
        ..tensors.plain()
    };
    let [query, key, value, _] = inputs(&both);
    let want = attention(&both, &query, &key, &value).output;
    let second = Problem {
        batch: 1,
        first_batch: 1,
        ..both
    };
    let [query, key, value] = [query, key, value].map(|x| x[x.len() / 2..].to_vec());
    let got = attention(&second, &query, &key, &value).output;
    assert_eq!(got, want[want.len() / 2..]);
}

#[test]
fn lengths_beyond_the_keys_count_as_all() {
    let tensors = Tensors::new();
    let plain = Problem {
        causal: Causal::BottomRight,
        ..tensors.plain()
    };
    let [query, key, value, _] = inputs(&plain);
    let long = Problem {
        kv_lengths: Some(&[u32::MAX, KV_LEN as u32]),
        ..plain
    };
    let want = attention(&plain, &query, &key, &value);
    assert_eq!(attention(&long, &query, &key, &value), want);
}

#[test]
fn options_by_hand() {
    // one query, scores 0 and ln 3, values 4 and 8
    let plain = Problem {
        scale: 1.0,
        ..Problem::plain(1, 1, 1, 1, 2, 1, 1)
    };
    let (key, value) = ([0.0, 3f64.ln()], [4.0, 8.0]);
    let of = |p: &Problem| attention(p, &[1.0], &key, &value);
    let close = |got: f64, want: f64| assert_close("by hand", 0, got, want, 1e-15);

    // a sink of 0 takes 1/5 of e^0 + 3 + e^0
    let sinks = Some(&[0.0][..]);
    let got = of(&Problem { sinks, ..plain });
    close(got.output[0], (4.0 + 3.0 * 8.0) / 5.0);
    close(got.log_sum_exp[0], 5f64.ln());

    // a slope of 1/2: query 0 lies on key 0, and key 1 is one away from it
    let alibi_slopes = Some(&[0.5][..]);
    let got = of(&Problem {
        alibi_slopes,
        ..plain
    });
    let second = 3.0 * (-0.5f64).exp();
    close(got.output[0], (4.0 + second * 8.0) / (1.0 + second));
    // with the diagonal on key 1 it is key 0
    let causal = Causal::BottomRight;
    let got = of(&Problem {
        alibi_slopes,
        causal,
        ..plain
    });
    let first = (-0.5f64).exp();
    close(got.output[0], (first * 4.0 + 3.0 * 8.0) / (first + 3.0));

    // the softcap comes before the bias
    let bias = Some(Broadcast {
        shape: [1, 1, 1, 2],
        values: &[0.5, 0.25],
    });
    let got = of(&Problem {
        softcap: Some(0.5),
        bias,
        ..plain
    });
    let (first, second) = (0.5f64, 0.5 * (3f64.ln() / 0.5).tanh() + 0.25);
    close(got.log_sum_exp[0], (first.exp() + second.exp()).ln());
}
