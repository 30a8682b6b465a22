//! The judgement of recurrences: in their first steps and in their last ones, since the reference takes as long as many
//! runs of a kernel.

use std::ops::Range;

use gatefold::reference::Real;
use gatefold::reference::compare::{Difference, Tolerance, compare};

use super::course::Course;

/// Steps from the start that are compared with the reference.
const HEAD: usize = 256;
/// Steps before the end that are compared too.
pub const TAIL: usize = 32;
/// Steps that the reference runs from a state of zeros before the tail: by then the race's weights have
/// forgotten which state it was, to less than f32 can hold.
pub const WARM_UP: usize = 192;

/// What a contestant should come to.
pub trait Reference {
    /// The output of `steps` of the judged sequences, started from zeros, of which those from `first` on are kept.
    fn expected<R: Real>(&self, course: &Course, first: usize, steps: Range<usize>) -> Vec<R>;

    /// The same of the gradients of the input, if the sequence ends with `steps`.
    fn gradients<R: Real>(&self, course: &Course, first: usize, steps: Range<usize>) -> Vec<R>;
}

/// The outputs of the first steps of each judged sequence, once they are known.
#[derive(Default)]
pub struct Windows {
    head: Option<(Vec<f64>, Vec<f32>)>,
}

impl Windows {
    /// The worst error of an output.
    pub fn check(
        &mut self,
        of: &impl Reference,
        course: &Course,
        seq_len: u32,
        got: &[f32],
    ) -> Result<f64, Difference> {
        let (width, seq_len) = (course.width as usize, seq_len as usize);
        let most = HEAD.min(course.longest as usize);
        let (truth, yardstick) = self.head.get_or_insert_with(|| {
            (
                of.expected(course, 0, 0..most),
                of.expected(course, 0, 0..most),
            )
        });
        let len = seq_len.min(HEAD);
        let expected = (
            &*first_of_each(truth, most * width, len * width),
            &*first_of_each(yardstick, most * width, len * width),
        );
        let tolerance = Tolerance::RECURRENT;
        let mut worst = compare_steps("output", course, 0..len, got, expected, tolerance)?;
        if seq_len > HEAD {
            let tail = seq_len.saturating_sub(TAIL).max(HEAD);
            let steps = tail - WARM_UP..seq_len;
            let truth = of.expected(course, tail, steps.clone());
            let yardstick = of.expected(course, tail, steps);
            let expected = (&*truth, &*yardstick);
            let error = compare_steps("output", course, tail..seq_len, got, expected, tolerance)?;
            worst = f64::max(worst, error);
        }
        Ok(worst)
    }
}

/// The worst error of a gradient of the input, in the last steps: what they feel comes from behind, and the end is
/// there.
pub fn check_gradients(
    of: &impl Reference,
    course: &Course,
    seq_len: u32,
    got: &[f32],
) -> Result<f64, Difference> {
    let seq_len = seq_len as usize;
    let steps = seq_len.saturating_sub(TAIL + WARM_UP)..seq_len;
    let first = if steps.start == 0 { 0 } else { seq_len - TAIL };
    let truth = of.gradients(course, first, steps.clone());
    let yardstick = of.gradients(course, first, steps);
    let (name, expected) = ("grad_input", (&*truth, &*yardstick));
    compare_steps(
        name,
        course,
        first..seq_len,
        got,
        expected,
        Tolerance::GRADIENT,
    )
}

fn compare_steps(
    name: &str,
    course: &Course,
    steps: Range<usize>,
    got: &[f32],
    (truth, yardstick): (&[f64], &[f32]),
    tolerance: Tolerance,
) -> Result<f64, Difference> {
    let judged = course.judged();
    let shape = [judged.len(), steps.len(), course.width as usize];
    let got: Vec<f32> = judged
        .into_iter()
        .flat_map(|sequence| course.pick(got, sequence, steps.clone()))
        .collect();
    let agreement = compare(name, &shape, &got, truth, yardstick, tolerance)?;
    Ok(agreement.error)
}

fn first_of_each<R: Real>(values: &[R], each: usize, len: usize) -> Vec<R> {
    let parts = values.chunks_exact(each);
    parts.flat_map(|part| &part[..len]).copied().collect()
}
