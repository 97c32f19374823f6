//! Where a process runs.

/// The name of this host, which on Kubernetes is that of the pod: printable ASCII, as it may stand in
/// an id, and empty where the system does not tell.
#[must_use]
pub fn host() -> String {
    let from_system = || std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
    printable(&std::env::var("HOSTNAME").ok().or_else(from_system).unwrap_or_default())
}

fn printable(name: &str) -> String {
    name.chars().filter(char::is_ascii_graphic).take(64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_can_stand_in_an_id() {
        assert_eq!(printable("encoder-7d9f-x2x\n"), "encoder-7d9f-x2x");
        assert_eq!(printable("my höst\t"), "myhst");
        assert_eq!(printable(&"a".repeat(65)).len(), 64);
    }
}
