//! What KEDA and Kubernetes take for a name, a target and a value. No clock and no task in here.

/// Above it not every whole number has a float of its own.
const EXACT: f64 = 9_007_199_254_740_992.0;

/// The two fields of a figure.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Fields {
    pub(super) float: f64,
    pub(super) int: i64,
}

impl Fields {
    /// Whether this is how a server fills them that knows the integers only.
    pub(super) fn int_only(self) -> bool {
        self.float == 0.0 && self.int != 0
    }

    /// The number that KEDA takes.
    pub(super) fn number(self) -> f64 {
        if self.float > 0.0 { self.float } else { self.int as f64 }
    }

    /// Whether both are one number, the integer rounded; says how they are not.
    fn agree(self) -> Result<(), String> {
        let Self { float, int } = self;
        if float > 0.0 && int <= 0 {
            return Err(format!("float {float}, integer {int}: KEDA before 2.17 reads the latter"));
        }
        let apart = (int as f64 - float).abs();
        if float < EXACT && apart >= 1.0 {
            return Err(format!("float {float}, integer {int}: they are not one number"));
        }
        Ok(())
    }
}

/// A target that the HPA can have.
pub(super) fn target(fields: Fields) -> Result<f64, String> {
    let Fields { float, int } = fields;
    if !float.is_finite() || float < 0.0 || int < 0 {
        return Err(format!("float {float}, integer {int}: not a number above zero"));
    }
    // KEDA keeps three decimals, and before 2.20.2 cut off what is behind them.
    if fields.number() < 0.001 {
        return Err(format!("float {float}, integer {int}: Kubernetes refuses a target of zero"));
    }
    if !fields.int_only() {
        fields.agree()?;
    }
    Ok(fields.number())
}

/// A value that KEDA does not bend.
pub(super) fn value(Fields { float, int }: Fields) -> Result<(), String> {
    match float.is_finite() && float >= 0.0 && int >= 0 {
        true => Ok(()),
        false => Err(format!("float {float}, integer {int}")),
    }
}

/// Whether the fields of a value agree, in a server that fills the floats of its targets or not.
pub(super) fn value_fields(fields: Fields, int_only: bool) -> Result<(), String> {
    if int_only && fields.float == 0.0 {
        return Ok(());
    }
    fields.agree()
}

/// A name that survives on its way to the HPA.
pub(super) fn metric_name(name: &str) -> Result<(), String> {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if name.is_empty() {
        return Err("it is empty".to_owned());
    }
    if let Some(odd) = name.chars().find(|c| !fits(*c)) {
        return Err(format!("{name:?} has {odd:?}"));
    }
    let index = name.strip_prefix('s').and_then(|rest| rest.split_once('-'));
    if index.is_some_and(|(n, _)| !n.is_empty() && n.chars().all(|c| c.is_ascii_digit())) {
        return Err(format!("{name:?} has KEDA's own prefix"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_one_that_kubernetes_takes() {
        for (float, int, expected) in [
            (5.0, 5, Some(5.0)),
            (6.111, 7, Some(6.111)),
            (6.111, 6, Some(6.111)),
            (0.5, 1, Some(0.5)),
            // A server without floats.
            (0.0, 5, Some(5.0)),
            (1e18, i64::MAX, Some(1e18)),
            (0.0, 0, None),
            (0.5, 0, None),
            (5.0, 50, None),
            (-1.0, 1, None),
            (5.0, -5, None),
            (f64::NAN, 5, None),
            (f64::INFINITY, 5, None),
            // KEDA 2.17 cuts what is behind the third decimal off.
            (0.001, 1, Some(0.001)),
            (0.000_9, 1, None),
            (0.000_1, 1, None),
        ] {
            assert_eq!(target(Fields { float, int }).ok(), expected, "{float} {int}");
        }
    }

    #[test]
    fn a_value_is_a_number_in_both_fields() {
        for (float, int, good, agree, agree_int_only) in [
            (0.0, 0, true, true, true),
            (22.222, 23, true, true, true),
            (7.5, 0, true, false, false),
            (0.0, 7, true, false, true),
            (3.0, 30, true, false, false),
            (-1.0, 0, false, false, false),
            (f64::NAN, 0, false, true, true),
        ] {
            let fields = Fields { float, int };
            assert_eq!(value(fields).is_ok(), good, "{float} {int}");
            assert_eq!(value_fields(fields, false).is_ok(), agree, "{float} {int}");
            assert_eq!(value_fields(fields, true).is_ok(), agree_int_only, "{float} {int}");
        }
    }

    #[test]
    fn a_name_is_plain_and_without_a_prefix() {
        for (name, good) in [
            ("ebb-jobs-jobs", true),
            ("s-1", true),
            ("slow-7", true),
            ("sx0-jobs", true),
            ("s0-jobs", false),
            ("s12-jobs", false),
            ("Jobs", false),
            ("jobs.high", false),
            ("", false),
        ] {
            assert_eq!(metric_name(name).is_ok(), good, "{name}");
        }
    }
}
