//! race.svg: a slide. Time against length, both logarithmic, with a label at the end of each line and a ring
//! where attention overtakes a recurrence.

mod axes;
pub mod canvas;

use plotters::style::RGBColor;

use super::crossing::Crossing;
use super::report::{OPS, Race};
use super::words;
use crate::error::Result;
use axes::Axes;
use canvas::{Canvas, Ink, Place};

pub const INK: RGBColor = RGBColor(34, 34, 34);
pub const SOFT: RGBColor = RGBColor(95, 95, 95);
pub const FAINT: RGBColor = RGBColor(150, 150, 150);

/// Of Okabe and Ito, told apart by all eyes, in the order of [`OPS`].
pub const COLORS: [RGBColor; 6] = [
    RGBColor(204, 121, 167),
    RGBColor(0, 114, 178),
    RGBColor(0, 158, 115),
    RGBColor(86, 180, 233),
    RGBColor(230, 159, 0),
    RGBColor(213, 94, 0),
];

/// The race as SVG; it has at least one time.
pub fn draw(race: &Race) -> Result<String> {
    let mut svg = String::new();
    {
        let canvas = Canvas::new(&mut svg)?;
        let axes = roomy(race);
        heading(&canvas, race)?;
        axes.draw(&canvas)?;
        axes.guides(&canvas)?;
        crossings(&canvas, &axes, race)?;
        lines(&canvas, &axes, race)?;
        rings(&canvas, &axes, race)?;
        end_labels(&canvas, &axes, race)?;
        footer(&canvas, race)?;
        canvas.finish()?;
    }
    Ok(svg)
}

/// From the fastest sample to the slowest, of each point.
fn spans(race: &Race) -> Vec<(u32, [f64; 2])> {
    let rows = race.drawn();
    rows.filter_map(|row| Some((row.seq_len, [row.p5_us?, row.p95_us?])))
        .collect()
}

fn heading(canvas: &Canvas<'_>, race: &Race) -> Result<()> {
    let [width, projections, _] = race.conditions();
    let (title, adapter) = ("One step after another", race.adapter.describe());
    canvas.text(title, (60, 58), Ink::bold(46, INK))?;
    canvas.text(&finding(race), (60, 108), Ink::plain(34, INK))?;
    canvas.text(&words::clip(&adapter, 112), (60, 158), Ink::plain(22, SOFT))?;
    let conditions = format!("{width} · {projections}");
    canvas.text(&conditions, (60, 190), Ink::plain(22, SOFT))
}

/// The result in one line.
fn finding(race: &Race) -> String {
    let crossing = ["lstm", "gru", "rnn"]
        .iter()
        .find_map(|op| race.crossings.iter().find(|crossing| crossing.op == *op));
    let Some(Crossing {
        op, up_to, tokens, ..
    }) = crossing
    else {
        return "RNN, LSTM and GRU against attention".into();
    };
    let name = words::op(op);
    if let Some(tokens) = tokens {
        let tokens = words::about(*tokens);
        return format!(
            "Attention beats the {name} up to {tokens} tokens, and loses from there on"
        );
    }
    let at = |op: &str| {
        let points = race.points(op);
        let point = points.iter().find(|point| point.0 == *up_to);
        point.map_or(f64::NAN, |point| point.1)
    };
    let times = at(op) / at("attention");
    if times >= 1.0 {
        let times = words::times(times);
        format!("At {up_to} tokens the {name} takes {times} times as long as attention")
    } else {
        let times = words::times(1.0 / times);
        format!("At {up_to} tokens attention takes {times} times as long as the {name}")
    }
}

fn lines(canvas: &Canvas<'_>, axes: &Axes, race: &Race) -> Result<()> {
    for (i, op) in OPS.iter().enumerate() {
        for row in race.drawn().filter(|row| row.op == *op) {
            if let (Some(low), Some(high)) = (row.p5_us, row.p95_us) {
                let ends = [low, high].map(|us| axes.place(row.seq_len.into(), us));
                canvas.line(&ends, COLORS[i], 2)?;
            }
        }
        let points = race.points(op);
        let places: Vec<_> = points
            .iter()
            .map(|&(length, us)| axes.place(length.into(), us))
            .collect();
        canvas.line(&places, COLORS[i], 5)?;
    }
    for (i, op) in OPS.iter().enumerate() {
        for (length, us) in race.points(op) {
            canvas.marker(i, axes.place(length.into(), us), COLORS[i])?;
        }
    }
    Ok(())
}

/// The name of each line with its last time, spread so that none hides another.
fn end_labels(canvas: &Canvas<'_>, axes: &Axes, race: &Race) -> Result<()> {
    const GAP: i32 = 40;
    let longest = race.drawn().map(|row| row.seq_len).max();
    let mut ends: Vec<_> = OPS
        .iter()
        .enumerate()
        .filter_map(|(i, op)| {
            let (length, us) = *race.points(op).last()?;
            Some((axes.place(length.into(), us), i, length, us))
        })
        .collect();
    ends.sort_by_key(|(place, ..)| place.1);
    let wanted: Vec<i32> = ends.iter().map(|(place, ..)| place.1).collect();
    let heights = spread(&wanted, GAP, axes.bottom());
    let x = axes.right() + 34;
    for ((place, i, length, us), y) in ends.into_iter().zip(heights) {
        canvas.line(&[(place.0 + 16, place.1), (x - 8, y)], COLORS[i], 1)?;
        canvas.text(words::op(OPS[i]), (x, y), Ink::bold(30, COLORS[i]))?;
        let (mut time, mut size) = (words::duration(us), 26);
        if Some(length) != longest {
            (time, size) = (format!("{time} at {length}"), 23);
        }
        canvas.text(&time, (x + 174, y), Ink::plain(size, COLORS[i]))?;
    }
    Ok(())
}

