//! What a handle notes of what it holds, in messages that its server takes. Pure.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{Attempt, Timestamp, WorkerId};

/// What the server writes beside a note.
const HEADERS: usize = 1 << 10;

/// A handle's note, as all can read it.
#[derive(Debug, Deserialize)]
pub(super) struct Note {
    pub(super) worker: WorkerId,
    pub(super) jobs: Vec<Claim>,
}

/// The same as it is written.
#[derive(Serialize)]
struct Written<'a> {
    worker: &'a WorkerId,
    jobs: &'a [&'a Claim],
}

/// One job in a note.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Claim {
    pub(super) seq: u64,
    pub(super) delivered: u32,
    /// Milliseconds until the lease ends, from the moment of the note; negative past its end.
    pub(super) left: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) deadline: Option<u64>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) crashes: Vec<Attempt>,
    /// Who holds it; stands once in the note itself.
    #[serde(skip)]
    pub(super) worker: WorkerId,
    /// When the lease ends, by the server's clock.
    #[serde(skip)]
    pub(super) until: Timestamp,
}

/// Notes that the server takes.
#[derive(Debug)]
pub(super) struct Packed {
    pub(super) notes: Vec<Bytes>,
    /// Whether something of earlier attempts was left out.
    pub(super) is_cut: bool,
}

/// Writes so many notes, or more where the leases that last need them, of a server whose `max_payload`
/// is this. Each of those leases has its line, or its job would count as one that waits. What became of
/// earlier deliveries has the room that they leave: without it, it is not told who lost a job.
pub(super) fn pack(
    worker: &WorkerId,
    mut claims: Vec<Claim>,
    n_notes: usize,
    max: usize,
) -> Packed {
    // Plain data cannot fail to be written.
    let write = |jobs: &[&Claim]| serde_json::to_vec(&Written { worker, jobs }).unwrap_or_default();
    let whole = write(&claims.iter().collect::<Vec<_>>());
    if n_notes <= 1 && whole.len() + HEADERS <= max {
        return Packed { notes: vec![whole.into()], is_cut: false };
    }
    let room = max.saturating_sub(HEADERS + write(&[]).len()).max(1);
    // Those that ended last go last.
    claims.sort_by_key(|claim| claim.left);
    let lasting = claims.iter().filter(|claim| !claim.has_lapsed());
    let needed = lasting.map(|claim| claim.n_bytes() - claim.n_bytes_of_crashes()).sum::<usize>();
    let n_notes = n_notes.max(needed.div_ceil(room)).max(1);
    let is_cut = cut(&mut claims, n_notes * room);
    let mut notes = divide(&claims, n_notes);
    while notes.len() < claims.len() && notes.iter().any(|note| n_bytes(note) > room) {
        notes = divide(&claims, notes.len() + 1);
    }
    Packed { notes: notes.iter().map(|claims| write(claims).into()).collect(), is_cut }
}

/// Leaves out of these what is of least use, until they are no longer than this; whether it did.
fn cut(claims: &mut Vec<Claim>, longest: usize) -> bool {
    let mut length: usize = claims.iter().map(Claim::n_bytes).sum();
    if length <= longest {
        return false;
    }
    let n_lapsed = claims.partition_point(Claim::has_lapsed);
    let drop_crashes = |claims: &mut [Claim], length: &mut usize| {
        for claim in claims {
            if *length <= longest {
                break;
            }
            *length -= claim.n_bytes_of_crashes();
            claim.crashes.clear();
        }
    };
    drop_crashes(&mut claims[..n_lapsed], &mut length);
    let mut n_dropped = 0;
    while n_dropped < n_lapsed && length > longest {
        length -= claims[n_dropped].n_bytes();
        n_dropped += 1;
    }
    claims.drain(..n_dropped);
    drop_crashes(&mut claims[n_lapsed - n_dropped..], &mut length);
    true
}

/// Shares them out among so many notes. Each stays in its note as long as these are as many: who reads
/// one after the other misses none.
fn divide(claims: &[Claim], n_notes: usize) -> Vec<Vec<&Claim>> {
    let mut notes = vec![Vec::new(); n_notes];
    for claim in claims {
        // Numbers at regular distances are spread like all others.
        let spread = claim.seq.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32;
        notes[spread as usize % n_notes].push(claim);
    }
    notes
}

fn n_bytes(claims: &[&Claim]) -> usize {
    claims.iter().map(|claim| claim.n_bytes()).sum()
}

