//! gradients.svg: a slide with two panels, without and with clipping. The norm of the gradient, logarithmic, against
//! the step, from the last back to the first, as the gradient goes.

use plotters::style::RGBColor;

use super::{Document, Row};
use crate::error::Result;
use crate::race::picture::canvas::{Canvas, Ink, Place};
use crate::race::picture::{FAINT, INK, SOFT, spread};
use crate::race::words;

const TOP: i32 = 270;
const BOTTOM: i32 = 730;
const WIDTH: i32 = 400;
/// Left ends of the panels.
const PANELS: [(i32, bool); 2] = [(140, false), (910, true)];
const GRID: RGBColor = RGBColor(228, 228, 228);

/// Below are numbers that f32 hardly holds.
const LOWEST: f64 = 1e-30;

/// Of Okabe and Ito, and a black, told apart by all eyes; with the mark of each.
const SERIES: [(RGBColor, usize); 7] = [
    (RGBColor(86, 180, 233), 3),
    (RGBColor(0, 114, 178), 1),
    (RGBColor(34, 34, 34), 0),
    (RGBColor(204, 121, 167), 4),
    (RGBColor(230, 159, 0), 2),
    (RGBColor(213, 94, 0), 5),
    (RGBColor(0, 158, 115), 5),
];

/// One of the panels: its left end, the powers of ten of its lower and its upper end, its steps.
struct Panel {
    left: i32,
    powers: [i32; 2],
    seq_len: u32,
}

pub fn draw(document: &Document) -> Result<String> {
    let mut svg = String::new();
    {
        let canvas = Canvas::new(&mut svg)?;
        heading(&canvas, document)?;
        let powers = powers(document);
        for (left, clipped) in PANELS {
            let panel = Panel {
                left,
                powers,
                seq_len: document.seq_len,
            };
            panel.axes(&canvas, document, clipped)?;
            panel.lines(&canvas, document, clipped)?;
        }
        let source = format!(
            "dL/dh_t has no unit; L is the product of the last state with a vector of norm 1 · {} · gatefold",
            words::clip(&document.adapter.describe(), 60)
        );
        canvas.text(&source, (60, 866), Ink::plain(18, SOFT))?;
        canvas.finish()?;
    }
    Ok(svg)
}

/// The powers of ten around all norms; both panels have the same, to be compared.
fn powers(document: &Document) -> [i32; 2] {
    let norms = document.rows.iter().filter_map(|row| row.norms.as_ref());
    let norms = norms.flatten().map(|&norm| f64::from(norm).max(LOWEST));
    let (low, high) = norms.fold((1.0, 1.0), |(low, high): (f64, f64), norm| {
        (low.min(norm), high.max(norm))
    });
    let high = high.log10().ceil() as i32;
    [(low.log10().floor() as i32).min(high - 1), high.max(1)]
}

fn heading(canvas: &Canvas<'_>, document: &Document) -> Result<()> {
    let conditions = format!(
        "f32, {} units, {} steps of random input, one layer; checked against the f64 reference",
        document.hidden_size, document.seq_len
    );
    canvas.text("The way back through time", (60, 58), Ink::bold(46, INK))?;
    canvas.text(&finding(document), (60, 112), Ink::plain(30, INK))?;
    canvas.text(&conditions, (60, 160), Ink::plain(22, SOFT))
}

/// What a step back does to the gradient of the RNNs and of the LSTM.
fn finding(document: &Document) -> String {
    let first = |name: &str| {
        let rows = document.rows.iter().filter(|row| !row.clipped);
        let row = rows.into_iter().find(|row| row.network == name)?;
        row.norms.as_ref().map(|norms| f64::from(norms[0]))
    };
    match (first("RNN, radius 1.1"), first("RNN, radius 0.9")) {
        (Some(grown), Some(faded)) => format!(
            "Over {} steps a radius of 1.1 makes {} of a gradient of 1, a radius of 0.9 only {}",
            document.seq_len,
            words::short(grown),
            words::short(faded)
        ),
        _ => "The norm of the gradient of the last state, step by step".into(),
    }
}

impl Panel {
    fn right(&self) -> i32 {
        self.left + WIDTH
    }

    /// Of step `t`, from 1 on; none below the lower end.
    fn place(&self, t: usize, norm: f64) -> Option<Place> {
        if norm < LOWEST {
            return None;
        }
        let [low, high] = self.powers.map(f64::from);
        let back = (self.seq_len as usize - t) as f64 / f64::from(self.seq_len - 1);
        let up = (norm.log10() - low) / (high - low);
        Some((
            self.left + (back * f64::from(WIDTH)).round() as i32,
            BOTTOM - (up * f64::from(BOTTOM - TOP)).round() as i32,
        ))
    }

