//! Matrix product: `output = a b`, with optional bias, transposes, leading dimensions, accumulation.
//!
//! The sum of each element runs over `k` in increasing order whatever the tile, so a product does not change
//! when rows are added to it.

use std::borrow::Cow;
use std::ops::Range;

use crate::kernel::{
    Access, COMMON, Constant, Constants, Dispatch, IN_ORDER, Kernel, Operand, fold_grid, params,
};
use crate::{Bound, Capabilities, Context, ElementType, Error, Plan, Variant};

const PROBLEM: &str = include_str!("../shaders/gemm_problem.wgsl");
const BLOCKED: &str = include_str!("../shaders/gemm.wgsl");
const BROADCAST: &str = include_str!("../shaders/gemm_broadcast.wgsl");

/// What is fixed when the kernels are compiled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct GemmConfig {
    /// `a` is stored `[k, m]`.
    pub transpose_a: bool,
    /// `b` is stored `[n, k]`.
    pub transpose_b: bool,
    /// A bias `[n]` is added to every row.
    pub bias: bool,
    /// The product is added to what `output` holds.
    pub accumulate: bool,
    /// How `a` is stored.
    pub a_element: ElementType,
    /// How `b` is stored.
    pub b_element: ElementType,
    /// Forces a variant; otherwise the best that the device can run is taken.
    pub variant: Option<Variant>,
}

/// What varies per call: `[m, k]` times `[k, n]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GemmShape {
    /// Rows of `a` and `output`.
    pub m: u32,
    /// Columns of `b` and `output`.
    pub n: u32,
    /// Columns of `a`, rows of `b`.
    pub k: u32,
    /// Elements from one stored row of `a` to the next.
    pub a_stride: u32,
    /// Elements from one stored row of `b` to the next.
    pub b_stride: u32,
    /// Elements from one row of `output` to the next.
    pub output_stride: u32,
}

impl GemmShape {
    /// Contiguous matrices under `config`.
    pub fn new(config: &GemmConfig, m: u32, n: u32, k: u32) -> Self {
        Self {
            m,
            n,
            k,
            a_stride: if config.transpose_a { m } else { k },
            b_stride: if config.transpose_b { k } else { n },
            output_stride: n,
        }
    }
}

/// The matrices of a call, row-major, f32 but for what the configuration says of `a` and `b`.
#[derive(Debug, Clone, Copy)]
pub struct GemmBuffers<'a> {
    /// `[m, k]`, or `[k, m]` if transposed; read.
    pub a: wgpu::BufferSlice<'a>,
    /// `[k, n]`, or `[n, k]` if transposed; read.
    pub b: wgpu::BufferSlice<'a>,
    /// `[n]`, read; exactly if the configuration says so.
    pub bias: Option<wgpu::BufferSlice<'a>>,
    /// `[m, n]`, written.
    pub output: wgpu::BufferSlice<'a>,
}

params! {
    struct Params {
        m: u32,
        n: u32,
        k: u32,
        column_tiles: u32,
        num_groups: u32,
        a_first: u32,
        a_row: u32,
        a_column: u32,
        b_first: u32,
        b_row: u32,
        b_column: u32,
        bias_first: u32,
        output_first: u32,
        output_row: u32,
        fold_inner: u32,
        fold_outer: u32,
    }
}

/// The shape of a workgroup's share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tile {
    /// `gemm.wgsl`: `8 * rows` by 64 elements.
    Blocked { rows: u32 },
    /// `gemm_broadcast.wgsl`: `rows` by [`CPU_COLUMNS`] elements.
    Broadcast { rows: u32 },
}

/// Columns of a tile for CPUs: four vectors of eight lanes.
const CPU_COLUMNS: u32 = 4 * CPU_LANES;
const CPU_LANES: u32 = 8;

impl Tile {
    /// Few rows get a small tile: what is left of a large one would be computed for nothing.
    fn choose(capabilities: &Capabilities, m: u32) -> Self {
        if capabilities.cpu {
            let rows = m.clamp(1, 32).next_power_of_two();
            return Self::Broadcast { rows };
        }
        let rows = if m > 16 {
            8
        } else {
            m.clamp(1, 16).div_ceil(8).next_power_of_two()
        };
        Self::Blocked { rows }
    }

    fn extent(self) -> [u32; 2] {
        match self {
            Self::Blocked { rows } => [8 * rows, 64],
            Self::Broadcast { rows } => [rows, CPU_COLUMNS],
        }
    }

