//! The store's promises, on a disk that fails and on a real one.

mod model;
mod sim;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use leadline_raft::Context;
use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::runtime::Runtime;

use self::sim::Disk;
use super::record::{DATA_START, RECORD_HEADER};
use super::*;
use crate::blobs::permits::Budget;

const DIR: &str = "/blobs";

/// Segments of a few chunks, so that a test sees many.
fn small() -> Options {
    Options {
        segment_bytes: 32 << 10,
        queue_bytes: 64 << 10,
        least_free_bytes: 0,
    }
}

fn try_open(disk: &Disk) -> Result<Arc<ChunkStore>, OpenStoreError> {
    let files = Arc::new(disk.clone());
    ChunkStore::open(Path::new(DIR), small(), files, BlobMetrics::default())
}

fn open(disk: &Disk) -> Arc<ChunkStore> {
    try_open(disk).unwrap()
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap()
}

fn seconds(seconds: u64) -> Context {
    Context::with_timeout(Duration::from_secs(seconds))
}

/// The `i`th of some chunks, whose sizes differ.
fn chunk(i: u32) -> (ChunkRef, Bytes) {
    let len = 100 + (i as usize * 977) % 4000;
    let bytes: Vec<u8> = (0..len).map(|at| (at as u32 ^ (i * 31)) as u8).collect();
    let mut bytes = bytes;
    bytes[..4].copy_from_slice(&i.to_le_bytes());
    (ChunkRef::of(&bytes), bytes.into())
}

fn write(rt: &Runtime, store: &ChunkStore, i: u32) -> Result<(), DiskError> {
    let (name, bytes) = chunk(i);
    let crc = crc32c::crc32c(&bytes);
    rt.block_on(store.write(&seconds(60), name, crc, bytes, None))
}

fn segment(number: u32) -> PathBuf {
    Path::new(DIR).join(format!("{number:08x}.blob"))
}

#[test]
fn chunks_are_there_after_a_clean_close_without_reading_them_and_after_a_kill() {
    let (rt, disk) = (runtime(), Disk::default());
    let store = open(&disk);
    for i in 0..40 {
        write(&rt, &store, i).unwrap();
    }
    store.close();
    assert!(disk.names("blob").len() > 2, "several segments");
    assert_eq!(disk.names("blob").len(), disk.names("hint").len());

    for lost_hints in [false, true] {
        if lost_hints {
            for hint in disk.names("hint") {
                disk.forget(&hint);
            }
        }
        let store = open(&disk);
        assert_eq!(store.found(), Found::default());
        for i in 0..40 {
            let (name, bytes) = chunk(i);
            assert_eq!(store.read(name).unwrap(), Some(bytes), "{i}");
        }
        assert_eq!(store.stats().chunks, 40);
        store.close();
    }
}

#[test]
fn a_torn_tail_is_cut_and_what_was_synced_before_it_stays() {
    let (rt, disk) = (runtime(), Disk::default());
    let store = open(&disk);
    for i in 0..3 {
        write(&rt, &store, i).unwrap();
    }
    // Of the next write, one half reaches the file.
    disk.kill_after(0);
    assert!(write(&rt, &store, 3).is_err());
    store.close();
    disk.restart();
    let store = open(&disk);
    assert!(store.found().torn);
    assert_eq!(store.found().damaged, 0);
    for i in 0..3 {
        assert_eq!(store.read(chunk(i).0).unwrap(), Some(chunk(i).1));
    }
    assert!(!store.contains(chunk(3).0));
    write(&rt, &store, 3).unwrap();
    assert_eq!(store.read(chunk(3).0).unwrap(), Some(chunk(3).1));
}