    fn axes(&self, canvas: &Canvas<'_>, document: &Document, clipped: bool) -> Result<()> {
        let [low, high] = self.powers;
        let every = (high - low) / 9 + 1;
        for power in (low..=high).filter(|power| power % every == 0) {
            let Some((_, y)) = self.place(1, 10_f64.powi(power)) else {
                continue;
            };
            canvas.line(&[(self.left, y), (self.right(), y)], GRID, 1)?;
            let label = power_of_ten(power);
            canvas.text(&label, (self.left - 12, y), Ink::plain(22, INK).right())?;
        }
        if let Some((_, y)) = self.place(1, 1.0) {
            canvas.line(&[(self.left, y), (self.right(), y)], FAINT, 2)?;
        }
        for t in ticks(self.seq_len) {
            let Some((x, _)) = self.place(t as usize, 1.0) else {
                continue;
            };
            canvas.line(&[(x, BOTTOM), (x, BOTTOM + 8)], INK, 2)?;
            let label = t.to_string();
            canvas.text(&label, (x, BOTTOM + 28), Ink::plain(22, INK).centered())?;
        }
        let corner = (self.left, BOTTOM);
        canvas.line(&[(self.left, TOP), corner, (self.right(), BOTTOM)], INK, 2)?;
        let title = match clipped {
            false => "without clipping".to_owned(),
            true => format!("each step hands back a norm of at most {}", document.clip),
        };
        canvas.text(&title, (self.left, TOP - 62), Ink::bold(25, INK))?;
        let y_title = "‖dL/dh_t‖";
        canvas.text(y_title, (self.left - 70, TOP - 26), Ink::plain(22, SOFT))?;
        let middle = ((self.left + self.right()) / 2, BOTTOM + 64);
        let x_title = "step t, from the last back to the first";
        canvas.text(x_title, middle, Ink::plain(22, SOFT).centered())
    }

    fn lines(&self, canvas: &Canvas<'_>, document: &Document, clipped: bool) -> Result<()> {
        let rows = document.rows.iter().filter(|row| row.clipped == clipped);
        let rows: Vec<(&Row, (RGBColor, usize))> = rows.zip(SERIES).collect();
        let mut ends = Vec::new();
        let mut all = Vec::new();
        for (row, (color, _)) in &rows {
            let norms = row.norms.as_deref().unwrap_or_default();
            let norms = norms.iter().enumerate().rev();
            let places = norms.map_while(|(at, &norm)| self.place(at + 1, norm.into()));
            let places: Vec<Place> = places.collect();
            canvas.line(&places, *color, 4)?;
            all.push(places);
        }
        for (i, ((row, (color, mark)), places)) in rows.iter().zip(&all).enumerate() {
            // each at places of its own: where lines coincide, the marks of all are seen
            let each = (places.len() / 4).max(1);
            let first = (i + 1) * each / (rows.len() + 1);
            for place in places.iter().skip(first).step_by(each) {
                canvas.marker(*mark, *place, *color)?;
            }
            ends.extend(places.last().map(|place| (*place, row.network, *color)));
        }
        ends.sort_by_key(|(place, ..)| place.1);
        let wanted: Vec<i32> = ends.iter().map(|(place, ..)| place.1).collect();
        let heights = spread(&wanted, 30, BOTTOM - 10);
        for ((place, name, color), y) in ends.into_iter().zip(heights) {
            let x = self.right() + 34;
            canvas.line(&[(place.0 + 4, place.1), (x - 6, y)], color, 1)?;
            canvas.text(name, (x, y), Ink::bold(21, color))?;
        }
        Ok(())
    }
}

/// Steps with a label: the first, the last, and round ones between.
fn ticks(seq_len: u32) -> Vec<u32> {
    let apart = [1, 2, 5, 10, 20, 50, 100, 200];
    let each = apart
        .into_iter()
        .find(|each| seq_len / each <= 6)
        .unwrap_or(500);
    let between = (1..seq_len.div_ceil(each)).map(|i| i * each);
    let free = |t: &u32| t - 1 > each / 2 && seq_len - t > each / 2;
    let mut ticks = vec![1];
    ticks.extend(between.filter(free));
    ticks.push(seq_len);
    ticks
}

/// `10⁻⁶`, `1`
fn power_of_ten(power: i32) -> String {
    if power == 0 {
        return "1".into();
    }
    let raised = |digit: char| match digit {
        '-' => '⁻',
        '1' => '¹',
        '2' => '²',
        '3' => '³',
        // the others follow each other
        digit => {
            let code = 0x2070 + digit.to_digit(10).unwrap_or_default();
            char::from_u32(code).unwrap_or(digit)
        }
    };
    format!(
        "10{}",
        power.to_string().chars().map(raised).collect::<String>()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn powers_are_raised() {
        let powers = [0, 1, -6, 12, -15].map(power_of_ten);
        assert_eq!(powers, ["1", "10¹", "10⁻⁶", "10¹²", "10⁻¹⁵"]);
    }

    #[test]
    fn ticks_are_few_and_apart() {
        assert_eq!(ticks(50), [1, 10, 20, 30, 40, 50]);
        for seq_len in [2, 3, 7, 49, 50, 99, 1000] {
            let ticks = ticks(seq_len);
            assert!(
                ticks.len() <= 8 && ticks.is_sorted_by(|a, b| a < b),
                "{ticks:?}"
            );
            assert_eq!((ticks[0], ticks[ticks.len() - 1]), (1, seq_len));
        }
    }
}
