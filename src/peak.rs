//! The roof of a device: the most multiply-adds, copied bytes and dispatches per second that it gives to
//! plain WGSL, measured with kernels that do nothing else.
//!
//! Each figure is the best of a small grid of kernels, whose results are checked: a compiler that found a
//! way around the work would be found out. The kernels are run as a caller's own are, by
//! [`Context::bind`](crate::Context::bind).

use std::borrow::Cow;

use crate::clock::{Budget, Clock, Source};
use crate::kernel::{Access, Constant, Dispatch, Kernel, Operand, fold_grid, params};
use crate::probe::cooperative_part;
use crate::{Capabilities, Error, Gpu, Variant};

const FMA: &str = include_str!("../shaders/peak_fma.wgsl");
const COPY: &str = include_str!("../shaders/peak_copy.wgsl");
const COOPERATIVE: &str = include_str!("../shaders/peak_cooperative.wgsl");
const DISPATCH: &str = include_str!("../shaders/peak_dispatch.wgsl");

/// A rolled loop measures its own overhead.
const STEPS: u32 = 32;
const ROUNDS: u32 = 16;
const WORKGROUP_SIZE: u32 = 128;

params! {
    struct FmaParams {
        rounds: u32,
        multiplier: f32,
        addend: f32,
    }
}

params! {
    struct CooperativeParams {
        rounds: u32,
        factor: f32,
        change: f32,
    }
}

params! {
    struct CopyParams {
        num_elements: u32,
    }
}

params! {
    struct DispatchParams {
        increment: u32,
    }
}

/// The best that a device gave.
#[derive(Debug, Clone, PartialEq)]
pub struct Peak {
    /// f32 multiply-adds, each counted as two operations, in 10^9 per second.
    pub gflops: f64,
    /// The kernel that reached it.
    pub gflops_kernel: String,
    /// Multiply-adds of cooperative matrices (f16 factors, f32 sums), counted likewise, and the kernel that reached
    /// them; `None` on a device without.
    pub cooperative: Option<(f64, String)>,
    /// Bytes read plus bytes written by a copy, in 10^9 per second.
    pub gbytes_per_s: f64,
    /// The kernel that reached it.
    pub gbytes_kernel: String,
    /// From one dispatch to the next that reads what it wrote.
    pub dispatch_us: f64,
    /// The clock of all three; [`Source::Wall`] if it had to be for one.
    pub clock: Source,
}

impl Peak {
    /// Measures `gpu`; each of the 15 candidates may take `budget`.
    ///
    /// # Errors
    /// [`Error::Device`], also when a kernel gives a wrong result; [`Error::Compile`]; [`Error::Limit`].
    pub fn measure(gpu: &Gpu, budget: Budget) -> Result<Self, Error> {
        let clock = Clock::new(gpu)?;
        let (gflops, gflops_kernel, fma_clock) = best(&FmaKernel::grid(), |candidate| {
            candidate.measure(gpu, &clock, budget)
        })?;
        let matrices = CooperativeKernel::grid(gpu.context().capabilities());
        let cooperative = match matrices.is_empty() {
            true => None,
            false => Some(best(&matrices, |candidate| {
                candidate.measure(gpu, &clock, budget)
            })?),
        };
        let (gbytes_per_s, gbytes_kernel, copy_clock) = best(&CopyKernel::grid(), |candidate| {
            candidate.measure(gpu, &clock, budget)
        })?;
        let (dispatch_us, dispatch_clock) = dispatch_us(gpu, &clock, budget)?;
        let matrix_clock = cooperative
            .as_ref()
            .map_or(fma_clock, |&(_, _, clock)| clock);
        let clocks = [fma_clock, matrix_clock, copy_clock, dispatch_clock];
        Ok(Self {
            gflops,
            gflops_kernel,
            cooperative: cooperative.map(|(gflops, kernel, _)| (gflops, kernel)),
            gbytes_per_s,
            gbytes_kernel,
            dispatch_us,
            clock: if clocks.contains(&Source::Wall) {
                Source::Wall
            } else {
                Source::Timestamp
            },
        })
    }

    /// The least time in seconds for `flops` operations of a variant on `bytes` of traffic: the roof line.
    pub fn seconds(&self, variant: Variant, flops: f64, bytes: f64) -> f64 {
        let gflops = match (variant, &self.cooperative) {
            (Variant::Cooperative, &Some((gflops, _))) => gflops,
            _ => self.gflops,
        };
        (flops / gflops).max(bytes / self.gbytes_per_s) * 1e-9
    }
}