    fn kernel(self) -> Kernel {
        const ANY: &str = ElementType::ANY;
        let (name, parts): (_, &'static [&'static str]) = match self {
            Self::Blocked { .. } => ("gemm", &[COMMON, ANY, PROBLEM, BLOCKED]),
            Self::Broadcast { .. } => (
                "gemm_broadcast",
                &[COMMON, ANY, PROBLEM, IN_ORDER, BROADCAST],
            ),
        };
        Kernel {
            name,
            enables: &[],
            parts: Cow::Borrowed(parts),
            params: Params::FIELDS,
            storage: &[Access::Read, Access::Read, Access::Read, Access::Write],
            stepped: false,
        }
    }

    fn constants(self) -> Constants {
        match self {
            Self::Blocked { rows } => vec![("ROWS", Constant::U32(rows))],
            Self::Broadcast { rows } => vec![
                ("ROWS", Constant::U32(rows)),
                ("COLUMNS", Constant::U32(CPU_COLUMNS / CPU_LANES)),
                ("WORKGROUP_SIZE", Constant::U32(CPU_LANES)),
                ("IN_ORDER", Constant::Bool(true)),
            ],
        }
    }
}

/// A tensor of an operation's and the range of its elements that a product spans.
pub(crate) type Part = (&'static str, Range<u64>);

/// The matrix of a product whose rows lie in runs; not transposed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Folded {
    A,
    B,
    Output,
}

/// The pieces of a product that an operation plans inside its own buffers.
pub(crate) struct Product {
    pub config: GemmConfig,
    pub shape: GemmShape,
    /// Of one matrix, how many rows lie its stride apart, and how far one such run is from the next.
    pub fold: Option<(Folded, [u32; 2])>,
    pub a: Part,
    pub b: Part,
    pub bias: Option<Part>,
    pub output: Part,
}

impl Product {
    /// One product as one dispatch.
    pub fn dispatch(self, capabilities: &Capabilities) -> Dispatch {
        let Self {
            config,
            shape,
            fold,
            a,
            b,
            bias,
            output,
        } = self;
        let tile = Tile::choose(capabilities, shape.m);
        let [rows, columns] = tile.extent();
        let column_tiles = shape.n.div_ceil(columns);
        let num_groups = u64::from(column_tiles) * u64::from(shape.m.div_ceil(rows));
        let strides = |stride, transposed| if transposed { (1, stride) } else { (stride, 1) };
        let (a_row, a_column) = strides(shape.a_stride, config.transpose_a);
        let (b_row, b_column) = strides(shape.b_stride, config.transpose_b);
        let operand = |(name, range): Part, element| match range.is_empty() {
            true => (Operand::Unused, 0),
            false => Operand::typed(name, range, element),
        };
        let single = |part| operand(part, ElementType::F32);
        let (a, a_first) = operand(a, config.a_element);
        let (b, b_first) = operand(b, config.b_element);
        let (bias_operand, bias_first) = bias.map_or((Operand::Unused, 0), single);
        let (output, output_first) = single(output);
        let [fold_inner, fold_outer] = fold.map_or([1, 0], |(_, fold)| fold);
        let folded = |matrix| Constant::Bool(fold.is_some_and(|(folded, _)| folded == matrix));
        let params = Params {
            m: shape.m,
            n: shape.n,
            k: shape.k,
            column_tiles,
            num_groups: num_groups as u32,
            a_first,
            a_row,
            a_column,
            b_first,
            b_row,
            b_column,
            bias_first,
            output_first,
            output_row: shape.output_stride,
            fold_inner,
            fold_outer,
        };
        let mut constants = vec![
            ("BIAS", Constant::Bool(config.bias)),
            ("ACCUMULATE", Constant::Bool(config.accumulate)),
            ("A_FOLDED", folded(Folded::A)),
            ("B_FOLDED", folded(Folded::B)),
            ("OUTPUT_FOLDED", folded(Folded::Output)),
            ("A_ELEMENT", config.a_element.constant()),
            ("B_ELEMENT", config.b_element.constant()),
        ];
        if matches!(tile, Tile::Blocked { .. }) {
            constants.push(("A_BY_ROWS", Constant::Bool(!config.transpose_a)));
        }
        constants.extend(tile.constants());
        Dispatch {
            kernel: tile.kernel(),
            constants,
            params: bytemuck::bytes_of(&params).to_vec(),
            operands: vec![a, b, bias_operand, output],
            grid: fold_grid(num_groups),
            steps: 1,
        }
    }
}

impl GemmConfig {
    /// The variants that a device can run, best first.
    pub fn variants(&self, _: &Capabilities) -> impl Iterator<Item = Variant> + use<> {
        std::iter::once(Variant::Portable)
    }

