//! Disks that fail or hang.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use futures::FutureExt;

use super::super::files::LogFile;
use super::*;

/// A file system whose writes and syncs fail, or wait, when told to.
#[derive(Default)]
struct Faults {
    fail_sync: AtomicBool,
    fail_write: AtomicBool,
    fail_open: AtomicBool,
    syncs: AtomicU64,
    /// Held by a test to make syncs wait.
    gate: Mutex<()>,
}

struct FaultyFiles(Arc<Faults>);
struct FaultyFile(Arc<Faults>, Box<dyn LogFile>);

impl Files for FaultyFiles {
    fn open(&self, path: &Path) -> io::Result<Box<dyn LogFile>> {
        if self.0.fail_open.load(Ordering::SeqCst) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let file = SystemFiles.open(path)?;
        Ok(Box::new(FaultyFile(Arc::clone(&self.0), file)))
    }
}

impl LogFile for FaultyFile {
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        if self.0.fail_write.load(Ordering::SeqCst) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.1.write_at(bytes, offset)
    }

    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        self.1.read_at(bytes, offset)
    }

    fn sync(&self) -> io::Result<()> {
        drop(self.0.gate.lock());
        self.0.syncs.fetch_add(1, Ordering::SeqCst);
        if self.0.fail_sync.load(Ordering::SeqCst) {
            return Err(io::Error::from_raw_os_error(5));
        }
        self.1.sync()
    }
}

fn open_faulty(dir: &Path) -> (Arc<SharedLog>, Arc<Faults>) {
    let faults = Arc::new(Faults::default());
    let files = Arc::new(FaultyFiles(Arc::clone(&faults)));
    let log = SharedLog::open_with(dir, small(), LogMetrics::default(), files).unwrap();
    (log, faults)
}

#[tokio::test]
async fn a_failed_sync_stops_the_log_for_good_and_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let (log, faults) = open_faulty(dir.path());
    let mut group = log.group(G1);
    append(&mut group, entries(1, 0..3, 10)).await.unwrap();
    faults.fail_sync.store(true, Ordering::SeqCst);
    let error = append(&mut group, entries(1, 3..4, 10)).await.unwrap_err();
    assert!(error.to_string().contains("os error 5"), "{error}");

    faults.fail_sync.store(false, Ordering::SeqCst);
    let mut failed = log.failed();
    let reason = failed.wait_for(Option::is_some).await.unwrap().clone();
    assert!(reason.unwrap().to_string().contains("os error 5"));
    assert!(append(&mut group, entries(1, 4..5, 10)).await.is_err());
    assert!(group.save_vote(&Vote::new(1, 1)).await.is_err());
    assert!(group.purge(log_id(1, 1)).await.is_err());
    assert!(log.close().await.is_err());

    let log = open(dir.path()).unwrap();
    let found = log.group(G1).try_get_log_entries(..).await.unwrap();
    assert_eq!(found[..3], entries(1, 0..3, 10)[..]);
}

#[tokio::test]
async fn a_full_disk_stops_the_log_and_fails_what_waits() {
    let dir = tempfile::tempdir().unwrap();
    let (log, faults) = open_faulty(dir.path());
    let mut group = log.group(G1);
    faults.fail_write.store(true, Ordering::SeqCst);
    assert!(group.save_vote(&Vote::new(1, 1)).await.is_err());
    assert!(log.failed().borrow().is_some());
    drop(log);
    faults.fail_write.store(false, Ordering::SeqCst);
    let log = open(dir.path()).unwrap();
    assert_eq!(log.groups(), []);
}

#[tokio::test]
async fn a_log_that_cannot_make_a_segment_stops_when_it_needs_one() {
    let dir = tempfile::tempdir().unwrap();
    let (log, faults) = open_faulty(dir.path());
    let mut group = log.group(G1);
    append(&mut group, entries(1, 0..1, 10)).await.unwrap();
    faults.fail_open.store(true, Ordering::SeqCst);
    let mut index = 1;
    let error = loop {
        match append(&mut group, entries(1, index..index + 8, 1000)).await {
            Ok(()) => index += 8,
            Err(error) => break error,
        }
    };
    assert!(error.to_string().contains("no new segment"), "{error}");
    drop(log);
    let log = open(dir.path()).unwrap();
    let found = log.group(G1).try_get_log_entries(..).await.unwrap();
    assert!(found.len() as u64 >= index);
}

#[tokio::test]
async fn appends_wait_for_queue_space_while_the_disk_hangs_and_share_one_sync_after() {
    let dir = tempfile::tempdir().unwrap();
    let (log, faults) = open_faulty(dir.path());
    let mut group = log.group(G1);
    append(&mut group, entries(1, 0..1, 10)).await.unwrap();
    let mut accepted = 1;
    {
        let gate = faults.gate.lock();
        loop {
            let next = entries(1, accepted..accepted + 1, 4000);
            // A waiting append is given up here: it has changed nothing.
            match group.append(next, IOFlushed::noop()).now_or_never() {
                Some(appended) => appended.unwrap(),
                None => break,
            }
            accepted += 1;
        }
        drop(gate);
    }
    // 64 KiB of queue, entries of 4 KB, and every eleventh is small.
    assert!((16..28).contains(&accepted), "{accepted}");
    assert_eq!(
        group.try_get_log_entries(..).await.unwrap().len() as u64,
        accepted,
        "what waits is readable"
    );
    let before = faults.syncs.load(Ordering::SeqCst);
    group.save_vote(&Vote::new(1, 1)).await.unwrap();
    let syncs = faults.syncs.load(Ordering::SeqCst) - before;
    assert!(syncs < 16, "{syncs} syncs for {accepted} appends");
}
