//! How much a client may send. What is above is refused before anything is made of it.

use std::collections::HashMap;

/// Bytes of one message; KEDA's are a few hundred, and metadata may have half as many.
pub(crate) const MAX_MESSAGE: usize = 32 << 10;

/// Options that a trigger may have, ours and KEDA's.
const MAX_KEYS: usize = 64;

/// Bytes of all options together.
const MAX_METADATA: usize = 16 << 10;

/// The longest name of a Kubernetes object.
const MAX_NAME: usize = 253;

/// Checks what came with a request.
///
/// # Errors
/// Says what is too much, and how much would do.
pub(crate) fn check(
    namespace: &str,
    name: &str,
    metadata: &HashMap<String, String>,
) -> Result<(), String> {
    if namespace.len() > MAX_NAME || name.len() > MAX_NAME {
        return Err(format!("the name or namespace is longer than {MAX_NAME} bytes"));
    }
    if metadata.len() > MAX_KEYS {
        let n_keys = metadata.len();
        return Err(format!("scalerMetadata: {n_keys} keys are too many; use {MAX_KEYS} at most"));
    }
    let n_bytes: usize = metadata.iter().map(|(key, value)| key.len() + value.len()).sum();
    if n_bytes > MAX_METADATA {
        let words = format!("{n_bytes} bytes are too many; use {MAX_METADATA} at most");
        return Err(format!("scalerMetadata: {words}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::check;

    #[test]
    fn what_is_too_much_is_told_with_how_much_would_do() {
        let keys = |n: usize| -> HashMap<_, _> {
            (0..n).map(|at| (format!("key{at}"), String::new())).collect()
        };
        let value = |n: usize| HashMap::from([("key".to_owned(), "x".repeat(n))]);
        assert_eq!(check("ns", "name", &keys(64)), Ok(()));
        assert!(check("ns", "name", &keys(65)).unwrap_err().contains("use 64 at most"));
        assert_eq!(check("ns", "name", &value(16 * 1024 - 3)), Ok(()));
        assert!(check("ns", "name", &value(16 * 1024 - 2)).unwrap_err().contains("16384 at most"));
        assert!(check(&"n".repeat(254), "name", &keys(0)).is_err());
        assert!(check("ns", &"n".repeat(254), &keys(0)).is_err());
    }
}
