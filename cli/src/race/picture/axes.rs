//! Two logarithmic axes.

use super::super::words;
use super::canvas::{Canvas, Ink, Place};
use super::{FAINT, INK, SOFT};
use crate::error::Result;
use plotters::style::RGBColor;

const LEFT: i32 = 170;
const RIGHT: i32 = 1170;
const TOP: i32 = 258;
const BOTTOM: i32 = 728;
const GRID: RGBColor = RGBColor(228, 228, 228);

pub struct Axes {
    /// Logarithms of the ends.
    tokens: [f64; 2],
    us: [f64; 2],
    /// Measured, ascending; at least one.
    lengths: Vec<u32>,
}

impl Axes {
    /// Around the lengths, with the times that each spans, and `room` pixels free above them.
    pub fn around(spans: &[(u32, [f64; 2])], room: i32) -> Self {
        let mut lengths: Vec<u32> = spans.iter().map(|span| span.0).collect();
        lengths.sort_unstable();
        lengths.dedup();
        let ends = |values: Vec<f64>, below: f64, above: f64| {
            let first = values.iter().copied().fold(f64::INFINITY, f64::min);
            let last = values.iter().copied().fold(0.0, f64::max);
            [(first / below).ln(), (last * above).ln()]
        };
        let tokens = lengths.iter().map(|&length| length.into()).collect();
        let us = spans.iter().flat_map(|span| span.1).collect();
        let mut us = ends(us, 1.3, 1.1);
        us[1] += (us[1] - us[0]) * f64::from(room) / f64::from(BOTTOM - TOP - room);
        Self {
            tokens: ends(tokens, 1.12, 1.06),
            us,
            lengths,
        }
    }

    pub fn left(&self) -> i32 {
        LEFT
    }

    pub fn right(&self) -> i32 {
        RIGHT
    }

    pub fn top(&self) -> i32 {
        TOP
    }

    pub fn bottom(&self) -> i32 {
        BOTTOM
    }

    pub fn place(&self, tokens: f64, us: f64) -> Place {
        let x = (tokens.ln() - self.tokens[0]) * self.per_log().0;
        let y = (us.ln() - self.us[0]) * self.per_log().1;
        (LEFT + x.round() as i32, BOTTOM - y.round() as i32)
    }

    /// Pixels to the right and upwards for a factor of e.
    fn per_log(&self) -> (f64, f64) {
        (
            f64::from(RIGHT - LEFT) / (self.tokens[1] - self.tokens[0]),
            f64::from(BOTTOM - TOP) / (self.us[1] - self.us[0]),
        )
    }

    pub fn draw(&self, canvas: &Canvas<'_>) -> Result<()> {
        let first = f64::from(self.lengths[0]);
        let decades = (self.us[1] - self.us[0]) / 10_f64.ln();
        for power in -2..10 {
            for digit in [1.0, 2.0, 5.0] {
                let us = digit * 10_f64.powi(power);
                if us.ln() < self.us[0] || us.ln() > self.us[1] {
                    continue;
                }
                let y = self.place(first, us).1;
                let width = if digit == 1.0 { 2 } else { 1 };
                canvas.line(&[(LEFT, y), (RIGHT, y)], GRID, width)?;
                if digit == 1.0 || decades < 2.5 {
                    let label = words::duration(us);
                    canvas.text(&label, (LEFT - 16, y), Ink::plain(26, INK).right())?;
                }
            }
        }
        for &length in self.labelled() {
            let x = self.place(length.into(), 1.0).0;
            canvas.line(&[(x, TOP), (x, BOTTOM)], GRID, 1)?;
            let label = length.to_string();
            canvas.text(&label, (x, BOTTOM + 28), Ink::plain(26, INK).centered())?;
        }
        canvas.line(&[(LEFT, TOP), (LEFT, BOTTOM), (RIGHT, BOTTOM)], INK, 2)?;
        canvas.text(
            "time for the whole sequence",
            (60, TOP - 28),
            Ink::plain(24, SOFT),
        )?;
        let middle = (LEFT + RIGHT) / 2;
        canvas.text(
            "sequence length in tokens",
            (middle, BOTTOM + 64),
            Ink::plain(24, SOFT).centered(),
        )
    }

    /// Lengths far enough from each other for their labels.
    fn labelled(&self) -> impl Iterator<Item = &u32> {
        let mut free = 0;
        self.lengths.iter().filter(move |&&length| {
            let x = self.place(length.into(), 1.0).0;
            let fits = x >= free;
            if fits {
                free = x + 90;
            }
            fits
        })
    }

    /// How lines rise that grow with the length and with its square, in the empty corner at the bottom right.
    pub fn guides(&self, canvas: &Canvas<'_>) -> Result<()> {
        const LENGTH: i32 = 130;
        let (x, y) = self.per_log();
        let rise = f64::from(LENGTH) / x * y;
        let start = (RIGHT - LENGTH - 70, BOTTOM - 26);
        for (order, label) in [(1.0, "∝ n"), (2.0, "∝ n²")] {
            let end = (start.0 + LENGTH, start.1 - (order * rise).round() as i32);
            canvas.line(&[start, end], FAINT, 2)?;
            canvas.text(label, (end.0 + 8, end.1), Ink::plain(22, SOFT))?;
        }
        Ok(())
    }
}
