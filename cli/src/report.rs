//! How results are printed: one table of cells, or JSON.

use std::fmt::Display;
use std::fs;
use std::io::{self, Write};
use std::path::Path;

use comfy_table::{CellAlignment, ContentArrangement, LineStyle, Table, TableStyle, presets};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use crate::args::Format;
use crate::error::{Error, Result};

/// One value of a table.
#[derive(Debug, Clone)]
pub enum Cell {
    Text(String),
    /// Rounded in a table, in full in CSV; absent as a dash or nothing.
    Number(Option<f64>),
}

impl Cell {
    pub fn text(value: impl Display) -> Self {
        Self::Text(value.to_string())
    }

    pub fn number(value: impl Into<Option<f64>>) -> Self {
        Self::Number(value.into())
    }

    fn rounded(&self) -> String {
        match self {
            Self::Text(text) => text.clone(),
            Self::Number(None) => "-".into(),
            Self::Number(Some(value)) => rounded(*value),
        }
    }

    fn exact(&self) -> String {
        match self {
            Self::Text(text) => text.clone(),
            Self::Number(value) => value.map_or(String::new(), |value| value.to_string()),
        }
    }
}

/// Four digits, which is more than a clock is good for.
fn rounded(value: f64) -> String {
    let magnitude = value.abs();
    match magnitude {
        0.0..1e7 if value.fract() == 0.0 => format!("{value:.0}"),
        1e-3..10.0 => format!("{value:.3}"),
        10.0..100.0 => format!("{value:.2}"),
        100.0..1000.0 => format!("{value:.1}"),
        1000.0..1e7 => format!("{value:.0}"),
        _ => format!("{value:.2e}"),
    }
}

const HEADER_LINE: TableStyle =
    TableStyle::new().header_separator(LineStyle::none().fill('─').junction('─'));

/// Prints rows under a header, or `json` instead. `title` is for people only.
pub fn print(
    format: Format,
    title: &str,
    header: &[&str],
    rows: &[Vec<Cell>],
    json: &impl Serialize,
) -> Result<()> {
    match format {
        Format::Json => out(&self::json(json)?),
        Format::Csv => out(&csv(header, rows)?),
        Format::Table | Format::Md => {
            let table = table(format, header, rows);
            out(&format!("{title}\n\n{table}\n"))
        }
    }
}

pub fn table(format: Format, header: &[&str], rows: &[Vec<Cell>]) -> String {
    let mut table = Table::new();
    table.load_style(if format == Format::Md {
        presets::ASCII_MARKDOWN
    } else {
        HEADER_LINE
    });
    // fits a terminal; elsewhere lines are as long as they are
    table.set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(header.to_vec());
    for row in rows {
        table.add_row(row.iter().map(|cell| {
            let alignment = match cell {
                Cell::Text(_) => CellAlignment::Left,
                Cell::Number(_) => CellAlignment::Right,
            };
            comfy_table::Cell::new(cell.rounded()).set_alignment(alignment)
        }));
    }
    table.to_string()
}

pub fn json(value: &impl Serialize) -> Result<String> {
    let text = serde_json::to_string_pretty(value).map_err(Error::failed)?;
    Ok(text + "\n")
}

fn csv(header: &[&str], rows: &[Vec<Cell>]) -> Result<String> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    writer.write_record(header).map_err(Error::failed)?;
    for row in rows {
        let record = row.iter().map(Cell::exact);
        writer.write_record(record).map_err(Error::failed)?;
    }
    let bytes = writer.into_inner().map_err(Error::failed)?;
    String::from_utf8(bytes).map_err(Error::failed)
}

/// Writes to standard output; a reader that has gone away is no failure.
pub fn out(text: &str) -> Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
    {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Error::failed(format_args!("standard output: {error}")))
        }
        _ => Ok(()),
    }
}

/// Writes a file of a command that leaves several, into a folder that need not be there yet.
pub fn save(folder: &Path, name: &str, text: &str) -> Result<()> {
    let path = folder.join(name);
    fs::create_dir_all(folder)
        .and_then(|()| fs::write(&path, text))
        .map_err(|error| Error::failed(format_args!("{}: {error}", path.display())))
}

/// One line on standard error.
pub fn log(line: impl Display) {
    // nobody is left to tell when standard error is gone
    let _ = writeln!(io::stderr(), "{line}");
}

/// A progress bar of `len` steps on standard error, hidden when that is not a terminal.
pub fn progress(len: usize) -> ProgressBar {
    let bar = ProgressBar::new(len as u64);
    if let Ok(style) = ProgressStyle::with_template("{wide_bar} {pos}/{len} {msg}") {
        bar.set_style(style);
    }
    bar
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_keep_four_digits() {
        let numbers = [0.0, 1.23456, 12.3456, 123.456, 1234.56, 1e-6, 1e9, -2.0];
        let text = numbers.map(rounded);
        let expected = [
            "0", "1.235", "12.35", "123.5", "1235", "1.00e-6", "1.00e9", "-2",
        ];
        assert_eq!(text, expected);
    }

    #[test]
    fn csv_keeps_numbers_in_full_and_quotes() {
        let rows = vec![vec![
            Cell::text("a,b"),
            Cell::number(0.1),
            Cell::number(None),
        ]];
        assert_eq!(
            csv(&["x", "y", "z"], &rows).unwrap(),
            "x,y,z\n\"a,b\",0.1,\n"
        );
    }
}