/// Every launch that a measurement of a device with `capabilities` may try, each at some size: plain data, to look at
/// what is run.
pub fn dispatches(capabilities: &Capabilities) -> Vec<Dispatch> {
    const GROUPS: u32 = 16;
    let fma = FmaKernel::grid()
        .into_iter()
        .map(|kernel| kernel.dispatch(GROUPS));
    let matrices = CooperativeKernel::grid(capabilities)
        .into_iter()
        .map(|kernel| kernel.dispatch(GROUPS));
    let copy = CopyKernel::grid()
        .into_iter()
        .map(|kernel| kernel.dispatch(GROUPS * WORKGROUP_SIZE));
    fma.chain(matrices)
        .chain(copy)
        .chain([count_dispatch()])
        .collect()
}

/// One candidate's figure, in 10^9 per second.
type Figure = (f64, String, Source);

fn best<C>(
    candidates: &[C],
    mut measure: impl FnMut(&C) -> Result<Figure, Error>,
) -> Result<Figure, Error> {
    let mut best: Option<Figure> = None;
    for candidate in candidates {
        let figure = measure(candidate)?;
        if best.as_ref().is_none_or(|best| figure.0 > best.0) {
            best = Some(figure);
        }
    }
    best.ok_or_else(|| Error::Device("nothing to measure".into()))
}

#[derive(Debug, Clone, Copy)]
struct FmaKernel {
    vectors: bool,
    fused: bool,
    accumulators: u32,
}

impl FmaKernel {
    fn grid() -> Vec<Self> {
        let mut grid = Vec::new();
        for (vectors, accumulators) in [(false, 8), (false, 16), (true, 4), (true, 8)] {
            for fused in [false, true] {
                grid.push(Self {
                    vectors,
                    fused,
                    accumulators,
                });
            }
        }
        grid
    }

    fn dispatch(self, groups: u32) -> Dispatch {
        let parts: &'static [&'static str] = if self.vectors {
            &["alias Elem = vec4<f32>;\n", FMA]
        } else {
            &["alias Elem = f32;\n", FMA]
        };
        let params = FmaParams {
            rounds: ROUNDS,
            multiplier: 1.0,
            addend: 1.0,
        };
        Dispatch {
            kernel: Kernel {
                name: "peak_fma",
                enables: &[],
                parts: Cow::Borrowed(parts),
                params: FmaParams::FIELDS,
                storage: &[Access::Write],
                stepped: false,
            },
            constants: vec![
                ("WORKGROUP_SIZE", Constant::U32(WORKGROUP_SIZE)),
                ("STEPS", Constant::U32(STEPS)),
                ("ACCUMULATORS", Constant::U32(self.accumulators)),
                ("FUSED", Constant::Bool(self.fused)),
            ],
            params: bytemuck::bytes_of(&params).to_vec(),
            operands: vec![Operand::whole("output", 4 * self.words(groups))],
            grid: [groups, 1, 1],
            steps: 1,
        }
    }

    fn lanes(self) -> u32 {
        if self.vectors { 4 } else { 1 }
    }

    fn words(self, groups: u32) -> u64 {
        u64::from(self.lanes() * groups * WORKGROUP_SIZE)
    }

    fn measure(self, gpu: &Gpu, clock: &Clock, budget: Budget) -> Result<Figure, Error> {
        let groups = if gpu.is_software() { 64 } else { 8192 };
        let output = gpu.zeros("peak output", 4 * self.words(groups))?;
        let slices = [("output", output.slice(..))];
        let bound = gpu.context().bind_own(&[self.dispatch(groups)], &slices)?;
        let timing = clock.measure(budget, |pass| bound.record(pass))?;
        let got: Vec<f32> = gpu.download(&output)?;
        let wrong = got.iter().enumerate().find(|&(at, &got)| {
            let id = at as u32 / self.lanes();
            got != self.expected(id)
        });
        if let Some((at, got)) = wrong {
            return Err(wrong_result("peak_fma", at, got));
        }
        let steps = f64::from(STEPS * ROUNDS * self.accumulators);
        let flops = 2.0 * steps * self.words(groups) as f64;
        Ok((
            1e-3 * flops / timing.median_us,
            self.describe(),
            timing.clock,
        ))
    }

    /// The sum of the chains of invocation `id`, exact in f32.
    fn expected(self, id: u32) -> f32 {
        let a = self.accumulators;
        (a * (STEPS * ROUNDS + id % 256) + a * (a - 1) / 2) as f32
    }

    fn describe(self) -> String {
        let elem = if self.vectors { "vec4" } else { "scalar" };
        let form = if self.fused { "fma()" } else { "a * b + c" };
        format!("{elem}, {} accumulators, {form}", self.accumulators)
    }
}

