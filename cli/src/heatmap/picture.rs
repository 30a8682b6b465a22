//! heatmap.svg: a slide with a panel for each head. Queries downwards, keys to the right; the darker, the larger the
//! weight. All panels have the scale of the bar beside them.

use plotters::style::RGBColor;

use super::{Document, Head};
use crate::error::Result;
use crate::race::picture::canvas::{Canvas, Ink, Place};
use crate::race::picture::{FAINT, INK, SOFT};
use crate::race::words;

/// Where panels lie.
const LEFT: i32 = 60;
const RIGHT: i32 = 1440;
const TOP: i32 = 200;
const BOTTOM: i32 = 820;
const BAR: [Place; 2] = [(1490, 260), (1520, 760)];

/// More cells than this in a row or column of a panel are averaged.
const MOST_CELLS: usize = 200;

/// The lowest cell with a name beside it, in pixels.
const LEGIBLE: f64 = 15.0;

/// Of a token beside its cell.
const MOST_LETTERS: usize = 14;

/// No weight at all: masked, or too small for f32.
const NOTHING: RGBColor = RGBColor(226, 226, 226);

/// From a small weight to the largest: of ColorBrewer's blues and purples, which differ in lightness for all eyes.
const SHADES: [(u8, u8, u8); 5] = [
    (247, 252, 253),
    (191, 211, 230),
    (140, 150, 198),
    (136, 65, 157),
    (63, 0, 75),
];

/// Shades that are told apart, so that equal neighbours become one rectangle.
const STEPS: f64 = 96.0;

pub fn draw(document: &Document) -> Result<String> {
    let mut svg = String::new();
    {
        let canvas = Canvas::new(&mut svg)?;
        let panels: Vec<Cells> = document.heads.iter().map(Cells::of).collect();
        let most = panels.iter().flat_map(|cells| &cells.values);
        let most = most.fold(0.0_f32, |most, &value| most.max(value));
        heading(&canvas, document, &panels)?;
        let grid = Grid::new(document, &panels);
        for (at, (head, cells)) in document.heads.iter().zip(&panels).enumerate() {
            grid.panel(&canvas, at, cells, most)?;
            grid.axes(&canvas, document, at, head, cells)?;
        }
        bar(&canvas, most)?;
        let source = words::clip(&document.adapter.describe(), 70);
        canvas.text(
            &format!("{source} · gatefold"),
            (60, 870),
            Ink::plain(18, SOFT),
        )?;
        canvas.finish()?;
    }
    Ok(svg)
}

/// The weights of a head, averaged over blocks of `each` rows and columns.
struct Cells {
    rows: usize,
    columns: usize,
    each: [usize; 2],
    values: Vec<f32>,
}

impl Cells {
    fn of(head: &Head) -> Self {
        let lens = [head.weights.len(), head.weights[0].len()];
        let each = lens.map(|len| len.div_ceil(MOST_CELLS));
        let [rows, columns] = [0, 1].map(|axis| lens[axis].div_ceil(each[axis]));
        let mut values = Vec::with_capacity(rows * columns);
        for block in head.weights.chunks(each[0]) {
            for first in (0..lens[1]).step_by(each[1]) {
                let own = first..(first + each[1]).min(lens[1]);
                let count = block.len() * own.len();
                let all = block.iter().flat_map(|row| &row[own.clone()]);
                let sum: f64 = all.map(|&weight| f64::from(weight)).sum();
                values.push((sum / count as f64) as f32);
            }
        }
        Self {
            rows,
            columns,
            each,
            values,
        }
    }
}

fn heading(canvas: &Canvas<'_>, document: &Document, panels: &[Cells]) -> Result<()> {
    let head = &document.heads[0];
    let (queries, keys) = (head.weights.len(), head.weights[0].len());
    let heads = match &document.heads[..] {
        [one] => format!("head {}", one.head),
        [first, .., last] => format!("heads {} to {}", first.head, last.head),
        [] => String::new(),
    };
    let mut shape = format!("{heads}, {queries} queries, {keys} keys");
    if document.batch > 0 {
        shape += &format!(", row {} of the batch", document.batch);
    }
    let [down, across] = panels[0].each;
    if down * across > 1 {
        shape += &format!("; a cell is the mean of {down} x {across} weights");
    }
    canvas.text("Where each query looks", (60, 58), Ink::bold(46, INK))?;
    canvas.text(&shape, (60, 112), Ink::plain(26, INK))?;
    let reading = "queries downwards, keys to the right; the weights of a query add up to 1, less what a sink takes";
    canvas.text(reading, (60, 152), Ink::plain(20, SOFT))
}

