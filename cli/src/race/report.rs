//! What a race found, as race.json has it.

use std::time::SystemTime;

use gatefold::Gpu;
use gatefold::clock::Timing;
use serde::Serialize;
use serde_json::{Map, Value};

use super::course::{Course, Entry, Text};
use super::crossing::{self, Crossing, Point};
use super::options::Setup;
use super::{Contestant, words};
use crate::adapter::Adapter;
use crate::peak::Peak;

#[derive(Debug, Serialize)]
pub struct Race {
    schema: u32,
    version: &'static str,
    date: String,
    pub adapter: Adapter,
    pub peak: Option<Peak>,
    pub text: Source,
    pub width: u32,
    pub heads: u32,
    /// Of the picture and the crossings: the first of the batches.
    pub batch: u32,
    pub batches: Vec<u32>,
    pub projections: bool,
    checked: &'static str,
    pub rows: Vec<Row>,
    /// Forward and backward passes together.
    pub training: Vec<Row>,
    pub crossings: Vec<Crossing>,
    pub stopped: Vec<Stop>,
    /// Whether a result was wrong or a point could not be run.
    pub failed: bool,
}

/// The text that was read.
#[derive(Debug, Serialize)]
pub struct Source {
    pub name: String,
    pub bytes: usize,
    pub bytes_used: usize,
    /// Whether it was too short and read again from the start.
    pub repeated: bool,
    embedding: &'static str,
}

/// A contestant at one length. The numbers of a wrong result are absent.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    pub op: &'static str,
    pub seq_len: u32,
    shape: Map<String, Value>,
    dtype: &'static str,
    pub variant: String,
    pub tier: Option<String>,
    pub kernel: String,
    pub dispatches: u32,
    pub median_us: Option<f64>,
    pub p5_us: Option<f64>,
    pub p95_us: Option<f64>,
    pub us_per_step: Option<f64>,
    pub tokens_per_s: Option<f64>,
    pub gflops: Option<f64>,
    pub gbytes_per_s: Option<f64>,
    pub percent_of_roof: Option<f64>,
    pub memory_bytes: u64,
    pub error: f64,
    pub clock: Option<&'static str>,
    projections: bool,
    /// Whether the backward pass is part of it.
    pub grad: bool,
    #[serde(skip)]
    pub batch: u32,
    #[serde(skip)]
    flops: f64,
    #[serde(skip)]
    bytes: f64,
}

/// A contestant that did not run further.
#[derive(Debug, Serialize)]
pub struct Stop {
    pub op: &'static str,
    pub batch: u32,
    pub grad: bool,
    /// The length it did not run.
    pub seq_len: u32,
    pub reason: String,
}

const CHECKED: &str = "against the f64 reference, at every length: a recurrence in its first 256 steps and \
                       its last 32, attention in queries at both ends, at tiles' edges and in between, training \
                       in the gradients of the last 32 inputs; the first and the last sequence of the batch";

pub const EMBEDDING: &str = "a fixed table of 256 vectors, gathered on the host before the race";

/// The last is what the others are compared with.
pub const OPS: [&str; 6] = ["rnn", "lstm", "gru", "mingru", "minlstm", "attention"];

/// Those that take one step after another.
const SEQUENTIAL: [&str; 3] = ["rnn", "lstm", "gru"];

impl Row {
    pub fn new(
        course: &Course,
        contestant: &dyn Contestant,
        seq_len: u32,
        grad: bool,
        entry: &Entry,
    ) -> Self {
        let facts = &entry.facts;
        let shape = contestant.shape(course, seq_len);
        Self {
            op: contestant.op(),
            seq_len,
            shape: shape
                .into_iter()
                .map(|(name, value)| (name.to_owned(), value))
                .collect(),
            dtype: "f32",
            variant: facts.variant.clone(),
            tier: facts.tier.clone(),
            kernel: facts.kernel.clone(),
            dispatches: entry.num_dispatches(),
            median_us: None,
            p5_us: None,
            p95_us: None,
            us_per_step: None,
            tokens_per_s: None,
            gflops: None,
            gbytes_per_s: None,
            percent_of_roof: None,
            memory_bytes: facts.memory_bytes,
            error: 0.0,
            clock: None,
            projections: course.projections,
            grad,
            batch: course.batch,
            flops: facts.flops,
            bytes: facts.bytes,
        }
    }

    /// The times of a visit, unless one before was quieter.
    pub fn time(&mut self, timing: &Timing) {
        let us = timing.median_us;
        if self.median_us.is_some_and(|before| before <= us) {
            return;
        }
        self.median_us = Some(us);
        self.p5_us = Some(timing.p5_us);
        self.p95_us = Some(timing.p95_us);
        self.us_per_step = self.tier.is_some().then(|| us / f64::from(self.seq_len));
        self.tokens_per_s = Some(1e6 * f64::from(self.batch) * f64::from(self.seq_len) / us);
        self.gflops = Some(1e-3 * self.flops / us);
        self.gbytes_per_s = Some(1e-3 * self.bytes / us);
        self.clock = Some(timing.clock.name());
    }
}

