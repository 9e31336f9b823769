//! Crashes and damage: what was acknowledged is found again, or the open is refused.

use proptest::prelude::*;
use proptest::sample::Index;

use super::super::record::{DATA_START, Seed, SegmentHeader};
use super::super::watermark::Mark;
use super::*;

/// One step of a random history. Numbers are taken modulo what makes sense at that point.
#[derive(Clone, Debug)]
enum Step {
    Append { count: u64, size: usize },
    Truncate { back: u64 },
    Purge { forward: u64 },
    Vote { committed: bool },
    Remove,
}

fn step() -> impl Strategy<Value = (u64, Step)> {
    let step = prop_oneof![
        12 => (1..8_u64, 0..900_usize).prop_map(|(count, size)| Step::Append { count, size }),
        2 => (0..12_u64).prop_map(|back| Step::Truncate { back }),
        3 => (0..40_u64).prop_map(|forward| Step::Purge { forward }),
        2 => any::<bool>().prop_map(|committed| Step::Vote { committed }),
        1 => Just(Step::Remove),
    ];
    (0..4_u64, step)
}

/// What a log should hold, after each of its records.
#[derive(Default)]
struct History {
    now: Model,
    term: u64,
    states: Vec<Model>,
}

impl History {
    fn record(&mut self) {
        let mut state = self.now.clone();
        state.retain(|_, seen| *seen != Seen::default());
        self.states.push(state);
    }

    /// Does `step` in `log` and in the model, without waiting for the disk.
    async fn step(&mut self, log: &SharedLog, group: u64, step: &Step) {
        let id = GroupId(group);
        let mut group = log.group(id);
        self.term += 1;
        let seen = self.now.entry(id).or_default();
        let next = match (seen.entries.last(), seen.purged) {
            (Some(last), _) => last.log_id.index + 1,
            (None, Some(purged)) => purged.index + 1,
            (None, None) => self.term % 3,
        };
        match step {
            Step::Append { count, size } => {
                let new = entries(self.term, next..next + count, *size);
                for entry in &new {
                    self.now.entry(id).or_default().entries.push(entry.clone());
                    self.record();
                }
                append_later(&mut group, new).await;
            }
            Step::Truncate { back } => {
                let keep = seen.entries.len().saturating_sub(*back as usize);
                seen.entries.truncate(keep);
                let after = seen.entries.last().map(|entry| entry.log_id);
                let after = after.or(seen.purged);
                group.truncate_after(after).await.unwrap();
                self.record();
            }
            Step::Purge { forward } => {
                let Some(first) = seen.entries.first() else {
                    return;
                };
                let upto = first.log_id.index + forward;
                let upto = match seen.entries.iter().find(|entry| entry.log_id.index == upto) {
                    Some(entry) => entry.log_id,
                    // As after a snapshot from a leader: past the end.
                    None => log_id(self.term, upto),
                };
                seen.entries.retain(|entry| entry.log_id.index > upto.index);
                seen.purged = Some(upto);
                group.purge(upto).await.unwrap();
                self.record();
            }
            Step::Vote { committed } => {
                let vote = match committed {
                    true => Vote::new_committed(self.term, 1),
                    false => Vote::new(self.term, 2),
                };
                seen.vote = Some(vote);
                self.record();
                group.save_vote(&vote).await.unwrap();
            }
            Step::Remove => {
                self.now.remove(&id);
                self.record();
                log.remove_group(id).await.unwrap();
            }
        }
    }

    async fn steps(&mut self, log: &SharedLog, steps: &[(u64, Step)]) {
        for (group, step) in steps {
            self.step(log, *group, step).await;
        }
    }

    fn last(&self) -> &Model {
        &self.states[self.states.len() - 1]
    }
}

fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap()
        .block_on(future)
}

fn mark(files: &BTreeMap<String, Vec<u8>>) -> Mark {
    let dir = restore(files);
    let watermark = Watermark::open(dir.path(), &SystemFiles).unwrap();
    watermark.unwrap().mark()
}

/// Where the records of a segment end.
fn end_of(bytes: &[u8]) -> u64 {
    let header = SegmentHeader::decode(bytes).unwrap();
    let seed = Seed::new(header.log, header.segment);
    let mut offset = DATA_START;
    while let Some(record) = record::get(&bytes[offset as usize..], seed, offset) {
        offset += record.stride() as u64;
    }
    offset
}

