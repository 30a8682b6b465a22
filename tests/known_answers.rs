//! The f64 reference against answers that PyTorch computed (tests/golden/README.md) and some by hand.

use std::collections::HashMap;
use std::path::Path;

use gatefold::reference::{additive_attention as additive, attention as reference};
use gatefold::reference::{min_recurrent, recurrent};
use gatefold::{
    Candidate, Causal, Cell, Direction, MinCell, MinRecurrentConfig, MinRecurrentShape,
};
use safetensors::{Dtype, SafeTensors};

/// Inputs and answers of one case.
struct Golden {
    name: String,
    options: HashMap<String, String>,
    tensors: HashMap<String, (Vec<usize>, Vec<f64>)>,
}

impl Golden {
    /// All cases of an operation.
    fn of(op: &str) -> Vec<Self> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
        let mut cases = Vec::new();
        for file in std::fs::read_dir(folder).unwrap() {
            let path = file.unwrap().path();
            let name = path.file_stem().unwrap().to_string_lossy().into_owned();
            let is_safetensors = path
                .extension()
                .is_some_and(|extension| extension == "safetensors");
            if is_safetensors && name.starts_with(&format!("{op}_")) {
                cases.push(Self::read(name, &std::fs::read(&path).unwrap()));
            }
        }
        assert!(!cases.is_empty(), "no case of {op}");
        cases
    }

    fn read(name: String, bytes: &[u8]) -> Self {
        let (_, header) = SafeTensors::read_metadata(bytes).unwrap();
        let options = header.metadata().clone().unwrap_or_default();
        let tensors = SafeTensors::deserialize(bytes).unwrap().tensors();
        let tensors = tensors.into_iter().map(|(name, tensor)| {
            let data = tensor.data();
            let f32s = |x: &[u8]| f64::from(f32::from_le_bytes(x.try_into().unwrap()));
            let i32s = |x: &[u8]| f64::from(i32::from_le_bytes(x.try_into().unwrap()));
            let f64s = |x: &[u8]| f64::from_le_bytes(x.try_into().unwrap());
            let values = match tensor.dtype() {
                Dtype::F32 => data.chunks_exact(4).map(f32s).collect(),
                Dtype::F64 => data.chunks_exact(8).map(f64s).collect(),
                Dtype::I32 => data.chunks_exact(4).map(i32s).collect(),
                Dtype::BOOL => data.iter().map(|&x| x.into()).collect(),
                dtype => panic!("{name} is {dtype:?}"),
            };
            (name, (tensor.shape().to_vec(), values))
        });
        Self {
            name,
            options,
            tensors: tensors.collect(),
        }
    }

    fn option(&self, key: &str) -> Option<&str> {
        self.options.get(key).map(String::as_str)
    }

    fn number<N: std::str::FromStr>(&self, key: &str) -> Option<N> {
        let number = self.option(key)?.parse().ok();
        Some(number.unwrap_or_else(|| panic!("{}: {key}", self.name)))
    }

    fn shape<const N: usize>(&self, tensor: &str) -> [usize; N] {
        self.tensors[tensor].0[..].try_into().unwrap()
    }

    fn values(&self, tensor: &str) -> &[f64] {
        &self.tensors[tensor].1
    }

    /// Every element within `tolerance` of the answer, relative where it is larger than 1.
    fn check(&self, tensor: &str, got: &[f64], tolerance: f64) {
        let want = self.values(tensor);
        assert_eq!(got.len(), want.len(), "{} {tensor}", self.name);
        for (i, (&got, &want)) in got.iter().zip(want).enumerate() {
            let agrees = got == want || (got - want).abs() <= tolerance * want.abs().max(1.0);
            assert!(
                agrees,
                "{} {tensor}[{i}]: got {got:e}, expected {want:e}",
                self.name
            );
        }
    }
}

