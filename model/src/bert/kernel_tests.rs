//! The kernels against the same sums in double precision.

use proptest::prelude::*;

use super::*;

/// The error function in double precision, by its series and its continued fraction.
fn exact_erf(x: f64) -> f64 {
    let t = x.abs();
    let value = if t < 3.0 {
        let (mut term, mut sum) = (t, t);
        for n in 1..120 {
            let n = f64::from(n);
            term *= -t * t / n;
            sum += term / (2.0 * n + 1.0);
        }
        sum * std::f64::consts::FRAC_2_SQRT_PI
    } else {
        let fraction = (1..60).rev().fold(t, |below, k| t + f64::from(k) / 2.0 / below);
        1.0 - (-t * t).exp() / fraction / std::f64::consts::PI.sqrt()
    };
    value.copysign(x)
}

fn exact_gelu(x: f64) -> f64 {
    0.5 * x * (1.0 + exact_erf(x * std::f64::consts::FRAC_1_SQRT_2))
}

fn exact_gelu_tanh(x: f64) -> f64 {
    let y = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
    0.5 * x * (1.0 + y.tanh())
}

fn check(x: f32) -> Result<(), TestCaseError> {
    for (activation, exact) in [
        (Activation::Gelu, exact_gelu as fn(f64) -> f64),
        (Activation::GeluTanh, exact_gelu_tanh),
        (Activation::Relu, |x| x.max(0.0)),
    ] {
        let mut row = vec![x; 19];
        activate(&mut row, &[0.0; 19], activation);
        let expected = exact(f64::from(x));
        for found in row {
            let error = (f64::from(found) - expected).abs();
            prop_assert!(
                error <= 1.2e-6 * expected.abs().max(1.0),
                "{:?} of {}: {}",
                activation,
                x,
                error
            );
        }
    }
    Ok(())
}

#[test]
fn the_reference_is_the_error_function() {
    for (x, erf) in [
        (0.5, 0.520_499_877_813_046_5),
        (2.9, 0.999_958_902_121_900_5),
        (3.1, 0.999_988_351_342_632_8),
    ] {
        assert!((exact_erf(x) - erf).abs() < 1e-11, "{x}");
    }
}

#[test]
fn activations_are_exact_over_their_range() {
    for step in -80_000..=80_000 {
        check(step as f32 / 10_000.0).unwrap();
    }
}

#[test]
fn what_is_not_finite_stays_so() {
    let bias = [0.0];
    for activation in [Activation::Gelu, Activation::GeluTanh, Activation::Relu] {
        let mut row = [f32::NAN];
        activate(&mut row, &bias, activation);
        assert!(row[0].is_nan(), "{activation:?}");
    }
    let norm_of = Norm { scale: vec![1.0; 2], shift: vec![0.0; 2], eps: 1e-12 };
    let mut row = [f32::INFINITY, 1.0];
    norm_here(&mut row, &norm_of);
    assert!(row.iter().all(|x| x.is_nan()));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn activations_are_exact_far_out(x in -1e4f32..1e4) {
        check(x)?;
    }
}
