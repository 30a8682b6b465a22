//! Linear recurrence on the device against the f64 reference, forward and backward.

mod common;

use common::scan::{Case, SMALL, check, check_on, judge, run};
use common::{bits, gpu, guises};
use gatefold::reference::scan::{Optional, scan, scan_backward};
use gatefold::{Capabilities, Scan, ScanBuffers, ScanConfig, ScanGiven, ScanShape};

#[test]
fn plain() {
    check(SMALL);
    check(Case {
        states: false,
        ..SMALL
    });
}

#[test]
fn reverse() {
    check(Case {
        reverse: true,
        ..SMALL
    });
}

#[test]
fn only_the_last_state_has_a_gradient() {
    check(Case {
        grad_output: false,
        ..SMALL
    });
}

#[test]
fn chunks_of_any_length() {
    for chunk_len in [1, 2, 7, 8, 9, 36, 37, 100] {
        for reverse in [false, true] {
            check(Case {
                chunk_len: Some(chunk_len),
                reverse,
                ..SMALL
            });
        }
    }
}

#[test]
fn lengths_end_each_sequence_by_itself() {
    for reverse in [false, true] {
        for chunk_len in [None, Some(5)] {
            for states in [false, true] {
                check(Case {
                    batch: 5,
                    lengths: Some(&[37, 0, 1, 20, 36]),
                    reverse,
                    chunk_len,
                    states,
                    ..SMALL
                });
            }
        }
    }
}

#[test]
fn sizes_around_the_workgroups() {
    for (seq_len, batch, width) in [
        (1, 1, 1),
        (2, 1, 1),
        (1000, 1, 1),
        (65, 1, 31),
        (70, 2, 32),
        (33, 1, 65),
        (20, 3, 128),
        (9, 1, 1000),
    ] {
        check(Case {
            seq_len,
            batch,
            width,
            ..SMALL
        });
    }
}

#[test]
fn a_hundred_thousand_steps() {
    check(Case {
        seq_len: 100_000,
        batch: 1,
        width: 3,
        ..SMALL
    });
}

#[test]
fn nothing_to_do() {
    check(Case {
        seq_len: 0,
        ..SMALL
    });
    check(Case { batch: 0, ..SMALL });
}

#[test]
fn pieces_of_a_long_sequence_hand_their_state_on() {
    let Some(gpu) = gpu() else { return };
    for reverse in [false, true] {
        for chunk_len in [None, Some(3)] {
            let case = Case {
                seq_len: 100,
                reverse,
                chunk_len,
                batch: 5,
                lengths: Some(&[100, 0, 50, 51, 99]),
                ..SMALL
            };
            let cut: Vec<_> = guises(gpu)
                .iter()
                .map(|guise| {
                    let few = Capabilities {
                        storage_binding_size: 2048,
                        ..*guise.context().capabilities()
                    };
                    gpu.with_capabilities(few, Default::default())
                })
                .collect();
            let plan = case.config().plan(
                cut[0].context().capabilities(),
                case.shape(),
                ScanGiven::default(),
            );
            assert!(plan.unwrap().dispatches.len() > 5);
            check_on(&cut, case);
        }
    }
}

#[test]
fn without_chunks_pieces_give_the_same_bits() {
    let Some(gpu) = gpu() else { return };
    let case = Case {
        seq_len: 100,
        chunk_len: Some(100),
        ..SMALL
    };
    let inputs = case.inputs();
    let whole = run(gpu, &case, &inputs);
    let few = Capabilities {
        storage_binding_size: 2048,
        ..*gpu.context().capabilities()
    };
    let cut = run(
        &gpu.with_capabilities(few, Default::default()),
        &case,
        &inputs,
    );
    for (whole, cut) in whole.iter().zip(&cut) {
        assert_eq!(bits(whole), bits(cut));
    }
}

#[test]
fn what_lies_past_a_sequence_is_not_read() {
    let Some(gpu) = gpu() else { return };
    for reverse in [false, true] {
        for chunk_len in [None, Some(4)] {
            let case = Case {
                lengths: Some(&[9, 0, 36]),
                reverse,
                chunk_len,
                ..SMALL
            };
            let mut inputs = case.inputs();
            let clean = run(gpu, &case, &inputs);
            for (at, lane) in (0..inputs.a.len()).map(|at| (at, at % 15)) {
                if at / 15 >= [9, 0, 36][lane / 5] {
                    inputs.a[at] = f32::NAN;
                    inputs.b[at] = f32::INFINITY;
                    inputs.grad_output[at] = f32::NAN;
                }
            }
            let got = run(gpu, &case, &inputs);
            for (clean, got) in clean.iter().zip(&got) {
                assert_eq!(bits(clean), bits(got));
            }
        }
    }
}

