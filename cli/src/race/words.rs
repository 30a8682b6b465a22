//! Quantities as people read them.

/// `350 µs`, `2.1 ms`, `14 s`
pub fn duration(us: f64) -> String {
    match us {
        ..1e3 => format!("{} µs", short(us)),
        ..1e6 => format!("{} ms", short(1e-3 * us)),
        _ => format!("{} s", short(1e-6 * us)),
    }
}

/// `640`, `2.1k`, `14k`, `3.2M`
pub fn count(value: f64) -> String {
    match value {
        ..1e3 => short(value),
        ..1e6 => format!("{}k", short(1e-3 * value)),
        _ => format!("{}M", short(1e-6 * value)),
    }
}

/// Three digits, without zeros at the end.
pub fn short(value: f64) -> String {
    let decimals = match value.abs() {
        ..0.1 => 3,
        ..10.0 => 2,
        ..100.0 => 1,
        _ => 0,
    };
    let text = format!("{value:.decimals$}");
    if !text.contains('.') {
        return text;
    }
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// A factor: `2.7`, `15`.
pub fn times(value: f64) -> String {
    if value < 10.0 {
        format!("{value:.1}")
    } else {
        short(value.round())
    }
}

/// As a person says it.
pub fn op(op: &str) -> &str {
    match op {
        "rnn" => "RNN",
        "lstm" => "LSTM",
        "gru" => "GRU",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_short() {
        assert_eq!(duration(0.5), "0.5 µs");
        assert_eq!(duration(350.2), "350 µs");
        assert_eq!(duration(2100.0), "2.1 ms");
        assert_eq!(duration(14.04e6), "14 s");
        assert_eq!(count(640.0), "640");
        assert_eq!(count(2123.0), "2.12k");
        assert_eq!(count(3.2e6), "3.2M");
        assert_eq!(short(100.0), "100");
        assert_eq!(times(2.68), "2.7");
        assert_eq!(times(15.4), "15");
    }
}
