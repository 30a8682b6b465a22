//! Whether imported weights mean what they are taken for, and if not, which mistake would explain it.

use std::fmt;

use super::{Initial, Problem, Weights, recurrent};
use crate::Cell;

/// What weights may be in place of what the problem takes them for: several mistakes at once, the same in all
/// layers and directions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mistake {
    /// The cell that the weights belong to.
    pub cell: Cell,
    /// It is the other GRU: the reset is before the product where it was taken for after, or the reverse.
    pub other_reset: bool,
    /// `weight_ih` is stored `[input_size, num_gates * hidden_size]`, as Keras's `kernel` is.
    pub transposed_ih: bool,
    /// `weight_hh` is stored `[state_size, num_gates * hidden_size]`, as Keras's `recurrent_kernel` is.
    pub transposed_hh: bool,
    /// `bias_ih` and `bias_hh` have changed places, which only a GRU notices.
    pub swapped_biases: bool,
    /// Where PyTorch's gates are stored: gate `i` is block `order[i]`. As many as the cell has.
    order: [usize; 4],
}

/// The outcome of [`self_check`].
#[derive(Debug, Clone, PartialEq)]
pub struct SelfCheck {
    /// The largest difference of the weights as they are, relative to the largest magnitude of the answer.
    pub error: f64,
    /// What explains the answer, the simplest first: nothing if all is well or if nothing that was tried does.
    pub mistakes: Vec<Mistake>,
    /// Whether the weights as they are give the answer.
    pub agrees: bool,
    /// Whether the answer can tell orders of gates apart: false if another one gives it, too, as with constant
    /// weights.
    pub telling: bool,
}

impl Mistake {
    fn none(cell: Cell) -> Self {
        Self {
            cell,
            other_reset: false,
            transposed_ih: false,
            transposed_hh: false,
            swapped_biases: false,
            order: [0, 1, 2, 3],
        }
    }

    /// Where PyTorch's gates are stored: gate `i` is block `order[i]`.
    pub fn order(&self) -> &[usize] {
        &self.order[..self.cell.num_gates() as usize]
    }

    fn count(&self) -> usize {
        [
            self.other_reset,
            self.transposed_ih,
            self.transposed_hh,
            self.swapped_biases,
            self.order != [0, 1, 2, 3],
        ]
        .into_iter()
        .filter(|&wrong| wrong)
        .count()
    }

    /// All that may be mistaken about `problem`, the simplest first.
    fn all(problem: &Problem) -> Vec<Self> {
        let gru = matches!(problem.cell, Cell::Gru | Cell::GruResetBefore);
        let cells = match gru {
            true => vec![Cell::Gru, Cell::GruResetBefore],
            false => vec![problem.cell],
        };
        let mut all = Vec::new();
        for cell in cells {
            for order in orders(cell.num_gates() as usize) {
                for bits in 0..8 {
                    let mistake = Self {
                        cell,
                        other_reset: cell != problem.cell,
                        transposed_ih: bits & 1 != 0,
                        transposed_hh: bits & 2 != 0,
                        swapped_biases: bits & 4 != 0,
                        order,
                    };
                    if gru || !mistake.swapped_biases {
                        all.push(mistake);
                    }
                }
            }
        }
        // a known order is likelier than another
        all.sort_by_key(|mistake| (mistake.count(), mistake.source().is_none()));
        all
    }