/// Sectors reach a disk in any order: what lies behind a hole in the last write was not synced either.
#[test]
fn a_last_write_that_is_not_whole_is_cut_from_its_hole_on() {
    let (rt, disk) = (runtime(), Disk::default());
    let store = open(&disk);
    let later = |i| {
        let (name, bytes) = chunk(i);
        let (store, ctx) = (&store, seconds(60));
        let crc = crc32c::crc32c(&bytes);
        async move { store.write(&ctx, name, crc, bytes, None).await }
    };
    rt.block_on(async {
        let held = disk.hold_syncs();
        let mut writes = FuturesUnordered::new();
        writes.push(later(0));
        assert!(writes.next().now_or_never().is_none());
        // Taken by the writer, which waits for its sync: the next three share a write.
        while !store.shared.queue.lock().ops.is_empty() {
            std::thread::yield_now();
        }
        writes.extend([later(1), later(2), later(3)]);
        assert!(writes.next().now_or_never().is_none());
        drop(held);
        while let Some(written) = writes.next().await {
            written.unwrap();
        }
    });
    disk.kill_after(0);
    store.close();
    disk.restart();
    let hole: u64 = (0..2).map(|i| record::stride(chunk(i).0.len)).sum();
    let hole = DATA_START + hole;
    disk.flip(&segment(1), hole as usize + RECORD_HEADER + 5);
    let store = open(&disk);
    let torn = Found {
        damaged: 0,
        torn: true,
    };
    assert_eq!(store.found(), torn);
    assert!(store.contains(chunk(0).0) && store.contains(chunk(1).0));
    assert!(!store.contains(chunk(2).0) && !store.contains(chunk(3).0));
}

#[test]
fn damage_before_a_synced_write_is_reported_and_costs_that_chunk_only() {
    let (rt, disk) = (runtime(), Disk::default());
    let store = open(&disk);
    for i in 0..4 {
        write(&rt, &store, i).unwrap();
    }
    // As after a kill: no hint.
    disk.kill_after(0);
    store.close();
    disk.restart();
    let second = DATA_START + record::stride(chunk(0).0.len);
    for offset in [8, RECORD_HEADER as u64 + 10] {
        disk.flip(&segment(1), (second + offset) as usize);
        let store = open(&disk);
        assert_eq!(store.found().damaged, 1, "at {offset}");
        assert!(!store.found().torn);
        for i in [0, 2, 3] {
            assert_eq!(
                store.read(chunk(i).0).unwrap(),
                Some(chunk(i).1),
                "{i} at {offset}"
            );
        }
        assert!(!store.contains(chunk(1).0));
        disk.kill_after(0);
        store.close();
        disk.restart();
        for hint in disk.names("hint") {
            disk.forget(&hint);
        }
        for later in disk.names("blob").into_iter().skip(1) {
            disk.forget(&later);
        }
        disk.flip(&segment(1), (second + offset) as usize);
    }
}

#[test]
fn a_sealed_segment_that_lost_its_end_keeps_the_rest() {
    let (rt, disk) = (runtime(), Disk::default());
    let store = open(&disk);
    for i in 0..40 {
        write(&rt, &store, i).unwrap();
    }
    store.close();
    let path = segment(1);
    disk.cut(&path, disk.size_of(&path) - record::PAGE);
    let store = open(&disk);
    assert_eq!(store.found().damaged, 1);
    let lost = (0..40).filter(|&i| store.read(chunk(i).0).unwrap().is_none());
    assert_eq!(lost.count(), 1);
}

#[test]
fn a_chunk_that_rots_is_never_given_out_and_can_be_written_anew() {
    let (rt, disk) = (runtime(), Disk::default());
    let store = open(&disk);
    write(&rt, &store, 1).unwrap();
    write(&rt, &store, 2).unwrap();
    disk.flip(&segment(1), DATA_START as usize + RECORD_HEADER + 50);
    assert_eq!(store.read(chunk(1).0).unwrap(), None);
    assert!(!store.contains(chunk(1).0));
    assert_eq!(store.read(chunk(2).0).unwrap(), Some(chunk(2).1));
    write(&rt, &store, 1).unwrap();
    assert_eq!(store.read(chunk(1).0).unwrap(), Some(chunk(1).1));
}

