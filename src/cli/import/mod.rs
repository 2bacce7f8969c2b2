//! `leadfold import`: what happened before there was a server, sent to its webhook. Since an event that is sent twice
//! changes nothing, an import can be repeated and resumed at will.

mod export;
mod input;
mod position;
mod reader;
mod records;
mod scan;
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
    // Of a terminal that is closed.
    let mut hangup = signal(SignalKind::hangup())?;
    let total = reader::total_bytes(&args.files)?;
    if args.files.iter().filter(|file| input::is_stdin(file)).count() > 1 {
        bail!("stdin is named twice: it can be read once");
    }
    let (resume, start) = match &args.resume_file {
        Some(path) => ResumeFile::open(path, &args.files).map(|(file, start)| (Some(file), start))?,
        None => (None, (0, args.skip)),
    };
    let sender = if args.dry_run { None } else { Some(Sender::new(&args.webhook, args.concurrency as usize)?) };
    let (pieces, read) = mpsc::channel(READ_AHEAD);
    let plan = Plan {
        files: args.files.clone(),
        start,
        lead_id: args.lead_id.clone(),
        workspace_id: args.workspace_id.clone(),
        dry_run: args.dry_run,
    };
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
        refusals: Refusals::default(),
        problem: None,
        notes: Vec::new(),
    };
    let ended = tokio::select! {
        ended = import.work(sender.map(Arc::new), read) => ended,
        _ = terminate.recv() => Err(anyhow!("interrupted")),
        _ = interrupt.recv() => Err(anyhow!("interrupted")),
        _ = hangup.recv() => Err(anyhow!("interrupted")),
    };
    import.progress.finish();
    import.end_of_refusals();
    for note in &import.notes {
        import.progress.say(note);
    }
    let ended = ended.and_then(|()| import.problem.take().map_or(Ok(()), |problem| Err(anyhow!(problem))));
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
    refusals: Refusals,
    /// What ends it when everything that was read is done.
    problem: Option<String>,
    /// What is said in the end.
    notes: Vec<String>,
}

/// The refusals that were told last: the same words again and again help nobody.
#[derive(Default)]
struct Refusals {
    file: usize,
    words: String,
    told: u64,
    untold: u64,
}

/// Refusals of one file in the same words that are told one by one.
const MOST_ALIKE: u64 = 10;

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
                    Some(piece) => if let Some(event) = self.take(piece) {
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
    fn take(&mut self, piece: Piece) -> Option<ToSend> {
        let place = match piece {
            Piece::Event(event) => return Some(*event),
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
                self.break_off(place, &error.to_string());
                return None;
            }
            Piece::Wrong(place, what) => {
                self.problem = Some(format!("{}: {what}", self.name_of(place.file)));
                return None;
            }
            Piece::Odd(place, what) => {
                self.notes.push(format!("{}: {what}", self.name_of(place.file)));
                return None;
            }
        };
        let number = self.position.begin(place);
        self.position.end(number);
        None
    }

    /// A file cannot be read to its end. What was read of it, and of others, is sent all the same.
    fn break_off(&mut self, place: Place, why: &str) {
        let file = self.name_of(place.file);
        if self.files.len() == 1 && place.record <= 1 {
            self.problem = Some(format!("{file}: {why}"));
        } else if place.record <= 1 {
            self.progress.say(&format!("{file}: {why}; this file is left out"));
        } else {
            self.progress.say(&format!("{file}:{}: {why}; all whole records before are taken", place.line));
        }
        self.summary.broken_files += 1;
    }

    fn name_of(&self, file: usize) -> String {
        text::plain(&self.files[file].display().to_string())
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
        self.summary.refused += 1;
        if self.refusals.file != place.file || self.refusals.words != what {
            self.end_of_refusals();
            self.refusals = Refusals { file: place.file, words: what.to_owned(), ..Refusals::default() };
        }
        if self.refusals.told == MOST_ALIKE {
            self.refusals.untold += 1;
            return;
        }
        self.refusals.told += 1;
        self.progress.say(&format!("{}:{}: {}", self.name_of(place.file), place.line, text::plain(what)));
    }

    /// Says how many refusals were not told.
    fn end_of_refusals(&mut self) {
        let untold = std::mem::take(&mut self.refusals.untold);
        if untold > 0 {
            let records = text::count(untold, "more record");
            self.progress.say(&format!("{}: {records}: {}", self.name_of(self.refusals.file), text::plain(&self.refusals.words)));
        }
    }

    fn tick(&mut self) -> anyhow::Result<()> {
        let done = self.position.done();
        self.progress.update(self.summary.events(), done.bytes);
        self.resume.as_ref().map_or(Ok(()), |resume| resume.save(&self.files, done))
    }

    /// Where it stopped, and how to go on.
    fn stopped(&self) -> anyhow::Result<String> {
        let done = self.position.done();
        let file = self.name_of(done.file);
        let place = format!("stopped after record {} of {file}", done.record);
        if let Some(resume) = &self.resume {
            resume.save(&self.files, done)?;
            return Ok(format!("{place}: to go on from there, give the same command again"));
        }
        let rest: Vec<_> = (done.file..self.files.len()).map(|file| self.name_of(file)).collect();
        let rest = if rest.len() < 6 { rest.join(" ") } else { format!("{} and the files after it", rest[0]) };
        Ok(format!("{place}: to go on from there, give the same options, --skip {} and {rest}", done.record))
    }
}