/// `wanted` heights, ascending, at least `gap` apart and none below `lowest`.
pub fn spread(wanted: &[i32], gap: i32, lowest: i32) -> Vec<i32> {
    let mut heights = wanted.to_vec();
    for _ in 0..100 {
        for i in 1..heights.len() {
            let overlap = gap - (heights[i] - heights[i - 1]);
            if overlap > 0 {
                heights[i - 1] -= overlap / 2;
                heights[i] += overlap - overlap / 2;
            }
        }
    }
    let mut limit = lowest;
    for height in heights.iter_mut().rev() {
        *height = (*height).min(limit);
        limit = *height - gap;
    }
    heights
}

/// Between the labels of crossings.
const ROW: i32 = 38;

/// Axes with no more room above the lines than the labels of the crossings need.
fn roomy(race: &Race) -> Axes {
    let rooms = (1..4).map(|rows| 16 + ROW * rows);
    let mut axes = rooms.map(|room| Axes::around(&spans(race), room));
    let fits = |axes: &Axes| {
        labels(axes, race).iter().all(|(place, _, y)| {
            if place.1 < y + ROW {
                return false;
            }
            let points = OPS.iter().flat_map(|op| race.points(op));
            let mut heights = points.map(|(length, us)| axes.place(length.into(), us));
            heights.all(|point| point.0 > place.0 || point.1 > y + ROW)
        })
    };
    axes.find(fits)
        .unwrap_or_else(|| Axes::around(&spans(race), 16 + 3 * ROW))
}

/// The crossings with their words and the words' height, in the empty corner at the top left: the further
/// right a crossing, the higher, so that no vertical meets a label.
fn labels(axes: &Axes, race: &Race) -> Vec<(Place, String, i32)> {
    let mut places: Vec<_> = race
        .crossings
        .iter()
        .filter_map(|crossing| {
            let (tokens, us) = (crossing.tokens?, crossing.us?);
            let name = words::op(crossing.op);
            let label = format!("{name} = attention at {} tokens", words::about(tokens));
            Some((axes.place(tokens, us), label))
        })
        .collect();
    places.sort_by_key(|(place, _)| -place.0);
    let heights = (0..).map(|row| axes.top() + 22 + ROW * row);
    let labels = places.into_iter().zip(heights);
    labels
        .map(|((place, label), y)| (place, label, y))
        .collect()
}

fn crossings(canvas: &Canvas<'_>, axes: &Axes, race: &Race) -> Result<()> {
    let ink = Ink::bold(25, INK);
    let labels = labels(axes, race);
    for (place, label, y) in &labels {
        canvas.line(&[(place.0, place.1 - 14), (place.0, y - 12)], FAINT, 2)?;
        let x = (place.0 - 12).max(axes.left() + 16 + ink.width(label));
        canvas.label(label, (x, *y), ink.right())?;
    }
    let last = race.crossings.iter().map(|crossing| crossing.up_to).max();
    match last {
        Some(last) if labels.is_empty() => {
            let label = format!("no crossing up to {last} tokens");
            canvas.label(&label, (axes.left() + 24, axes.top() + 22), ink)
        }
        _ => Ok(()),
    }
}

fn rings(canvas: &Canvas<'_>, axes: &Axes, race: &Race) -> Result<()> {
    for (place, ..) in labels(axes, race) {
        canvas.ring(place, INK)?;
    }
    Ok(())
}

fn footer(canvas: &Canvas<'_>, race: &Race) -> Result<()> {
    let steps = OPS.iter().enumerate().filter_map(|(i, op)| {
        let rows = race.drawn();
        let last = rows
            .filter(|row| row.op == *op && row.us_per_step.is_some())
            .last()?;
        Some((i, last.us_per_step?))
    });
    let mut x = 60;
    canvas.text("µs per step", (x, 852), Ink::plain(28, INK))?;
    x += 190;
    for (i, us) in steps {
        let name = words::op(OPS[i]);
        canvas.text(name, (x, 852), Ink::bold(28, COLORS[i]))?;
        let indent = 24 * name.len() as i32 + 12;
        canvas.text(&words::short(us), (x + indent, 852), Ink::plain(28, INK))?;
        x += indent + 110;
    }
    let [_, _, text] = race.conditions();
    let text = words::clip(&text, 44);
    let source = format!("{text} · clock: {} · gatefold", race.clocks());
    canvas.text(&source, (1560, 852), Ink::plain(20, SOFT).right())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_keep_their_distance_and_their_order() {
        let heights = spread(&[100, 101, 102, 300], 40, 500);
        assert!(
            heights.windows(2).all(|pair| pair[1] - pair[0] >= 38),
            "{heights:?}"
        );
        assert_eq!(heights[3], 300);
        let heights = spread(&[480, 490, 500], 40, 500);
        assert_eq!(heights, [420, 460, 500]);
    }
}
