//! Options, each alone and together.

use crate::common::attention::{AXES, Case, SMALL, check_option};
use crate::common::attention_options::{COMBINATIONS, OPTIONS};
use gatefold::ElementType;

#[test]
fn each_option() {
    OPTIONS.into_iter().for_each(check_option);
}

#[test]
fn options_together() {
    COMBINATIONS.into_iter().for_each(check_option);
}

#[test]
fn bias_and_mask_broadcast_along_any_axis() {
    for axes in AXES {
        check_option(Case {
            bias: Some((ElementType::F32, axes)),
            ..SMALL
        });
        check_option(Case {
            mask: Some(axes),
            kv_len: 70,
            ..SMALL
        });
    }
}
