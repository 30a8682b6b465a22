//! What is handed out, and in which order of axes.

use crate::tensors::Tensor;

/// An output, with its time first, and the order of the axes in which it is handed out.
pub struct Wanted {
    pub name: String,
    pub shape: Vec<usize>,
    pub order: &'static [usize],
}

impl Wanted {
    const AXES: [usize; 4] = [0, 1, 2, 3];

    /// Handed out as it is.
    pub fn plain(name: impl Into<String>, shape: &[usize]) -> Self {
        Self {
            name: name.into(),
            shape: shape.to_vec(),
            order: &Self::AXES[..shape.len()],
        }
    }

    /// The shape in which it is handed out.
    pub fn handed_shape(&self) -> Vec<usize> {
        self.order.iter().map(|&axis| self.shape[axis]).collect()
    }

    /// As the device has it if that is how it is handed out.
    pub fn in_place(&self) -> Self {
        Self::plain(self.name.clone(), &self.handed_shape())
    }

    /// What is handed out, with its time first again.
    pub fn undone(&self, handed: &Tensor) -> Tensor {
        let mut back = vec![0; self.order.len()];
        for (i, &axis) in self.order.iter().enumerate() {
            back[axis] = i;
        }
        handed.permuted(&back)
    }
}