/// Forgotten chunks are collected with their segments: that must need more than a busy machine.
#[test]
fn a_read_that_fails_for_want_of_files_forgets_nothing_and_what_is_damaged_is_not_deleted() {
    let (rt, disk) = (runtime(), Disk::default());
    let store = open(&disk);
    for i in 0..40 {
        write(&rt, &store, i).unwrap();
    }
    disk.fail_reads(Some(libc::EMFILE));
    assert!(matches!(store.read(chunk(1).0), Err(DiskError::Read(_))));
    disk.fail_reads(Some(libc::EIO));
    assert_eq!(store.read(chunk(2).0).unwrap(), None);
    disk.fail_reads(None);
    assert_eq!(store.read(chunk(1).0).unwrap(), Some(chunk(1).1));
    assert_eq!(store.read(chunk(2).0).unwrap(), None, "fetched from a peer");
    store.advance(10);
    store.collect(5);
    assert!(store.sealed().iter().any(|segment| segment.is_suspect()));
    assert!(
        store
            .sparse(101)
            .iter()
            .all(|segment| !segment.is_suspect())
    );
    store.close();
    let store = open(&disk);
    assert_eq!(
        store.read(chunk(2).0).unwrap(),
        Some(chunk(2).1),
        "it was there"
    );
}

#[test]
fn a_scrub_finds_what_nobody_reads() {
    let (rt, disk) = (runtime(), Disk::default());
    let store = open(&disk);
    for i in 0..30 {
        write(&rt, &store, i).unwrap();
    }
    let sealed = store.sealed();
    let records = store.live_in(&sealed[0]).unwrap();
    assert!(records.iter().all(|&(hash, at)| store.scrub(hash, at)));
    let (hash, at) = records[1];
    disk.flip(
        &segment(sealed[0].head.number),
        at.payload_offset() as usize,
    );
    assert!(!store.scrub(hash, at));
    assert_eq!(store.live_in(&sealed[0]).unwrap().len(), records.len() - 1);
}

#[test]
fn a_failed_sync_stops_the_store_for_good_and_says_why() {
    let (rt, disk) = (runtime(), Disk::default());
    let store = open(&disk);
    write(&rt, &store, 1).unwrap();
    disk.fail_syncs(true);
    let error = write(&rt, &store, 2).unwrap_err();
    assert!(
        matches!(&error, DiskError::Failed(why) if why.contains("os error 5")),
        "{error}"
    );
    disk.fail_syncs(false);
    assert!(matches!(write(&rt, &store, 3), Err(DiskError::Failed(_))));
    assert!(store.failed().borrow().is_some());
    assert_eq!(store.read(chunk(1).0).unwrap(), Some(chunk(1).1));
    assert!(!store.contains(chunk(2).0));
}

/// After a failed sync the page cache shows what the disk does not have, and a sync says nothing.
#[test]
fn what_a_failed_sync_left_is_written_again_before_anybody_relies_on_it() {
    let (rt, disk) = (runtime(), Disk::default());
    let store = open(&disk);
    write(&rt, &store, 1).unwrap();
    disk.fail_syncs(true);
    write(&rt, &store, 2).unwrap_err();
    store.close();
    disk.fail_syncs(false);

    // Killed while it opens, at every step; then it opens, and the chunk is there.
    let mut steps = 0;
    let store = loop {
        disk.kill_after(steps);
        match try_open(&disk) {
            Ok(store) if !disk.is_dead() => break store,
            // Dead: it took the kill for a full disk.
            Ok(store) => store.close(),
            Err(_) => {}
        }
        disk.restart();
        steps += 1;
    };
    disk.restart();
    assert!(steps > 3, "{steps}");
    assert_eq!(store.read(chunk(2).0).unwrap(), Some(chunk(2).1));
    disk.kill_after(0);
    store.close();
    disk.lose_power(&mut StdRng::seed_from_u64(7));
    let store = open(&disk);
    for i in [1, 2] {
        assert_eq!(store.read(chunk(i).0).unwrap(), Some(chunk(i).1), "{i}");
    }
}

#[test]
fn a_full_disk_refuses_chunks_and_takes_them_again_when_there_is_room() {
    let (rt, disk) = (runtime(), Disk::default());
    let store = open(&disk);
    disk.fill(true);
    assert!(matches!(write(&rt, &store, 1), Err(DiskError::Write(_))));
    disk.fill(false);
    write(&rt, &store, 1).unwrap();
    assert!(store.failed().borrow().is_none());
}

