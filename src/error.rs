use std::borrow::Cow;

/// Why an operation could not be planned, compiled, bound or run.
///
/// The variants are divided by who can fix it: the first four are the caller's (a shape, a slice),
/// the next two the device's (a limit, a feature), the rest the machine's.
#[non_exhaustive]
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Error {
    /// A value of a shape or configuration is outside what the operation means.
    #[error("{name} is {got}, expected {expected}")]
    Shape {
        /// The field, in the words of the public structs.
        name: &'static str,
        /// The value found.
        got: i64,
        /// What would have been accepted.
        expected: Cow<'static, str>,
    },
    /// A tensor is missing, or is given where the configuration has no place for it.
    #[error("{name}: {problem}")]
    Operand {
        /// The tensor.
        name: &'static str,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A buffer slice is shorter than its shape needs.
    #[error("{name}: the slice has {got} bytes, the shape needs {needed}")]
    Buffer {
        /// The tensor.
        name: &'static str,
        /// Bytes that the shape needs.
        needed: u64,
        /// Bytes that the slice has.
        got: u64,
    },
    /// Two slices that must be apart overlap in one buffer.
    #[error("{output} is written and overlaps {other} in the same buffer")]
    Aliased {
        /// The tensor that is written.
        output: &'static str,
        /// The tensor that it overlaps.
        other: &'static str,
    },
    /// The device's limit is below what this shape needs.
    #[error("{limit} is {allowed} on this device, this shape needs {needed}")]
    Limit {
        /// The name of the limit, in wgpu's words.
        limit: &'static str,
        /// What the shape needs.
        needed: u64,
        /// What the device allows.
        allowed: u64,
    },
    /// The device lacks a feature that was asked for.
    #[error("this device lacks {feature}")]
    Feature {
        /// The feature, or the variant that needs it.
        feature: Cow<'static, str>,
    },
    /// A kernel did not compile.
    #[error("kernel {kernel} does not compile: {message}")]
    Compile {
        /// The kernel's name.
        kernel: &'static str,
        /// The compiler's message.
        message: String,
    },
    /// No adapter fits the request.
    #[error("no {wanted} adapter; present: {}", if seen.is_empty() { "none".into() } else { seen.join(", ") })]
    NoAdapter {
        /// What was looked for.
        wanted: String,
        /// The adapters of this machine.
        seen: Vec<String>,
    },
    /// The device is lost, out of memory, or refused a command.
    #[error("the device failed: {0}")]
    Device(String),
}

impl Error {
    /// An [`Error::Shape`] for values that fit `i64`, which all of ours do.
    pub(crate) fn shape(
        name: &'static str,
        got: impl TryInto<i64>,
        expected: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self::Shape {
            name,
            got: got.try_into().unwrap_or(i64::MAX),
            expected: expected.into(),
        }
    }
}
