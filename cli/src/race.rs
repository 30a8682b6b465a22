//! `gatefold race`: RNN, LSTM and GRU, which take one step after another, against attention, minGRU and minLSTM,
//! which take all tokens at once, on the same real text. First each result is checked, then it is timed.

mod attention;
mod course;
mod crossing;
mod options;
mod parallel;
pub(crate) mod picture;
mod plot;
mod recurrence;
mod report;
mod table;
mod windows;
pub(crate) mod words;

use std::process::ExitCode;
use std::time::Instant;

use gatefold::clock::Clock;
use gatefold::reference::compare::Difference;
use gatefold::{Cell, MinCell};
use indicatif::ProgressBar;
use serde_json::Value;

use crate::error::Result;
use crate::report::{log, progress, save};
use crate::{adapter, peak};
use attention::Attention;
use course::{Course, Entry, Text};
use options::Setup;
use parallel::Parallel;
use recurrence::Recurrence;
use report::{Race, Row, Stop};

pub use options::Options;

/// Who runs.
pub trait Contestant {
    fn op(&self) -> &'static str;

    /// The power of the length that the time grows with in the end.
    fn order(&self) -> i32;

    /// In the words of `bench`'s flags.
    fn shape(&self, course: &Course, seq_len: u32) -> Vec<(&'static str, Value)>;

    /// Allocates and binds.
    fn enter(&self, course: &Course, seq_len: u32) -> Result<Entry>;

    /// The worst error of an element relative to its row, or the element that is wrong.
    fn check(&mut self, course: &Course, seq_len: u32, got: &[f32]) -> Result<f64, Difference>;

    /// Allocates and binds a forward and a backward pass, from gradients of all outputs to those of the input and
    /// all weights; the output is the gradient of the input. None if it cannot be trained.
    fn enter_training(&self, _course: &Course, _seq_len: u32) -> Result<Option<Entry>> {
        Ok(None)
    }

    /// As [`check`](Self::check), of the gradient of the input.
    fn check_training(
        &mut self,
        _course: &Course,
        _seq_len: u32,
        _got: &[f32],
    ) -> Result<f64, Difference> {
        Ok(0.0)
    }
}

pub fn run(options: &Options) -> Result<ExitCode> {
    let start = Instant::now();
    let setup = options.setup()?;
    let text = Text::load(options.text.as_deref())?;
    let gpu = adapter::open(&options.device)?;
    adapter::announce(&gpu);

    let points = setup.batches.len() * (setup.lengths.len() + setup.training.len());
    let bar = progress(1 + points * report::OPS.len());
    bar.set_message("roof");
    let roof = peak::measure(&gpu, setup.pace.peak)?;
    bar.inc(1);
    let projections = !options.no_projections;
    let mut track = Track {
        setup: &setup,
        clock: Clock::new(&gpu)?,
        start,
        bar,
        race: Race::new(&gpu, &setup, &text, projections),
    };
    for &batch in &setup.batches {
        track.run(&Course::new(
            gpu.clone(),
            &setup,
            batch,
            &text,
            projections,
        )?)?;
    }
    track.bar.finish_and_clear();
    let mut race = track.race;
    race.finish(&roof);

    let folder = &options.out_dir;
    save(folder, "race.json", &crate::report::json(&race)?)?;
    if race.has_times() {
        save(folder, "race.svg", &picture::draw(&race)?)?;
    }
    table::print(&race, options)?;
    Ok(ExitCode::from(u8::from(race.failed)))
}

fn contestants(course: &Course) -> Result<Vec<Box<dyn Contestant>>> {
    let mut contestants: Vec<Box<dyn Contestant>> = Vec::new();
    for cell in [Cell::RnnTanh, Cell::Lstm, Cell::Gru] {
        contestants.push(Box::new(Recurrence::new(course, cell)?));
    }
    for cell in [MinCell::Gru, MinCell::Lstm] {
        contestants.push(Box::new(Parallel::new(course, cell)?));
    }
    contestants.push(Box::new(Attention::new(course)?));
    Ok(contestants)
}

/// How often each point is timed, with the other contestants in between: what disturbs one visit is gone by
/// the next, and the quieter one counts.
const VISITS: u32 = 2;

/// A forward and a backward pass take at most about so many times as long as a forward pass.
const BACKWARD: f64 = 4.0;

/// A point that takes no more than this share of the time for the whole race is not the one too many.
const CHEAP: f64 = 0.01;

/// A race while it runs.
struct Track<'a> {
    setup: &'a Setup,
    clock: Clock,
    start: Instant,
    bar: ProgressBar,
    race: Race,
}

