//! The meaning of [`GradientClip`](crate::GradientClip).

use super::Real;

/// The norm of all gradients together, and the factor that bounds it to `max_norm`; the gradients are multiplied
/// by it.
pub fn clip_norm<R: Real>(gradients: &mut [Vec<R>], max_norm: f32) -> (R, R) {
    let all = gradients.iter().flatten();
    let squares = all.fold(R::ZERO, |sum, &x| sum + x * x);
    let norm = R::from_f64(squares.to_f64().sqrt());
    let factor = R::from_f64(max_norm.into()) / (norm + R::from_f64(1e-6));
    let factor = if factor > R::ONE { R::ONE } else { factor };
    for x in gradients.iter_mut().flatten() {
        *x = *x * factor;
    }
    (norm, factor)
}

/// Each element bounded to `-max_value..max_value`.
pub fn clip_value<R: Real>(gradients: &mut [Vec<R>], max_value: f32) {
    let bound = R::from_f64(max_value.into());
    for x in gradients.iter_mut().flatten() {
        if *x > bound {
            *x = bound;
        } else if *x < -bound {
            *x = -bound;
        }
    }
}
