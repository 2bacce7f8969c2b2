//! Who the primary is, in the words of a majority of the sentinels, a second ago at most.
//!
//! A primary that was replaced may live on and go on acknowledging writes, all of which are lost: it says itself that it
//! is a primary, and its connections do not break. So the sentinels are asked all the time and not only when something
//! fails, and a write counts as acknowledged only while a majority of them, asked within the last second, has named the
//! server that acknowledged it ([`Sentinels::confirms`]). Reads do without a majority: they go to the server that the
//! newest known configuration names.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, ConnectionInfo, ErrorKind, PushInfo, PushKind, RedisError, RedisResult, TlsCertificates,
};
use tokio::sync::{Notify, watch};

use super::handshake::explain_refusal;
use super::reply;
use super::server::{client, with_host};
use crate::config::SentinelAddress;

/// How often each sentinel is asked.
const ASK_EVERY: Duration = Duration::from_millis(300);
/// How long a sentinel may take to connect or to answer.
const TIMEOUT: Duration = Duration::from_millis(300);
/// How old an answer may be and still count, from when it was asked for.
const FRESH_FOR: Duration = Duration::from_secs(1);
/// An answer that is older than a configuration that was seen within this time comes from a sentinel that was cut off.
/// After that somebody has set the sentinels up anew.
const EPOCH_REMEMBERED_FOR: Duration = Duration::from_secs(60);
/// How often the other sentinels are asked for. They change rarely.
const LEARN_EVERY: u32 = 10;
/// Sentinels that are asked at most, whatever they say of one another.
const MAX_SENTINELS: usize = 64;

/// The channel on which a sentinel says that it has another primary now.
const SWITCHED: &str = "+switch-master";

/// The primary, as the newest known configuration has it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Primary {
    pub(super) host: String,
    pub(super) port: u16,
}

impl std::fmt::Display for Primary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// What one sentinel has answered.
#[derive(Clone, Debug)]
struct Answer {
    /// When it was asked.
    asked: Instant,
    primary: Primary,
    /// Grows with each failover.
    epoch: u64,
    /// Other sentinels that it knows, dead ones included.
    others: usize,
}

/// A sentinel that is asked.
#[derive(Default)]
struct Asked {
    /// Its own id; empty until it has told. One sentinel may be known by several addresses, and counts once.
    id: String,
    answer: Option<Answer>,
    /// Why the last question was not answered.
    error: Option<String>,
    /// It is no sentinel, or knows no primary of that name.
    is_misconfigured: bool,
}

#[derive(Default)]
struct State {
    /// By address.
    asked: HashMap<String, Asked>,
    /// The greatest epoch, and when it was last seen.
    newest: Option<(u64, Instant)>,
}

/// What the answers come to.
#[derive(Debug)]
struct Confirmed {
    primary: Primary,
    until: Instant,
}

/// The sentinels of one primary.
pub(super) struct Sentinels {
    pub(super) name: String,
    /// How to talk to the primary, wherever it is.
    pub(super) server: ConnectionInfo,
    pub(super) tls: Option<TlsCertificates>,
    /// How to talk to a sentinel, wherever it is.
    template: ConnectionInfo,
    /// How many were named in the URL: a sentinel that says that it is alone is not believed.
    configured: usize,
    state: Mutex<State>,
    confirmed: ArcSwapOption<Confirmed>,
    primary: watch::Sender<Option<Primary>>,
    ask_now: Notify,
}

