//! What a handle notes of what it holds, in messages that its server takes. Pure.

use std::collections::HashMap;
use std::mem;
use std::ops::Not;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{Attempt, Timestamp, WorkerId};

/// What the server writes beside a note.
const HEADERS: usize = 1 << 10;
/// The line of a job, with the comma behind it, but for what became of earlier attempts.
const LONGEST_LINE: usize = 148;

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
    jobs: &'a [Claim],
}

/// One job in a note.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Claim {
    pub(super) seq: u64,
    pub(super) delivered: u32,
    /// When its message was stored, in milliseconds: a stream that was lost and made anew begins to count
    /// again. Versions before this one did not note it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) at: Option<i64>,
    /// Milliseconds until the lease ends, from the moment of the note; negative past its end.
    pub(super) left: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) deadline: Option<u64>,
    /// Whether it is about to be stored anew, or may be.
    #[serde(default, skip_serializing_if = "Not::not")]
    pub(super) leaves: bool,
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

/// Where the lines of a handle stand. Each stays in its note as long as there is something to say of its
/// job: who reads one note after the other misses none.
#[derive(Debug, Default)]
pub(super) struct Places {
    /// By the number of the job.
    lines: HashMap<u64, Line>,
    /// How many ever had lines: all are written anew, again and again, so that what one of them said does
    /// not stand there for ever where the message that empties it is lost or overtaken. An empty one is short.
    n_notes: usize,
}

#[derive(Debug, Clone, Copy)]
struct Line {
    /// In which note.
    nth: usize,
    /// Whether the lease lasted when that was written.
    lasted: bool,
}

impl Places {
    /// Shares out these lines, so many of leases that last to a note.
    fn deal(&mut self, mut claims: Vec<Claim>, most: usize) -> Vec<Vec<Claim>> {
        let before = mem::take(&mut self.lines);
        // Those that stay where they are come first. One whose lease had ended and lasts again may find its
        // note full, and goes where those that are new go.
        claims.sort_by_key(|claim| match before.get(&claim.seq) {
            Some(line) if line.lasted || claim.has_lapsed() => 0,
            Some(_) => 1,
            None => 2,
        });
        let mut notes: Vec<Vec<Claim>> = vec![Vec::new(); self.n_notes.max(1)];
        let (mut n_lasting, mut free) = (vec![0; notes.len()], 0);
        for claim in claims {
            let lasts = !claim.has_lapsed();
            let place = before.get(&claim.seq).map(|line| line.nth);
            let nth = place.filter(|nth| !lasts || n_lasting[*nth] < most).unwrap_or_else(|| {
                while n_lasting[free] >= most {
                    free += 1;
                    if free == notes.len() {
                        notes.push(Vec::new());
                        n_lasting.push(0);
                    }
                }
                free
            });
            n_lasting[nth] += usize::from(lasts);
            self.lines.insert(claim.seq, Line { nth, lasted: lasts });
            notes[nth].push(claim);
        }
        self.n_notes = notes.len();
        notes
    }
}

