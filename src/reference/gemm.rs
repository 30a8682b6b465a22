//! The meaning of [`Gemm`](crate::Gemm) on contiguous matrices.

use super::Real;

/// `a b + bias`: `a` `[m, k]`, `b` `[k, n]`, `bias` `[n]`.
pub fn gemm<R: Real>(k: usize, n: usize, a: &[R], b: &[R], bias: Option<&[R]>) -> Vec<R> {
    let element = |row: &[R], column: usize| {
        let products = row.iter().enumerate().map(|(i, &x)| x * b[i * n + column]);
        let sum = products.fold(R::ZERO, |sum, product| sum + product);
        bias.map_or(sum, |bias| sum + bias[column])
    };
    a.chunks_exact(k)
        .flat_map(|row| (0..n).map(move |column| element(row, column)))
        .collect()
}