/// Where the panels lie, and how large a cell is.
struct Grid {
    across: usize,
    /// Of a panel, with its labels.
    slot: Place,
    /// Room for the labels to the left of a panel and above it.
    margin: Place,
    cell: [f64; 2],
}

impl Grid {
    /// The number of panels side by side that makes them largest.
    fn new(document: &Document, panels: &[Cells]) -> Self {
        let count = panels.len();
        let grids = (1..=count).map(|across| Self::with(document, &panels[0], count, across));
        let size = |grid: &Self| grid.cell[0] * grid.cell[1];
        let best = grids.max_by(|a, b| size(a).total_cmp(&size(b)));
        best.unwrap_or_else(|| Self::with(document, &panels[0], count, 1))
    }

    fn with(document: &Document, cells: &Cells, count: usize, across: usize) -> Self {
        let down = count.div_ceil(across);
        let slot = ((RIGHT - LEFT) / across as i32, (BOTTOM - TOP) / down as i32);
        let words = |tokens: &Option<Vec<String>>| {
            let letters = tokens.iter().flatten().map(|token| token.chars().count());
            letters.max().unwrap_or(3).min(MOST_LETTERS) as i32
        };
        let ink = Ink::plain(15, INK);
        let long = |letters: i32| ink.width(&"m".repeat(letters as usize)) + 12;
        let fit = |margin: Place| {
            let room = [slot.0 - margin.0 - 24, slot.1 - margin.1 - 20];
            [
                f64::from(room[0].max(0)) / cells.columns as f64,
                f64::from(room[1].max(0)) / cells.rows as f64,
            ]
        };
        // names where there is room for them beside the cells
        let named = (
            long(words(&document.query_tokens)).max(56),
            long(words(&document.key_tokens)).max(56) + 34,
        );
        let numbered = (56, 68);
        let margin = match fit(named).iter().all(|&cell| cell >= LEGIBLE) {
            true => named,
            false => numbered,
        };
        let [width, height] = fit(margin);
        // square, unless a panel would be a mere strip
        let square = width.min(height);
        let cell = [width.min(4.0 * square), height.min(4.0 * square)];
        let cell = match cells.rows.max(cells.columns) <= 4 * cells.rows.min(cells.columns) {
            true => [square; 2],
            false => cell,
        };
        Self {
            across,
            slot,
            margin,
            cell,
        }
    }

    /// The upper left corner of a panel's cells.
    fn corner(&self, at: usize) -> Place {
        let (column, row) = ((at % self.across) as i32, (at / self.across) as i32);
        (
            LEFT + column * self.slot.0 + self.margin.0,
            TOP + row * self.slot.1 + self.margin.1,
        )
    }

    /// Where a row's or a column's cells begin, relative to the corner.
    fn edge(&self, axis: usize, at: usize) -> i32 {
        (self.cell[axis] * at as f64).round() as i32
    }

    fn panel(&self, canvas: &Canvas<'_>, at: usize, cells: &Cells, most: f32) -> Result<()> {
        let (x, y) = self.corner(at);
        let end = (
            x + self.edge(0, cells.columns),
            y + self.edge(1, cells.rows),
        );
        canvas.fill([(x, y), end], NOTHING)?;
        for (row, values) in cells.values.chunks(cells.columns).enumerate() {
            let mut column = 0;
            while column < values.len() {
                let color = shade(values[column], most);
                let same = values[column..].iter();
                let len = same
                    .take_while(|&&value| shade(value, most) == color)
                    .count();
                if let Some(color) = color {
                    let left = x + self.edge(0, column);
                    let right = x + self.edge(0, column + len);
                    let corners = [
                        (left, y + self.edge(1, row)),
                        (right, y + self.edge(1, row + 1)),
                    ];
                    canvas.fill(corners, color)?;
                }
                column += len;
            }
        }
        let frame = [(x, y), (end.0, y), end, (x, end.1), (x, y)];
        canvas.line(&frame, FAINT, 1)
    }

