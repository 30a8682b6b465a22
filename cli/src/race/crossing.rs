//! Where attention's time overtakes that of a recurrence.

use serde::Serialize;

/// Of one recurrence with attention.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Crossing {
    pub op: &'static str,
    /// The length at which both take the same time; none within the range.
    pub tokens: Option<f64>,
    pub us: Option<f64>,
    /// The longest that both have run.
    pub up_to: u32,
    /// Who is faster there.
    pub faster: &'static str,
}

/// A length and the time it takes, in µs.
pub type Point = (u32, f64);

/// `None` if the two have no length in common. Between two measured lengths both are taken for straight
/// lines in the log-log picture; if they cross more than once, the last time counts.
pub fn find(op: &'static str, recurrence: &[Point], attention: &[Point]) -> Option<Crossing> {
    let common: Vec<(f64, f64, f64)> = recurrence
        .iter()
        .filter_map(|&(len, us)| {
            let (_, other) = attention.iter().find(|(other, _)| *other == len)?;
            Some((f64::from(len).ln(), us.ln(), other.ln()))
        })
        .collect();
    let &(end, us, other) = common.last()?;
    let overtakes = common.windows(2).rev().find_map(|pair| {
        let ((from, a, b), (to, c, d)) = (pair[0], pair[1]);
        let (before, after) = (b - a, d - c);
        let share = before / (before - after);
        (before < 0.0 && after >= 0.0).then(|| {
            (
                (from + share * (to - from)).exp(),
                (a + share * (c - a)).exp(),
            )
        })
    });
    Some(Crossing {
        op,
        tokens: overtakes.map(|(tokens, _)| tokens),
        us: overtakes.map(|(_, us)| us),
        up_to: end.exp().round() as u32,
        faster: if us < other { op } else { "attention" },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(order: i32, factor: f64) -> Vec<Point> {
        let lengths = [100, 200, 400, 800];
        lengths
            .map(|len| (len, factor * f64::from(len).powi(order)))
            .to_vec()
    }

    #[test]
    fn straight_lines_cross_where_algebra_says() {
        let crossing = find("lstm", &line(1, 300.0), &line(2, 1.0)).unwrap();
        let (tokens, us) = (crossing.tokens.unwrap(), crossing.us.unwrap());
        assert!((tokens - 300.0).abs() < 1e-6 && (us - 90_000.0).abs() < 1e-3);
        assert_eq!((crossing.up_to, crossing.faster), (800, "lstm"));
    }

    #[test]
    fn beyond_the_range_there_is_none() {
        let above = find("gru", &line(1, 1e6), &line(2, 1.0)).unwrap();
        assert_eq!((above.tokens, above.faster), (None, "attention"));
        let below = find("gru", &line(1, 1.0), &line(2, 1.0)).unwrap();
        assert_eq!((below.tokens, below.faster), (None, "gru"));
    }

    #[test]
    fn only_common_lengths_count() {
        let attention = line(2, 1.0);
        let crossing = find("rnn", &line(1, 150.0), &attention[..3]).unwrap();
        assert_eq!(crossing.up_to, 400);
        assert_eq!(find("rnn", &[(7, 1.0)], &attention), None);
    }
}
