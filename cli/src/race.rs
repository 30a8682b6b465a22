//! `gatefold race`: RNN, LSTM and GRU, which take one step after another, against attention, which takes all
//! tokens at once, on the same real text. First each result is checked, then it is timed.

mod attention;
mod course;
mod crossing;
mod options;
mod picture;
mod plot;
mod recurrence;
mod report;
mod table;
mod words;

use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use gatefold::Cell;
use gatefold::clock::Clock;
use gatefold::reference::compare::Difference;
use indicatif::ProgressBar;
use serde_json::Value;

use crate::error::{Error, Result};
use crate::report::{log, progress};
use crate::{adapter, peak};
use attention::Attention;
use course::{Course, Entry, Text};
use options::{Pace, Setup};
use recurrence::Recurrence;
use report::{Race, Row, Stop};

pub use options::Options;

/// Who runs.
trait Contestant {
    fn op(&self) -> &'static str;

    /// The power of the length that the time grows with in the end.
    fn order(&self) -> i32;

    /// In the words of `bench`'s flags.
    fn shape(&self, course: &Course, seq_len: u32) -> Vec<(&'static str, Value)>;

    /// Allocates and binds.
    fn enter(&self, course: &Course, seq_len: u32) -> Result<Entry>;

    /// The worst error of an element relative to its row, or the element that is wrong.
    fn check(&mut self, course: &Course, seq_len: u32, got: &[f32]) -> Result<f64, Difference>;
}

pub fn run(options: &Options) -> Result<ExitCode> {
    let start = Instant::now();
    let setup = options.setup()?;
    let text = Text::load(options.text.as_deref())?;
    let gpu = adapter::open(&options.device)?;
    adapter::announce(&gpu);

    let bar = progress(1 + 4 * setup.lengths.len());
    bar.set_message("roof");
    let roof = peak::measure(&gpu, setup.pace.peak)?;
    bar.inc(1);
    let course = Course::new(gpu, &setup, &text, !options.no_projections)?;
    let mut race = Race::new(&course, &setup, &text);
    run_all(&course, &setup, start, &bar, &mut race)?;
    bar.finish_and_clear();
    race.finish(&roof);

    let folder = &options.out_dir;
    write(folder, "race.json", &crate::report::json(&race)?)?;
    if race.has_times() {
        write(folder, "race.svg", &picture::draw(&race)?)?;
    }
    table::print(&race, options)?;
    Ok(ExitCode::from(u8::from(race.failed)))
}

/// Shortest length first, so that all have been seen when the time is up.
fn run_all(
    course: &Course,
    setup: &Setup,
    start: Instant,
    bar: &ProgressBar,
    race: &mut Race,
) -> Result<()> {
    let clock = Clock::new(&course.gpu)?;
    bar.set_message("compiling");
    let mut contestants: Vec<Box<dyn Contestant>> = Vec::new();
    for cell in [Cell::RnnTanh, Cell::Lstm, Cell::Gru] {
        contestants.push(Box::new(Recurrence::new(course, cell)?));
    }
    contestants.push(Box::new(Attention::new(course)?));
    for &seq_len in &setup.lengths {
        for contestant in &mut contestants {
            let op = contestant.op();
            bar.set_message(format!("{op}, {seq_len} tokens"));
            if !race.stopped.iter().any(|stop| stop.op == op) {
                let elapsed = start.elapsed().as_secs_f64();
                match race.stop(contestant.as_ref(), seq_len, &setup.pace, elapsed) {
                    Some(stop) => race.stopped.push(stop),
                    None => one(course, &clock, contestant.as_mut(), seq_len, setup, race),
                }
            }
            bar.inc(1);
        }
    }
    Ok(())
}

/// A point that fails ends its contestant's race, and the others run on.
fn one(
    course: &Course,
    clock: &Clock,
    contestant: &mut dyn Contestant,
    seq_len: u32,
    setup: &Setup,
    race: &mut Race,
) {
    let op = contestant.op();
    match measure(course, clock, contestant, seq_len, setup) {
        Ok(row) => {
            race.failed |= row.median_us.is_none();
            race.rows.push(row);
        }
        Err(error) => {
            log(format_args!("error: {op}, {seq_len} tokens: {error}"));
            race.failed = true;
            race.stopped.push(Stop {
                op,
                seq_len,
                reason: error.to_string(),
            });
        }
    }
}

fn measure(
    course: &Course,
    clock: &Clock,
    contestant: &mut dyn Contestant,
    seq_len: u32,
    setup: &Setup,
) -> Result<Row> {
    let entry = contestant.enter(course, seq_len)?;
    let got = entry.run(&course.gpu)?;
    let mut row = Row::new(course, contestant, seq_len, &entry);
    match contestant.check(course, seq_len, &got) {
        Ok(error) => row.error = error,
        Err(difference) => {
            // JSON has no infinity, which a NaN in the result counts as
            row.error = difference.error.min(f64::MAX);
            log(format_args!(
                "error: {}, {seq_len} tokens: {difference}",
                row.op
            ));
            return Ok(row);
        }
    }
    let timing = clock.measure(setup.pace.budget, |pass| {
        entry.timed.iter().for_each(|bound| bound.record(pass));
    })?;
    row.time(course, &timing);
    Ok(row)
}

impl Race {
    /// Why a contestant does not run `seq_len`, if its last time says so.
    fn stop(
        &self,
        contestant: &dyn Contestant,
        seq_len: u32,
        pace: &Pace,
        elapsed: f64,
    ) -> Option<Stop> {
        let op = contestant.op();
        let last = self.rows.iter().rfind(|row| row.op == op)?;
        let growth = f64::from(seq_len) / f64::from(last.seq_len);
        let expected = 1e-6 * last.median_us? * growth.powi(contestant.order());
        // one run to be checked, one to warm up, one to see how long it takes, one at least to count
        let point = 4.0 * expected + pace.budget.total.as_secs_f64();
        let reason = if point > pace.point {
            format!(
                "would take about {point:.0} s, the limit is {} s",
                pace.point
            )
        } else if elapsed + point > pace.total {
            format!("the time for the whole race, {} s, is up", pace.total)
        } else {
            return None;
        };
        Some(Stop {
            op,
            seq_len,
            reason,
        })
    }
}

fn write(folder: &Path, name: &str, text: &str) -> Result<()> {
    let path = folder.join(name);
    fs::create_dir_all(folder)
        .and_then(|()| fs::write(&path, text))
        .map_err(|error| Error::failed(format_args!("{}: {error}", path.display())))
}
