//! How much memory the keys and values of a generator have where nobody says it. Pure.

use std::path::{Path, PathBuf};

/// Of a model that needs less than this for one text of its full length, so that many grow side by
/// side; and of all models on another device than the processor, whose memory is not asked for.
const USUAL: u64 = 1 << 30;
/// The part of this machine's memory that they are never more than: the weights need some too.
const SHARE: u64 = 4;

/// Bytes of keys and values: as many as a text of the model's full length `needs`, but not more than a
/// share of the memory that there is.
pub(crate) fn usual(needs: u64, memory: Option<u64>) -> u64 {
    match memory {
        Some(memory) => needs.max(USUAL).min(memory / SHARE),
        None => USUAL,
    }
}

/// Bytes of memory that this process may use: the machine's, or its cgroup's limit where that is less.
/// `read` gives the text of a file.
pub(crate) fn memory(read: impl Fn(&Path) -> Option<String>) -> Option<u64> {
    let machine = read(Path::new("/proc/meminfo")).and_then(|text| total(&text));
    let groups = read(Path::new("/proc/self/cgroup")).unwrap_or_default();
    let limits = limits(&groups).into_iter().filter_map(|path| read(&path)?.trim().parse().ok());
    limits.chain(machine).min()
}

/// `MemTotal` of `/proc/meminfo`, which has it in KiB.
fn total(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// The files that may limit a process of these groups: of each group in which it is, up to the root.
fn limits(groups: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(group)) = (parts.next(), parts.next()) else { continue };
        let (root, file) = match controllers {
            "" => ("/sys/fs/cgroup", "memory.max"),
            "memory" => ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
            _ => continue,
        };
        // In a container the group is the root, whatever it is called outside.
        let below = Path::new(group.trim_start_matches('/')).ancestors();
        files.extend(below.map(|group| Path::new(root).join(group).join(file)));
    }
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn a_text_of_full_length_has_room_as_far_as_a_share_of_the_memory_goes() {
        for (needs, memory, expected) in [
            (1, Some(64 * GIB), GIB),
            (3 * GIB, Some(64 * GIB), 3 * GIB),
            (16 * GIB, Some(24 * GIB), 6 * GIB),
            (1, Some(2 * GIB), GIB / 2),
            (16 * GIB, None, GIB),
        ] {
            assert_eq!(usual(needs, memory), expected, "{needs} {memory:?}");
        }
    }

    #[test]
    fn memory_is_the_machines_or_what_a_group_leaves_of_it() {
        let machine = ("/proc/meminfo", "MemFree: 1 kB\nMemTotal:       8388608 kB\n");
        let group = ("/proc/self/cgroup", "0::/a/b\n");
        let older = ("/proc/self/cgroup", "3:cpu,cpuacct:/a\n2:memory:/a/b\n0::/\n");
        for (files, expected) in [
            (vec![], None),
            (vec![machine], Some(8 * GIB)),
            (vec![machine, group, ("/sys/fs/cgroup/a/b/memory.max", "max\n")], Some(8 * GIB)),
            (vec![machine, group, ("/sys/fs/cgroup/a/b/memory.max", "1024\n")], Some(1024)),
            (vec![machine, group, ("/sys/fs/cgroup/a/memory.max", "2048\n")], Some(2048)),
            (vec![machine, group, ("/sys/fs/cgroup/memory.max", "4096\n")], Some(4096)),
            (vec![machine, group, ("/sys/fs/cgroup/c/memory.max", "1\n")], Some(8 * GIB)),
            (vec![group, ("/sys/fs/cgroup/memory.max", "4096\n")], Some(4096)),
            (
                vec![machine, older, ("/sys/fs/cgroup/memory/a/b/memory.limit_in_bytes", "7\n")],
                Some(7),
            ),
            // How the older groups say that there is no limit.
            (
                vec![
                    machine,
                    older,
                    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"),
                ],
                Some(8 * GIB),
            ),
        ] {
            let read = |path: &Path| {
                let found = files.iter().find(|(name, _)| Path::new(name) == path);
                found.map(|(_, text)| (*text).to_owned())
            };
            assert_eq!(memory(read), expected, "{files:?}");
        }
    }
}