#[test]
fn a_segment_of_a_newer_format_is_refused_by_name() {
    let (rt, disk) = (runtime(), Disk::default());
    let store = open(&disk);
    write(&rt, &store, 1).unwrap();
    store.close();
    let file = disk.open(&segment(1), false).unwrap();
    let mut head = file.read_at(32, 0).unwrap().to_vec();
    head[8] = 9;
    head[12..16].fill(0);
    let crc = crc32c::crc32c(&head);
    head[12..16].copy_from_slice(&crc.to_le_bytes());
    file.write_at(&[&head], 0).unwrap();
    let refused = ChunkStore::open(
        Path::new(DIR),
        small(),
        Arc::new(disk),
        BlobMetrics::default(),
    );
    assert!(matches!(
        refused,
        Err(OpenStoreError::Newer { found: 9, .. })
    ));
}

/// Format 1: records at multiples of 64. What a node wrote before stays readable, with its hints and
/// without, torn or damaged, and counts as many bytes as it takes.
#[test]
fn a_segment_of_the_first_format_is_read_as_it_was_written() {
    let (rt, disk) = (runtime(), Disk::default());
    let head = record::SegmentHead {
        format: 1,
        ..record::SegmentHead::new(1)
    };
    let mut bytes = head.encode();
    let mut places = Vec::new();
    for i in 0..5 {
        let (name, payload) = chunk(i);
        let offset = bytes.len() as u64;
        assert!(offset.is_multiple_of(64));
        let header = record::RecordHeader {
            chunk: name,
            crc: crc32c::crc32c(&payload),
            write: u64::from(i),
            first: true,
        };
        bytes.extend_from_slice(&header.encode(head.seed, offset));
        bytes.extend_from_slice(&payload);
        bytes.resize(bytes.len().next_multiple_of(64), 0);
        places.push((name.hash, header.at(1, offset)));
    }
    let end = bytes.len() as u64;
    let hint = record::encode_hint(head.seed, end, &places);
    let hint_path = segment(1).with_extension("hint");
    let holds = |store: &ChunkStore, here: &[u32]| {
        for i in 0..5 {
            let expected = here.contains(&i).then(|| chunk(i).1);
            assert_eq!(store.read(chunk(i).0).unwrap(), expected, "{i}");
        }
    };
    let lay = |bytes: &[u8], hint: Option<&[u8]>| {
        for name in [disk.names("blob"), disk.names("hint")].concat() {
            disk.forget(&name);
        }
        let file = disk.open(&segment(1), true).unwrap();
        file.write_at(&[bytes], 0).unwrap();
        if let Some(hint) = hint {
            let file = disk.open(&hint_path, true).unwrap();
            file.write_at(&[hint], 0).unwrap();
        }
    };

    for hint in [Some(&hint[..]), None] {
        lay(&bytes, hint);
        let store = open(&disk);
        assert_eq!(store.found(), Found::default());
        holds(&store, &[0, 1, 2, 3, 4]);
        // Read whole, its last write was written anew: into a segment of the new format.
        let moved = u64::from(hint.is_none());
        let stats = store.stats();
        let padded = |at: Location| at.bytes().next_multiple_of(64);
        let first: u64 = places.iter().map(|(_, at)| padded(*at)).sum();
        assert_eq!(first, end - DATA_START);
        let gone = moved * padded(places[4].1);
        assert_eq!(
            stats.live_bytes,
            first - gone + moved * record::stride(chunk(4).0.len)
        );
        // Live records of an old segment are found by its hint and by walking it.
        let old = store.sealed().remove(0);
        assert_eq!(store.live_in(&old).unwrap().len() as u64, 5 - moved);
        disk.forget(&hint_path);
        assert_eq!(store.live_in(&old).unwrap().len() as u64, 5 - moved);
        write(&rt, &store, 9).unwrap();
        store.close();
        let store = open(&disk);
        holds(&store, &[0, 1, 2, 3, 4]);
        assert_eq!(store.read(chunk(9).0).unwrap(), Some(chunk(9).1));
        store.close();
    }

    lay(&bytes[..bytes.len() - 100], None);
    let store = open(&disk);
    let torn = Found {
        damaged: 0,
        torn: true,
    };
    assert_eq!(store.found(), torn);
    holds(&store, &[0, 1, 2, 3]);
    store.close();

    let mut damaged = bytes.clone();
    damaged[places[1].1.payload_offset() as usize + 7] ^= 1;
    lay(&damaged, None);
    let store = open(&disk);
    assert_eq!(store.found().damaged, 1);
    holds(&store, &[0, 2, 3, 4]);
}