impl Race {
    pub fn new(gpu: &Gpu, setup: &Setup, text: &Text, projections: bool) -> Self {
        let most = setup.batches.iter().copied().max().unwrap_or_default();
        let bytes_used = (setup.longest() * most) as usize;
        Self {
            schema: 1,
            version: env!("CARGO_PKG_VERSION"),
            date: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
            adapter: Adapter::of(gpu.info()),
            peak: None,
            text: Source {
                name: text.name.clone(),
                bytes: text.bytes.len(),
                bytes_used: bytes_used.min(text.bytes.len()),
                repeated: bytes_used > text.bytes.len(),
                embedding: EMBEDDING,
            },
            width: setup.width,
            heads: setup.heads,
            batch: setup.batches.first().copied().unwrap_or_default(),
            batches: setup.batches.clone(),
            projections,
            checked: CHECKED,
            rows: Vec::new(),
            training: Vec::new(),
            crossings: Vec::new(),
            stopped: Vec::new(),
            failed: false,
        }
    }

    /// What needs all rows: crossings, and how near each came to the best that the device gave in this run,
    /// be it to a row itself.
    pub fn finish(&mut self, roof: &gatefold::peak::Peak) {
        let place = |op| OPS.iter().position(|other| *other == op);
        let batches = self.batches.clone();
        let batch = |row: &Row| batches.iter().position(|&batch| batch == row.batch);
        self.rows
            .sort_by_key(|row| (batch(row), place(row.op), row.seq_len));
        let mut roof = roof.clone();
        for row in &self.rows {
            let pass = if row.grad { " training" } else { "" };
            let kernel = format!("{}{pass}, {} tokens", row.op, row.seq_len);
            if row.gflops.is_some_and(|gflops| gflops > roof.gflops) {
                roof.gflops = row.gflops.unwrap_or(roof.gflops);
                roof.gflops_kernel = kernel.clone();
            }
            if row
                .gbytes_per_s
                .is_some_and(|rate| rate > roof.gbytes_per_s)
            {
                roof.gbytes_per_s = row.gbytes_per_s.unwrap_or(roof.gbytes_per_s);
                roof.gbytes_kernel = kernel;
            }
        }
        for row in &mut self.rows {
            row.percent_of_roof = row.gflops.zip(row.gbytes_per_s).map(|(gflops, rate)| {
                100.0 * f64::max(gflops / roof.gflops, rate / roof.gbytes_per_s)
            });
        }
        self.peak = Some(Peak::from(&roof));
        let (training, forward) = self.rows.drain(..).partition(|row| row.grad);
        (self.training, self.rows) = (training, forward);
        let attention = self.points("attention");
        self.crossings = SEQUENTIAL
            .iter()
            .filter_map(|op| crossing::find(op, &self.points(op), &attention))
            .collect();
    }

    /// The rows that are drawn: forward, of the first batch.
    pub fn drawn(&self) -> impl Iterator<Item = &Row> {
        let rows = self.rows.iter();
        rows.filter(|row| row.batch == self.batch && !row.grad)
    }

    /// Measured times by length, of the rows that are drawn.
    pub fn points(&self, op: &str) -> Vec<Point> {
        let rows = self.drawn().filter(|row| row.op == op);
        rows.filter_map(|row| Some((row.seq_len, row.median_us?)))
            .collect()
    }

    pub fn has_times(&self) -> bool {
        self.rows.iter().any(|row| row.median_us.is_some())
    }

    /// Points whose slow samples took more than twice as long as the fast ones.
    pub fn restless(&self) -> usize {
        let rows = self.rows.iter().chain(&self.training);
        rows.filter(|row| row.p95_us > row.p5_us.map(|us| 2.0 * us))
            .count()
    }

    /// What was raced, in a few words each.
    pub fn conditions(&self) -> [String; 3] {
        let projections = if self.projections {
            "projections included: W x of the recurrences; Q, K, V, O of attention"
        } else {
            "projections left out on both sides: recurrent steps alone, attention alone"
        };
        let head_dim = self.width / self.heads;
        let repeated = if self.text.repeated {
            " (repeated)"
        } else {
            ""
        };
        [
            format!(
                "f32, width {}, {} heads × {head_dim}, batch {}",
                self.width, self.heads, self.batch
            ),
            projections.into(),
            format!("bytes of {}{repeated}", self.text.name),
        ]
    }

    /// `"wall"`, `"timestamp"` or both.
    pub fn clocks(&self) -> String {
        let mut clocks: Vec<_> = self.rows.iter().filter_map(|row| row.clock).collect();
        clocks.sort_unstable();
        clocks.dedup();
        clocks.join(" and ")
    }

    /// One sentence for each recurrence.
    pub fn sentences(&self) -> Vec<String> {
        let sentence = |crossing: &Crossing| {
            let op = words::op(crossing.op);
            match (crossing.tokens, crossing.us) {
                (Some(tokens), Some(us)) => format!(
                    "{op} = attention at {} tokens, {}",
                    words::about(tokens),
                    words::duration(us)
                ),
                _ => format!(
                    "{op}: no crossing up to {} tokens, {} is faster",
                    crossing.up_to,
                    words::op(crossing.faster)
                ),
            }
        };
        self.crossings.iter().map(sentence).collect()
    }

    /// Which kernels ran.
    pub fn kernels(&self) -> Vec<String> {
        let mut lines: Vec<String> = Vec::new();
        for row in self.rows.iter().chain(&self.training) {
            let pass = if row.grad { ", training" } else { "" };
            let (op, kernel) = (words::op(row.op), &row.kernel);
            let line = format!("{op}{pass}: {kernel}, {}", row.variant);
            if !lines.contains(&line) {
                lines.push(line);
            }
        }
        lines
    }
}