    fn axes(
        &self,
        canvas: &Canvas<'_>,
        document: &Document,
        at: usize,
        head: &Head,
        cells: &Cells,
    ) -> Result<()> {
        let (x, y) = self.corner(at);
        if document.heads.len() > 1 {
            let title = format!("head {}", head.head);
            let place = (x, y - self.margin.1 + 14);
            canvas.text(&title, place, Ink::bold(20, INK))?;
        }
        let ink = Ink::plain(15, INK);
        let named = |tokens: &Option<Vec<String>>, axis: usize| {
            tokens.is_some() && cells.each[axis] == 1 && self.cell[1 - axis] >= LEGIBLE
        };
        let middle = |axis: usize, i: usize| (self.edge(axis, i) + self.edge(axis, i + 1)) / 2;
        for (i, label) in labels(
            &document.query_tokens,
            named(&document.query_tokens, 0),
            document.first_query,
            cells.rows,
            cells.each[0],
            self.cell[1],
        ) {
            canvas.text(&label, (x - 8, y + middle(1, i)), ink.right())?;
        }
        for (i, label) in labels(
            &document.key_tokens,
            named(&document.key_tokens, 1),
            document.first_key,
            cells.columns,
            cells.each[1],
            self.cell[0],
        ) {
            canvas.upward(&label, (x + middle(0, i), y - 8), ink)?;
        }
        Ok(())
    }
}

/// What stands beside which cells: every name, or numbers at round steps.
fn labels(
    tokens: &Option<Vec<String>>,
    named: bool,
    first: u32,
    count: usize,
    each: usize,
    cell: f64,
) -> Vec<(usize, String)> {
    if let (Some(tokens), true) = (tokens, named) {
        let names = tokens.iter().map(|token| shown(token));
        return names.enumerate().collect();
    }
    let step = [1, 2, 5, 10, 20, 50, 100, 200, 500]
        .into_iter()
        .map(|step| step * 10_usize.pow((each as f64).log10().floor() as u32))
        .find(|&step| step as f64 * cell / each as f64 >= 26.0)
        .unwrap_or(count * each);
    let first = first as usize;
    let numbers = first.next_multiple_of(step)..first + count * each;
    numbers
        .step_by(step)
        .map(|number| ((number - first) / each, number.to_string()))
        .collect()
}

/// A token as people read it: no invisible characters, and not too long.
fn shown(token: &str) -> String {
    let visible = token.replace(' ', "␣").replace('\t', "⇥");
    words::clip(&visible, MOST_LETTERS)
}

/// Of the square root of a weight's share of the largest: most weights are small. None for nothing.
fn shade(value: f32, most: f32) -> Option<RGBColor> {
    if value <= 0.0 || most <= 0.0 {
        return None;
    }
    let share = f64::from(value / most).sqrt();
    let at = (share * STEPS).round() / STEPS * (SHADES.len() - 1) as f64;
    let low = (at as usize).min(SHADES.len() - 2);
    let between = |low: u8, high: u8, by: f64| {
        (f64::from(low) + by * (f64::from(high) - f64::from(low))).round() as u8
    };
    let ((r, g, b), (red, green, blue), by) = (SHADES[low], SHADES[low + 1], at - low as f64);
    Some(RGBColor(
        between(r, red, by),
        between(g, green, by),
        between(b, blue, by),
    ))
}

fn bar(canvas: &Canvas<'_>, most: f32) -> Result<()> {
    let [(left, top), (right, bottom)] = BAR;
    let height = f64::from(bottom - top);
    let at = |share: f64| bottom - (height * share).round() as i32;
    for step in 0..STEPS as i32 {
        let share = f64::from(step) / STEPS;
        // the square root is taken again by the shade
        let value = (share + 0.5 / STEPS).powi(2) as f32 * most;
        if let Some(color) = shade(value, most) {
            canvas.fill([(left, at(share + 1.0 / STEPS)), (right, at(share))], color)?;
        }
    }
    let ink = Ink::plain(18, INK);
    canvas.text("weight", (left - 20, top - 30), Ink::plain(18, SOFT))?;
    for share in [0.0, 0.25, 0.5, 0.75, 1.0_f64] {
        let value = f64::from(most) * share * share;
        let y = at(share);
        canvas.line(&[(right, y), (right + 6, y)], INK, 1)?;
        canvas.text(&number(value), (right + 12, y), ink)?;
    }
    canvas.fill([(left, bottom + 24), (right, bottom + 46)], NOTHING)?;
    canvas.text("none", (right + 12, bottom + 35), ink)
}

