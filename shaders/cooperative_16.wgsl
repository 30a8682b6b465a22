// cooperative_16: matrices of 16 x 16 that a subgroup holds together: two factors and their
// product. Same names as cooperative_8.wgsl.

const EDGE: u32 = 16u;

alias Left = coop_mat16x16<f16, A>;
alias Right = coop_mat16x16<f16, B>;
alias Sum = coop_mat16x16<f32, C>;