impl Track<'_> {
    /// Shortest length first, so that all contestants have run as far when the time is up.
    fn run(&mut self, course: &Course) -> Result<()> {
        self.bar.set_message("compiling");
        let mut contestants = contestants(course)?;
        let forward = self.setup.lengths.iter().map(|&len| (len, false));
        let training = self.setup.training.iter().map(|&len| (len, true));
        for (seq_len, grad) in forward.chain(training) {
            let mut ready = Vec::new();
            for contestant in &mut contestants {
                let op = contestant.op();
                self.bar.set_message(format!("{op}, {seq_len} tokens"));
                match self.enter(course, contestant.as_mut(), seq_len, grad) {
                    Ok(entered) => ready.extend(entered),
                    // it ends this contestant's race, and the others run on
                    Err(error) => {
                        log(format_args!("error: {op}, {seq_len} tokens: {error}"));
                        self.race.failed = true;
                        self.stop(course, op, seq_len, grad, error.to_string());
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

    fn stop(
        &mut self,
        course: &Course,
        op: &'static str,
        seq_len: u32,
        grad: bool,
        reason: String,
    ) {
        self.race.stopped.push(Stop {
            op,
            batch: course.batch,
            grad,
            seq_len,
            reason,
        });
    }

    /// Checks a contestant's result and makes its row; without what is to be timed if it stopped or is wrong.
    fn enter(
        &mut self,
        course: &Course,
        contestant: &mut dyn Contestant,
        seq_len: u32,
        grad: bool,
    ) -> Result<Option<(usize, Entry)>> {
        let op = contestant.op();
        let mut stops = self.race.stopped.iter();
        if stops.any(|stop| (stop.op, stop.batch, stop.grad) == (op, course.batch, grad)) {
            return Ok(None);
        }
        if let Some(reason) = self.too_long(course, contestant, seq_len, grad) {
            self.stop(course, op, seq_len, grad, reason);
            return Ok(None);
        }
        let entry = match grad {
            true => contestant.enter_training(course, seq_len)?,
            false => Some(contestant.enter(course, seq_len)?),
        };
        let Some(entry) = entry else {
            return Ok(None);
        };
        let got = entry.run(&course.gpu)?;
        let mut row = Row::new(course, contestant, seq_len, grad, &entry);
        let checked = match grad {
            true => contestant.check_training(course, seq_len, &got),
            false => contestant.check(course, seq_len, &got),
        };
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
        self.race.rows[row].time(&timing);
        Ok(())
    }

    /// Why a contestant does not run `seq_len`, if its last time says so.
    fn too_long(
        &self,
        course: &Course,
        contestant: &dyn Contestant,
        seq_len: u32,
        grad: bool,
    ) -> Option<String> {
        let pace = &self.setup.pace;
        let rows = self.race.rows.iter();
        let own = rows.filter(|row| row.op == contestant.op() && row.batch == course.batch);
        // the first time with gradients tells from a forward pass, the longest that is no longer
        let last = own
            .filter(|row| row.grad <= grad && (!grad || row.seq_len <= seq_len))
            .last()?;
        let passes = if last.grad == grad { 1.0 } else { BACKWARD };
        let growth = f64::from(seq_len) / f64::from(last.seq_len);
        let expected = passes * 1e-6 * last.median_us? * growth.powi(contestant.order());
        // in each visit one run to warm up, one to see how long it takes, one at least to count
        let runs = 1 + 3 * VISITS;
        let samples = VISITS * pace.budget.total;
        let point = f64::from(runs) * expected + samples.as_secs_f64();
        if point > pace.point {
            let limit = pace.point;
            Some(format!(
                "would take about {point:.1} s, the limit is {limit} s"
            ))
        } else if point > CHEAP * pace.total
            && self.start.elapsed().as_secs_f64() + point > pace.total
        {
            let total = pace.total;
            Some(format!("the time for the whole race, {total} s, is up"))
        } else {
            None
        }
    }
}
