//! `run mingru|minlstm|scan`: known answers, and mistakes.

use super::recurrent::{are_known, f32s, known, run};
use super::{Folder, Tensors, floats, has_adapter, text};

#[test]
fn mingru_and_minlstm_are_the_known_answers() {
    let mut devices = vec![(&["--reference"][..], 1e-7)];
    if has_adapter() {
        devices.push((&[], 1e-5));
    }
    for (device, tolerance) in devices {
        for op in ["mingru", "minlstm"] {
            for (case, options) in [
                ("plain", &[][..]),
                ("no_bias", &["--chunk-len", "4"]),
                ("positive", &["--candidate", "positive"]),
                ("lengths", &[]),
            ] {
                let (inputs, expected) = known(&format!("{op}_{case}"));
                let options = [options, device, &["--grad"]].concat();
                let got = run(op, &inputs, &options);
                are_known(&got, &expected, tolerance, &format!("{op} {case}"));
            }
        }
    }
}

#[test]
fn a_scan_and_its_gradients_by_hand() {
    let inputs = Tensors::from([
        ("a".into(), f32s(&[3, 1, 1], &[0.5, 2.0, -1.0])),
        ("b".into(), f32s(&[3, 1, 1], &[1.0, 2.0, 3.0])),
        ("h_0".into(), f32s(&[1, 1], &[10.0])),
        ("grad_h_n".into(), f32s(&[1, 1], &[1.0])),
    ]);
    let mut devices = vec![&["--reference"][..]];
    if has_adapter() {
        devices.extend([&[][..], &["--chunk-len", "1"]]);
    }
    for device in devices {
        let got = run("scan", &inputs, &[device, &["--grad"]].concat());
        for (name, want) in [
            ("output", &[6.0, 14.0, -11.0][..]),
            ("h_n", &[-11.0]),
            ("grad_b", &[-2.0, -1.0, 1.0]),
            ("grad_a", &[-20.0, -6.0, 14.0]),
            ("grad_h_0", &[-1.0]),
        ] {
            assert_eq!(floats(&got[name]), want, "{device:?} {name}");
        }
    }
}

#[test]
fn tensors_of_the_minimal_recurrences_that_do_not_fit_are_named() {
    let plain = || {
        let all: [(&str, &[usize]); 2] = [("input", &[4, 2, 3]), ("weight_l0", &[10, 3])];
        all.map(|(name, shape)| (name.to_owned(), super::tensor(shape)))
            .into_iter()
            .collect::<Tensors>()
    };
    let with = |name: &str, shape: &[usize]| {
        let mut tensors = plain();
        tensors.insert(name.into(), super::tensor(shape));
        tensors
    };
    for (op, tensors, options, says) in [
        (
            "mingru",
            with("weight_l0", &[9, 3]),
            &[][..],
            "weight_l0: shape [9, 3], expected",
        ),
        (
            "minlstm",
            plain(),
            &[],
            "weight_l0: shape [10, 3], expected [3 * hidden_size",
        ),
        (
            "mingru",
            with("h_0", &[1, 2, 4]),
            &[],
            "h_0: shape [1, 2, 4], expected",
        ),
        (
            "mingru",
            with("weight_l2", &[10, 5]),
            &[],
            "weight_l1: is needed and missing",
        ),
        (
            "mingru",
            with("c_0", &[1, 2, 5]),
            &[],
            "c_0: unknown tensor",
        ),
        (
            "mingru",
            plain(),
            &["--grad"],
            "--grad needs grad_output or grad_h_n",
        ),
        ("scan", plain(), &[], "input: unknown tensor"),
    ] {
        let (done, results) = Folder::new().run(op, &tensors, options);
        let error = text(&done.stderr);
        assert_eq!(done.status.code(), Some(2), "{says}: {error}");
        assert!(error.contains(says) && results.is_none(), "{says}: {error}");
    }
}
