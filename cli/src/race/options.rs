//! The flags of the race, and what they come to.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use gatefold::clock::Budget;

use crate::args::list::{self, List};
use crate::args::{self, Format};
use crate::error::{Error, Result};

#[derive(Debug, Args)]
pub struct Options {
    #[command(flatten)]
    pub device: args::Device,
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Format,
    /// The text whose bytes are the tokens [default: the Constitution of the United States, built in]
    #[arg(long, value_name = "FILE")]
    pub text: Option<PathBuf>,
    /// Where race.json and race.svg go
    #[arg(long, value_name = "DIR", default_value = ".")]
    pub out_dir: PathBuf,
    /// A small race: under a minute on two cores without a GPU
    #[arg(long)]
    pub quick: bool,
    /// Lengths of the sequence, as a list or a range [default: 128-8192*2; quick: 64-4096*2]
    #[arg(long)]
    pub seq_len: Vec<List>,
    /// Numbers per token and per state, the same for all [default: 256; quick: 128]
    #[arg(long)]
    pub width: Option<u32>,
    /// Heads of the attention [default: of 64 numbers each; quick: 32]
    #[arg(long)]
    pub heads: Option<u32>,
    /// Sequences at once; the first of a list is drawn [default: 1]
    #[arg(long)]
    pub batch: Vec<List>,
    /// Lengths at which a forward and a backward pass are timed too [default: 128,512; quick: 64,256]
    #[arg(long, value_name = "LIST")]
    pub train_len: Vec<List>,
    /// Forward passes only
    #[arg(long, conflicts_with = "train_len")]
    pub no_training: bool,
    /// Time the steps alone and the attention alone, with what the projections made already in memory
    #[arg(long)]
    pub no_projections: bool,
    /// Seconds of each of the two visits to a point, the quieter of which counts [default: 0.7; quick: 0.25]
    #[arg(long, value_parser = args::seconds)]
    pub seconds: Option<f64>,
    /// A contestant stops before a point that would take more seconds [default: 30; quick: 8]
    #[arg(long, value_parser = args::seconds)]
    pub limit: Option<f64>,
}

/// A race with every default filled in, checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Setup {
    /// Ascending.
    pub lengths: Vec<u32>,
    pub width: u32,
    pub heads: u32,
    /// As they were given, each once.
    pub batches: Vec<u32>,
    /// Ascending, none above the longest.
    pub training: Vec<u32>,
    pub pace: Pace,
}

impl Setup {
    pub fn longest(&self) -> u32 {
        self.lengths.last().copied().unwrap_or_default()
    }
}

/// How long things may take.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pace {
    /// For the samples of a visit to a point.
    pub budget: Budget,
    /// For each candidate of the roof, in seconds.
    pub peak: f64,
    /// For a point with all its runs, in seconds.
    pub point: f64,
    /// After which no point is begun but the first of each contestant, in seconds.
    pub total: f64,
}

/// Numbers of all token vectors together: far above any use, far below what a host cannot hold.
const MOST_NUMBERS: u64 = 1 << 30;

impl Options {
    pub fn setup(&self) -> Result<Setup> {
        let width = self.width.unwrap_or(if self.quick { 128 } else { 256 });
        if !(1..=4096).contains(&width) {
            return Err(Error::usage(format_args!(
                "--width is {width}, expected 1 to 4096"
            )));
        }
        let most = if self.quick { 32 } else { 64 };
        let heads = self.heads.unwrap_or_else(|| default_heads(width, most));
        if heads == 0 || !width.is_multiple_of(heads) || width / heads > 256 {
            return Err(Error::usage(format_args!(
                "--heads is {heads}, expected a divisor of the width {width} that leaves at most 256"
            )));
        }
        let last = if self.quick { 4096 } else { 8192 };
        let mut lengths = list::values(&self.seq_len)
            .unwrap_or_else(|| (6..14).map(|power| 1 << power).collect());
        if self.seq_len.is_empty() {
            lengths.retain(|&len| len <= last && (self.quick || len >= 128));
        }
        lengths.sort_unstable();
        lengths.dedup();
        let (first, last) = (lengths[0], lengths[lengths.len() - 1]);
        let mut batches = Vec::new();
        for batch in list::values(&self.batch).unwrap_or(vec![1]) {
            let numbers = u64::from(last) * u64::from(width) * u64::from(batch);
            if first == 0 || batch == 0 || numbers > MOST_NUMBERS {
                return Err(Error::usage(format_args!(
                    "--seq-len {last} x --batch {batch} x --width {width}: expected 1 to 2^30 numbers"
                )));
            }
            if !batches.contains(&batch) {
                batches.push(batch);
            }
        }
        let training = self.training(last)?;
        Ok(Setup {
            lengths,
            width,
            heads,
            batches,
            training,
            pace: self.pace(),
        })
    }

