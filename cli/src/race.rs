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
use options::Setup;
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
    let mut track = Track {
        course: &course,
        setup: &setup,
        clock: Clock::new(&course.gpu)?,
        start,
        bar,
        race: Race::new(&course, &setup, &text),
    };
    track.run()?;
    track.bar.finish_and_clear();
    let mut race = track.race;
    race.finish(&roof);

    let folder = &options.out_dir;
    write(folder, "race.json", &crate::report::json(&race)?)?;
    if race.has_times() {
        write(folder, "race.svg", &picture::draw(&race)?)?;
    }
    table::print(&race, options)?;
    Ok(ExitCode::from(u8::from(race.failed)))
}

fn contestants(course: &Course) -> Result<Vec<Box<dyn Contestant>>> {
    let mut contestants: Vec<Box<dyn Contestant>> = Vec::new();
    for cell in [Cell::RnnTanh, Cell::Lstm, Cell::Gru] {
        contestants.push(Box::new(Recurrence::new(course, cell)?));
    }
    contestants.push(Box::new(Attention::new(course)?));
    Ok(contestants)
}

/// How often each point is timed, with the other contestants in between: what disturbs one visit is gone by
/// the next, and the quieter one counts.
const VISITS: u32 = 2;

/// A race while it runs.
struct Track<'a> {
    course: &'a Course,
    setup: &'a Setup,
    clock: Clock,
    start: Instant,
    bar: ProgressBar,
    race: Race,
}

impl Track<'_> {
    /// Shortest length first, so that all contestants have run as far when the time is up.
    fn run(&mut self) -> Result<()> {
        self.bar.set_message("compiling");
        let mut contestants = contestants(self.course)?;
        for &seq_len in &self.setup.lengths {
            let mut ready = Vec::new();
            for contestant in &mut contestants {
                let op = contestant.op();
                self.bar.set_message(format!("{op}, {seq_len} tokens"));
                match self.enter(contestant.as_mut(), seq_len) {
                    Ok(entered) => ready.extend(entered),
                    // it ends this contestant's race, and the others run on
                    Err(error) => {
                        log(format_args!("error: {op}, {seq_len} tokens: {error}"));
                        self.race.failed = true;
                        self.race.stopped.push(Stop {
                            op,
                            seq_len,
                            reason: error.to_string(),
                        });
                    }
                }
                self.bar.inc(1);
            }
            for _ in 0..VISITS {
                for (row, entry) in &ready {
                    self.visit(*row, entry)?;
                }
            }
        }
        Ok(())
    }

    /// Checks a contestant's result and makes its row; without what is to be timed if it stopped or is wrong.
    fn enter(
        &mut self,
        contestant: &mut dyn Contestant,
        seq_len: u32,
    ) -> Result<Option<(usize, Entry)>> {
        let (op, course) = (contestant.op(), self.course);
        if self.race.stopped.iter().any(|stop| stop.op == op) {
            return Ok(None);
        }
        if let Some(reason) = self.too_long(contestant, seq_len) {
            self.race.stopped.push(Stop {
                op,
                seq_len,
                reason,
            });
            return Ok(None);
        }
        let entry = contestant.enter(course, seq_len)?;
        let got = entry.run(&course.gpu)?;
        let mut row = Row::new(course, contestant, seq_len, &entry);
        let checked = contestant.check(course, seq_len, &got);
        row.error = match &checked {
            Ok(error) => *error,
            // JSON has no infinity, which a NaN in the result counts as
            Err(difference) => difference.error.min(f64::MAX),
        };
        self.race.rows.push(row);
        if let Err(difference) = checked {
            log(format_args!("error: {op}, {seq_len} tokens: {difference}"));
            self.race.failed = true;
            return Ok(None);
        }
        Ok(Some((self.race.rows.len() - 1, entry)))
    }

    fn visit(&mut self, row: usize, entry: &Entry) -> Result<()> {
        let timing = self.clock.measure(self.setup.pace.budget, |pass| {
            entry.timed.iter().for_each(|bound| bound.record(pass));
        })?;
        self.race.rows[row].time(self.course, &timing);
        Ok(())
    }

    /// Why a contestant does not run `seq_len`, if its last time says so.
    fn too_long(&self, contestant: &dyn Contestant, seq_len: u32) -> Option<String> {
        let pace = &self.setup.pace;
        let mut rows = self.race.rows.iter();
        let last = rows.rfind(|row| row.op == contestant.op())?;
        let growth = f64::from(seq_len) / f64::from(last.seq_len);
        let expected = 1e-6 * last.median_us? * growth.powi(contestant.order());
        // in each visit one run to warm up, one to see how long it takes, one at least to count
        let runs = 1 + 3 * VISITS;
        let samples = VISITS * pace.budget.total;
        let point = f64::from(runs) * expected + samples.as_secs_f64();
        if point > pace.point {
            let limit = pace.point;
            Some(format!(
                "would take about {point:.1} s, the limit is {limit} s"
            ))
        } else if self.start.elapsed().as_secs_f64() + point > pace.total {
            let total = pace.total;
            Some(format!("the time for the whole race, {total} s, is up"))
        } else {
            None
        }
    }
}

fn write(folder: &Path, name: &str, text: &str) -> Result<()> {
    let path = folder.join(name);
    fs::create_dir_all(folder)
        .and_then(|()| fs::write(&path, text))
        .map_err(|error| Error::failed(format_args!("{}: {error}", path.display())))
}
