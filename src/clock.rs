//! How long work takes on a device.
//!
//! A sample is the time of one pass of `3 n` repetitions less that of a pass of `n`, divided by `2 n`: what
//! a submission costs whatever is in it cancels out. A pass is timed by timestamp queries at its two ends
//! where the device has them and they agree with the wall clock, else by the wall clock around the
//! submission; [`Timing::clock`] says which. A submission is kept well under the two seconds after which
//! Windows takes a device away.

use std::fmt;
use std::time::{Duration, Instant};

use crate::{Error, Gpu};

/// What a submission may take, as far as repetitions decide it.
const LONGEST_SUBMISSION: f64 = 0.4;

/// From here on a repetition is timed by itself: the cost of its submission is far below a percent.
const LONG_REPETITION: f64 = 0.1;

/// For how long a GPU is kept busy before the first sample, in seconds: one that has idled begins at a fraction
/// of its clock rate, an H100 at a sixth. A CPU, which has been busy until then, needs none of it.
const WARM_UP: f64 = 0.5;

/// A submission of the warm-up: long beside the pause between two of them, in which the device idles.
const WARM_UP_SUBMISSION: f64 = 0.02;

/// Repetitions in the longer pass of a sample, in units of the shorter one's.
const RATIO: u32 = 3;

const MOST_REPETITIONS: u32 = 4096;

/// Times passes on one device.
#[derive(Debug, Clone)]
pub struct Clock {
    gpu: Gpu,
    queries: Option<Queries>,
}

#[derive(Debug, Clone)]
struct Queries {
    set: wgpu::QuerySet,
    ticks: wgpu::Buffer,
    seconds_per_tick: f64,
}

/// How much a measurement may cost. Warm-up comes on top, and one sample is always taken.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Budget {
    /// The time after which no further sample is begun.
    pub total: Duration,
    /// The most samples.
    pub samples: u32,
}

impl Default for Budget {
    fn default() -> Self {
        Self {
            total: Duration::from_secs(1),
            samples: 20,
        }
    }
}

impl Budget {
    /// The default number of samples within `seconds`, which are at most a day.
    pub fn seconds(seconds: f64) -> Self {
        Self {
            total: Duration::from_secs_f64(seconds.clamp(0.0, 86_400.0)),
            ..Self::default()
        }
    }
}

/// Where the times of a [`Timing`] come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Source {
    /// Timestamp queries at the ends of a pass.
    Timestamp,
    /// The wall clock around a submission.
    Wall,
}

impl Source {
    /// `"timestamp"` or `"wall"`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Timestamp => "timestamp",
            Self::Wall => "wall",
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The time of one repetition.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Timing {
    /// Half of the samples took less.
    pub median_us: f64,
    /// One in twenty took less.
    pub p5_us: f64,
    /// One in twenty took more.
    pub p95_us: f64,
    /// Where the times come from.
    pub clock: Source,
    /// How many there are.
    pub samples: usize,
}

/// The time of one pass, in seconds. `device` is missing where there are no timestamps that can be right.
#[derive(Debug, Clone, Copy)]
struct Span {
    wall: f64,
    device: Option<f64>,
}

impl Clock {
    /// A clock for the work of `gpu`.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub fn new(gpu: &Gpu) -> Result<Self, Error> {
        let device = gpu.device();
        let has_queries = device.features().contains(wgpu::Features::TIMESTAMP_QUERY);
        let queries = has_queries.then(|| Queries {
            set: device.create_query_set(&wgpu::QuerySetDescriptor {
                label: Some("gatefold clock"),
                ty: wgpu::QueryType::Timestamp,
                count: 2,
            }),
            ticks: device.create_buffer(&wgpu::BufferDescriptor {
                label: Some("gatefold clock"),
                size: 2 * u64::from(wgpu::QUERY_SIZE),
                usage: wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC,
                mapped_at_creation: false,
            }),
            seconds_per_tick: 1e-9 * f64::from(gpu.queue().get_timestamp_period()),
        });
        gpu.wait()?;
        Ok(Self {
            gpu: gpu.clone(),
            queries,
        })
    }

