//! The kernels of additive attention and their tiles, as data.

use crate::kernel::{Access, COMMON, Constant, Constants, Kernel};
use crate::{Capabilities, ElementType, Variant};

const PROBLEM: &str = include_str!("../../shaders/additive_attention_problem.wgsl");
const SCORES: &str = include_str!("../../shaders/additive_attention_scores.wgsl");
const ROWS_ONE: &str = include_str!("../../shaders/additive_attention_rows_one.wgsl");
const ROWS_FOUR: &str = include_str!("../../shaders/additive_attention_rows_four.wgsl");
const COLUMNS_WORKGROUP: &str =
    include_str!("../../shaders/additive_attention_columns_workgroup.wgsl");
const COLUMNS_SUBGROUP: &str =
    include_str!("../../shaders/additive_attention_columns_subgroup.wgsl");
const FORWARD: &str = include_str!("../../shaders/additive_attention.wgsl");
const WEIGHTS: &str = include_str!("../../shaders/additive_attention_weights.wgsl");
const BACKWARD_PROBLEM: &str =
    include_str!("../../shaders/additive_attention_backward_problem.wgsl");
const BACKWARD_QUERY: &str = include_str!("../../shaders/additive_attention_backward_query.wgsl");
const BACKWARD_KEY: &str = include_str!("../../shaders/additive_attention_backward_key.wgsl");
const BACKWARD: &str = include_str!("../../shaders/additive_attention_backward.wgsl");
const PREPARE: &str = include_str!("../../shaders/additive_attention_backward_prepare.wgsl");
const SUM: &str = include_str!("../../shaders/additive_attention_backward_sum.wgsl");

/// Elements of the terms that are staged at a time, and unrolled.
const CHUNK: u32 = 8;

/// The shape of a workgroup's share: `threads * rows` rows against `columns` columns at a time. Rows lie in
/// the invocations, so that a softmax needs no communication; columns are the same for all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tile {
    pub threads: u32,
    /// Per invocation: 1 or 4.
    pub rows: u32,
    pub columns: u32,
    /// The most values of a row whose accumulators stay in registers, and how many of more are taken at a time.
    pub values: u32,
    /// Handed round in the subgroup, whose size is `threads`; else through workgroup memory.
    pub subgroup: bool,
}

/// Which of the two launches of the backward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// Queries are rows: `grad_query`, `grad_v`.
    Query,
    /// Keys are rows: `grad_key`, `grad_value`.
    Key,
}

impl Tile {
    /// A CPU's lanes are its vector registers: four rows in each hide the latency of a division, and one
    /// subgroup is a workgroup. A GPU has lanes enough: one row in each, so that a few hundred queries still
    /// make many workgroups. A CPU without subgroups gets that tile too: through workgroup memory, four rows
    /// take llvmpipe 20 s to compile.
    pub fn choose(capabilities: &Capabilities, variant: Variant) -> Self {
        match (variant, capabilities.fixed_subgroup_size()) {
            (Variant::Subgroup, Some(lanes)) => Self {
                threads: lanes,
                rows: 4,
                columns: 16,
                values: 16,
                subgroup: true,
            },
            _ => Self {
                threads: 64,
                rows: 1,
                columns: 16,
                values: 16,
                subgroup: false,
            },
        }
    }

    pub fn rows_each(self) -> u32 {
        self.threads * self.rows
    }

    pub fn describe(self) -> String {
        let (rows, columns) = (self.rows_each(), self.columns);
        let how = if self.subgroup {
            "by subgroup broadcast"
        } else {
            "in workgroup memory"
        };
        format!("{rows} queries in lanes x {columns} keys {how}")
    }

    fn kernel(
        self,
        name: &'static str,
        mut parts: Vec<&'static str>,
        params: &'static [(&'static str, &'static str)],
        storage: &'static [Access],
        body: &'static str,
    ) -> Kernel {
        parts.push(SCORES);
        parts.push(if self.rows == 1 { ROWS_ONE } else { ROWS_FOUR });
        parts.push(if self.subgroup {
            COLUMNS_SUBGROUP
        } else {
            COLUMNS_WORKGROUP
        });
        parts.push(body);
        Kernel {
            name,
            enables: &[],
            parts: parts.into(),
            params,
            storage,
            stepped: false,
        }
    }

    pub fn forward(self, element: ElementType) -> Kernel {
        let parts = vec![COMMON, element.part(), PROBLEM];
        let params = super::plan::Params::FIELDS;
        self.kernel(
            "additive_attention",
            parts,
            params,
            FORWARD_STORAGE,
            FORWARD,
        )
    }

    pub fn weights(self, element: ElementType) -> Kernel {
        let parts = vec![COMMON, element.part(), PROBLEM];
        let params = super::plan::Params::FIELDS;
        let name = "additive_attention_weights";
        self.kernel(name, parts, params, FORWARD_STORAGE, WEIGHTS)
    }

    pub fn backward(self, element: ElementType, role: Role) -> Kernel {
        let of_role = match role {
            Role::Query => BACKWARD_QUERY,
            Role::Key => BACKWARD_KEY,
        };
        let parts = vec![COMMON, element.part(), BACKWARD_PROBLEM, of_role];
        let params = super::backward::Params::FIELDS;
        let name = "additive_attention_backward";
        self.kernel(name, parts, params, FORWARD_STORAGE, BACKWARD)
    }

    pub fn constants(self, mask: bool) -> Constants {
        let mut constants = vec![
            ("WORKGROUP_SIZE", Constant::U32(self.threads)),
            ("ROWS_PER_LANE", Constant::U32(self.rows)),
            ("COLUMNS", Constant::U32(self.columns)),
            ("CHUNK", Constant::U32(CHUNK)),
            ("CHUNK_PAIRS", Constant::U32(CHUNK / 2)),
            ("VALUE_CHUNK", Constant::U32(self.values)),
            ("HAS_MASK", Constant::Bool(mask)),
        ];
        if self.subgroup {
            constants.extend([
                ("LANES", Constant::U32(self.threads)),
                (
                    "COLUMNS_PER_LANE",
                    Constant::U32(self.columns / self.threads),
                ),
            ]);
        } else {
            constants.push(("COLUMN_QUADS", Constant::U32(self.columns / 4)));
        }
        constants
    }
}

const FORWARD_STORAGE: &[Access] = &[
    Access::Read,
    Access::Read,
    Access::Read,
    Access::Read,
    Access::Read,
    Access::Read,
    Access::Write,
    Access::Write,
];

pub(super) fn prepare() -> Kernel {
    const STORAGE: &[Access] = &[
        Access::Read,
        Access::Read,
        Access::Read,
        Access::Read,
        Access::Read,
        Access::Write,
    ];
    Kernel {
        name: "additive_attention_backward_prepare",
        enables: &[],
        parts: vec![COMMON, PREPARE].into(),
        params: super::backward::PrepareParams::FIELDS,
        storage: STORAGE,
        stepped: false,
    }
}

pub(super) fn sum() -> Kernel {
    Kernel {
        name: "additive_attention_backward_sum",
        enables: &[],
        parts: vec![COMMON, SUM].into(),
        params: super::backward::SumParams::FIELDS,
        storage: &[Access::Read, Access::Write],
        stepped: false,
    }
}