    /// Who stores the gates in this order, if it is not PyTorch.
    pub fn source(&self) -> Option<&'static str> {
        match (self.cell.num_gates(), self.order()) {
            (4, [0, 2, 3, 1]) => Some("ONNX's i o f c"),
            (4, [0, 2, 1, 3]) => Some("haste's i g f o"),
            (4, [0, 1, 3, 2]) => Some("Core ML's and WebNN's i f o g"),
            (3, [1, 0, 2]) => Some("ONNX's and Keras's z r h"),
            _ => None,
        }
    }

    fn repair(&self, problem: &Problem, weights: &Weights<f64>) -> Weights<f64> {
        let rows = self.order().len() * problem.hidden_size;
        let matrix = |stored: &[f64], transposed: bool| {
            let columns = stored.len() / rows;
            match transposed {
                true => {
                    let at = |i: usize| stored[i % columns * rows + i / columns];
                    self.reorder(&(0..stored.len()).map(at).collect::<Vec<_>>())
                }
                false => self.reorder(stored),
            }
        };
        let (ih, hh) = match self.swapped_biases {
            true => (&weights.bias_hh, &weights.bias_ih),
            false => (&weights.bias_ih, &weights.bias_hh),
        };
        Weights {
            weight_ih: matrix(&weights.weight_ih, self.transposed_ih),
            weight_hh: matrix(&weights.weight_hh, self.transposed_hh),
            bias_ih: self.reorder(ih),
            bias_hh: self.reorder(hh),
            peephole: weights.peephole.clone(),
            weight_hr: weights.weight_hr.clone(),
        }
    }

    fn reorder(&self, values: &[f64]) -> Vec<f64> {
        let block = values.len() / self.order().len();
        let blocks = self.order().iter();
        blocks
            .flat_map(|&from| &values[from * block..][..block])
            .copied()
            .collect()
    }
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut said = Vec::new();
        if self.order() != &[0, 1, 2, 3][..self.order().len()] {
            let names: &[&str] = match self.cell.num_gates() {
                4 => &["i", "f", "g", "o"],
                _ => &["r", "z", "n"],
            };
            let mut stored = vec![""; names.len()];
            for (name, &block) in names.iter().zip(self.order()) {
                stored[block] = name;
            }
            said.push(match self.source() {
                Some(source) => format!("the gates are in {source}"),
                None => format!("the gates are in the order {}", stored.join(" ")),
            });
        }
        for (transposed, name) in [
            (self.transposed_ih, "weight_ih"),
            (self.transposed_hh, "weight_hh"),
        ] {
            if transposed {
                said.push(format!("{name} is transposed"));
            }
        }
        if self.swapped_biases {
            said.push("bias_ih and bias_hh have changed places".into());
        }
        if self.other_reset {
            let place = match self.cell {
                Cell::GruResetBefore => "before",
                _ => "after",
            };
            said.push(format!("the reset is {place} the product"));
        }
        f.write_str(&said.join(", "))
    }
}

/// Whether `weights` give the known answer `output`, `[seq_len, batch, num_directions * state_size]`, to within
/// `tolerance` of its largest magnitude; if not, which mistakes about them would.
///
/// Tries every order of the gates, transposed matrices, swapped biases and the other place of a GRU's reset, alone
/// and together: up to 96 runs of the reference, so take a short sequence, with an input that differs from
/// step to step. A forget gate coupled to the input gate is not among them.
///
/// # Panics
/// If a tensor's length does not follow from `problem`.
pub fn self_check(
    problem: &Problem,
    input: &[f64],
    weights: &[Weights<f64>],
    initial: Initial<'_, f64>,
    output: &[f64],
    tolerance: f64,
) -> SelfCheck {
    let scale = output.iter().fold(0.0_f64, |most, x| most.max(x.abs()));
    let error = |mistake: &Mistake| {
        let repaired: Vec<_> = weights.iter().map(|w| mistake.repair(problem, w)).collect();
        let other = Problem {
            cell: mistake.cell,
            ..*problem
        };
        let got = recurrent(&other, input, &repaired, initial).output;
        assert_eq!(got.len(), output.len(), "the length of the known answer");
        let differences = got.iter().zip(output).map(|(got, x)| (got - x).abs());
        // max of two numbers forgets one that is none
        let worst = differences.fold(0.0_f64, |most, x| match most.is_nan() || x <= most {
            true => most,
            false => x,
        });
        worst / scale.max(f64::MIN_POSITIVE)
    };
    let as_it_is = Mistake::none(problem.cell);
    let own = error(&as_it_is);
    let agrees = own <= tolerance;
    let explains = |mistake: &Mistake| *mistake != as_it_is && error(mistake) <= tolerance;
    let mut others = Mistake::all(problem).into_iter();
    let (mistakes, telling) = match agrees {
        true => {
            let reorders =
                |mistake: &Mistake| mistake.count() == 1 && mistake.order != as_it_is.order;
            let telling = !others.any(|mistake| reorders(&mistake) && explains(&mistake));
            (Vec::new(), telling)
        }
        false => {
            let mistakes: Vec<Mistake> = others.filter(explains).collect();
            // the simplest explanation has company of its own kind
            let telling = match &mistakes[..] {
                [first, second, ..] => first.count() < second.count(),
                _ => true,
            };
            (mistakes, telling)
        }
    };
    SelfCheck {
        error: own,
        mistakes,
        agrees,
        telling,
    }
}

/// All orders of `count` gates, PyTorch's first.
fn orders(count: usize) -> Vec<[usize; 4]> {
    let mut all = vec![[0, 1, 2, 3]];
    for a in 0..count {
        for b in 0..count {
            for c in 0..count {
                let mut order = [a, b, c, 3];
                if count == 4 {
                    order[3] = 6_usize.wrapping_sub(a + b + c);
                }
                let mut sorted = order;
                sorted.sort_unstable();
                if count >= 3 && sorted == [0, 1, 2, 3] && !all.contains(&order) {
                    all.push(order);
                }
            }
        }
    }
    all
}
