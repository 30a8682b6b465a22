//! From WGSL text to a dispatch: what a kernel is, and how its source is put together.
//!
//! A [`Kernel`] is plain data: parts of WGSL that are joined as text, and its bindings in order. Host
//! values reach it in two ways only: as `const` lines in front of the text ([`Constants`]; they size
//! register arrays and let the compiler drop branches), and as the uniform `params`. A [`Dispatch`] adds
//! the values, the grid and the buffers of one launch. Everything here is decided without a device;
//! [`Context::bind`](crate::Context::bind) carries it out.

use std::borrow::Cow;
use std::fmt::Write;
use std::hash::{Hash, Hasher};
use std::ops::Range;

use crate::{ElementType, Error};

/// Stands before the text of every kernel: bounded activations, the mask sentinel.
pub const COMMON: &str = include_str!("../shaders/common.wgsl");

/// Of the kernels that are long texts on a CPU: `once()`, a border for its compiler.
pub(crate) const IN_ORDER: &str = include_str!("../shaders/in_order.wgsl");

/// The most invocations of a kernel that one [`Dispatch::steps`] can number.
pub const MAX_STEPS: u32 = 256;

/// How a kernel uses the storage buffer at one of its bindings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Access {
    /// `var<storage, read>`
    Read,
    /// `var<storage, read_write>`
    Write,
}

/// A compute kernel as data.
///
/// Group 0 holds the uniform `params` at binding 0 and the storage buffers from binding 1 on. A kernel
/// that is launched repeatedly ([`Kernel::stepped`]) finds the number of the repetition in the uniform
/// at group 1, binding 0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kernel {
    /// The entry point, the stem of the shader file, and the label in every profiler.
    pub name: &'static str,
    /// The language extensions that the text needs, as in `enable f16;`.
    pub enables: &'static [&'static str],
    /// WGSL, joined in this order behind the constants.
    pub parts: Cow<'static, [&'static str]>,
    /// Name and type of each field of the WGSL struct `Params`, all four bytes wide.
    pub params: &'static [(&'static str, &'static str)],
    /// The storage buffers, from binding 1 on.
    pub storage: &'static [Access],
    /// Whether group 1 holds the step uniform.
    pub stepped: bool,
}

/// The name tells kernels apart well enough: the text of one has tens of thousands of characters.
impl Hash for Kernel {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.name.hash(state);
    }
}

/// A value that is written into the source as a `const`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Constant {
    /// `const NAME: u32`
    U32(u32),
    /// `const NAME: bool`
    Bool(bool),
}

/// The `const` lines of one variant of a kernel.
pub type Constants = Vec<(&'static str, Constant)>;

/// One storage binding of a dispatch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operand {
    /// A window of bytes into a slice of the caller's.
    Slice {
        /// The tensor, as the operation's buffer struct names it.
        name: &'static str,
        /// Bytes from the start of the slice. The start is a multiple of [`WINDOW_ALIGNMENT`].
        window: Range<u64>,
    },
    /// Present in the layout, untouched by this variant.
    Unused,
}

/// Windows into a caller's slice start at multiples of this, the strictest offset alignment that a
/// WebGPU device may ask for.
pub const WINDOW_ALIGNMENT: u64 = 256;

impl Operand {
    /// The first `size` bytes of a slice.
    pub fn whole(name: &'static str, size: u64) -> Self {
        Self::Slice {
            name,
            window: 0..size,
        }
    }

    /// The elements `range` of an f32 tensor, widened downwards to an aligned start. The second value
    /// is how many elements the start was moved: the kernel adds it to its indices.
    pub fn elements(name: &'static str, range: Range<u64>) -> (Self, u32) {
        Self::typed(name, range, ElementType::F32)
    }

    /// [`elements`](Self::elements) of another type; the end is widened to a whole word.
    pub fn typed(name: &'static str, range: Range<u64>, element: ElementType) -> (Self, u32) {
        let size = element.size();
        let start = range.start * size / WINDOW_ALIGNMENT * WINDOW_ALIGNMENT;
        let skipped = (range.start * size - start) / size;
        (
            Self::Slice {
                name,
                window: start..(range.end * size).next_multiple_of(4),
            },
            skipped as u32,
        )
    }
}

/// One launch of a kernel, or a run of launches that differ only in the step number.
#[derive(Debug, Clone, PartialEq)]
pub struct Dispatch {
    /// What runs.
    pub kernel: Kernel,
    /// With which constants.
    pub constants: Constants,
    /// The bytes of `Params`.
    pub params: Vec<u8>,
    /// The storage buffers, in the kernel's order.
    pub operands: Vec<Operand>,
    /// Workgroups in x, y and z.
    pub grid: [u32; 3],
    /// How often it is launched in a row, with step numbers 0, 1, ...: 1 to [`MAX_STEPS`].
    pub steps: u32,
}

