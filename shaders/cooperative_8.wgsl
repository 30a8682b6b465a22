// cooperative_8: matrices of 8 x 8 that a subgroup holds together: two factors and their product.

const EDGE: u32 = 8u;

alias Left = coop_mat8x8<f16, A>;
alias Right = coop_mat8x8<f16, B>;
alias Sum = coop_mat8x8<f32, C>;
