//! The race on the terminal: time against length, both logarithmic, in Braille dots with a mark per point.

use console::{Style, Term};

use super::crossing::Point;
use super::report::{OPS, Race};
use super::words;

/// Characters of the frame beside the canvas: the times on its left.
const LEFT: usize = 9;
const ROWS: usize = 18;
const WIDEST: usize = 96;

struct Canvas {
    columns: usize,
    /// Braille dots, 2 x 4 to a cell, and the series that set the last of them.
    dots: Vec<(u8, usize)>,
    marks: Vec<Option<usize>>,
}

/// Where a point lies, 0 to 1 in both directions, upwards.
struct Frame {
    lengths: [f64; 2],
    times: [f64; 2],
}

pub const MARKS: [char; 6] = ['▲', '■', '◆', '▼', '★', '●'];

fn style(series: usize) -> Style {
    let style = Style::new();
    match series {
        0 => style.magenta(),
        1 => style.blue(),
        2 => style.green(),
        3 => style.cyan(),
        4 => style.yellow(),
        _ => style.red(),
    }
}

pub fn draw(race: &Race) -> String {
    let columns = Term::stdout().size().1 as usize;
    let canvas = columns.clamp(40, WIDEST) - LEFT - 2;
    let series = OPS.map(|op| race.points(op));
    lines(&series, canvas).join("\n")
}

fn lines(series: &[Vec<Point>], columns: usize) -> Vec<String> {
    let frame = Frame::around(series);
    let mut canvas = Canvas::new(columns);
    for (i, points) in series.iter().enumerate() {
        let places: Vec<_> = points.iter().map(|point| frame.place(point)).collect();
        for pair in places.windows(2) {
            canvas.line(pair[0], pair[1], i);
        }
    }
    // marks last: no line hides one
    for (i, points) in series.iter().enumerate() {
        for point in points {
            canvas.mark(frame.place(point), i);
        }
    }
    let mut lines = legend(columns);
    for row in 0..ROWS {
        lines.push(format!("{}{}", frame.time_label(row), canvas.row(row)));
    }
    lines.push(format!("{:LEFT$}└{}", "", "─".repeat(columns)));
    lines.push(frame.length_labels(&series.concat(), columns));
    lines
}

/// The marks and names, in as many lines as they need.
fn legend(columns: usize) -> Vec<String> {
    let mut lines = vec![format!("{:LEFT$}", "time")];
    let mut width = 0;
    for (i, op) in OPS.iter().enumerate() {
        let name = words::op(op);
        let needed = 4 + name.chars().count();
        if width > 0 && width + needed > columns {
            lines.push(format!("{:LEFT$}", ""));
            width = 0;
        }
        let (gap, last) = (if width == 0 { " " } else { "   " }, lines.len() - 1);
        lines[last] += &format!("{gap}{} {name}", style(i).apply_to(MARKS[i]));
        width += needed + 1;
    }
    lines
}

impl Frame {
    fn around(series: &[Vec<Point>]) -> Self {
        let all = || series.iter().flatten();
        let range = |values: &mut dyn Iterator<Item = f64>| {
            let mut range = [f64::INFINITY, f64::NEG_INFINITY];
            for value in values {
                range = [range[0].min(value.ln()), range[1].max(value.ln())];
            }
            range
        };
        let lengths = range(&mut all().map(|point| f64::from(point.0)));
        Self {
            lengths,
            times: range(&mut all().map(|point| point.1)),
        }
    }

    fn place(&self, &(length, us): &Point) -> (f64, f64) {
        let share = |[first, last]: [f64; 2], value: f64| {
            // a single length or time stands in the middle
            if last > first {
                (value.ln() - first) / (last - first)
            } else {
                0.5
            }
        };
        (share(self.lengths, length.into()), share(self.times, us))
    }

    /// The powers of ten beside the axis.
    fn time_label(&self, row: usize) -> String {
        let powers = (-1..12).map(|power| 10_f64.powi(power));
        let mut here = powers.filter(|&us| {
            let at = (us.ln() - self.times[0]) / (self.times[1] - self.times[0]).max(1e-9);
            (0.0..=1.0).contains(&at) && ((1.0 - at) * (ROWS - 1) as f64).round() as usize == row
        });
        match here.next_back() {
            Some(us) => format!("{:>width$} ┤", words::duration(us), width = LEFT - 1),
            None => format!("{:LEFT$}│", ""),
        }
    }

