//! Lists of numbers as a shape flag takes them: `1,8`, `1-4`, `1-9+4`, `128-16384*2`.

use std::str::FromStr;

const LONGEST: usize = 10_000;

/// The numbers of one flag, in the order given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct List(Vec<u32>);

impl FromStr for List {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut values = Vec::new();
        for item in text.split(',') {
            range(item.trim(), &mut values)?;
        }
        Ok(Self(values))
    }
}

fn range(text: &str, values: &mut Vec<u32>) -> Result<(), String> {
    let Some((first, rest)) = text.split_once('-') else {
        values.push(number(text)?);
        return Ok(());
    };
    let (last, step, multiply) = match rest.split_once(['+', '*']) {
        None => (rest, 1, false),
        Some((last, step)) => (last, number(step)?, rest.contains('*')),
    };
    let (mut value, last) = (number(first)?, number(last)?);
    if value > last {
        return Err(format!("{text}: the first number is above the last"));
    }
    if multiply && (step < 2 || value == 0) || step == 0 {
        return Err(format!(
            "{text}: never gets from the first number to the last"
        ));
    }
    loop {
        values.push(value);
        if values.len() > LONGEST {
            return Err(format!("{text}: more than {LONGEST} numbers"));
        }
        let next = if multiply {
            value.checked_mul(step)
        } else {
            value.checked_add(step)
        };
        match next {
            Some(next) if next <= last => value = next,
            _ => return Ok(()),
        }
    }
}

fn number(text: &str) -> Result<u32, String> {
    text.parse()
        .map_err(|_| format!("\"{text}\": expected a list like 1,8 or 128-16384*2 or 1-9+4"))
}

/// The numbers of a flag given any number of times; `None` if it was not.
pub fn values(lists: &[List]) -> Option<Vec<u32>> {
    let values: Vec<u32> = lists
        .iter()
        .flat_map(|list| list.0.iter().copied())
        .collect();
    (!values.is_empty()).then_some(values)
}

/// Every combination of one value of each axis, the last axis fastest.
pub fn product(axes: &[Vec<u32>]) -> Vec<Vec<u32>> {
    axes.iter().fold(vec![Vec::new()], |rows, axis| {
        let extended = |row: &Vec<u32>, value: u32| [row.as_slice(), &[value]].concat();
        rows.iter()
            .flat_map(|row| axis.iter().map(move |&value| extended(row, value)))
            .collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Vec<u32>, String> {
        text.parse().map(|List(values)| values)
    }

    #[test]
    fn lists_and_ranges() {
        assert_eq!(parse("7"), Ok(vec![7]));
        assert_eq!(parse("1,8"), Ok(vec![1, 8]));
        assert_eq!(parse("1, 8"), Ok(vec![1, 8]));
        assert_eq!(parse("2-5"), Ok(vec![2, 3, 4, 5]));
        assert_eq!(parse("1-9+4"), Ok(vec![1, 5, 9]));
        assert_eq!(parse("1-10+4"), Ok(vec![1, 5, 9]));
        assert_eq!(parse("128-1024*2,7"), Ok(vec![128, 256, 512, 1024, 7]));
        assert_eq!(parse("3-4294967295*65536"), Ok(vec![3, 196_608]));
        assert_eq!(parse("5-5"), Ok(vec![5]));
    }

    #[test]
    fn nonsense_is_refused() {
        for text in [
            "",
            ",",
            "a",
            "1,",
            "-3",
            "5-2",
            "1-9+0",
            "1-9*1",
            "0-9*2",
            "1-9+",
            "0-4294967295",
            "1.5",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn axes_multiply_out() {
        let rows = product(&[vec![1, 2], vec![3], vec![4, 5]]);
        assert_eq!(rows, [[1, 3, 4], [1, 3, 5], [2, 3, 4], [2, 3, 5]]);
    }

    #[test]
    fn a_repeated_flag_adds_to_its_list() {
        let lists = ["1,2", "3"].map(|text| text.parse().unwrap());
        assert_eq!(values(&lists), Some(vec![1, 2, 3]));
        assert_eq!(values(&[]), None);
    }
}