#[test]
fn a_nan_stays_in_its_sequence() {
    let Some(gpu) = gpu() else { return };
    let case = Case {
        chunk_len: Some(4),
        ..SMALL
    };
    let mut inputs = case.inputs();
    let clean = run(gpu, &case, &inputs);
    inputs.b[2 * 15 + 7] = f32::NAN;
    let got = run(gpu, &case, &inputs);
    for (at, (&clean, &got)) in clean[0].iter().zip(&got[0]).enumerate() {
        let poisoned = at % 15 == 7 && at / 15 >= 2;
        assert_eq!(got.is_nan(), poisoned, "{at}");
        assert!(poisoned || clean.to_bits() == got.to_bits(), "{at}");
    }
}

/// The reference itself: a sum with weights, by hand, and finite differences.
#[test]
fn the_reference_is_right() {
    let shape = ScanShape {
        seq_len: 3,
        batch: 1,
        width: 1,
    };
    let none = Optional {
        h_0: Some(&[10.0][..]),
        lengths: None,
    };
    let (a, b) = ([0.5, 2.0, -1.0], [1.0, 2.0, 3.0]);
    let forward = scan(shape, false, &a, &b, none);
    assert_eq!(forward.output, [6.0, 14.0, -11.0]);
    let backward = scan(shape, true, &a, &b, none);
    assert_eq!(backward.output, [-5.0, -12.0, -7.0]);
    assert_eq!((forward.h_n[0], backward.h_n[0]), (-11.0, -5.0));

    let case = Case {
        batch: 4,
        width: 2,
        seq_len: 6,
        lengths: Some(&[6, 0, 3, 5]),
        ..SMALL
    };
    for reverse in [false, true] {
        let case = Case { reverse, ..case };
        let inputs = case.inputs();
        let to_f64 = |x: &[f32]| x.iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
        let mut x = [to_f64(&inputs.a), to_f64(&inputs.b), to_f64(&inputs.h_0)];
        let (grad_output, grad_h_n) = (to_f64(&inputs.grad_output), to_f64(&inputs.grad_h_n));
        let dot = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>();
        let loss = |x: &[Vec<f64>; 3]| {
            let optional = Optional {
                h_0: Some(&x[2][..]),
                lengths: case.lengths,
            };
            let got = scan(case.shape(), reverse, &x[0], &x[1], optional);
            dot(&got.output, &grad_output) + dot(&got.h_n, &grad_h_n)
        };
        let optional = Optional {
            h_0: Some(&x[2][..]),
            lengths: case.lengths,
        };
        let (shape, a, b) = (case.shape(), &x[0], &x[1]);
        let got = scan_backward(shape, reverse, a, b, optional, &grad_output, &grad_h_n);
        let got = [got.grad_a, got.grad_b, got.grad_h_0];
        const STEP: f64 = 1e-6;
        for tensor in 0..3 {
            for at in 0..x[tensor].len() {
                let before = x[tensor][at];
                let mut at_offset = |offset: f64| {
                    x[tensor][at] = before + offset;
                    loss(&x)
                };
                let slope = (at_offset(STEP) - at_offset(-STEP)) / (2.0 * STEP);
                x[tensor][at] = before;
                let got = got[tensor][at];
                assert!((got - slope).abs() < 1e-6, "{tensor}[{at}]: {got}, {slope}");
            }
        }
    }
}

#[test]
fn a_swapped_tensor_is_noticed() {
    let inputs = SMALL.inputs();
    let mut got: Vec<Vec<f32>> = SMALL.reference(&inputs);
    judge(&SMALL, &inputs, &got, "the reference in f32");
    got.swap(2, 3);
    let swapped = std::panic::catch_unwind(|| judge(&SMALL, &inputs, &got, "swapped"));
    assert!(swapped.is_err());
}

#[test]
fn mistakes_are_named() {
    let Some(gpu) = gpu() else { return };
    let shape = |seq_len, batch, width| ScanShape {
        seq_len,
        batch,
        width,
    };
    let op = Scan::new(gpu.context(), ScanConfig::default()).unwrap();
    let message = |shape| {
        op.plan(shape, ScanGiven::default())
            .unwrap_err()
            .to_string()
    };
    assert_eq!(message(shape(1, 1, 0)), "width is 0, expected at least 1");
    assert_eq!(
        message(shape(1 << 30, 1, 1)),
        "seq_len is 1073741824, expected less than 2^30"
    );
    let huge = message(shape(1 << 29, u32::MAX, u32::MAX));
    assert!(huge.starts_with("max_buffer_size is "), "{huge}");
    let wide = message(shape(5, u32::MAX, 7));
    assert!(
        wide.starts_with("max_storage_buffer_binding_size is "),
        "{wide}"
    );
    let (a, b) = (gpu.zeros("a", 4096).unwrap(), gpu.zeros("b", 8192).unwrap());
    let buffers = ScanBuffers::new(a.slice(..), a.slice(..), b.slice(..4096), b.slice(4096..));
    let short = op.bind(shape(1025, 1, 1), buffers).unwrap_err().to_string();
    assert_eq!(short, "a: the slice has 4096 bytes, the shape needs 4100");
    let aliased = ScanBuffers {
        output: a.slice(..),
        ..buffers
    };
    let aliased = op.bind(shape(8, 1, 1), aliased).unwrap_err().to_string();
    assert_eq!(
        aliased,
        "output is written and overlaps a in the same buffer"
    );
}