#[test]
fn additive_attention() {
    for golden in Golden::of("additive_attention") {
        let [batch, q_len, dim] = golden.shape("query");
        let [_, kv_len, value_dim] = golden.shape("value");
        let mask = golden.tensors.get("mask").map(|(shape, values)| {
            let mut extents = [1; 3];
            extents[3 - shape.len()..].copy_from_slice(shape);
            let allowed: Vec<bool> = values.iter().map(|&x| x != 0.0).collect();
            (extents, allowed)
        });
        let kv_lengths = golden.tensors.get("kv_lengths");
        let kv_lengths: Option<Vec<i64>> =
            kv_lengths.map(|(_, values)| values.iter().map(|&x| x as i64).collect());
        let problem = additive::Problem {
            batch,
            q_len,
            kv_len,
            dim,
            value_dim,
            mask: mask.as_ref().map(|(shape, values)| additive::Mask {
                shape: *shape,
                values,
            }),
            kv_lengths: kv_lengths.as_deref(),
        };
        let inputs = additive::Inputs {
            query: golden.values("query"),
            key: golden.values("key"),
            value: golden.values("value"),
            v: golden.values("v"),
        };
        let got = additive::additive_attention(&problem, inputs);
        golden.check("output", &got.output, 1e-13);
        golden.check("log_sum_exp", &got.log_sum_exp, 1e-13);
        golden.check("weights", &got.weights, 1e-13);
        let grad_output = golden.values("grad_output");
        let (grad, magnitude) =
            additive::additive_attention_backward(&problem, inputs, grad_output);
        golden.check("grad_query", &grad.query, 1e-12);
        golden.check("grad_key", &grad.key, 1e-12);
        golden.check("grad_value", &grad.value, 1e-12);
        golden.check("grad_v", &grad.v, 1e-12);
        // what a sum is measured by is never below it
        for (sum, magnitude) in [
            (&grad.query, &magnitude.query),
            (&grad.key, &magnitude.key),
            (&grad.value, &magnitude.value),
            (&grad.v, &magnitude.v),
        ] {
            let within = |(sum, magnitude): (&f64, &f64)| sum.abs() <= magnitude * (1.0 + 1e-12);
            assert!(sum.iter().zip(magnitude).all(within), "{}", golden.name);
        }
    }
}

#[test]
fn attention() {
    for golden in Golden::of("attention") {
        let [batch, num_heads, q_len, head_dim] = golden.shape("query");
        let [_, num_kv_heads, kv_len, value_dim] = golden.shape("value");
        let plain = reference::Problem::plain(
            batch,
            num_heads,
            num_kv_heads,
            q_len,
            kv_len,
            head_dim,
            value_dim,
        );
        let f32s = |tensor: &str| -> Option<Vec<f32>> {
            let (_, values) = golden.tensors.get(tensor)?;
            Some(values.iter().map(|&x| x as f32).collect())
        };
        let [bias, slopes, sinks] = ["bias", "alibi_slopes", "sinks"].map(f32s);
        let mask: Option<Vec<bool>> = golden
            .tensors
            .get("mask")
            .map(|(_, values)| values.iter().map(|&x| x != 0.0).collect());
        let lengths: Option<Vec<u32>> = golden
            .tensors
            .get("kv_lengths")
            .map(|(_, values)| values.iter().map(|&x| x as u32).collect());
        let problem = reference::Problem {
            scale: golden.number("scale").unwrap_or(plain.scale),
            softcap: golden.number("softcap"),
            causal: match golden.option("causal") {
                None => Causal::No,
                Some("top-left") => Causal::TopLeft,
                Some("bottom-right") => Causal::BottomRight,
                Some(offset) => Causal::Offset(offset.parse().unwrap()),
            },
            window_left: golden.number("window_left"),
            window_right: golden.number("window_right"),
            dropout: golden
                .number("dropout")
                .map(|probability| reference::Dropout {
                    probability,
                    seed: golden.number("seed").unwrap(),
                }),
            bias: bias.as_deref().map(|values| reference::Broadcast {
                shape: aligned(&golden.tensors["bias"].0),
                values,
            }),
            mask: mask.as_deref().map(|values| reference::Broadcast {
                shape: aligned(&golden.tensors["mask"].0),
                values,
            }),
            kv_lengths: lengths.as_deref(),
            alibi_slopes: slopes.as_deref(),
            sinks: sinks.as_deref(),
            ..plain
        };
        let [query, key, value] = ["query", "key", "value"].map(|name| golden.values(name));
        let got = reference::attention(&problem, query, key, value);
        // a weight is as exact as its score is, absolutely: 1e-12 for one of 10,000
        let tolerance = match golden.name.as_str() {
            "attention_large_scores" => 1e-11,
            _ => 1e-13,
        };
        golden.check("output", &got.output, tolerance);
        golden.check("log_sum_exp", &got.log_sum_exp, tolerance);
        if golden.option("weights").is_some() {
            let weights = reference::weights(&problem, query, key);
            golden.check("weights", &weights, tolerance);
        }
        if golden.option("grad").is_some() {
            let grad_output = golden.values("grad_output");
            let got = reference::backward(&problem, query, key, value, grad_output);
            golden.check("grad_query", &got.query, tolerance);
            golden.check("grad_key", &got.key, tolerance);
            golden.check("grad_value", &got.value, tolerance);
            for (name, given, got) in [
                ("grad_bias", bias.is_some(), &got.bias),
                ("grad_sinks", sinks.is_some(), &got.sinks),
            ] {
                match given {
                    true => golden.check(name, got, tolerance),
                    false => assert!(got.is_empty()),
                }
            }
        }
    }
}

