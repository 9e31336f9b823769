//! Memory and disk stay bounded, and what leaves memory is read back as it was.

use futures::StreamExt;

use super::*;

#[tokio::test]
async fn entries_beyond_the_memory_bound_are_read_back_from_disk() {
    let dir = tempfile::tempdir().unwrap();
    let metrics = LogMetrics::default();
    let log = SharedLog::open(dir.path(), small(), metrics.clone()).unwrap();
    let (mut one, mut two) = (log.group(G1), log.group(G2));
    for at in (0..400).step_by(4) {
        append_later(&mut one, entries(1, at..at + 4, 300)).await;
        append(&mut two, entries(2, at..at + 4, 200)).await.unwrap();
    }
    assert_eq!(
        one.try_get_log_entries(..).await.unwrap(),
        entries(1, 0..400, 300)
    );
    assert_eq!(
        two.try_get_log_entries(17..=333).await.unwrap(),
        entries(2, 17..334, 200)
    );
    assert!(metrics.disk_reads.get() > 0);
    let streamed: Vec<_> = one.entries_stream(5..399).await.collect().await;
    let streamed: io::Result<Vec<_>> = streamed.into_iter().collect();
    assert_eq!(streamed.unwrap(), entries(1, 5..399, 300));
    // The flusher evicts behind the callbacks: once it has ended, the figures stand still.
    log.close().await.unwrap();
    let resident = log
        .shared
        .tail_bytes
        .load(std::sync::atomic::Ordering::Relaxed);
    assert!(resident <= small().tail_bytes + 4096, "{resident}");
    let in_memory: usize = [&one, &two].iter().map(|group| group.tail_bytes()).sum();
    assert_eq!(in_memory, resident, "the account is what the groups hold");
}

#[tokio::test]
async fn a_limited_read_returns_about_a_mebibyte_and_never_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let options = LogOptions {
        segment_bytes: 8 << 20,
        tail_bytes: 2 << 20,
        ..LogOptions::default()
    };
    let log = SharedLog::open(dir.path(), options, LogMetrics::default()).unwrap();
    let mut group = log.group(G1);
    for at in 0..20 {
        append(&mut group, vec![entry(1, at, vec![1; 300_000])])
            .await
            .unwrap();
    }
    for start in [0, 16] {
        let read = group.limited_get_log_entries(start, 20).await.unwrap();
        assert_eq!(read.len(), 4);
        assert_eq!(read[0].log_id.index, start);
    }
    append(&mut group, vec![entry(1, 20, vec![1; 3_000_000])])
        .await
        .unwrap();
    assert_eq!(
        group.limited_get_log_entries(20, 21).await.unwrap().len(),
        1
    );
}

#[tokio::test]
async fn an_entry_too_large_for_a_segment_is_refused_and_the_largest_is_taken() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path()).unwrap();
    let mut group = log.group(G1);
    let largest = log.max_entry_bytes();
    let error = append(&mut group, vec![entry(1, 0, vec![0; largest + 1024])])
        .await
        .unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    for index in 0..4 {
        append(&mut group, vec![entry(1, index, vec![7; largest])])
            .await
            .unwrap();
    }
    assert_eq!(group.try_get_log_entries(..).await.unwrap().len(), 4);
}

#[tokio::test]
async fn purged_segments_are_used_again_and_never_resurrect_what_they_held() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path()).unwrap();
    let mut group = log.group(G1);
    for at in (0..3000).step_by(10) {
        append(&mut group, entries(1, at..at + 10, 200))
            .await
            .unwrap();
        if at % 100 == 0 && at > 0 {
            group.purge(log_id(1, at - 1)).await.unwrap();
        }
    }
    let before = look(&log).await;
    log.close().await.unwrap();
    let files = files(dir.path());
    let segments = files.keys().filter(|name| name.ends_with(".log")).count();
    assert!(segments <= 7, "{segments} segments");
    assert!(!files.contains_key(&segment_name(1)));

    // A crash that loses the last segment's unsynced zeros would show what the file held before:
    // here it still does, behind the end.
    let log = open(dir.path()).unwrap();
    assert_eq!(look(&log).await, before);
}

#[tokio::test]
async fn an_idle_group_does_not_pin_old_segments() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path()).unwrap();
    let mut idle = log.group(G1);
    idle.save_vote(&Vote::new_committed(5, 3)).await.unwrap();
    append(&mut idle, entries(5, 0..30, 100)).await.unwrap();
    let mut busy = log.group(G2);
    for at in (0..6000).step_by(10) {
        append(&mut busy, entries(1, at..at + 10, 200))
            .await
            .unwrap();
        if at >= 100 {
            busy.purge(log_id(1, at - 100)).await.unwrap();
        }
    }
    let before = look(&log).await;
    log.close().await.unwrap();
    let segments = files(dir.path())
        .keys()
        .filter(|name| name.ends_with(".log"))
        .count();
    assert!(segments <= 8, "{segments} segments");
    let log = open(dir.path()).unwrap();
    assert_eq!(look(&log).await, before);
    assert_eq!(before[&G1].entries, entries(5, 0..30, 100));
}

#[tokio::test]
async fn a_log_full_of_live_entries_is_not_rewritten_over_and_over() {
    let dir = tempfile::tempdir().unwrap();
    let metrics = LogMetrics::default();
    let log = SharedLog::open(dir.path(), small(), metrics.clone()).unwrap();
    let mut group = log.group(G1);
    for at in (0..4000).step_by(20) {
        append(&mut group, entries(1, at..at + 20, 200))
            .await
            .unwrap();
    }
    let live = 4000 * 240 / MIN_SEGMENT;
    log.close().await.unwrap();
    let last = files(dir.path())
        .into_keys()
        .rfind(|name| name.ends_with(".log"));
    let last = u64::from_str_radix(last.unwrap().trim_end_matches(".log"), 16).unwrap();
    assert!(
        last <= live * 2 + 4,
        "{last} segments were begun, {live} are live"
    );
    let log = open(dir.path()).unwrap();
    let found = log.group(G1).try_get_log_entries(..).await.unwrap();
    assert_eq!(found, entries(1, 0..4000, 200));
}

#[tokio::test]
async fn a_stream_bound_to_a_leader_ends_when_the_vote_changes() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path()).unwrap();
    let mut group = log.group(G1);
    let vote = Vote::new_committed(1, 1);
    group.save_vote(&vote).await.unwrap();
    append(&mut group, entries(1, 0..5, 10)).await.unwrap();
    let mut reader = group.get_log_reader().await;
    let stream = reader.leader_bounded_stream(vote.leader_id, 0..5).await;
    let read: Vec<_> = stream.collect().await;
    assert!(read.len() == 5 && read.iter().all(Result::is_ok));
    let mut reader = group.get_log_reader().await;
    let stream = reader.leader_bounded_stream(vote.leader_id, 0..5).await;
    group.save_vote(&Vote::new(2, 2)).await.unwrap();
    let read: Vec<_> = stream.collect().await;
    assert!(read.len() == 1 && read[0].is_err());
}