    fn length_labels(&self, points: &[Point], columns: usize) -> String {
        let mut lengths: Vec<u32> = points.iter().map(|point| point.0).collect();
        lengths.sort_unstable();
        lengths.dedup();
        let mut line = format!("{:<width$}", "tokens", width = LEFT + 1);
        let mut free = 0;
        for length in lengths {
            let label = length.to_string();
            let column = column(self.place(&(length, 1.0)).0, columns);
            let middle = LEFT + 1 + column;
            let start = middle.saturating_sub(label.len() / 2);
            let start = start.min(LEFT + 1 + columns - label.len());
            if start >= free {
                line = format!("{line:start$}{label}");
                free = start + label.len() + 1;
            }
        }
        line
    }
}

fn column(x: f64, columns: usize) -> usize {
    (x * (columns - 1) as f64).round() as usize
}

impl Canvas {
    fn new(columns: usize) -> Self {
        Self {
            columns,
            dots: vec![(0, 0); columns * ROWS],
            marks: vec![None; columns * ROWS],
        }
    }

    fn line(&mut self, from: (f64, f64), to: (f64, f64), series: usize) {
        /// Of a dot by its column and row in the cell: Unicode numbers the lowest pair last.
        const BITS: [[u8; 4]; 2] = [[0x01, 0x02, 0x04, 0x40], [0x08, 0x10, 0x20, 0x80]];
        let (wide, high) = (2 * self.columns - 1, 4 * ROWS - 1);
        let steps = wide.max(high);
        for step in 0..=steps {
            let share = step as f64 / steps as f64;
            let x = from.0 + share * (to.0 - from.0);
            let y = from.1 + share * (to.1 - from.1);
            let x = (x * wide as f64).round() as usize;
            let y = ((1.0 - y) * high as f64).round() as usize;
            let cell = &mut self.dots[y / 4 * self.columns + x / 2];
            *cell = (cell.0 | BITS[x % 2][y % 4], series);
        }
    }

    fn mark(&mut self, (x, y): (f64, f64), series: usize) {
        let row = ((1.0 - y) * (ROWS - 1) as f64).round() as usize;
        let at = row * self.columns + column(x, self.columns);
        self.marks[at] = Some(series);
    }

    fn row(&self, row: usize) -> String {
        let cells = row * self.columns..(row + 1) * self.columns;
        let text: String = cells
            .map(|at| match (self.marks[at], self.dots[at]) {
                (Some(series), _) => style(series).apply_to(MARKS[series]).to_string(),
                (None, (0, _)) => " ".into(),
                (None, (bits, series)) => {
                    // all 256 patterns are characters
                    let dots = char::from_u32(0x2800 + u32::from(bits)).unwrap_or(' ');
                    style(series).apply_to(dots).to_string()
                }
            })
            .collect();
        text.trim_end().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series() -> Vec<Vec<Point>> {
        let lengths = [64, 128, 256, 512, 1024];
        let lines = [
            (1, 3.0),
            (1, 60.0),
            (1, 12.0),
            (1, 0.3),
            (1, 0.06),
            (2, 0.002),
        ];
        lines
            .map(|(order, factor)| {
                lengths
                    .map(|len| (len, factor * f64::from(len).powi(order)))
                    .to_vec()
            })
            .to_vec()
    }

    #[test]
    fn nothing_is_wider_than_the_terminal() {
        console::set_colors_enabled(false);
        for columns in [40, 69, 85] {
            for line in lines(&series(), columns) {
                let width = console::measure_text_width(&line);
                assert!(width <= columns + LEFT + 1, "{width}: {line}");
            }
        }
    }

    #[test]
    fn every_series_shows_its_mark_and_the_axes_their_numbers() {
        console::set_colors_enabled(false);
        let text = lines(&series(), 69).join("\n");
        for mark in MARKS {
            assert!(text.matches(mark).count() >= 4, "{mark}\n{text}");
        }
        for label in ["tokens", "64", "1024", "1 ms", "10 ms"] {
            assert!(text.contains(label), "{label}\n{text}");
        }
    }

    #[test]
    fn a_single_point_is_drawn() {
        console::set_colors_enabled(false);
        let text = lines(&[vec![(64, 5.0)], vec![]], 40).join("\n");
        assert!(text.matches('▲').count() == 2, "{text}");
    }
}