impl Dispatch {
    /// What wgpu would otherwise refuse too late to say it.
    pub(crate) fn check(&self) -> Result<(), Error> {
        let Kernel {
            name,
            params,
            storage,
            ..
        } = &self.kernel;
        if self.operands.len() != storage.len() {
            let expected = format!("{}, one for each storage binding of {name}", storage.len());
            return Err(Error::shape("operands", self.operands.len(), expected));
        }
        if self.params.len() != 4 * params.len() {
            let expected = format!("{} bytes, four for each field of {name}", 4 * params.len());
            return Err(Error::shape("params", self.params.len(), expected));
        }
        if !(1..=MAX_STEPS).contains(&self.steps) {
            return Err(Error::shape(
                "steps",
                self.steps,
                format!("1 to {MAX_STEPS}"),
            ));
        }
        if let Some(&count) = self.grid.iter().find(|&&count| count > MAX_WORKGROUPS) {
            return Err(Error::Limit {
                limit: "max_compute_workgroups_per_dimension",
                needed: count.into(),
                allowed: MAX_WORKGROUPS.into(),
            });
        }
        for operand in &self.operands {
            let Operand::Slice { name, window } = operand else {
                continue;
            };
            if window.start >= window.end || !window.end.is_multiple_of(4) {
                return Err(Error::Operand {
                    name,
                    problem: "its window is empty or does not end with a whole word",
                });
            }
            if !window.start.is_multiple_of(WINDOW_ALIGNMENT) {
                let expected = format!("a window that starts at a multiple of {WINDOW_ALIGNMENT}");
                return Err(Error::shape(name, window.start, expected));
            }
        }
        Ok(())
    }
}

/// Workgroups in one dimension that every device can launch.
const MAX_WORKGROUPS: u32 = 65_535;

/// Workgroups `count` as a grid of two dimensions, each within the limit that every device has.
/// The kernel numbers them `id.x + id.y * num_workgroups.x` and leaves out those past the count.
pub fn fold_grid(count: u64) -> [u32; 3] {
    let most = u64::from(MAX_WORKGROUPS);
    if count <= most {
        return [count as u32, 1, 1];
    }
    let rows = count.div_ceil(most);
    [count.div_ceil(rows) as u32, rows as u32, 1]
}

impl Kernel {
    /// The complete WGSL of one variant.
    ///
    /// `shared` makes every storage binding `read_write`, for the case that one buffer holds both an input
    /// and an output of the dispatch.
    pub fn source(&self, constants: &Constants, shared: bool) -> String {
        let mut source = String::new();
        for extension in self.enables {
            // Writing to a String cannot fail.
            let _ = writeln!(source, "enable {extension};");
        }
        for (name, value) in constants {
            let _ = match value {
                Constant::U32(value) => writeln!(source, "const {name}: u32 = {value}u;"),
                Constant::Bool(value) => writeln!(source, "const {name}: bool = {value};"),
            };
        }
        for part in self.parts.iter() {
            unroll(part, constants, &mut source);
        }
        if shared {
            source = source.replace("var<storage, read>", "var<storage, read_write>");
        }
        source
    }
}

/// Copies `text`, repeating the body of each loop that stands behind a line `// unroll`.
///
/// The loop has the form `for (var i = 0u; i < BOUND; i++) {`, its closing brace stands at the loop's own
/// indentation, and BOUND is a literal or one of the constants. Each repetition is a block that begins
/// `const i = N;`, so arrays indexed by `i` stay in registers whatever the driver's compiler does with
/// loops. The text is valid, and means the same, if the marker is ignored.
///
/// Of each `if (NAME) {` whose NAME is a constant only the branch that is taken is left: a driver would find out too,
/// after it has translated, inlined and repeated what is never run.
fn unroll(text: &str, constants: &Constants, out: &mut String) {
    let lines: Vec<&str> = text.lines().collect();
    unroll_lines(&lines, constants, out);
}

fn unroll_lines(lines: &[&str], constants: &Constants, out: &mut String) {
    let mut at = 0;
    while at < lines.len() {
        let line = lines[at];
        let unrolled = (line.trim() == "// unroll").then(|| loop_at(&lines[at + 1..], constants));
        if let Some((taken, len)) = decided(&lines[at..], constants) {
            if !taken.is_empty() {
                out.push_str("{\n");
                unroll_lines(taken, constants, out);
                out.push_str("}\n");
            }
            at += len;
        } else if let Some(Some((variable, bound, body))) = unrolled {
            for i in 0..bound {
                let _ = writeln!(out, "{{ const {variable} = {i}u;");
                unroll_lines(body, constants, out);
                out.push_str("}\n");
            }
            at += body.len() + 3;
        } else {
            out.push_str(line);
            out.push('\n');
            at += 1;
        }
    }
}