    /// Measures what `record` records, which must be at least one dispatch and may be repeated as often as
    /// wanted.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub fn measure(
        &self,
        budget: Budget,
        mut record: impl FnMut(&mut wgpu::ComputePass<'_>),
    ) -> Result<Timing, Error> {
        // the first run pays for what the driver has put off
        self.span(1, &mut record)?;
        let warm_up = match self.gpu.is_software() {
            true => Duration::ZERO,
            false => budget.total.min(Duration::from_secs_f64(WARM_UP)),
        };
        let mut start = Instant::now();
        let mut repetitions = 1;
        let mut trial = self.span(repetitions, &mut record)?;
        loop {
            if trial.wall < WARM_UP_SUBMISSION && repetitions < MOST_REPETITIONS {
                repetitions = (4 * repetitions).min(MOST_REPETITIONS);
            } else if start.elapsed() >= warm_up {
                break;
            }
            trial = self.span(repetitions, &mut record)?;
        }
        let each = trial.wall / f64::from(repetitions);
        start = Instant::now();
        if each >= LONG_REPETITION {
            let mut samples = vec![trial];
            while samples.len() < budget.samples as usize && start.elapsed() < budget.total {
                samples.push(self.span(1, &mut record)?);
            }
            return Ok(Timing::of(&samples));
        }
        let sample = budget.total.as_secs_f64() / f64::from(budget.samples.max(1));
        let wanted = (sample / f64::from(1 + RATIO)).min(LONGEST_SUBMISSION / f64::from(RATIO));
        let repetitions = (wanted / each).clamp(1.0, f64::from(MOST_REPETITIONS)) as u32;
        let mut samples = Vec::new();
        while samples.is_empty()
            || samples.len() < budget.samples as usize && start.elapsed() < budget.total
        {
            let short = self.span(repetitions, &mut record)?;
            let long = self.span(RATIO * repetitions, &mut record)?;
            samples.push(slope(short, long, repetitions));
        }
        Ok(Timing::of(&samples))
    }

    /// The time of `repetitions` one after another, in as many submissions as keep each of them short.
    ///
    /// Fit for criterion's `iter_custom`, whose own regression over the number of repetitions takes out
    /// what a submission costs.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub fn time(
        &self,
        repetitions: u64,
        mut record: impl FnMut(&mut wgpu::ComputePass<'_>),
    ) -> Result<Duration, Error> {
        let mut total = 0.0;
        let mut left = repetitions;
        let mut next = 1;
        while left > 0 {
            let count = left.min(next) as u32;
            let span = self.span(count, &mut record)?;
            let seconds = span.device.unwrap_or(span.wall);
            total += seconds;
            left -= u64::from(count);
            let fitting = LONGEST_SUBMISSION / (span.wall / f64::from(count));
            next = (fitting as u64).clamp(1, MOST_REPETITIONS.into());
        }
        Ok(Duration::from_secs_f64(total))
    }

    fn span(
        &self,
        repetitions: u32,
        record: &mut impl FnMut(&mut wgpu::ComputePass<'_>),
    ) -> Result<Span, Error> {
        let mut encoder = self
            .gpu
            .device()
            .create_command_encoder(&Default::default());
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor {
            label: Some("gatefold clock"),
            timestamp_writes: self.queries.as_ref().map(|queries| {
                wgpu::ComputePassTimestampWrites {
                    query_set: &queries.set,
                    beginning_of_pass_write_index: Some(0),
                    end_of_pass_write_index: Some(1),
                }
            }),
        });
        for _ in 0..repetitions {
            record(&mut pass);
        }
        drop(pass);
        if let Some(queries) = &self.queries {
            encoder.resolve_query_set(&queries.set, 0..2, &queries.ticks, 0);
        }
        let commands = encoder.finish();
        let start = Instant::now();
        self.gpu.queue().submit([commands]);
        self.gpu.wait()?;
        let wall = start.elapsed().as_secs_f64();
        let device = match &self.queries {
            None => None,
            Some(queries) => {
                let ticks: Vec<u64> = self.gpu.download(&queries.ticks)?;
                elapsed(ticks[0], ticks[1], queries.seconds_per_tick)
                    .filter(|&device| device <= wall)
            }
        };
        Ok(Span { wall, device })
    }
}

/// Seconds between two timestamps, if they are in order and the device wrote both.
fn elapsed(begin: u64, end: u64, seconds_per_tick: f64) -> Option<f64> {
    let written = begin != 0 && end > begin && seconds_per_tick > 0.0;
    written.then(|| (end - begin) as f64 * seconds_per_tick)
}

