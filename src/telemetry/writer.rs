//! Where log lines are written: by a thread of its own, through a queue that loses lines when it is full.
//!
//! Whoever logs never waits for whoever reads the logs, and cannot fail because nobody does: a closed or stalled pipe costs
//! log lines, which are counted, and nothing else.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tracing_subscriber::fmt::MakeWriter;

/// Lines that wait at most.
const MAX_LINES: usize = 8192;
/// Bytes of lines that wait at most.
const MAX_BYTES: usize = 4 << 20;
/// How long a reader that has no room is left alone, where writing does not wait for it.
const RETRY_INTERVAL: Duration = Duration::from_millis(20);

/// Takes lines, and writes them when it can. Copies share one queue and one thread.
#[derive(Clone, Debug)]
pub struct LossyWriter(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Queue {
    lines: VecDeque<Vec<u8>>,
    /// Of `lines`, and of the line that is being written.
    bytes: usize,
    is_writing: bool,
    dropped: u64,
}

impl LossyWriter {
    /// Writes to `output`.
    ///
    /// # Errors
    /// There is no thread to be had.
    pub fn start(output: impl Write + Send + 'static) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let of_thread = Arc::clone(&shared);
        std::thread::Builder::new().name("leadfold-logs".to_owned()).spawn(move || of_thread.write_all(output))?;
        Ok(Self(shared))
    }

    /// Waits until everything is written, but no longer than this.
    pub fn flush(&self, at_most: Duration) {
        let queue = self.0.lock();
        let waited = self.0.changed.wait_timeout_while(queue, at_most, |queue| queue.is_writing || !queue.lines.is_empty());
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }

    #[cfg(test)]
    fn dropped(&self) -> u64 {
        self.0.lock().dropped
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, line: &[u8]) {
        let mut queue = self.lock();
        if queue.lines.len() >= MAX_LINES || queue.bytes + line.len() > MAX_BYTES {
            return queue.drop_one();
        }
        queue.bytes += line.len();
        queue.lines.push_back(line.to_vec());
        drop(queue);
        self.changed.notify_all();
    }

    fn write_all(&self, mut output: impl Write) {
        // Lines that had been lost when it was last said.
        let mut said = 0;
        loop {
            let line = {
                let idle = self.changed.wait_while(self.lock(), |queue| queue.lines.is_empty());
                let mut queue = idle.unwrap_or_else(PoisonError::into_inner);
                queue.is_writing = true;
                queue.lines.pop_front().unwrap_or_default()
            };
            let result = write(&mut output, &line);
            let mut queue = self.lock();
            queue.bytes -= line.len();
            queue.is_writing = false;
            if result.is_err() {
                queue.drop_one();
            }
            // Only to a reader that has caught up.
            let unsaid = if result.is_ok() && queue.lines.is_empty() { queue.dropped - said } else { 0 };
            said += unsaid;
            drop(queue);
            self.changed.notify_all();
            if unsaid > 0 {
                tracing::warn!(lines = unsaid, "log lines were lost: nobody read them in time, or they could not be written");
            }
        }
    }
}

impl Queue {
    fn drop_one(&mut self) {
        self.dropped += 1;
        // The total, since nothing is counted before the metrics are installed.
        metrics::counter!("leadfold_log_lines_dropped_total").absolute(self.dropped);
    }
}

/// Writes a whole line, also where the output does not wait: a pipe may be shared with somebody who switched that off.
fn write(output: &mut impl Write, mut line: &[u8]) -> io::Result<()> {
    while !line.is_empty() {
        match output.write(line) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(count) => line = &line[count..],
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => std::thread::sleep(RETRY_INTERVAL),
            Err(error) => return Err(error),
        }
    }
    output.flush()
}

/// Takes a line in one call, as `tracing_subscriber` hands it over, and never fails.
impl Write for LossyWriter {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.push(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for LossyWriter {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Instant;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(10);

    /// Hands on what is written once somebody asks for it; fails when nobody can ask any more.
    struct Rendezvous(mpsc::SyncSender<Vec<u8>>);

    impl Write for Rendezvous {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.send(bytes.to_vec()).map_err(|_| io::Error::from(ErrorKind::BrokenPipe))?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn start() -> (LossyWriter, mpsc::Receiver<Vec<u8>>) {
        let (written, read) = mpsc::sync_channel(0);
        (LossyWriter::start(Rendezvous(written)).expect("a thread"), read)
    }

    fn log(writer: &LossyWriter, line: &[u8]) {
        writer.make_writer().write_all(line).expect("it never fails");
    }

    #[test]
    fn lines_come_out_in_order() {
        let (writer, read) = start();
        for number in 0..100 {
            log(&writer, format!("{number}\n").as_bytes());
        }
        for number in 0..100 {
            assert_eq!(read.recv_timeout(PATIENCE), Ok(format!("{number}\n").into_bytes()));
        }
        writer.flush(PATIENCE);
        assert_eq!(writer.dropped(), 0);
    }

    #[test]
    fn nobody_waits_for_a_reader_that_stalls_and_what_waits_is_bounded() {
        for (line, fit) in [(vec![b'x'; 10], MAX_LINES), (vec![b'x'; 100_000], MAX_BYTES / 100_000)] {
            let (writer, read) = start();
            let began = Instant::now();
            for _ in 0..2 * MAX_LINES {
                log(&writer, &line);
            }
            assert!(began.elapsed() < PATIENCE);
            {
                let queue = writer.0.lock();
                assert!(queue.lines.len() <= MAX_LINES && queue.bytes <= MAX_BYTES, "{} lines, {} bytes", queue.lines.len(), queue.bytes);
            }
            // The one that is being written has left the queue.
            let kept = 2 * MAX_LINES as u64 - writer.dropped();
            assert!((fit as u64..=fit as u64 + 1).contains(&kept), "{kept} were kept");
            let began = Instant::now();
            writer.flush(Duration::from_millis(100));
            assert!((Duration::from_millis(100)..PATIENCE).contains(&began.elapsed()), "it waits, and not for ever");
            // It reads again: everything that was kept comes.
            for _ in 0..kept {
                assert_eq!(read.recv_timeout(PATIENCE).as_ref(), Ok(&line));
            }
            writer.flush(PATIENCE);
            assert_eq!(writer.0.lock().bytes, 0);
        }
    }

    #[test]
    fn lines_that_nobody_reads_any_more_are_counted() {
        let (writer, read) = start();
        drop(read);
        for _ in 0..10 {
            log(&writer, b"lost\n");
        }
        writer.flush(PATIENCE);
        assert_eq!(writer.dropped(), 10);
    }

    #[test]
    fn a_line_too_long_to_keep_is_lost() {
        let (writer, _read) = start();
        log(&writer, &vec![b'x'; MAX_BYTES + 1]);
        assert_eq!(writer.dropped(), 1);
    }

    #[test]
    fn an_output_that_does_not_wait_is_tried_again() {
        struct Reluctant(Vec<u8>, u32);
        impl Write for Reluctant {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.1 += 1;
                match self.1 % 3 {
                    0 => return Err(ErrorKind::WouldBlock.into()),
                    1 => return Err(ErrorKind::Interrupted.into()),
                    _ => self.0.push(bytes[0]),
                }
                Ok(1)
            }

            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let mut output = Reluctant(Vec::new(), 0);
        write(&mut output, b"line\n").expect("written");
        assert_eq!(output.0, b"line\n");
    }
}