#[derive(Debug, Clone, Copy)]
struct CooperativeKernel {
    edge: u32,
    subgroup_size: u32,
    accumulators: u32,
}

impl CooperativeKernel {
    /// Of a workgroup.
    const SUBGROUPS: u32 = 4;

    fn grid(capabilities: &Capabilities) -> Vec<Self> {
        let (Some(edge), Some(subgroup_size)) =
            (capabilities.cooperative, capabilities.fixed_subgroup_size())
        else {
            return Vec::new();
        };
        let kernel = |accumulators| Self {
            edge,
            subgroup_size,
            accumulators,
        };
        [4, 8].map(kernel).to_vec()
    }

    fn dispatch(self, groups: u32) -> Dispatch {
        let params = CooperativeParams {
            rounds: ROUNDS,
            factor: 1.0,
            change: 0.0,
        };
        Dispatch {
            kernel: Kernel {
                name: "peak_cooperative",
                enables: Capabilities::COOPERATIVE_ENABLES,
                parts: Cow::Owned(vec![cooperative_part(self.edge), COOPERATIVE]),
                params: CooperativeParams::FIELDS,
                storage: &[Access::Write],
                stepped: false,
            },
            constants: vec![
                ("SUBGROUPS", Constant::U32(Self::SUBGROUPS)),
                ("SUBGROUP_SIZE", Constant::U32(self.subgroup_size)),
                ("STEPS", Constant::U32(STEPS)),
                ("ACCUMULATORS", Constant::U32(self.accumulators)),
            ],
            params: bytemuck::bytes_of(&params).to_vec(),
            operands: vec![Operand::whole("output", 4 * self.words(groups))],
            grid: [groups, 1, 1],
            steps: 1,
        }
    }

    fn words(self, groups: u32) -> u64 {
        u64::from(groups * Self::SUBGROUPS * self.accumulators * self.edge * self.edge)
    }

    fn measure(self, gpu: &Gpu, clock: &Clock, budget: Budget) -> Result<Figure, Error> {
        let groups = if gpu.is_software() { 8 } else { 2048 };
        let output = gpu.zeros("peak output", 4 * self.words(groups))?;
        let slices = [("output", output.slice(..))];
        let bound = gpu.context().bind_own(&[self.dispatch(groups)], &slices)?;
        let timing = clock.measure(budget, |pass| bound.record(pass))?;
        let got: Vec<f32> = gpu.download(&output)?;
        let wrong = got.iter().enumerate().find(|&(at, &got)| {
            let chain = at as u32 / (self.edge * self.edge) % self.accumulators;
            got != (chain + self.edge * STEPS * ROUNDS) as f32
        });
        if let Some((at, got)) = wrong {
            return Err(wrong_result("peak_cooperative", at, got));
        }
        let products = f64::from(self.edge * STEPS * ROUNDS) * self.words(groups) as f64;
        let describe = format!(
            "matrices of {}, {} accumulators",
            self.edge, self.accumulators
        );
        Ok((
            1e-3 * 2.0 * products / timing.median_us,
            describe,
            timing.clock,
        ))
    }
}

#[derive(Debug, Clone, Copy)]
struct CopyKernel {
    vectors: bool,
    each: u32,
}

impl CopyKernel {
    fn grid() -> Vec<Self> {
        let pairs = [(false, 1), (false, 4), (true, 1), (true, 4)];
        pairs.map(|(vectors, each)| Self { vectors, each }).to_vec()
    }