/// Axes of length 1 in front, up to four.
fn aligned(shape: &[usize]) -> [usize; 4] {
    let mut aligned = [1; 4];
    aligned[4 - shape.len()..].copy_from_slice(shape);
    aligned
}

#[test]
fn gradients() {
    for golden in Golden::of("gradients") {
        let cell = match (golden.option("op"), golden.option("nonlinearity")) {
            (Some("lstm"), _) => Cell::Lstm,
            (Some("gru"), _) => Cell::Gru,
            (_, Some("relu")) => Cell::RnnRelu,
            _ => Cell::RnnTanh,
        };
        check_recurrence(&golden, cell);
    }
}

#[test]
fn rnn() {
    for golden in Golden::of("rnn") {
        check_recurrence(
            &golden,
            match golden.option("nonlinearity") {
                Some("relu") => Cell::RnnRelu,
                _ => Cell::RnnTanh,
            },
        );
    }
}

#[test]
fn lstm() {
    Golden::of("lstm")
        .iter()
        .for_each(|golden| check_recurrence(golden, Cell::Lstm));
}

#[test]
fn gru() {
    Golden::of("gru")
        .iter()
        .for_each(|golden| check_recurrence(golden, Cell::Gru));
}

fn check_recurrence(golden: &Golden, cell: Cell) {
    let optional = |name: &str| {
        golden
            .tensors
            .get(name)
            .map(|(_, values)| values.as_slice())
    };
    let given = |name: String| optional(&name).unwrap_or_default().to_vec();
    let [seq_len, batch, input_size] = golden.shape("input");
    let [states, _, state_size] = golden.shape("h_n");
    let hidden_size = match golden.tensors.get("c_n") {
        Some((shape, _)) => shape[2],
        None => state_size,
    };
    let ends: &[&str] = match optional("weight_hh_l0_reverse") {
        Some(_) => &["", "_reverse"],
        None => &[""],
    };
    let num_layers = states / ends.len();
    let weights: Vec<recurrent::Weights<f64>> = (0..num_layers)
        .flat_map(|layer| ends.iter().map(move |end| format!("l{layer}{end}")))
        .map(|end| recurrent::Weights {
            weight_ih: given(format!("weight_ih_{end}")),
            weight_hh: given(format!("weight_hh_{end}")),
            bias_ih: given(format!("bias_ih_{end}")),
            bias_hh: given(format!("bias_hh_{end}")),
            peephole: Vec::new(),
            weight_hr: given(format!("weight_hr_{end}")),
        })
        .collect();
    let problem = recurrent::Problem {
        cell,
        input_size,
        hidden_size,
        proj_size: (state_size != hidden_size).then_some(state_size),
        num_layers,
        direction: match ends.len() {
            2 => Direction::Bidirectional,
            _ => Direction::Forward,
        },
        dropout: 0.0,
        seed: 0,
        activations: None,
        clip: None,
        truncate: None,
        seq_len,
        batch,
    };
    let lengths: Option<Vec<u32>> =
        optional("lengths").map(|lengths| lengths.iter().map(|&length| length as u32).collect());
    let initial = recurrent::Initial {
        h_0: optional("h_0"),
        c_0: optional("c_0"),
        lengths: lengths.as_deref(),
    };
    let got = recurrent::recurrent(&problem, golden.values("input"), &weights, initial);
    golden.check("output", &got.output, 1e-12);
    golden.check("h_n", &got.h_n, 1e-12);
    if cell == Cell::Lstm {
        golden.check("c_n", &got.c_n, 1e-12);
    }
    if !golden.name.starts_with("gradients") {
        return;
    }
    let upstream = recurrent::Upstream {
        output: optional("grad_output"),
        h_n: optional("grad_h_n"),
        c_n: optional("grad_c_n"),
    };
    let input = golden.values("input");
    let [got, _] = recurrent::recurrent_backward(&problem, input, &weights, initial, upstream);
    golden.check("grad_input", &got.input, 1e-12);
    golden.check("grad_h_0", &got.h_0, 1e-12);
    if cell == Cell::Lstm {
        golden.check("grad_c_0", &got.c_0, 1e-12);
    }
    for (at, weights) in got.weights.iter().enumerate() {
        let end = format!("l{}{}", at / ends.len(), ends[at % ends.len()]);
        for (stem, values) in [
            ("weight_ih", &weights.weight_ih),
            ("weight_hh", &weights.weight_hh),
            ("bias_ih", &weights.bias_ih),
            ("bias_hh", &weights.bias_hh),
            ("weight_hr", &weights.weight_hr),
        ] {
            if !values.is_empty() {
                golden.check(&format!("grad_{stem}_{end}"), values, 1e-12);
            }
        }
    }
}

