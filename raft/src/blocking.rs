//! Work that blocks: storage calls, away from the async workers.

use tokio::task::JoinError;

/// Does `work` on a thread where it may block; in a simulation in place, so that nothing but the
/// seed decides what comes next. Dropping the future does not stop the work.
///
/// # Errors
/// The work panicked, or the runtime ends.
pub(crate) async fn run<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, JoinError> {
    #[cfg(any(test, feature = "testing"))]
    if crate::testing::seeded::is_seeded() {
        return Ok(work());
    }
    tokio::task::spawn_blocking(work).await
}

/// Starts `work`, which may block, on a thread made for that (in a simulation: runs it).
pub(crate) fn start(work: Box<dyn FnOnce() + Send>) {
    #[cfg(any(test, feature = "testing"))]
    if crate::testing::seeded::is_seeded() {
        return work();
    }
    tokio::task::spawn_blocking(work);
}
