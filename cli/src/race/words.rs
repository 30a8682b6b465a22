//! Quantities as people read them.

/// `350 µs`, `2.1 ms`, `14 s`
pub fn duration(us: f64) -> String {
    match us {
        ..1e3 => format!("{} µs", short(us)),
        ..1e6 => format!("{} ms", short(1e-3 * us)),
        _ => format!("{} s", short(1e-6 * us)),
    }
}

/// A length between two measured ones, in the two digits that it is good for: `640`, `2.1k`, `14k`.
pub fn about(tokens: f64) -> String {
    let unit = 10_f64.powf(tokens.max(1.0).log10().floor() - 1.0);
    let tokens = (tokens / unit).round() * unit;
    if tokens < 1e3 {
        short(tokens)
    } else {
        format!("{}k", short(1e-3 * tokens))
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
    fixed(value, decimals)
}

/// So many decimals, without zeros at the end.
pub fn fixed(value: f64, decimals: usize) -> String {
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

/// At most `most` characters.
pub fn clip(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_owned();
    }
    let kept: String = text.chars().take(most - 1).collect();
    kept + "…"
}

/// As a person says it.
pub fn op(op: &str) -> &str {
    match op {
        "rnn" => "RNN",
        "lstm" => "LSTM",
        "gru" => "GRU",
        "mingru" => "minGRU",
        "minlstm" => "minLSTM",
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
        assert_eq!(about(643.0), "640");
        assert_eq!(about(2123.0), "2.1k");
        assert_eq!(about(996.0), "1k");
        assert_eq!(about(13_700.0), "14k");
        assert_eq!(short(100.0), "100");
        assert_eq!(
            (clip("héllo", 5), clip("héllo", 4)),
            ("héllo".into(), "hél…".into())
        );
        assert_eq!(times(2.68), "2.7");
        assert_eq!(times(15.4), "15");
    }
}