#[test]
fn chunks_that_wait_share_a_sync_and_the_bytes_they_waited_with_come_back() {
    let (rt, disk) = (runtime(), Disk::default());
    let options = Options {
        segment_bytes: 256 << 10,
        ..small()
    };
    let files = Arc::new(disk.clone());
    let store = ChunkStore::open(Path::new(DIR), options, files, BlobMetrics::default()).unwrap();
    write(&rt, &store, 0).unwrap();
    let before = disk.syncs();
    let budget = Budget::new(1 << 20);
    rt.block_on(async {
        let held = disk.hold_syncs();
        let mut writes: FuturesUnordered<_> = (1..16)
            .map(|i| {
                let (name, bytes) = chunk(i);
                let held = budget.try_reserve(bytes.len()).unwrap();
                let store = &store;
                async move {
                    let ctx = seconds(60);
                    let crc = crc32c::crc32c(&bytes);
                    store.write(&ctx, name, crc, bytes, Some(held)).await
                }
            })
            .collect();
        // All are handed over while the disk is busy with the first.
        assert!(writes.next().now_or_never().is_none());
        drop(held);
        while let Some(written) = writes.next().await {
            written.unwrap();
        }
    });
    let syncs = disk.syncs() - before;
    // One for what came first, one for the rest.
    assert!(syncs <= 2, "{syncs} syncs for 15 chunks");
    assert_eq!(budget.held(), 0);
}

#[test]
fn what_is_collected_gives_its_segments_back_and_what_is_needed_moves() {
    let (rt, disk) = (runtime(), Disk::default());
    let store = open(&disk);
    for i in 0..200 {
        write(&rt, &store, i).unwrap();
    }
    let before = disk.names("blob").len();
    store.advance(100);
    for i in (0..200).step_by(7) {
        assert!(store.refresh(chunk(i).0));
    }
    assert_eq!(store.collect(100), 200 - 29);
    for segment in store.sparse(50) {
        for (hash, at) in store.live_in(&segment).unwrap() {
            store.relocate(hash, at).unwrap();
        }
        assert!(store.delete_if_empty(&segment).unwrap());
    }
    assert!(disk.names("blob").len() < before / 2);
    let kept = |store: &ChunkStore| {
        for i in 0..200 {
            let expected = (i % 7 == 0).then(|| chunk(i).1);
            assert_eq!(store.read(chunk(i).0).unwrap(), expected, "{i}");
        }
    };
    kept(&store);
    store.close();
    let store = open(&disk);
    for i in (0..200).step_by(7) {
        assert_eq!(store.read(chunk(i).0).unwrap(), Some(chunk(i).1), "{i}");
    }
}

#[test]
fn disks_write_little_more_than_they_are_given() {
    // Of a body in whole chunks, and of the least that is no row.
    for (len, percent) in [(1 << 20, 101), ((16 << 10) + 1, 126)] {
        let (given, written) = written_for(len);
        assert!(written * 100 <= given * percent, "{written} for {given}");
    }
}

fn written_for(len: usize) -> (u64, u64) {
    let (rt, disk) = (runtime(), Disk::default());
    let store = ChunkStore::open(
        Path::new(DIR),
        Options::default(),
        Arc::new(disk.clone()),
        BlobMetrics::default(),
    )
    .unwrap();
    let mut given = 0;
    for i in 0..64_u32 {
        let mut bytes = i.to_le_bytes().repeat(len / 4 + 1);
        bytes.truncate(len);
        let bytes = Bytes::from(bytes);
        given += bytes.len() as u64;
        let crc = crc32c::crc32c(&bytes);
        let name = ChunkRef::of(&bytes);
        rt.block_on(store.write(&seconds(60), name, crc, bytes, None))
            .unwrap();
    }
    store.close();
    (given, disk.written())
}