/// The time of one repetition from passes of `repetitions` and [`RATIO`] times as many.
fn slope(short: Span, long: Span, repetitions: u32) -> Span {
    let each = |short: f64, long: f64| {
        let slope = (long - short) / f64::from((RATIO - 1) * repetitions);
        // a hiccup in the shorter pass; the longer one's mean is an upper bound
        if slope > 0.0 {
            slope
        } else {
            long / f64::from(RATIO * repetitions)
        }
    };
    Span {
        wall: each(short.wall, long.wall),
        device: short
            .device
            .zip(long.device)
            .map(|(short, long)| each(short, long)),
    }
}

impl Timing {
    fn of(samples: &[Span]) -> Self {
        let wall = sorted(samples.iter().map(|sample| sample.wall).collect());
        let device: Option<Vec<f64>> = samples.iter().map(|sample| sample.device).collect();
        let device = device.map(sorted).filter(|device| {
            // both span the same work, so a clock that runs far from the other is wrong
            let ratio = percentile(device, 0.5) / percentile(&wall, 0.5);
            (0.6..1.2).contains(&ratio)
        });
        let (clock, sorted) = match device {
            Some(device) => (Source::Timestamp, device),
            None => (Source::Wall, wall),
        };
        Self {
            median_us: 1e6 * percentile(&sorted, 0.5),
            p5_us: 1e6 * percentile(&sorted, 0.05),
            p95_us: 1e6 * percentile(&sorted, 0.95),
            clock,
            samples: sorted.len(),
        }
    }
}

fn sorted(mut values: Vec<f64>) -> Vec<f64> {
    values.sort_unstable_by(f64::total_cmp);
    values
}

/// Between the two nearest of the sorted values, of which there is at least one.
fn percentile(sorted: &[f64], fraction: f64) -> f64 {
    let at = fraction * (sorted.len() - 1) as f64;
    let (low, high) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
    low + (high - low) * at.fract()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(wall: f64, device: f64) -> Span {
        Span {
            wall,
            device: Some(device),
        }
    }

    #[test]
    fn what_a_submission_costs_cancels_out() {
        let (fixed, each) = (0.5, 0.01);
        let pass = |n: f64| span(fixed + n * each, 0.1 + n * each);
        let sample = slope(pass(10.0), pass(30.0), 10);
        assert!((sample.wall - each).abs() < 1e-12);
        assert!(
            sample
                .device
                .is_some_and(|device| (device - each).abs() < 1e-12)
        );
    }

    #[test]
    fn a_hiccup_gives_an_upper_bound_and_nothing_negative() {
        assert_eq!(slope(span(9.0, 9.0), span(6.0, 6.0), 1).wall, 2.0);
    }

    #[test]
    fn timestamps_that_cannot_be_right_are_refused() {
        assert_eq!(elapsed(0, 5, 1.0), None);
        assert_eq!(elapsed(5, 5, 1.0), None);
        assert_eq!(elapsed(6, 5, 1.0), None);
        assert_eq!(elapsed(5, 6, 0.0), None);
        assert_eq!(elapsed(5, 7, 0.5), Some(1.0));
    }

    #[test]
    fn a_clock_far_from_the_wall_is_not_used() {
        let timing = |device| Timing::of(&[span(1.0, device)]).clock;
        assert_eq!(timing(0.98), Source::Timestamp);
        assert_eq!(timing(0.1), Source::Wall);
        assert_eq!(timing(1.5), Source::Wall);
        let one_missing = [
            span(1.0, 1.0),
            Span {
                wall: 1.0,
                device: None,
            },
        ];
        assert_eq!(Timing::of(&one_missing).clock, Source::Wall);
    }

    #[test]
    fn percentiles_lie_between_the_samples() {
        let samples: Vec<Span> = (0..=100)
            .map(|i| span(f64::from(i), f64::from(i)))
            .collect();
        let timing = Timing::of(&samples);
        assert!((timing.median_us - 50e6).abs() < 1.0);
        assert!((timing.p5_us - 5e6).abs() < 1.0);
        assert!((timing.p95_us - 95e6).abs() < 1.0);
    }
}