/// One step of one row from `h` and `c`, with an input and input weights of 0.
fn one_step(
    cell: Cell,
    weights: recurrent::Weights<f64>,
    h: &[f64],
    c: &[f64],
) -> recurrent::Output<f64> {
    let problem = recurrent::Problem {
        cell,
        input_size: 1,
        hidden_size: h.len(),
        proj_size: None,
        num_layers: 1,
        direction: Direction::Forward,
        dropout: 0.0,
        seed: 0,
        activations: None,
        clip: None,
        truncate: None,
        seq_len: 1,
        batch: 1,
    };
    let initial = recurrent::Initial {
        h_0: Some(h),
        c_0: (!c.is_empty()).then_some(c),
        lengths: None,
    };
    recurrent::recurrent(&problem, &[0.0], &[weights], initial)
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

#[test]
fn mingru_and_minlstm() {
    for (op, cell) in [("mingru", MinCell::Gru), ("minlstm", MinCell::Lstm)] {
        for golden in Golden::of(op) {
            check_min_recurrence(&golden, cell);
        }
    }
}

fn check_min_recurrence(golden: &Golden, cell: MinCell) {
    let [seq_len, batch, input_size] = golden.shape("input");
    let [num_layers, _, hidden_size] = golden.shape("h_n");
    let config = MinRecurrentConfig {
        cell,
        input_size: input_size as u32,
        hidden_size: hidden_size as u32,
        num_layers: num_layers as u32,
        candidate: match golden.option("candidate") {
            Some("positive") => Candidate::Positive,
            _ => Candidate::Linear,
        },
        ..Default::default()
    };
    let shape = MinRecurrentShape {
        seq_len: seq_len as u32,
        batch: batch as u32,
    };
    let given = |name: &str| golden.tensors.get(name).map(|(_, values)| &values[..]);
    let weights: Vec<_> = (0..num_layers)
        .map(|layer| min_recurrent::Weights {
            weight: golden.values(&format!("weight_l{layer}")).to_vec(),
            bias: given(&format!("bias_l{layer}"))
                .unwrap_or_default()
                .to_vec(),
        })
        .collect();
    let lengths: Option<Vec<u32>> =
        given("lengths").map(|lengths| lengths.iter().map(|&length| length as u32).collect());
    let optional = min_recurrent::Optional {
        h_0: given("h_0"),
        lengths: lengths.as_deref(),
    };
    let input = golden.values("input");
    let got = min_recurrent::min_recurrent(&config, shape, input, &weights, optional);
    golden.check("output", &got.output, 1e-12);
    golden.check("h_n", &got.h_n, 1e-12);
    let (grad_output, grad_h_n) = (golden.values("grad_output"), golden.values("grad_h_n"));
    let got = min_recurrent::min_recurrent_backward(
        &config,
        shape,
        input,
        &weights,
        optional,
        grad_output,
        grad_h_n,
    );
    golden.check("grad_input", &got.input, 1e-12);
    if given("h_0").is_some() {
        golden.check("grad_h_0", &got.h_0, 1e-12);
    }
    for (layer, got) in got.weights.iter().enumerate() {
        golden.check(&format!("grad_weight_l{layer}"), &got.weight, 1e-12);
        if !weights[layer].bias.is_empty() {
            golden.check(&format!("grad_bias_l{layer}"), &got.bias, 1e-12);
        }
    }
}

#[test]
fn a_reset_before_the_product_scales_h_itself() {
    // r and z are 1/2, and n crosses the units over
    let mut weight_hh = vec![0.0; 12];
    weight_hh[9] = 1.0;
    weight_hh[10] = 1.0;
    let mut bias_hh = vec![0.0; 6];
    bias_hh[4] = 0.25;
    let weights = recurrent::Weights {
        weight_ih: vec![0.0; 6],
        weight_hh,
        bias_ih: vec![0.0; 6],
        bias_hh,
        peephole: vec![],
        weight_hr: vec![],
    };
    let [a, b] = [0.6, -0.2];
    let before = one_step(Cell::GruResetBefore, weights.clone(), &[a, b], &[]).output;
    let expected = [
        0.5 * (0.5 * b + 0.25_f64).tanh() + 0.5 * a,
        0.5 * (0.5 * a).tanh() + 0.5 * b,
    ];
    assert!((before[0] - expected[0]).abs() < 1e-15 && (before[1] - expected[1]).abs() < 1e-15);
    // after it, the bias is scaled, too
    let after = one_step(Cell::Gru, weights, &[a, b], &[]).output;
    let expected = 0.5 * (0.5 * (b + 0.25_f64)).tanh() + 0.5 * a;
    assert!((after[0] - expected).abs() < 1e-15);
}

#[test]
fn peepholes_of_i_and_f_see_the_old_cell_and_that_of_o_the_new() {
    let weights = recurrent::Weights {
        weight_ih: vec![0.0; 4],
        weight_hh: vec![0.0; 4],
        bias_ih: vec![0.0, 0.0, 0.7, 0.0],
        bias_hh: vec![0.0; 4],
        peephole: vec![0.5, -1.0, 2.0],
        weight_hr: vec![],
    };
    let (i, g) = (sigmoid(0.5 * 0.8), 0.7_f64.tanh());
    let got = one_step(Cell::Lstm, weights.clone(), &[0.0], &[0.8]);
    let c = sigmoid(-0.8) * 0.8 + i * g;
    assert!((got.c_n[0] - c).abs() < 1e-15);
    assert!((got.h_n[0] - sigmoid(2.0 * c) * c.tanh()).abs() < 1e-15);
    let got = one_step(Cell::LstmCoupled, weights, &[0.0], &[0.8]);
    let c = (1.0 - i) * 0.8 + i * g;
    assert!((got.c_n[0] - c).abs() < 1e-15);
}

/// One head of attention with a scale of 1.
fn one_head(q_len: usize, kv_len: usize, dim: usize) -> reference::Problem<'static> {
    reference::Problem {
        scale: 1.0,
        ..reference::Problem::plain(1, 1, 1, q_len, kv_len, dim, dim)
    }
}

