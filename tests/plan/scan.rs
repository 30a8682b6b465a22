//! Scans and the cells on them, of any size.

use super::{check_planned, devices, sizes};
use proptest::prelude::*;

proptest! {
    #[test]
    fn scans_of_any_size_are_planned_or_refused(
        device in devices(),
        reverse in any::<bool>(),
        chunk_len in prop::option::of(sizes()),
        (seq_len, batch, width) in (sizes(), sizes(), sizes()),
    ) {
        let config = gatefold::ScanConfig { reverse, chunk_len };
        let shape = gatefold::ScanShape { seq_len, batch, width };
        let given = gatefold::ScanGiven { h_0: true, lengths: true, h_n: true };
        check_planned(config.plan(&device, shape, given), &device)?;
        let given = gatefold::ScanBackwardGiven {
            h_0: true,
            lengths: true,
            grad_output: true,
            grad_h_n: true,
            grad_h_0: true,
        };
        check_planned(config.plan_backward(&device, shape, given), &device)?;
    }

    #[test]
    fn minimal_recurrences_of_any_size_are_planned_or_refused(
        device in devices(),
        (reverse, lstm) in (any::<bool>(), any::<bool>()),
        chunk_len in prop::option::of(sizes()),
        (input_size, hidden_size, num_layers) in (sizes(), sizes(), 1..20u32),
        (seq_len, batch) in (sizes(), sizes()),
    ) {
        let config = gatefold::MinRecurrentConfig {
            cell: if lstm { gatefold::MinCell::Lstm } else { gatefold::MinCell::Gru },
            input_size,
            hidden_size,
            num_layers,
            reverse,
            chunk_len,
            ..Default::default()
        };
        let shape = gatefold::MinRecurrentShape { seq_len, batch };
        let given = gatefold::MinRecurrentGiven { h_0: true, lengths: true, h_n: true, reserve: false };
        check_planned(config.plan(&device, shape, given), &device)?;
        let given = gatefold::MinRecurrentBackwardGiven {
            h_0: true,
            lengths: true,
            grad_output: true,
            grad_h_n: true,
            grad_input: true,
            grad_h_0: true,
        };
        check_planned(config.plan_backward(&device, shape, given), &device)?;
    }
}