    /// How a call runs on a device with `capabilities`; pure.
    ///
    /// # Errors
    /// [`Error::Shape`] for a stride below the row, [`Error::Limit`] for a matrix larger than a binding,
    /// [`Error::Feature`] for a forced variant that the device cannot run.
    pub fn plan(&self, capabilities: &Capabilities, shape: GemmShape) -> Result<Plan, Error> {
        let variant = Variant::choose(self.variant, self.variants(capabilities), "a product")?;
        let GemmShape {
            m,
            n,
            k,
            a_stride,
            b_stride,
            output_stride,
        } = shape;
        let transposed = |transposed, rows, columns| {
            if transposed {
                (columns, rows)
            } else {
                (rows, columns)
            }
        };
        let (a_rows, a_columns) = transposed(self.transpose_a, m, k);
        let (b_rows, b_columns) = transposed(self.transpose_b, k, n);
        let span = |name, rows: u32, columns: u32, stride: u32| {
            if stride < columns && rows > 1 {
                let expected = format!("at least the length of a row, {columns}");
                return Err(Error::shape(name, stride, expected));
            }
            if rows == 0 || columns == 0 {
                return Ok(0..0);
            }
            let elements = u64::from(rows - 1) * u64::from(stride) + u64::from(columns);
            let allowed = capabilities.storage_binding_size.min(1 << 31);
            if elements > allowed / 4 {
                let limit = "max_storage_buffer_binding_size";
                return Err(Error::Limit {
                    limit,
                    needed: elements.saturating_mul(4),
                    allowed,
                });
            }
            Ok(0..elements)
        };
        let product = Product {
            config: *self,
            shape,
            fold: None,
            a: ("a", span("a_stride", a_rows, a_columns, a_stride)?),
            b: ("b", span("b_stride", b_rows, b_columns, b_stride)?),
            bias: self.bias.then_some(("bias", 0..u64::from(n))),
            output: ("output", span("output_stride", m, n, output_stride)?),
        };
        let empty = m == 0 || n == 0;
        let dispatches = if empty {
            vec![]
        } else {
            vec![product.dispatch(capabilities)]
        };
        let [mf, nf, kf] = [m, n, k].map(f64::from);
        let [rows, columns] = Tile::choose(capabilities, m).extent();
        Ok(Plan {
            variant,
            describe: format!("{rows} x {columns} elements per workgroup"),
            dispatches,
            scratch_size: 0,
            flops: 2.0 * mf * nf * kf,
            bytes: self.a_element.size() as f64 * mf * kf
                + self.b_element.size() as f64 * kf * nf
                + 4.0 * mf * nf,
        })
    }
}

/// A matrix product, compiled for one configuration.
#[derive(Debug, Clone)]
pub struct Gemm {
    context: Context,
    config: GemmConfig,
}

impl Gemm {
    /// Compiles the kernel for many rows; the ones for few are compiled by the first [`bind`](Self::bind).
    ///
    /// # Errors
    /// [`Error::Compile`].
    pub fn new(context: &Context, config: GemmConfig) -> Result<Self, Error> {
        let gemm = Self {
            context: context.clone(),
            config,
        };
        let many_rows = GemmShape::new(&config, 64, 64, 1);
        context.compile_own(&gemm.plan(many_rows)?.dispatches)?;
        Ok(gemm)
    }

    /// How a call will run; pure.
    ///
    /// # Errors
    /// As [`GemmConfig::plan`].
    pub fn plan(&self, shape: GemmShape) -> Result<Plan, Error> {
        self.config.plan(self.context.capabilities(), shape)
    }

    /// Binds the matrices of a call, which can then be recorded as often as wanted.
    ///
    /// # Errors
    /// Those of [`plan`](Self::plan) and of [`Context::bind`].
    pub fn bind(&self, shape: GemmShape, buffers: GemmBuffers<'_>) -> Result<Bound, Error> {
        let plan = self.plan(shape)?;
        let mut slices = vec![
            ("a", buffers.a),
            ("b", buffers.b),
            ("output", buffers.output),
        ];
        match (self.config.bias, buffers.bias) {
            (true, Some(bias)) => slices.push(("bias", bias)),
            (false, None) => {}
            (true, None) => {
                return Err(Error::Operand {
                    name: "bias",
                    problem: "is needed and missing",
                });
            }
            (false, Some(_)) => {
                return Err(Error::Operand {
                    name: "bias",
                    problem: "the configuration has none",
                });
            }
        }
        self.context.bind_own(&plan.dispatches, &slices)
    }

    /// [`bind`](Self::bind) and [`Bound::record`] in one.
    ///
    /// # Errors
    /// Those of [`bind`](Self::bind).
    pub fn record(
        &self,
        pass: &mut wgpu::ComputePass<'_>,
        shape: GemmShape,
        buffers: GemmBuffers<'_>,
    ) -> Result<(), Error> {
        self.bind(shape, buffers)?.record(pass);
        Ok(())
    }
}