impl Sentinels {
    /// Asks them from now on, until the last reference to them is dropped. Needs a tokio runtime.
    pub(super) fn start(address: SentinelAddress, tls: Option<&TlsCertificates>) -> RedisResult<Arc<Self>> {
        let SentinelAddress { sentinels, name, server } = address;
        let Some(template) = sentinels.first().cloned() else {
            return Err(RedisError::from((ErrorKind::EmptySentinelList, "no sentinel is named")));
        };
        let this = Arc::new(Self {
            name,
            server: *server,
            tls: tls.cloned(),
            template,
            configured: sentinels.len(),
            state: Mutex::default(),
            confirmed: ArcSwapOption::empty(),
            primary: watch::Sender::new(None),
            ask_now: Notify::new(),
        });
        for info in sentinels {
            this.ask(info)?;
        }
        Ok(this)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The primary that the newest known configuration names.
    pub(super) fn primary(&self) -> watch::Receiver<Option<Primary>> {
        self.primary.subscribe()
    }

    /// Whether a majority of the sentinels, asked within the last second, says that this is the primary.
    pub(super) fn confirms(&self, primary: &Primary) -> bool {
        self.confirmed.load().as_ref().is_some_and(|confirmed| confirmed.primary == *primary && Instant::now() < confirmed.until)
    }

    /// Why the primary is not confirmed.
    pub(super) fn not_confirmed(&self) -> RedisError {
        // Where every one of them says that it cannot help, waiting changes nothing.
        let is_misconfigured = self.state().asked.values().all(|asked| asked.is_misconfigured);
        if is_misconfigured {
            return RedisError::from((ErrorKind::InvalidClientConfig, "the sentinels cannot be used", self.explain()));
        }
        RedisError::from((ErrorKind::MasterNameNotFoundBySentinel, "the sentinels do not confirm the primary", self.explain()))
    }

    /// How many of the sentinels answer, and what the others say.
    fn explain(&self) -> String {
        let state = self.state();
        let fresh = fresh(&state);
        let total = total(&fresh, self.configured);
        let mut said =
            format!("{} of {total} sentinels confirm the primary of {:?}, and {} have to", fresh.len(), self.name, majority(total));
        for (address, asked) in &state.asked {
            if let Some(error) = &asked.error {
                said.push_str(&format!("; sentinel {address}: {error}"));
            }
        }
        said
    }

    /// Starts to ask one more, unless it is asked already.
    fn ask(self: &Arc<Self>, info: ConnectionInfo) -> RedisResult<()> {
        let address = info.addr().to_string();
        {
            let mut state = self.state();
            if state.asked.contains_key(&address) || state.asked.len() >= MAX_SENTINELS {
                return Ok(());
            }
            state.asked.insert(address.clone(), Asked::default());
        }
        let client = client(info, self.tls.as_ref())?;
        tokio::spawn(ask_for_ever(Arc::downgrade(self), client, address));
        Ok(())
    }

    /// Takes in what a sentinel has answered, or that it has not.
    fn heard(self: &Arc<Self>, address: &str, heard: RedisResult<Heard>) {
        let mut learned = Vec::new();
        {
            let mut state = self.state();
            let Some(asked) = state.asked.get_mut(address) else { return };
            match heard {
                Ok(Heard { id, answer, others }) => {
                    let epoch = answer.epoch;
                    *asked = Asked { id, answer: Some(answer), error: None, is_misconfigured: false };
                    if state.newest.is_none_or(|(newest, seen)| epoch >= newest || seen.elapsed() > EPOCH_REMEMBERED_FOR) {
                        state.newest = Some((epoch, Instant::now()));
                    }
                    learned = others;
                }
                Err(error) => {
                    asked.error = Some(explain_silence(&error));
                    let says_so = error.kind() == ErrorKind::InvalidClientConfig || error.kind() == ErrorKind::MasterNameNotFoundBySentinel;
                    asked.is_misconfigured = says_so;
                }
            }
            self.decide(&state);
            drop(state);
        }
        for (host, port) in learned {
            let info = self.template.clone().set_addr(with_host(self.template.addr(), host, port));
            if let Err(error) = self.ask(info) {
                tracing::debug!(%error, "a sentinel that others know cannot be asked");
            }
        }
    }

    /// The answer of the newest configuration counts; how many have answered says whether it is confirmed.
    fn decide(&self, state: &State) {
        let fresh = fresh(state);
        let Some(newest) = fresh.iter().map(|answer| answer.epoch).max() else { return };
        let cut_off = state.newest.is_some_and(|(epoch, seen)| newest < epoch && seen.elapsed() < EPOCH_REMEMBERED_FOR);
        if cut_off {
            self.confirmed.store(None);
            return;
        }
        // Of two primaries with one epoch, which only a person can have set up, the one that more sentinels name.
        let mut votes: HashMap<&Primary, usize> = HashMap::new();
        for answer in fresh.iter().filter(|answer| answer.epoch == newest) {
            *votes.entry(&answer.primary).or_default() += 1;
        }
        let current = self.primary.borrow().clone();
        let Some((primary, _)) = votes.into_iter().max_by_key(|(primary, votes)| (*votes, Some(*primary) == current.as_ref())) else {
            return;
        };
        self.primary.send_if_modified(|known| {
            let changed = known.as_ref() != Some(primary);
            if changed {
                if let Some(known) = known {
                    tracing::warn!("the sentinels have made {primary} the primary in place of {known}");
                }
                *known = Some(primary.clone());
            }
            changed
        });
        let needed = majority(total(&fresh, self.configured));
        let mut asked: Vec<Instant> = fresh.iter().map(|answer| answer.asked).collect();
        asked.sort_unstable_by_key(|asked| std::cmp::Reverse(*asked));
        let until = asked.get(needed - 1).map(|asked| *asked + FRESH_FOR);
        self.confirmed.store(until.map(|until| Arc::new(Confirmed { primary: primary.clone(), until })));
    }
}

/// The answers that count, one for each sentinel.
fn fresh(state: &State) -> Vec<&Answer> {
    let mut answers: Vec<(&Asked, &Answer)> = state.asked.values().filter_map(|asked| Some((asked, asked.answer.as_ref()?))).collect();
    answers.retain(|(_, answer)| answer.asked.elapsed() < FRESH_FOR);
    answers.sort_unstable_by_key(|(_, answer)| std::cmp::Reverse(answer.asked));
    let mut seen = HashSet::new();
    answers.into_iter().filter(|(asked, _)| asked.id.is_empty() || seen.insert(&asked.id)).map(|(_, answer)| answer).collect()
}

/// How many sentinels there are: as many as any of them knows, and as many as were named.
fn total(fresh: &[&Answer], configured: usize) -> usize {
    fresh.iter().map(|answer| answer.others + 1).max().unwrap_or(0).max(configured)
}

const fn majority(total: usize) -> usize {
    total / 2 + 1
}

/// What came of one question.
struct Heard {
    id: String,
    answer: Answer,
    /// Where the others are, as this one knows.
    others: Vec<(String, u16)>,
}

/// Asks one sentinel again and again.
async fn ask_for_ever(sentinels: std::sync::Weak<Sentinels>, client: Client, address: String) {
    let mut connection: Option<(MultiplexedConnection, String)> = None;
    let mut round = 0_u32;
    loop {
        let Some(this) = sentinels.upgrade() else { return };
        let learns = round.is_multiple_of(LEARN_EVERY);
        let heard = match tokio::time::timeout(3 * TIMEOUT, question(&this, &client, &mut connection, learns)).await {
            Ok(heard) => heard,
            Err(_) => Err(RedisError::from(std::io::Error::from(std::io::ErrorKind::TimedOut))),
        };
        if heard.is_err() {
            connection = None;
        } else {
            round = round.wrapping_add(1);
        }
        this.heard(&address, heard);
        let wait = tokio::time::sleep(ASK_EVERY);
        let asked_now = this.ask_now.notified();
        tokio::select! {
            () = wait => {}
            () = asked_now => {}
        }
    }
}

async fn question(
    sentinels: &Arc<Sentinels>,
    client: &Client,
    connection: &mut Option<(MultiplexedConnection, String)>,
    learns: bool,
) -> RedisResult<Heard> {
    if connection.is_none() {
        *connection = Some(connect(sentinels, client).await?);
    }
    let Some((connection, id)) = connection else { return Err(sentinels.not_confirmed()) };
    let asked = Instant::now();
    let name = &sentinels.name;
    let mut both = redis::pipe();
    // This one knows of a new primary as soon as it was promoted; the epoch comes with the other.
    both.cmd("SENTINEL").arg("get-master-addr-by-name").arg(name);
    both.cmd("SENTINEL").arg("master").arg(name);
    let (primary, facts): (Option<(String, u16)>, HashMap<String, String>) =
        both.query_async(connection).await.map_err(|error| explain_unknown(error, name))?;
    let (host, port) = primary.ok_or_else(|| unknown(name))?;
    let number = |field: &str| facts.get(field).and_then(|number| number.parse::<u64>().ok());
    let epoch = number("config-epoch").unwrap_or(0);
    let others = number("num-other-sentinels").and_then(|others| usize::try_from(others).ok()).unwrap_or(0).min(MAX_SENTINELS);
    let answer = Answer { asked, primary: Primary { host, port }, epoch, others };
    let others = if learns { others_of(connection, name).await? } else { Vec::new() };
    Ok(Heard { id: id.clone(), answer, others })
}

/// Connects, learns the sentinel's id, and asks to hear at once of another primary.
async fn connect(sentinels: &Arc<Sentinels>, client: &Client) -> RedisResult<(MultiplexedConnection, String)> {
    let to_wake = Arc::downgrade(sentinels);
    let config = AsyncConnectionConfig::new().set_connection_timeout(Some(TIMEOUT)).set_response_timeout(Some(TIMEOUT)).set_push_sender(
        move |push: PushInfo| {
            if push.kind == PushKind::Message
                && let Some(sentinels) = to_wake.upgrade()
            {
                sentinels.ask_now.notify_waiters();
            }
            Ok::<(), redis::aio::SendError>(())
        },
    );
    let mut connection = client.get_multiplexed_async_connection_with_config(&config).await.map_err(explain_refusal)?;
    let id = redis::cmd("SENTINEL").arg("myid").query_async(&mut connection).await;
    let id: String = match id {
        Ok(id) => id,
        Err(error) if error.is_io_error() => return Err(error),
        Err(error) => {
            let error = explain_refusal(error);
            if error.kind() == ErrorKind::InvalidClientConfig {
                return Err(error);
            }
            // A user without this right: then it is known by its address.
            String::new()
        }
    };
    // Without this right a switch is noticed at the next question.
    if let Err(error) = connection.subscribe(SWITCHED).await
        && error.is_io_error()
    {
        return Err(error);
    }
    Ok((connection, id))
}

async fn others_of(connection: &mut MultiplexedConnection, name: &str) -> RedisResult<Vec<(String, u16)>> {
    let others: Vec<HashMap<String, String>> = redis::cmd("SENTINEL").arg("sentinels").arg(name).query_async(connection).await?;
    Ok(others.iter().filter_map(|other| Some((other.get("ip")?.clone(), other.get("port")?.parse().ok()?))).collect())
}

/// Why a sentinel gives no answer, and what to do about it.
fn explain_silence(error: &RedisError) -> String {
    let said = reply::in_words(error);
    match error.code() {
        _ if error.kind() == ErrorKind::AuthenticationFailed => {}
        Some("NOAUTH" | "WRONGPASS" | "NOPERM") => {}
        _ => return said,
    }
    format!("{said}: its user and password are sentinel_user and sentinel_password in --redis-url")
}

fn explain_unknown(error: RedisError, name: &str) -> RedisError {
    let error = explain_refusal(error);
    if error.to_string().contains("No such master with that name") { unknown(name) } else { error }
}

fn unknown(name: &str) -> RedisError {
    RedisError::from((ErrorKind::MasterNameNotFoundBySentinel, "unknown name", format!("it knows no primary of the name {name:?}")))
}

/// The address of the primary, in the form of the template.
pub(super) fn address_of(primary: &Primary, like: &ConnectionAddr) -> ConnectionAddr {
    with_host(like, primary.host.clone(), primary.port)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sentinels(configured: usize) -> Sentinels {
        let info: ConnectionInfo = redis::IntoConnectionInfo::into_connection_info("redis://h").expect("an address");
        Sentinels {
            name: "leads".to_owned(),
            server: info.clone(),
            tls: None,
            template: info,
            configured,
            state: Mutex::default(),
            confirmed: ArcSwapOption::empty(),
            primary: watch::Sender::new(None),
            ask_now: Notify::new(),
        }
    }

    fn primary(port: u16) -> Primary {
        Primary { host: "h".to_owned(), port }
    }

    /// Sentinel `id` was asked so many milliseconds ago, and named a primary of an epoch.
    fn answered(sentinels: &Sentinels, id: &str, ago: u64, port: u16, epoch: u64, others: usize) {
        let asked = Instant::now().checked_sub(Duration::from_millis(ago)).expect("a time");
        let answer = Answer { asked, primary: primary(port), epoch, others };
        let mut state = sentinels.state();
        state.asked.insert(id.to_owned(), Asked { id: id.to_owned(), answer: Some(answer), ..Asked::default() });
        if state.newest.is_none_or(|(newest, _)| epoch >= newest) {
            state.newest = Some((epoch, Instant::now()));
        }
        sentinels.decide(&state);
    }

    #[test]
    fn a_majority_confirms() {
        let sentinels = sentinels(3);
        answered(&sentinels, "a", 0, 1, 1, 2);
        assert!(!sentinels.confirms(&primary(1)), "one of three");
        assert_eq!(*sentinels.primary().borrow(), Some(primary(1)), "reads know where to go");
        answered(&sentinels, "b", 0, 1, 1, 2);
        assert!(sentinels.confirms(&primary(1)) && !sentinels.confirms(&primary(2)));
    }

    #[test]
    fn old_answers_do_not_count() {
        let sentinels = sentinels(3);
        answered(&sentinels, "a", 1100, 1, 1, 2);
        answered(&sentinels, "b", 0, 1, 1, 2);
        assert!(!sentinels.confirms(&primary(1)));
    }

    #[test]
    fn the_newest_configuration_counts_whoever_names_it() {
        let sentinels = sentinels(3);
        for id in ["a", "b", "c"] {
            answered(&sentinels, id, 0, 1, 1, 2);
        }
        answered(&sentinels, "c", 0, 2, 2, 2);
        assert!(sentinels.confirms(&primary(2)) && !sentinels.confirms(&primary(1)));
        assert_eq!(*sentinels.primary().borrow(), Some(primary(2)));
        // The one that knew is silent, and the others were cut off from it.
        answered(&sentinels, "c", 1100, 2, 2, 2);
        assert!(!sentinels.confirms(&primary(1)), "an older configuration never comes back");
        assert_eq!(*sentinels.primary().borrow(), Some(primary(2)));
    }

    #[test]
    fn sentinels_that_others_know_count_even_if_they_are_dead() {
        let sentinels = sentinels(1);
        answered(&sentinels, "a", 0, 1, 1, 4);
        answered(&sentinels, "b", 0, 1, 1, 4);
        assert!(!sentinels.confirms(&primary(1)), "two of five");
        answered(&sentinels, "c", 0, 1, 1, 4);
        assert!(sentinels.confirms(&primary(1)));
    }

    #[test]
    fn one_that_forgot_the_others_is_not_believed() {
        let sentinels = sentinels(3);
        answered(&sentinels, "a", 0, 1, 1, 0);
        assert!(!sentinels.confirms(&primary(1)));
    }

    #[test]
    fn a_sentinel_of_two_addresses_counts_once() {
        let sentinels = sentinels(3);
        answered(&sentinels, "a", 0, 1, 1, 2);
        let mut state = sentinels.state();
        let answer = state.asked["a"].answer.clone();
        state.asked.insert("the same".to_owned(), Asked { id: "a".to_owned(), answer, ..Asked::default() });
        sentinels.decide(&state);
        drop(state);
        assert!(!sentinels.confirms(&primary(1)));
    }
}
