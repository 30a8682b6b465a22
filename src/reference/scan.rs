//! The meaning of [`Scan`](crate::Scan): one step after another.

use super::Real;
use crate::ScanShape;

/// The optional tensors of a scan: `h_0` `[batch, width]`, `lengths` `[batch]`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Optional<'a, R> {
    /// Zeros if absent.
    pub h_0: Option<&'a [R]>,
    /// `seq_len` if absent.
    pub lengths: Option<&'a [u32]>,
}

/// `output` `[seq_len, batch, width]`, `h_n` `[batch, width]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Output<R> {
    /// All states.
    pub output: Vec<R>,
    /// The state after each sequence's last step.
    pub h_n: Vec<R>,
}

/// `h_t = a_t h_(t-1) + b_t`, or in the reverse order of time.
pub fn scan<R: Real>(
    shape: ScanShape,
    reverse: bool,
    a: &[R],
    b: &[R],
    optional: Optional<'_, R>,
) -> Output<R> {
    let lanes = lanes(shape);
    let mut h = optional
        .h_0
        .map_or_else(|| vec![R::ZERO; lanes], <[R]>::to_vec);
    let mut output = vec![R::ZERO; a.len()];
    for time in times(shape, reverse) {
        for lane in inside(shape, optional.lengths, time) {
            let at = time * lanes + lane;
            h[lane] = a[at] * h[lane] + b[at];
            output[at] = h[lane];
        }
    }
    Output { output, h_n: h }
}

/// Gradients of `a`, `b` (and with it of every state, all that follows included) and `h_0`.
#[derive(Debug, Clone, PartialEq)]
pub struct Gradients<R> {
    /// `[seq_len, batch, width]`
    pub grad_a: Vec<R>,
    /// `[seq_len, batch, width]`
    pub grad_b: Vec<R>,
    /// `[batch, width]`
    pub grad_h_0: Vec<R>,
}

/// What `grad_output` `[seq_len, batch, width]` and `grad_h_n` `[batch, width]` come to.
pub fn scan_backward<R: Real>(
    shape: ScanShape,
    reverse: bool,
    a: &[R],
    b: &[R],
    optional: Optional<'_, R>,
    grad_output: &[R],
    grad_h_n: &[R],
) -> Gradients<R> {
    let lanes = lanes(shape);
    let output = scan(shape, reverse, a, b, optional).output;
    let mut dh = grad_h_n.to_vec();
    let (mut grad_a, mut grad_b) = (vec![R::ZERO; a.len()], vec![R::ZERO; a.len()]);
    for time in times(shape, !reverse) {
        for lane in inside(shape, optional.lengths, time) {
            let length = optional
                .lengths
                .map_or(shape.seq_len, |all| all[lane / shape.width as usize]);
            let first = if reverse { length as usize - 1 } else { 0 };
            let before = if time == first {
                optional.h_0.map_or(R::ZERO, |h_0| h_0[lane])
            } else {
                let before = if reverse { time + 1 } else { time - 1 };
                output[before * lanes + lane]
            };
            let at = time * lanes + lane;
            dh[lane] += grad_output[at];
            grad_a[at] = dh[lane] * before;
            grad_b[at] = dh[lane];
            dh[lane] = a[at] * dh[lane];
        }
    }
    Gradients {
        grad_a,
        grad_b,
        grad_h_0: dh,
    }
}

fn lanes(shape: ScanShape) -> usize {
    shape.batch as usize * shape.width as usize
}

fn times(shape: ScanShape, reverse: bool) -> impl Iterator<Item = usize> {
    let last = (shape.seq_len as usize).wrapping_sub(1);
    (0..shape.seq_len as usize).map(move |step| if reverse { last - step } else { step })
}

/// The lanes whose sequences reach up to `time`.
fn inside(shape: ScanShape, lengths: Option<&[u32]>, time: usize) -> impl Iterator<Item = usize> {
    let width = shape.width as usize;
    (0..lanes(shape))
        .filter(move |lane| lengths.is_none_or(|lengths| time < lengths[lane / width] as usize))
}