/// Writes as many notes as the leases that last need of a server whose `max_payload` is this, and as were
/// written before. Each of those leases has its line, or its job would count as one that waits. What became
/// of earlier deliveries has the room that they leave: without it, it is not told who lost a job.
pub(super) fn pack(
    worker: &WorkerId,
    claims: Vec<Claim>,
    places: &mut Places,
    max: usize,
) -> Packed {
    // Plain data cannot fail to be written.
    let write = |jobs: &[Claim]| serde_json::to_vec(&Written { worker, jobs }).unwrap_or_default();
    let room = max.saturating_sub(HEADERS + write(&[]).len());
    let mut is_cut = false;
    let notes = places.deal(claims, (room / LONGEST_LINE).max(1)).into_iter().map(|mut claims| {
        // Those that ended last go last.
        claims.sort_by_key(|claim| claim.left);
        is_cut |= cut(&mut claims, room);
        write(&claims).into()
    });
    let notes = notes.collect();
    Packed { notes, is_cut }
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

impl Claim {
    /// Whether it is of the message that was stored at this moment, among those of its number.
    pub(super) fn is_of(&self, at: Timestamp) -> bool {
        self.at.is_none_or(|noted| noted == at.as_millisecond())
    }

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
    use std::collections::HashSet;

    use super::*;

    const MAX: usize = 1 << 20;

    fn claim(seq: u64, left: i64, n_crashes: u32) -> Claim {
        let at = Timestamp::UNIX_EPOCH;
        let crash = |attempt| Attempt { attempt, at, what: "why".repeat(80) };
        let crashes = (1..=n_crashes).map(crash).collect();
        let (worker, until) = ("w".to_owned(), at);
        let (at, leaves, deadline) = (None, false, Some(seq));
        Claim { seq, delivered: 1, at, left, deadline, leaves, crashes, worker, until }
    }

    fn packed_by(claims: &[Claim], places: &mut Places, max: usize) -> (Vec<Vec<Claim>>, bool) {
        let Packed { notes, is_cut } = pack(&"w".to_owned(), claims.to_vec(), places, max);
        assert!(notes.iter().all(|note| note.len() <= max - HEADERS));
        let read = |note: &Bytes| serde_json::from_slice::<Note>(note).unwrap().jobs;
        (notes.iter().map(read).collect(), is_cut)
    }

    fn packed(claims: &[Claim]) -> (Vec<Claim>, usize, bool) {
        let (notes, is_cut) = packed_by(claims, &mut Places::default(), MAX);
        let n_notes = notes.len();
        let mut claims: Vec<_> = notes.into_iter().flatten().collect();
        claims.sort_by_key(|claim| claim.seq);
        (claims, n_notes, is_cut)
    }

    #[test]
    fn no_line_is_longer_than_the_longest() {
        let at = Some(Timestamp::MIN.as_millisecond());
        let longest =
            Claim { delivered: u32::MAX, at, leaves: true, ..claim(u64::MAX, i64::MIN, 0) };
        assert_eq!(longest.n_bytes(), LONGEST_LINE);
    }

    #[test]
    fn the_lines_of_a_handle_stay_in_their_notes_as_these_grow_and_shrink() {
        const MAX: usize = 16 << 10;
        let mut places = Places::default();
        let mut before: HashMap<u64, usize> = HashMap::new();
        let mut write = |lapsed: std::ops::Range<u64>, lasting: std::ops::Range<u64>| {
            let claims = lapsed.map(|seq| claim(seq, -1 - seq.cast_signed(), 3));
            let claims: Vec<_> =
                claims.chain(lasting.clone().map(|seq| claim(seq, 9, 3))).collect();
            let (notes, _) = packed_by(&claims, &mut places, MAX);
            let lines = notes.iter().enumerate();
            let now: HashMap<_, _> = lines
                .flat_map(|(nth, note)| note.iter().map(move |claim| (claim.seq, nth)))
                .collect();
            assert!(lasting.clone().all(|seq| now.contains_key(&seq)), "{lasting:?}");
            let has_moved =
                |(seq, nth): (&u64, &usize)| before.get(seq).is_some_and(|at| at != nth);
            assert!(!now.iter().any(has_moved), "{lasting:?}");
            before = now;
            notes.len()
        };
        assert_eq!(write(0..0, 0..50), 1);
        let n_notes = write(0..0, 0..900);
        assert!(n_notes > 3, "{n_notes}");
        // Neither what is written again nor what ended makes them more.
        for _ in 0..9 {
            assert_eq!(write(0..0, 0..900), n_notes);
            assert_eq!(write(0..450, 450..900), n_notes);
        }
        assert_eq!(write(0..450, 450..1300), n_notes);
        // What is empty is written so from then on: one message may be lost.
        for _ in 0..3 {
            assert_eq!(write(0..0, 0..50), n_notes);
        }
    }

    #[test]
    fn a_lease_that_lasts_again_moves_no_other() {
        const MAX: usize = 16 << 10;
        const FIRST: u64 = 1000;
        let room = MAX - HEADERS - br#"{"worker":"w","jobs":[]}"#.len();
        let most = (room / LONGEST_LINE) as u64;
        let mut places = Places::default();
        let mut write = |first: i64, lasting: std::ops::Range<u64>| {
            let lasting = lasting.map(|seq| claim(seq, 9, 0));
            let claims: Vec<_> = [claim(FIRST, first, 0)].into_iter().chain(lasting).collect();
            let (notes, _) = packed_by(&claims, &mut places, MAX);
            let numbers = |note: Vec<Claim>| note.into_iter().map(|claim| claim.seq).collect();
            notes.into_iter().map(numbers).collect::<Vec<HashSet<u64>>>()
        };
        // It has its line in a note that is full of others.
        let before = write(-1, 0..most);
        assert_eq!(before, [(0..most).chain([FIRST]).collect()]);
        let after = write(9, 0..most);
        assert_eq!(after, [(0..most).collect(), HashSet::from([FIRST])]);
        // The one that is new goes where there is room, though more lines lie before it.
        let last = write(-1, 0..most + 1);
        assert_eq!(last, [(0..most).collect(), HashSet::from([FIRST, most])]);
    }

    #[test]
    fn each_lease_that_lasts_has_its_line_however_many_there_are() {
        for n_jobs in [0, 1, 8192, 20_000, 100_000] {
            let claims: Vec<_> = (0..n_jobs).map(|seq| claim(10 * seq, 30_000, 0)).collect();
            let (read, n_notes, is_cut) = packed(&claims);
            let numbers = read.iter().map(|claim| claim.seq);
            assert!(numbers.eq((0..n_jobs).map(|seq| 10 * seq)), "{n_jobs}");
            assert_eq!((n_notes > 1, is_cut), (n_jobs >= 8192, false), "{n_jobs}");
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
        let (read, n_notes, is_cut) = packed(&all([0, 0]));
        assert_eq!((count(&read), n_notes, is_cut), ([0, 4000, 0, 4000], 1, false));
        // Of what ended long ago first.
        let (read, n_notes, is_cut) = packed(&all([1, 0]));
        let [with, n_lapsed, _, n_lasting] = count(&read);
        assert_eq!((n_lapsed, n_lasting, n_notes, is_cut), (4000, 4000, 1, true));
        assert!((1..4000).contains(&with), "{with}");
        let young = read.iter().filter(|one| one.seq < 4000 && !one.crashes.is_empty());
        assert!(young.map(|one| one.seq).eq(0..with as u64));
        // Those that last keep theirs longest.
        let (read, n_notes, is_cut) = packed(&all([1, 1]));
        let [with, n_lapsed, kept, n_lasting] = count(&read);
        assert_eq!((with, n_lapsed, n_lasting, n_notes, is_cut), (0, 0, 4000, 1, true));
        assert!((1..4000).contains(&kept), "{kept}");
    }
}