/// Files of a log closed after `synced`, and again after `steps`, with the states along the way.
struct Lives {
    synced: BTreeMap<String, Vec<u8>>,
    written: BTreeMap<String, Vec<u8>>,
    states: Vec<Model>,
}

async fn two_lives(synced: &[(u64, Step)], steps: &[(u64, Step)]) -> Lives {
    let dir = tempfile::tempdir().unwrap();
    let mut history = History::default();
    history.record();
    let log = open(dir.path()).unwrap();
    history.steps(&log, synced).await;
    assert_eq!(look(&log).await, *history.last());
    log.close().await.unwrap();
    let synced = files(dir.path());
    history.states.drain(..history.states.len() - 1);

    let log = open(dir.path()).unwrap();
    assert_eq!(look(&log).await, *history.last());
    history.steps(&log, steps).await;
    log.close().await.unwrap();
    Lives {
        synced,
        written: files(dir.path()),
        states: history.states,
    }
}

/// Opens `files`, which must hold one of `states`, and goes on from there. Returns which, the first.
async fn survives(files: &BTreeMap<String, Vec<u8>>, states: &[Model]) -> usize {
    let dir = restore(files);
    let log = open(dir.path()).unwrap();
    let found = look(&log).await;
    let which = states.iter().position(|state| *state == found);
    let which = which.unwrap_or_else(|| panic!("no state of this log's history: {found:?}"));

    // Goes on, over what the crash left behind the end.
    let mut history = History {
        now: found,
        term: 1_000_000,
        states: Vec::new(),
    };
    let more = Step::Append { count: 3, size: 40 };
    for group in [0, 1, 2] {
        history.step(&log, group, &more).await;
    }
    log.close().await.unwrap();
    let log = open(dir.path()).unwrap();
    assert_eq!(look(&log).await, *history.last());
    log.close().await.unwrap();
    which
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, failure_persistence: None, ..ProptestConfig::default() })]

    /// A power cut in a write whose watermark was not on the disk either: the file ends anywhere
    /// behind what was synced, with what it held before behind that.
    #[test]
    fn a_log_cut_anywhere_behind_what_was_synced_comes_back_as_a_prefix(
        synced in prop::collection::vec(step(), 1..60),
        steps in prop::collection::vec(step(), 1..12),
        cuts in prop::collection::vec(any::<Index>(), 4),
    ) {
        block_on(async {
            let lives = two_lives(&synced, &steps).await;
            let (from, to) = (mark(&lives.synced), mark(&lives.written));
            // Segments that were given up meanwhile were so with a synced watermark.
            prop_assume!(from.oldest == to.oldest && to != from);
            let mut positions: Vec<(u64, u64)> = (from.segment..=to.segment)
                .flat_map(|number| {
                    let start = if number == from.segment { from.offset } else { DATA_START };
                    let end = end_of(&lives.written[&segment_name(number)]);
                    (start..=end).map(move |offset| (number, offset))
                })
                .collect();
            let mut chosen: Vec<_> = cuts.iter().map(|cut| *cut.get(&positions)).collect();
            chosen.push(positions.remove(0));
            chosen.extend(positions.pop());
            chosen.sort();
            let mut before = 0;
            for (number, offset) in chosen {
                let mut files = lives.written.clone();
                files.insert("watermark".into(), lives.synced["watermark"].clone());
                files.retain(|name, _| !name.ends_with(".log") || *name <= segment_name(number));
                let zeros = vec![0; MIN_SEGMENT as usize];
                let old = lives.synced.get(&segment_name(number)).unwrap_or(&zeros);
                let cut = files.get_mut(&segment_name(number)).unwrap();
                cut[offset as usize..].copy_from_slice(&old[offset as usize..]);
                // Never less than a shorter log held.
                before += survives(&files, &lives.states[before..]).await;
            }
            let last = &lives.states[lives.states.len() - 1];
            prop_assert_eq!(&lives.states[before], last, "the whole log has it all");
            Ok(())
        })?;
    }

    /// Sectors of the last write reach the disk in any order.
    #[test]
    fn a_last_write_with_missing_sectors_is_cut_back_to_a_whole_record(
        synced in prop::collection::vec(step(), 0..30),
        count in 1..20_u64,
        size in 0..600_usize,
        missing in prop::collection::vec((any::<Index>(), any::<u8>()), 1..4),
    ) {
        block_on(async {
            let last = Step::Append { count, size };
            let lives = two_lives(&synced, &[(1, last)]).await;
            let (from, to) = (mark(&lives.synced), mark(&lives.written));
            prop_assume!(from.segment == to.segment && from.oldest == to.oldest);
            let sectors: Vec<u64> = (from.offset..to.offset).step_by(512).collect();
            let mut files = lives.written.clone();
            files.insert("watermark".into(), lives.synced["watermark"].clone());
            let segment = files.get_mut(&segment_name(to.segment)).unwrap();
            for (sector, garbage) in missing {
                let start = *sector.get(&sectors) as usize;
                let end = (start + 512).min(to.offset as usize);
                segment[start..end].fill(garbage);
            }
            survives(&files, &lives.states).await;
            Ok(())
        })?;
    }

    /// Every byte of a record is checked, and so is that nothing is missing at the end.
    #[test]
    fn a_flipped_bit_in_what_was_acknowledged_is_refused(
        steps in prop::collection::vec(step(), 20..80),
        flips in prop::collection::vec((any::<Index>(), any::<Index>(), 0..8_u32), 24),
    ) {
        block_on(async {
            let lives = two_lives(&steps, &[(1, Step::Vote { committed: false })]).await;
            let mark = mark(&lives.written);
            let numbers: Vec<u64> = (mark.oldest..=mark.segment).collect();
            for (segment, offset, bit) in flips {
                let name = segment_name(*segment.get(&numbers));
                let mut files = lives.written.clone();
                let bytes = files.get_mut(&name).unwrap();
                let offsets: Vec<u64> = (0..40).chain(DATA_START..end_of(bytes)).collect();
                let offset = *offset.get(&offsets);
                bytes[offset as usize] ^= 1 << bit;
                let dir = restore(&files);
                let refused = open(dir.path());
                prop_assert!(refused.is_err(), "flip at {offset} of {name} went unnoticed");
                let after = super::files(dir.path());
                prop_assert!(after[&name] == files[&name], "a refused log is left as it was");
            }
            Ok(())
        })?;
    }
}