#[test]
fn attention_of_one_key_is_its_value() {
    let got = reference::attention(
        &one_head(2, 1, 2),
        &[3.0, 1.0, -9.0, 4.0],
        &[2.0, -5.0],
        &[7.0, -0.5],
    );
    assert_eq!(got.output, [7.0, -0.5, 7.0, -0.5]);
    // the only score: 3 * 2 - 1 * 5 and -9 * 2 - 4 * 5
    assert_eq!(got.log_sum_exp, [1.0, -38.0]);
}

#[test]
fn attention_of_equal_scores_is_the_mean() {
    let (key, value) = (
        [1.0, 0.0, 1.0, 3.0, 1.0, -3.0, 1.0, 8.0],
        [1.0, 5.0, 2.0, 5.0, 4.0, 5.0, 9.0, 7.0],
    );
    let got = reference::attention(&one_head(1, 4, 2), &[2.0, 0.0], &key, &value);
    assert_eq!(got.output, [4.0, 5.5]);
    assert_eq!(got.log_sum_exp, [2.0 + 4f64.ln()]);
}

#[test]
fn attention_weighs_by_the_exponentials_of_the_scores() {
    // scores 0 and ln 3: weights 1/4 and 3/4
    let got = reference::attention(&one_head(1, 2, 1), &[1.0], &[0.0, 3f64.ln()], &[4.0, 8.0]);
    assert!((got.output[0] - 7.0).abs() < 1e-15);
    assert!((got.log_sum_exp[0] - 4f64.ln()).abs() < 1e-15);
}

#[test]
fn attention_of_no_key_is_zero() {
    // query 0 of 2 may attend nothing, query 1 key 0
    let problem = reference::Problem {
        causal: Causal::Offset(-1),
        ..one_head(2, 2, 1)
    };
    let got = reference::attention(&problem, &[1.0, 1.0], &[0.5, f64::NAN], &[6.0, f64::NAN]);
    assert_eq!(got.output, [0.0, 6.0]);
    assert_eq!(got.log_sum_exp, [f64::NEG_INFINITY, 0.5]);
    let got = reference::attention(&one_head(1, 0, 1), &[1.0], &[], &[]);
    assert_eq!(
        (got.output, got.log_sum_exp),
        (vec![0.0], vec![f64::NEG_INFINITY])
    );
}

#[test]
fn attention_shares_a_key_value_head_among_a_group() {
    // 4 query heads over 2 key/value heads of one key: heads 0 and 1 take the first value
    let problem = reference::Problem {
        num_heads: 4,
        num_kv_heads: 2,
        ..one_head(1, 1, 1)
    };
    let got = reference::attention(&problem, &[1.0; 4], &[1.0; 2], &[10.0, 20.0]);
    assert_eq!(got.output, [10.0, 10.0, 20.0, 20.0]);
}
