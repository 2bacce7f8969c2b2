//! `leadfold import`: what happened before there was a server, sent to its webhook. Since an event that is sent twice
//! changes nothing, an import can be repeated and resumed at will.

mod export;
mod position;
mod reader;
mod records;
mod summary;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{anyhow, bail};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{MissedTickBehavior, interval};

use self::position::{Position, ResumeFile};
use self::reader::{Piece, Place, Plan, ToSend};
use self::summary::Summary;
use super::progress::Progress;
use super::sender::{Fate, Refused, Sender};
use super::text;
use crate::config::ImportArgs;

/// How often progress is told and kept.
const TICK: Duration = Duration::from_millis(250);
/// Records that are read ahead at most.
const READ_AHEAD: usize = 1024;

pub(super) async fn run(args: ImportArgs) -> anyhow::Result<()> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let total = reader::total_bytes(&args.files)?;
    if args.files.iter().filter(|file| reader::is_stdin(file)).count() > 1 {
        bail!("- is named twice: stdin can be read once");
    }
    let (resume, start) = match &args.resume_file {
        Some(path) => ResumeFile::open(path, &args.files).map(|(file, start)| (Some(file), start))?,
        None => (None, (0, args.skip)),
    };
    let sender = if args.dry_run { None } else { Some(Sender::new(&args.webhook, args.concurrency as usize)?) };
    let (pieces, read) = mpsc::channel(READ_AHEAD);
    let plan = Plan { files: args.files.clone(), start, lead_id: args.lead_id.clone(), workspace_id: args.workspace_id.clone() };
    reader::read(plan, pieces);

    let began = Instant::now();
    let mut import = Import {
        files: args.files,
        resume,
        concurrency: args.concurrency as usize,
        workspace_id: args.workspace_id,
        position: Position::starting_at(start.0, start.1),
        progress: Progress::new(total),
        summary: Summary::new(args.dry_run),
        orders: HashMap::new(),
    };
    let ended = tokio::select! {
        ended = import.work(sender.map(Arc::new), read) => ended,
        _ = terminate.recv() => Err(anyhow!("interrupted")),
        _ = interrupt.recv() => Err(anyhow!("interrupted")),
    };
    import.progress.finish();
    if import.summary.is_empty() && ended.is_err() {
        // Nothing has begun: there is nothing to sum up, and nowhere to go on from.
        return ended;
    }
    let took = began.elapsed();
    let ended = match ended {
        Ok(()) => {
            if let Some(resume) = &import.resume {
                resume.remove();
            }
            import.summary.verdict()
        }
        Err(error) => Err(anyhow!("{error:#}; {}", import.stopped()?)),
    };
    super::report(ended, || import.summary.print(took, args.json))
}

struct Import {
    files: Vec<PathBuf>,
    resume: Option<ResumeFile>,
    concurrency: usize,
    workspace_id: Option<String>,
    position: Position,
    progress: Progress,
    summary: Summary,
    /// Of events that must keep their order, who is last in the queue.
    orders: HashMap<u64, (u64, oneshot::Receiver<()>)>,
}

/// An event that was sent, and how it went.
struct Sent {
    number: u64,
    place: Place,
    order: Option<u64>,
    fate: anyhow::Result<Result<Fate, Refused>>,
}

impl Import {
    async fn work(&mut self, sender: Option<Arc<Sender>>, mut read: mpsc::Receiver<Piece>) -> anyhow::Result<()> {
        let mut under_way = FuturesUnordered::new();
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut all_read = false;
        while !all_read || !under_way.is_empty() {
            tokio::select! {
                piece = read.recv(), if !all_read && under_way.len() < self.concurrency => match piece {
                    None => all_read = true,
                    Some(piece) => if let Some(event) = self.take(piece)? {
                        match &sender {
                            None => self.would_send(&event),
                            Some(sender) => under_way.push(self.send(Arc::clone(sender), event)),
                        }
                    },
                },
                Some(sent) = under_way.next(), if !under_way.is_empty() => self.note(sent)?,
                _ = ticks.tick() => self.tick()?,
            }
        }
        Ok(())
    }

    /// Sorts out what is not to be sent.
    fn take(&mut self, piece: Piece) -> anyhow::Result<Option<ToSend>> {
        let place = match piece {
            Piece::Event(event) => return Ok(Some(*event)),
            Piece::Refused(place, refusal) => {
                self.refuse(place, &refusal.to_string());
                place
            }
            Piece::Unfinished(place, status) => {
                self.summary.unfinished(status);
                place
            }
            Piece::Blank(place) => place,
            Piece::Broken(place, error) => {
                let file = self.files[place.file].display();
                // Nothing of it was read: then the command is wrong rather than the file.
                if place.record == 0 || self.summary.is_empty() && self.files.len() == 1 {
                    bail!("{file}: {error}");
                }
                self.progress.say(&format!("{file}:{}: {error}; the rest of this file is left out", place.line));
                self.summary.broken_files += 1;
                return Ok(None);
            }
        };
        let number = self.position.begin(place);
        self.position.end(number);
        Ok(None)
    }

    fn would_send(&mut self, event: &ToSend) {
        let number = self.position.begin(event.place);
        self.position.end(number);
        self.summary.would_send(event);
    }

    fn send(&mut self, sender: Arc<Sender>, event: ToSend) -> impl Future<Output = Sent> + use<> {
        let number = self.position.begin(event.place);
        let workspace_id = self.workspace_id.clone().filter(|_| event.for_workspace);
        let (done, mine) = oneshot::channel();
        let before = event.order.and_then(|order| self.orders.insert(order, (number, mine)));
        async move {
            if let Some((_, before)) = before {
                // It is dropped when it is done.
                let _ = before.await;
            }
            let ToSend { place, body, order, _room, .. } = event;
            let fate = sender.send(body, workspace_id.as_deref()).await;
            drop((done, _room));
            Sent { number, place, order, fate }
        }
    }

    fn note(&mut self, sent: Sent) -> anyhow::Result<()> {
        if let Some(order) = sent.order
            && self.orders.get(&order).is_some_and(|(last, _)| *last == sent.number)
        {
            self.orders.remove(&order);
        }
        match sent.fate? {
            Ok(fate) => self.summary.fate(fate),
            Err(Refused { error, field }) => {
                let field = field.map(|field| format!("{field}: ")).unwrap_or_default();
                self.refuse(sent.place, &format!("{field}{error}"));
            }
        }
        self.position.end(sent.number);
        Ok(())
    }

    fn refuse(&mut self, place: Place, what: &str) {
        self.progress.say(&format!("{}:{}: {}", self.files[place.file].display(), place.line, text::plain(what)));
        self.summary.refused += 1;
    }

    fn tick(&mut self) -> anyhow::Result<()> {
        let done = self.position.done();
        self.progress.update(self.summary.events(), done.bytes);
        self.resume.as_ref().map_or(Ok(()), |resume| resume.save(&self.files, done))
    }

    /// Where it stopped, and how to go on.
    fn stopped(&self) -> anyhow::Result<String> {
        let done = self.position.done();
        let file = self.files[done.file].display();
        let place = format!("stopped after record {} of {file}", done.record);
        if let Some(resume) = &self.resume {
            resume.save(&self.files, done)?;
            return Ok(format!("{place}: to go on from there, give the same command again"));
        }
        let rest: Vec<_> = self.files[done.file..].iter().map(|file| file.display().to_string()).collect();
        let rest = if rest.len() < 6 { rest.join(" ") } else { format!("{} and the files after it", rest[0]) };
        Ok(format!("{place}: to go on from there, give the same options, --skip {} and {rest}", done.record))
    }
}