/// A log with several segments in it, and its last state.
async fn several_segments() -> (BTreeMap<String, Vec<u8>>, Model) {
    let append = |group, size| (group, Step::Append { count: 7, size });
    let steps: Vec<_> = (0..40).map(|at| append(at % 3, 400)).collect();
    let lives = two_lives(&steps, &[append(1, 30)]).await;
    let last = lives.states[lives.states.len() - 1].clone();
    (lives.written, last)
}

#[tokio::test]
async fn a_missing_segment_is_refused_whichever_it_is() {
    let (files, _) = several_segments().await;
    let mark = mark(&files);
    assert!(mark.segment > mark.oldest + 1);
    for number in mark.oldest..=mark.segment {
        let mut files = files.clone();
        files.remove(&segment_name(number)).unwrap();
        let refused = open(restore(&files).path()).map(|_| ()).unwrap_err();
        assert!(
            matches!(
                refused,
                LogOpenError::Missing { .. } | LogOpenError::AcknowledgedMissing { .. }
            ),
            "{refused}"
        );
    }
}

#[tokio::test]
async fn a_truncated_segment_is_refused() {
    let (files, _) = several_segments().await;
    let mark = mark(&files);
    for number in mark.oldest..=mark.segment {
        let mut files = files.clone();
        let segment = files.get_mut(&segment_name(number)).unwrap();
        segment.truncate(segment.len() / 2);
        assert!(open(restore(&files).path()).is_err());
    }
}

#[tokio::test]
async fn a_log_cut_back_before_its_watermark_is_refused_as_missing_what_was_acknowledged() {
    let (files, _) = several_segments().await;
    let mark = mark(&files);
    let mut cut = files.clone();
    let segment = cut.get_mut(&segment_name(mark.segment)).unwrap();
    segment[mark.offset as usize - 8..].fill(0);
    let refused = open(restore(&cut).path()).map(|_| ()).unwrap_err();
    assert!(
        matches!(refused, LogOpenError::AcknowledgedMissing { .. }),
        "{refused}"
    );
}

