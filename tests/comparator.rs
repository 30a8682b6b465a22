//! The tests' own judges: each must be seen to fail.

mod common;

use common::{Output, gpu};
use gatefold::reference::compare::{Agreement, Difference, Tolerance, compare};

const SHAPE: [usize; 3] = [2, 3, 4];
const TOLERANCE: Tolerance = Tolerance {
    factor: 4.0,
    floor: 1e-6,
};

/// `[2, 3, 4]` with rows of different magnitude; the row `[1, 1]` is zero.
fn truth() -> Vec<f64> {
    let value = |i: usize| {
        if i / 4 == 4 {
            0.0
        } else {
            (i % 4 + 1) as f64 * 10f64.powi((i / 4) as i32)
        }
    };
    (0..24).map(value).collect()
}

fn judge(change: impl FnOnce(&mut [f32])) -> Result<Agreement, Difference> {
    let truth = truth();
    let exact: Vec<f32> = truth.iter().map(|&x| x as f32).collect();
    let mut got = exact.clone();
    change(&mut got);
    compare("output", &SHAPE, &got, &truth, &exact, TOLERANCE)
}

#[test]
fn equal_passes() {
    assert_eq!(
        judge(|_| {}).unwrap(),
        Agreement {
            error: 0.0,
            allowed: 1e-6
        }
    );
}

#[test]
fn an_error_within_the_tolerance_passes() {
    // row [0, 2] holds 100, 200, 300, 400
    let agreement = judge(|got| got[8] += 400.0 * 0.5e-6).unwrap();
    assert!((0.4e-6..0.6e-6).contains(&agreement.error), "{agreement:?}");
}

#[test]
fn one_element_off_by_twice_the_tolerance_fails() {
    let difference = judge(|got| got[8] += 400.0 * 2e-6).unwrap_err();
    assert_eq!(
        (difference.index.as_slice(), difference.count),
        (&[0, 2, 0][..], 1)
    );
    let message = difference.to_string();
    assert!(
        message.starts_with("output[0, 2, 0]: got 1.0000"),
        "{message}"
    );
    assert!(
        message.ends_with(
            "expected 1e2; error 2.00e-6 of the row, allowed 1.00e-6; 1 elements differ"
        ),
        "{message}"
    );
}

#[test]
fn the_worst_element_is_named() {
    let difference = judge(|got| {
        got[0] = 1.5;
        got[13] = 7e3;
        got[23] = f32::NAN;
    });
    let difference = difference.unwrap_err();
    assert_eq!(
        (difference.index.as_slice(), difference.count),
        (&[1, 2, 3][..], 3)
    );
}

#[test]
fn what_is_not_finite_fails() {
    for value in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let difference = judge(|got| got[6] = value).unwrap_err();
        assert_eq!(
            (difference.index.as_slice(), difference.error),
            (&[0, 1, 2][..], f64::INFINITY)
        );
        assert!(
            difference.to_string().starts_with("output[0, 1, 2]: got "),
            "{difference}"
        );
    }
}

#[test]
fn swapped_rows_fail() {
    let difference = judge(|got| {
        let (a, b) = got.split_at_mut(4);
        a.swap_with_slice(&mut b[..4]);
    });
    assert_eq!(difference.unwrap_err().count, 8);
}

#[test]
fn a_trace_in_a_row_of_zeros_fails() {
    let difference = judge(|got| got[17] = 1e-30).unwrap_err();
    assert_eq!(difference.index, [1, 1, 1]);
}

/// Of a `log_sum_exp`: -infinity must be met, and only where it is.
#[test]
fn infinity_is_met_exactly() {
    let truth = [1.0, f64::NEG_INFINITY];
    let yardstick = [1.0, f32::NEG_INFINITY];
    let judge = |got: [f32; 2]| compare("log_sum_exp", &[2], &got, &truth, &yardstick, TOLERANCE);
    assert!(judge([1.0, f32::NEG_INFINITY]).is_ok());
    for wrong in [-1e30, -f32::MAX, f32::INFINITY, f32::NAN] {
        let difference = judge([1.0, wrong]).unwrap_err();
        assert!(
            difference.to_string().starts_with("log_sum_exp[1]: got "),
            "{difference}"
        );
        assert!(
            difference.to_string().contains("expected -inf"),
            "{difference}"
        );
    }
    assert_eq!(judge([f32::NEG_INFINITY; 2]).unwrap_err().index, [0]);
}

#[test]
fn a_worse_yardstick_allows_more() {
    let (truth, yardstick) = ([1.0; 2], [1.0, 1.0 + 1e-3]);
    let allowed = compare("x", &[2], &[1.0, 1.003], &truth, &yardstick, TOLERANCE)
        .unwrap()
        .allowed;
    assert!((3.9e-3..4.1e-3).contains(&allowed), "{allowed}");
    assert!(compare("x", &[2], &[1.0, 1.005], &truth, &yardstick, TOLERANCE).is_err());
    // a yardstick that overflowed tells nothing
    let broken = [f32::NAN, f32::INFINITY];
    assert!(compare("x", &[2], &[1.0, 1.003], &truth, &broken, TOLERANCE).is_err());
}

#[test]
#[should_panic(expected = "output: [2, 3, 4]")]
fn lengths_that_do_not_fit_the_shape_panic() {
    let _ = compare(
        "output", &SHAPE, &[0.0; 23], &[0.0; 24], &[0.0; 24], TOLERANCE,
    );
}

/// The device, or the panic that the test expects where there is none and that is allowed.
fn gpu_or_panic(message: &str) -> &'static gatefold::Gpu {
    gpu().unwrap_or_else(|| panic!("skipped; {message}"))
}

const STRAY: &str = "a kernel wrote behind its output";

#[test]
#[should_panic(expected = "a kernel wrote behind its output")]
fn a_touched_canary_is_seen() {
    let gpu = gpu_or_panic(STRAY);
    let output = Output::new(gpu, 5);
    gpu.queue()
        .write_buffer(&output.buffer, 4 * 5, bytemuck::bytes_of(&0f32));
    output.read(gpu);
}

#[test]
#[should_panic(expected = "a kernel wrote behind its output")]
fn the_last_canary_is_seen() {
    let gpu = gpu_or_panic(STRAY);
    let output = Output::new(gpu, 5);
    let last = output.buffer.size() - 4;
    gpu.queue()
        .write_buffer(&output.buffer, last, bytemuck::bytes_of(&f32::NAN));
    output.read(gpu);
}

#[test]
#[should_panic(expected = "output[1]: got NaN")]
fn an_element_that_is_not_written_is_seen() {
    let gpu = gpu_or_panic("output[1]: got NaN");
    let output = Output::new(gpu, 2);
    gpu.queue()
        .write_buffer(&output.buffer, 0, bytemuck::bytes_of(&1f32));
    let got = output.read(gpu);
    if let Err(difference) = compare("output", &[2], &got, &[1.0; 2], &[1.0; 2], TOLERANCE) {
        panic!("{difference}");
    }
}

/// A second run must not find the results of the first.
#[test]
fn poison_covers_what_a_run_left() {
    let Some(gpu) = gpu() else { return };
    let output = Output::new(gpu, 2);
    gpu.queue()
        .write_buffer(&output.buffer, 0, bytemuck::cast_slice(&[1f32, 2.0]));
    assert_eq!(output.read(gpu), [1.0, 2.0]);
    output.poison(gpu);
    assert!(output.read(gpu).iter().all(|x| x.is_nan()));
}