/// What is left of the `if (NAME) {` on the first of `lines` whose NAME is a constant, and how many lines it has.
fn decided<'a, 't>(lines: &'a [&'t str], constants: &Constants) -> Option<(&'a [&'t str], usize)> {
    let head = lines.first()?;
    let name = head.trim().strip_prefix("if (")?.strip_suffix(") {")?;
    let Constant::Bool(holds) = constants.iter().find(|(constant, _)| *constant == name)?.1 else {
        return None;
    };
    let indentation = &head[..head.len() - head.trim_start().len()];
    let closing = |from: usize| {
        let is_closing = |line: &&str| {
            line.strip_prefix(indentation)
                .is_some_and(|rest| rest.starts_with('}'))
        };
        Some(from + lines[from..].iter().position(is_closing)?)
    };
    let end = closing(1)?;
    let first = &lines[1..end];
    match lines[end].trim() {
        "}" if holds => Some((first, end + 1)),
        "}" => Some((&[], end + 1)),
        "} else {" => {
            let last = closing(end + 1)?;
            let other = &lines[end + 1..last];
            (lines[last].trim() == "}").then_some((if holds { first } else { other }, last + 1))
        }
        _ => None,
    }
}

/// Variable, trip count and body of the loop that begins on the first of `lines`.
fn loop_at<'a, 't>(
    lines: &'a [&'t str],
    constants: &Constants,
) -> Option<(&'t str, u32, &'a [&'t str])> {
    let head = lines.first()?;
    let indentation = &head[..head.len() - head.trim_start().len()];
    let inner = head
        .trim()
        .strip_prefix("for (var ")?
        .strip_suffix("++) {")?;
    let (variable, condition) = inner.split_once(" = 0u; ")?;
    let bound = condition
        .strip_prefix(variable)?
        .strip_prefix(" < ")?
        .split_once(';')?
        .0;
    let bound = match constants.iter().find(|(name, _)| *name == bound) {
        Some((_, Constant::U32(value))) => *value,
        _ => bound.strip_suffix('u')?.parse().ok()?,
    };
    let end = lines
        .iter()
        .position(|line| line.strip_prefix(indentation) == Some("}"))?;
    Some((variable, bound, &lines[1..end]))
}

/// Declares a kernel's `Params`: a `Pod` struct of four-byte scalars and, as `FIELDS`, the names and WGSL
/// types that `tests/shaders.rs` compares with the struct in the shader.
macro_rules! params {
    ($(#[$meta:meta])* $vis:vis struct $name:ident { $($field:ident: $type:ident,)* }) => {
        $(#[$meta])*
        #[repr(C)]
        #[derive(Debug, Clone, Copy, Default, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
        $vis struct $name { $($vis $field: $type,)* }

        impl $name {
            pub const FIELDS: &'static [(&'static str, &'static str)] =
                &[$((stringify!($field), stringify!($type)),)*];
        }
    };
}
pub(crate) use params;

#[cfg(test)]
mod tests {
    use super::*;

    fn source(text: &'static str, constants: Constants) -> String {
        let mut out = String::new();
        unroll(text, &constants, &mut out);
        out
    }

    #[test]
    fn marked_loops_are_repeated_and_nest() {
        let text = "\
a
// unroll
for (var r = 0u; r < ROWS; r++) {
    // unroll
    for (var c = 0u; c < 2u; c++) {
        x[r][c]
    }
}
b";
        let got = source(text, vec![("ROWS", Constant::U32(2))]);
        assert_eq!(got.matches("x[r][c]").count(), 4);
        assert_eq!(got.matches("const r = 1u;").count(), 1);
        assert_eq!(got.matches("const c = 1u;").count(), 2);
        assert!(!got.contains("for"));
        assert!(got.starts_with("a\n") && got.ends_with("b\n"));
    }

    #[test]
    fn branches_that_are_never_taken_are_left_out() {
        let text = "\
if (A) {
    x
}
if (B) {
    y
}
if (A) {
    z
} else {
    w
}
";
        let constants = vec![("A", Constant::Bool(false)), ("B", Constant::Bool(true))];
        let got = source(text, constants);
        assert!(!got.contains('x') && got.contains('y') && !got.contains('z') && got.contains('w'));
    }

    #[test]
    fn a_loop_with_an_unknown_bound_stays_a_loop() {
        let text = "// unroll\nfor (var i = 0u; i < UNKNOWN; i++) {\n    x\n}\n";
        assert_eq!(source(text, vec![]), text);
    }

    #[test]
    fn grids_fold_within_the_limit_and_cover_the_count() {
        for count in [1, 65_535, 65_536, 1_000_003, 4_000_000_000] {
            let [x, y, z] = fold_grid(count);
            assert!(x <= 65_535 && y <= 65_535 && z == 1);
            assert!(u64::from(x) * u64::from(y) >= count);
        }
    }

    #[test]
    fn windows_start_aligned_and_keep_the_element() {
        let (operand, skipped) = Operand::elements("query", 100..164);
        assert_eq!(
            operand,
            Operand::Slice {
                name: "query",
                window: 256..656
            }
        );
        assert_eq!(skipped, 36);
    }
}