    fn dispatch(self, words: u32) -> Dispatch {
        let parts: &'static [&'static str] = if self.vectors {
            &["alias Elem = vec4<u32>;\n", COPY]
        } else {
            &["alias Elem = u32;\n", COPY]
        };
        let num_elements = if self.vectors { words / 4 } else { words };
        let size = 4 * u64::from(words);
        let groups = num_elements.div_ceil(WORKGROUP_SIZE * self.each);
        Dispatch {
            kernel: Kernel {
                name: "peak_copy",
                enables: &[],
                parts: Cow::Borrowed(parts),
                params: CopyParams::FIELDS,
                storage: &[Access::Read, Access::Write],
                stepped: false,
            },
            constants: vec![
                ("WORKGROUP_SIZE", Constant::U32(WORKGROUP_SIZE)),
                ("EACH", Constant::U32(self.each)),
            ],
            params: bytemuck::bytes_of(&CopyParams { num_elements }).to_vec(),
            operands: vec![Operand::whole("source", size), Operand::whole("copy", size)],
            grid: fold_grid(groups.into()),
            steps: 1,
        }
    }

    fn measure(self, gpu: &Gpu, clock: &Clock, budget: Budget) -> Result<Figure, Error> {
        let capabilities = gpu.context().capabilities();
        // past the caches: 256 MiB on a GPU, where the largest keeps about 100
        let wanted = if capabilities.cpu {
            64 << 20
        } else {
            256 << 20
        };
        let size = wanted
            .min(capabilities.storage_binding_size)
            .min(gpu.device().limits().max_buffer_size)
            / 16
            * 16;
        let words = (size / 4) as u32;
        let contents: Vec<u32> = (0..words).map(|i| i.wrapping_mul(0x9e37_79b9)).collect();
        let source = gpu.upload("peak source", &contents)?;
        let copy = gpu.zeros("peak copy", size)?;
        let slices = [("source", source.slice(..)), ("copy", copy.slice(..))];
        let bound = gpu.context().bind_own(&[self.dispatch(words)], &slices)?;
        let timing = clock.measure(budget, |pass| bound.record(pass))?;
        let got: Vec<u32> = gpu.download(&copy)?;
        let wrong = got
            .iter()
            .zip(&contents)
            .position(|(got, want)| got != want);
        if let Some(at) = wrong {
            return Err(wrong_result("peak_copy", at, got[at]));
        }
        let figure = 1e-3 * 2.0 * size as f64 / timing.median_us;
        Ok((figure, self.describe(), timing.clock))
    }

    fn describe(self) -> String {
        let elem = if self.vectors { "vec4" } else { "scalar" };
        format!("{elem}, {} per invocation", self.each)
    }
}

fn count_dispatch() -> Dispatch {
    Dispatch {
        kernel: Kernel {
            name: "peak_dispatch",
            enables: &[],
            parts: Cow::Borrowed(&[DISPATCH]),
            params: DispatchParams::FIELDS,
            storage: &[Access::Write],
            stepped: false,
        },
        constants: Vec::new(),
        params: bytemuck::bytes_of(&DispatchParams { increment: 1 }).to_vec(),
        operands: vec![Operand::whole("count", 4)],
        grid: [1, 1, 1],
        steps: 1,
    }
}

fn dispatch_us(gpu: &Gpu, clock: &Clock, budget: Budget) -> Result<(f64, Source), Error> {
    let count = gpu.zeros("peak count", 4)?;
    let dispatch = count_dispatch();
    let slices = [("count", count.slice(..))];
    let bound = gpu.context().bind_own(&[dispatch], &slices)?;
    let mut recorded = 0_u32;
    let timing = clock.measure(budget, |pass| {
        recorded += 1;
        bound.record(pass);
    })?;
    let got: Vec<u32> = gpu.download(&count)?;
    if got[0] != recorded {
        return Err(wrong_result("peak_dispatch", 0, got[0]));
    }
    Ok((timing.median_us, timing.clock))
}

fn wrong_result(kernel: &str, at: usize, got: impl std::fmt::Display) -> Error {
    Error::Device(format!(
        "{kernel} gave a wrong result: element {at} is {got}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expected_sums_are_exact_in_f32() {
        for kernel in FmaKernel::grid() {
            let largest = kernel.expected(255);
            assert!(largest < 16_777_216.0, "{kernel:?}: {largest}");
        }
    }

    #[test]
    fn the_roof_is_the_slower_of_the_two() {
        let peak = Peak {
            gflops: 1000.0,
            gflops_kernel: String::new(),
            cooperative: Some((4000.0, String::new())),
            gbytes_per_s: 10.0,
            gbytes_kernel: String::new(),
            dispatch_us: 1.0,
            clock: Source::Wall,
        };
        assert_eq!(peak.seconds(Variant::Portable, 1e9, 1.0), 1e-3);
        assert_eq!(peak.seconds(Variant::Cooperative, 1e9, 1.0), 0.25e-3);
        assert_eq!(peak.seconds(Variant::Portable, 1.0, 1e9), 0.1);
    }
}