impl Claim {
    fn has_lapsed(&self) -> bool {
        self.left <= 0
    }

    /// In a note, with the comma behind it.
    fn n_bytes(&self) -> usize {
        size(self) + 1
    }

    fn n_bytes_of_crashes(&self) -> usize {
        match self.crashes.is_empty() {
            true => 0,
            false => size(&self.crashes) + r#","crashes":"#.len(),
        }
    }
}

fn size(value: &impl Serialize) -> usize {
    // Plain data cannot fail to be written.
    serde_json::to_vec(value).map_or(0, |text| text.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: usize = 1 << 20;

    fn claim(seq: u64, left: i64, n_crashes: u32) -> Claim {
        let at = Timestamp::UNIX_EPOCH;
        let crash = |attempt| Attempt { attempt, at, what: "why".repeat(80) };
        let crashes = (1..=n_crashes).map(crash).collect();
        let (worker, until) = ("w".to_owned(), at);
        Claim { seq, delivered: 1, left, deadline: Some(seq), crashes, worker, until }
    }

    fn packed(claims: &[Claim], n_notes: usize) -> (Vec<Claim>, usize, bool) {
        let Packed { notes, is_cut } = pack(&"w".to_owned(), claims.to_vec(), n_notes, MAX);
        assert!(notes.iter().all(|note| note.len() <= MAX - HEADERS));
        let read = |note: &Bytes| serde_json::from_slice::<Note>(note).unwrap().jobs;
        let mut claims: Vec<_> = notes.iter().flat_map(read).collect();
        claims.sort_by_key(|claim| claim.seq);
        (claims, notes.len(), is_cut)
    }

    #[test]
    fn each_lease_that_lasts_has_its_line_however_many_there_are() {
        for n_jobs in [0, 1, 8192, 20_000, 100_000] {
            let claims: Vec<_> = (0..n_jobs).map(|seq| claim(10 * seq, 30_000, 0)).collect();
            let (read, n_notes, is_cut) = packed(&claims, 1);
            let numbers = read.iter().map(|claim| claim.seq);
            assert!(numbers.eq((0..n_jobs).map(|seq| 10 * seq)), "{n_jobs}");
            assert_eq!((n_notes > 1, is_cut), (n_jobs >= 20_000, false), "{n_jobs}");
        }
    }

    #[test]
    fn what_a_note_has_no_room_for_is_left_out_by_its_use() {
        let all = |n_crashes: [u32; 2]| -> Vec<_> {
            let lapsed = (0..4000).map(|seq| claim(seq, -1 - seq.cast_signed(), n_crashes[0]));
            lapsed.chain((4000..8000).map(|seq| claim(seq, 1, n_crashes[1]))).collect()
        };
        let count = |claims: &[Claim]| {
            let of = |seqs: std::ops::Range<u64>| {
                claims.iter().filter(move |one| seqs.contains(&one.seq))
            };
            let with =
                |seqs: std::ops::Range<u64>| of(seqs).filter(|one| !one.crashes.is_empty()).count();
            [with(0..4000), of(0..4000).count(), with(4000..8000), of(4000..8000).count()]
        };
        let (read, n_notes, is_cut) = packed(&all([0, 0]), 1);
        assert_eq!((count(&read), n_notes, is_cut), ([0, 4000, 0, 4000], 1, false));
        // Of what ended long ago first.
        let (read, n_notes, is_cut) = packed(&all([1, 0]), 1);
        let [with, n_lapsed, _, n_lasting] = count(&read);
        assert_eq!((n_lapsed, n_lasting, n_notes, is_cut), (4000, 4000, 1, true));
        assert!((1..4000).contains(&with), "{with}");
        let young = read.iter().filter(|one| one.seq < 4000 && !one.crashes.is_empty());
        assert!(young.map(|one| one.seq).eq(0..with as u64));
        // Those that last keep theirs longest.
        let (read, n_notes, is_cut) = packed(&all([1, 1]), 1);
        let [with, n_lapsed, kept, n_lasting] = count(&read);
        assert_eq!((with, n_lapsed, n_lasting, n_notes, is_cut), (0, 0, 4000, 1, true));
        assert!((1..4000).contains(&kept), "{kept}");
        // Where there are more notes there is more room.
        let (read, n_notes, is_cut) = packed(&all([1, 1]), 3);
        assert_eq!((count(&read), n_notes, is_cut), ([4000; 4], 3, false));
    }
}
