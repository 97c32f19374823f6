//! Plain loops over fixed-width blocks, which the compiler turns into vector instructions; `pulp`
//! picks the widest set that the machine has.

use std::f32::consts::{LN_2, LOG2_E};

use pulp::{Arch, Simd, WithSimd};

/// Numbers handled at once: a whole number of registers on every machine.
pub(crate) const LANES: usize = 16;

/// Runs `f` on these numbers with the widest registers, on this thread. What `f` calls has to be
/// inlined, and `f` itself be marked so.
pub(crate) fn widest(values: &mut [f32], f: impl Fn(&mut [f32])) {
    Arch::new().dispatch(Widest { f: &f, values });
}

/// What is done to some numbers. By reference: a closure that `pulp` is given by value is called
/// through a function that is compiled for any machine.
struct Widest<'a, F> {
    f: &'a F,
    values: &'a mut [f32],
}

impl<F: Fn(&mut [f32])> WithSimd for Widest<'_, F> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        (self.f)(self.values);
    }
}

/// The exponential of a number that is not above zero, to 2e-7 of its value.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    // Adding and taking away 1.5 * 2^23 rounds to the nearest whole number.
    const ROUND: f32 = 12_582_912.0;
    let scaled = x * LOG2_E;
    // Not `f32::max`, which would make a number of a NaN.
    let scaled = if scaled < -126.0 { -126.0 } else { scaled };
    let shifted = scaled + ROUND;
    let rest = scaled - (shifted - ROUND);
    let mut power = 0.000_153_533_62;
    for c in [0.001_339_887_5, 0.009_618_437, 0.055_503_324, 0.240_226_48, LN_2, 1.0] {
        power = rest.mul_add(power, c);
    }
    // The whole part goes into the exponent bits; its low byte stands in `shifted`.
    let exponent = shifted.to_bits().wrapping_add(127) << 23;
    power * f32::from_bits(exponent)
}

/// The sum of what `f` makes of the numbers of a row, always in the same order.
#[inline(always)]
pub(crate) fn sum(row: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut sums = [0.0; LANES];
    let (blocks, rest) = row.as_chunks::<LANES>();
    for block in blocks {
        for (sum, x) in sums.iter_mut().zip(block) {
            *sum += f(*x);
        }
    }
    sums.into_iter().sum::<f32>() + rest.iter().map(|x| f(*x)).sum::<f32>()
}