    fn training(&self, longest: u32) -> Result<Vec<u32>> {
        if self.no_training || self.no_projections {
            return Ok(Vec::new());
        }
        let usual = if self.quick { [64, 256] } else { [128, 512] };
        let Some(mut lengths) = list::values(&self.train_len) else {
            return Ok(usual.into_iter().filter(|&len| len <= longest).collect());
        };
        lengths.sort_unstable();
        lengths.dedup();
        if lengths[0] == 0 || lengths[lengths.len() - 1] > longest {
            return Err(Error::usage(format_args!(
                "--train-len: expected 1 to the longest --seq-len, {longest}"
            )));
        }
        Ok(lengths)
    }

    fn pace(&self) -> Pace {
        let (seconds, samples, peak, point, total) = if self.quick {
            (0.25, 10, 0.05, 8.0, 40.0)
        } else {
            (0.7, 20, 0.15, 30.0, 150.0)
        };
        Pace {
            budget: Budget {
                total: Duration::from_secs_f64(self.seconds.unwrap_or(seconds)),
                samples,
            },
            peak,
            point: self.limit.unwrap_or(point),
            total,
        }
    }
}

/// As few heads as leave at most `most` numbers to each.
fn default_heads(width: u32, most: u32) -> u32 {
    let heads = (width.div_ceil(most)..=width).find(|&heads| width.is_multiple_of(heads));
    heads.unwrap_or(width)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        options: Options,
    }

    fn setup(words: &str) -> Result<Setup> {
        let words = ["race"].into_iter().chain(words.split_whitespace());
        Line::parse_from(words).options.setup()
    }

    #[test]
    fn defaults() {
        let full = setup("").unwrap();
        assert_eq!((full.width, full.heads), (256, 4));
        assert_eq!((full.batches, full.training), (vec![1], vec![128, 512]));
        assert_eq!(full.lengths, [128, 256, 512, 1024, 2048, 4096, 8192]);
        let quick = setup("--quick").unwrap();
        assert_eq!(quick.lengths, [64, 128, 256, 512, 1024, 2048, 4096]);
    }

    #[test]
    fn lengths_are_sorted_and_none_comes_twice() {
        let lengths = setup("--seq-len 64,32 --seq-len 32").unwrap().lengths;
        assert_eq!(lengths, [32, 64]);
    }

    #[test]
    fn training_stays_within_the_race() {
        assert_eq!(setup("--quick --seq-len 32,64").unwrap().training, [64]);
        assert!(setup("--no-training").unwrap().training.is_empty());
        assert_eq!(setup("--train-len 300,8").unwrap().training, [8, 300]);
        assert!(setup("--seq-len 64 --train-len 65").is_err());
        assert_eq!(setup("--batch 16,1,16").unwrap().batches, [16, 1]);
    }

    #[test]
    fn heads_divide_the_width() {
        assert_eq!(default_heads(256, 64), 4);
        assert_eq!(default_heads(96, 64), 2);
        assert_eq!(default_heads(67, 64), 67);
        assert!(setup("--width 64 --heads 3").is_err());
        assert!(setup("--width 512 --heads 1").is_err());
    }

    #[test]
    fn nothing_and_too_much_are_refused() {
        for words in ["--width 0", "--batch 0", "--seq-len 0,8", "--batch 9000000"] {
            assert!(setup(words).is_err(), "{words}");
        }
    }
}