/// Segments with hints are not read at open: here they are holes.
#[test]
fn a_store_of_many_chunks_opens_by_its_hints_in_no_time() {
    const SEGMENTS: u32 = 100;
    const EACH: u32 = 2000;
    let dir = tempfile::tempdir().unwrap();
    let segments = Segments::new(dir.path(), Arc::new(SystemFiles::default()));
    for _ in 0..SEGMENTS {
        let number = segments.all().len() as u32 + 1;
        let (segment, file) = segments.create(number).unwrap();
        let mut end = DATA_START;
        let records: Vec<_> = (0..EACH)
            .map(|_| {
                let at = Location {
                    segment: number,
                    offset: end as u32,
                    len: 60_000,
                    crc: 0,
                };
                end += segment.head.stride(at);
                (ChunkHash(rand::random()), at)
            })
            .collect();
        file.set_size(end).unwrap();
        segments.write_hint(segment.head, end, &records).unwrap();
    }
    let began = std::time::Instant::now();
    let files = Arc::new(SystemFiles::default());
    let store = ChunkStore::open(
        dir.path(),
        Options::default(),
        files,
        BlobMetrics::default(),
    )
    .unwrap();
    let took = began.elapsed();
    assert_eq!(store.stats().chunks, u64::from(SEGMENTS * EACH));
    // A million in five seconds is the promise, of a build that is optimized.
    assert!(took < Duration::from_secs(5), "{took:?}");
    println!("{} chunks in {took:?}", SEGMENTS * EACH);
}

/// A file system that does not write past its page cache says so when the file is opened, or when it
/// is written to, as any does about what are no pages.
#[test]
fn what_cannot_be_written_past_the_page_cache_is_written_through_it() {
    let dir = tempfile::tempdir().unwrap();
    let files = SystemFiles::default();
    let path = dir.path().join("file");
    let file = files.create_for_pages(&path).unwrap();
    file.write_at(&[b"no ", b"pages"], 10).unwrap();
    file.write_at(&[b"at all"], 18).unwrap();
    file.sync().unwrap();
    assert_eq!(file.read_at(14, 10).unwrap(), &b"no pagesat all"[..]);
    assert_eq!(file.size().unwrap(), 24);
    let again = files.create_for_pages(&path).unwrap();
    assert_eq!(again.size().unwrap(), 0);
    again.write_at(&[b"still"], 0).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), b"still");
}

/// What is read lies in memory as in the file, so that a chunk that is moved is not copied for it.
#[test]
fn what_is_read_can_be_written_as_it_lies() {
    let dir = tempfile::tempdir().unwrap();
    let files = SystemFiles::default();
    let path = dir.path().join("file");
    let bytes: Vec<u8> = (0..100_000_u32).map(|at| (at * 7 % 251) as u8).collect();
    let file = files.open(&path, true).unwrap();
    file.write_at(&[&bytes], 0).unwrap();
    for (offset, len) in [(0, 100_000), (64, 20_000), (4096 + 64, 1), (5000, 95_000)] {
        let read = file.read_at(len, offset as u64).unwrap();
        assert!(read == bytes[offset..offset + len]);
        assert_eq!(read.as_ptr().addr() % 4096, offset % 4096);
    }
    let beyond = file.read_at(95_001, 5000).unwrap_err();
    assert_eq!(beyond.kind(), io::ErrorKind::UnexpectedEof);
}

/// On the real file system: bytes are where they belong.
#[test]
fn a_store_on_the_file_system_keeps_its_chunks_and_takes_little_more_room() {
    let rt = runtime();
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("blobs");
    let open = || {
        let options = Options {
            segment_bytes: 1 << 20,
            least_free_bytes: 0,
            ..Options::default()
        };
        ChunkStore::open(
            &dir,
            options,
            Arc::new(SystemFiles::default()),
            BlobMetrics::default(),
        )
        .unwrap()
    };
    let store = open();
    for i in 0..1000 {
        write(&rt, &store, i).unwrap();
    }
    store.close();
    let store = open();
    for i in 0..1000 {
        assert_eq!(store.read(chunk(i).0).unwrap(), Some(chunk(i).1));
    }
    let stats = store.stats();
    let on_disk: u64 = std::fs::read_dir(&dir)
        .unwrap()
        .map(|entry| entry.unwrap().metadata().unwrap().len())
        .sum();
    assert!(
        on_disk < stats.live_bytes * 105 / 100,
        "{on_disk}, {stats:?}"
    );
}