#[tokio::test]
async fn a_damaged_or_missing_watermark_never_makes_a_shorter_log() {
    let (files, last) = several_segments().await;
    let mut without = files.clone();
    without.remove("watermark");
    assert!(matches!(
        open(restore(&without).path()),
        Err(LogOpenError::Missing { .. })
    ));
    for offset in (0..64).chain(4096..4160) {
        let mut files = files.clone();
        files.get_mut("watermark").unwrap()[offset] ^= 4;
        let dir = restore(&files);
        let log = open(dir.path()).unwrap();
        assert_eq!(look(&log).await, last, "the other slot serves");
    }
    let mut both = files.clone();
    let watermark = both.get_mut("watermark").unwrap();
    watermark[20] ^= 1;
    watermark[4096 + 20] ^= 1;
    assert!(matches!(
        open(restore(&both).path()),
        Err(LogOpenError::Corrupt { .. })
    ));
}

#[tokio::test]
async fn a_segment_of_another_log_is_refused() {
    let (mine, _) = several_segments().await;
    let (other, _) = several_segments().await;
    let number = mark(&mine).oldest;
    let mut mixed = mine;
    mixed.insert(segment_name(number), other[&segment_name(number)].clone());
    assert!(matches!(
        open(restore(&mixed).path()),
        Err(LogOpenError::Corrupt { .. })
    ));
}

#[tokio::test]
async fn a_newer_format_is_refused_by_name() {
    let (files, _) = several_segments().await;
    let name = segment_name(mark(&files).oldest);
    for (name, header) in [(name.as_str(), 40), ("watermark", 64)] {
        let mut newer = files.clone();
        let bytes = &mut newer.get_mut(name).unwrap()[..header];
        bytes[8] = 9;
        record::seal(bytes);
        let refused = open(restore(&newer).path()).map(|_| ()).unwrap_err();
        let newer = matches!(refused, LogOpenError::NewerFormat { found: 9, .. });
        assert!(newer, "{refused}");
        assert!(refused.to_string().contains("format version 9"));
    }
}

#[tokio::test]
async fn a_segment_begun_but_never_synced_is_as_if_it_were_not_there() {
    let (mut files, last) = several_segments().await;
    let number = mark(&files).segment + 1;
    let log = mark(&files).log;
    let header = SegmentHeader {
        log,
        segment: number,
        size: MIN_SEGMENT,
    };
    let mut begun = header.encode();
    begun.resize(MIN_SEGMENT as usize, 0xab);
    files.insert(segment_name(number), begun);
    survives(&files, &[last]).await;
}

#[tokio::test]
async fn a_whole_record_behind_a_torn_one_stays_dead_after_the_gap_is_filled() {
    let lives = two_lives(&[], &[(1, Step::Append { count: 3, size: 64 })]).await;
    let end = mark(&lives.written).offset as usize;
    let begin = mark(&lives.synced).offset as usize;
    let (number, stride) = (mark(&lives.written).segment, (end - begin) / 3);
    let mut files = lives.written.clone();
    files.insert("watermark".into(), lives.synced["watermark"].clone());
    let segment = files.get_mut(&segment_name(number)).unwrap();
    segment[begin + stride + 30] ^= 1;

    let dir = restore(&files);
    let log = open(dir.path()).unwrap();
    let mut group = log.group(G1);
    let mut found = group.try_get_log_entries(..).await.unwrap();
    assert_eq!(found.len(), 1, "cut back to the record before the torn one");
    // Of the torn record's size: it ends where the whole one begins.
    let filler = entry(50, found[0].log_id.index + 1, vec![9; 64]);
    append(&mut group, vec![filler.clone()]).await.unwrap();
    log.close().await.unwrap();
    let log = open(dir.path()).unwrap();
    found.push(filler);
    let again = log.group(G1).try_get_log_entries(..).await.unwrap();
    assert_eq!(again, found);
}

/// The watermark may be older than the log after a power cut. What is behind it still shows damage,
/// if a later write is whole: that one began when the damaged one was synced.
#[tokio::test]
async fn damage_behind_an_old_watermark_is_refused_when_a_later_write_is_whole() {
    let vote = (1, Step::Vote { committed: false });
    let lives = two_lives(&[], &[vote.clone(), vote.clone(), vote]).await;
    let mut files = lives.written.clone();
    files.insert("watermark".into(), lives.synced["watermark"].clone());
    assert_eq!(survives(&files, &lives.states).await, 3);
    let segment = files
        .get_mut(&segment_name(mark(&lives.written).segment))
        .unwrap();
    segment[mark(&lives.synced).offset as usize + 30] ^= 1;
    let refused = open(restore(&files).path()).map(|_| ()).unwrap_err();
    assert!(matches!(refused, LogOpenError::Corrupt { .. }), "{refused}");
}