/// Two digits.
fn number(value: f64) -> String {
    if value == 0.0 {
        return "0".into();
    }
    let decimals = (1.0 - value.log10().floor()).clamp(0.0, 9.0) as usize;
    words::fixed(value, decimals)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(queries: usize, keys: usize) -> Head {
        let weight = |i: usize, j: usize| if j <= i { 1.0 / (i + 1) as f32 } else { 0.0 };
        let row = |i| (0..keys).map(|j| weight(i, j)).collect::<Vec<_>>();
        let weights: Vec<Vec<f32>> = (0..queries).map(row).collect();
        let flat: Vec<f32> = weights.concat();
        Head::new(
            3,
            &flat,
            keys as u32,
            &(0..queries as u32),
            &(0..keys as u32),
        )
    }

    #[test]
    fn blocks_are_means_and_cover_everything() {
        let cells = Cells::of(&head(450, 7));
        assert_eq!((cells.rows, cells.columns, cells.each), (150, 7, [3, 1]));
        let expected = (1.0 + 1.0 / 2.0 + 1.0 / 3.0) / 3.0;
        assert!((cells.values[0] - expected).abs() < 1e-6);
        assert_eq!(cells.values[1], (0.5 + 1.0 / 3.0) / 3.0);
    }

    #[test]
    fn nothing_has_no_shade_and_the_largest_weight_the_darkest() {
        let (r, g, b) = SHADES[SHADES.len() - 1];
        assert_eq!(shade(0.0, 0.5), None);
        assert_eq!(shade(0.5, 0.5), Some(RGBColor(r, g, b)));
        assert!(shade(1e-9, 0.5).is_some());
    }

    #[test]
    fn labels_are_names_or_round_numbers_that_lie_apart() {
        let tokens = Some(vec!["a".to_owned(), "two words".into()]);
        let named = labels(&tokens, true, 0, 2, 1, 40.0);
        assert_eq!(named, [(0, "a".into()), (1, "two␣words".into())]);
        let numbers = labels(&None, false, 3, 100, 1, 6.0);
        assert_eq!(numbers[0], (2, "5".to_owned()));
        assert_eq!(numbers[1], (7, "10".to_owned()));
        let averaged = labels(&None, false, 0, 200, 5, 3.0);
        assert!(
            averaged
                .windows(2)
                .all(|pair| (pair[1].0 - pair[0].0) as f64 * 3.0 >= 26.0)
        );
    }

    #[test]
    fn panels_stay_on_the_page() {
        for (count, queries, keys) in [
            (1, 1, 1),
            (1, 12, 12),
            (8, 64, 64),
            (12, 3, 200),
            (5, 300, 2),
        ] {
            let heads: Vec<Head> = (0..count).map(|_| head(queries, keys)).collect();
            let cells: Vec<Cells> = heads.iter().map(Cells::of).collect();
            let document = Document {
                schema: 1,
                version: "",
                adapter: crate::adapter::Adapter {
                    name: "&<".into(),
                    backend: String::new(),
                    driver: String::new(),
                    driver_info: String::new(),
                    device_type: String::new(),
                    software: false,
                },
                batch: 0,
                first_query: 0,
                first_key: 0,
                query_tokens: None,
                key_tokens: None,
                heads,
            };
            let grid = Grid::new(&document, &cells);
            for at in 0..count {
                let (x, y) = grid.corner(at);
                let right = x + grid.edge(0, cells[0].columns);
                let bottom = y + grid.edge(1, cells[0].rows);
                assert!(x >= LEFT && right <= RIGHT && y >= TOP && bottom <= BOTTOM);
            }
            let svg = draw(&document).unwrap();
            assert!(svg.contains("&amp;&lt;") && svg.contains("Where each query looks"));
        }
    }
}
