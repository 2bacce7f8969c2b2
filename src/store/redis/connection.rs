//! A connection that many share, and that comes back, whatever ended it.
//!
//! The crate's own manager connects again after an I/O error only: it keeps a connection that does not answer, one that
//! leads to a server which has become a replica, and a refusal to connect that is not true any more. It follows no
//! Sentinel either. So the server is looked for anew whenever a connection has shown that it leads to none that works,
//! and as soon as the sentinels name another one.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Cmd, ErrorKind, RedisError, RedisResult, ServerErrorKind, Value};

use super::handshake::{ServerId, is_of_line};
use super::reply;
use super::route::Purpose;
use super::server::{Opened, Server};

/// After a failure, how long it stands for an answer: not everyone who waits has to find out alone.
const FAILED_FOR: Duration = Duration::from_millis(50);
/// A connection is given up at most this often for what a server that works may answer too.
const DOUBTED_AFTER: Duration = Duration::from_millis(500);

/// One connection that many share.
#[derive(Clone)]
pub(super) struct Connection {
    shared: Arc<Shared>,
}

struct Shared {
    server: Server,
    purpose: Purpose,
    config: AsyncConnectionConfig,
    state: Mutex<State>,
    /// Held while connecting: one does, the others wait for it.
    connecting: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct State {
    open: Option<Open>,
    generation: u64,
    failed: Option<(Instant, RedisError)>,
}

#[derive(Clone)]
struct Open {
    opened: Opened,
    generation: u64,
    since: Instant,
}

/// An answer, and which server gave it.
pub(super) struct Answered {
    pub(super) value: Value,
    pub(super) server_id: ServerId,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").field("server", &self.shared.server).finish_non_exhaustive()
    }
}

impl Connection {
    /// One that connects when it is used.
    pub(super) fn new(server: Server, purpose: Purpose, config: AsyncConnectionConfig) -> Self {
        Self { shared: Arc::new(Shared { server, purpose, config, state: Mutex::default(), connecting: tokio::sync::Mutex::default() }) }
    }

    /// Sends a command. A connection that turns out to have been lost is replaced once: everything that is sent may be
    /// sent twice.
    pub(super) async fn send(&self, command: &Cmd, asking: Asking) -> RedisResult<Answered> {
        let open = self.shared.open().await?;
        let error = match self.shared.send(&open, command, asking).await {
            Ok(answer) => return Ok(answer),
            Err(error) => error,
        };
        if !self.shared.gives_up(&open, &error) || error.is_timeout() {
            return Err(error);
        }
        let open = self.shared.open().await?;
        self.shared.send(&open, command, asking).await.inspect_err(|error| {
            self.shared.gives_up(&open, error);
        })
    }

    /// Which server this leads to, by what it says now. Connects if need be. One that was demoted and promoted again, and kept
    /// its connections, is another one: it may have lost what it had.
    pub(super) async fn server(&self) -> RedisResult<ServerId> {
        let open = self.shared.open().await?;
        let replication = self.shared.send(&open, redis::cmd("INFO").arg("replication"), Asking::No).await.inspect_err(|error| {
            self.shared.gives_up(&open, error);
        })?;
        let id = &open.opened.server_id;
        if reply::text(replication.value).is_ok_and(|info| is_of_line(id, &info)) {
            return Ok(Arc::clone(id));
        }
        let mut state = self.shared.state();
        if state.generation == open.generation {
            state.open = None;
        }
        Err(RedisError::from(std::io::Error::new(
            std::io::ErrorKind::ConnectionAborted,
            "the server has begun another line of replication",
        )))
    }
}

/// Whether a command is to be answered by a node that does not own its slot yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asking {
    No,
    Yes,
}

/// Sends a command, behind the word that it may need. Both go as one, since anything between them would take the word
/// for itself.
pub(super) async fn send(connection: &mut MultiplexedConnection, command: &Cmd, asking: Asking) -> RedisResult<Value> {
    let answer = if asking == Asking::Yes {
        let mut both = redis::pipe();
        both.cmd("ASKING").add_command(command.clone());
        connection.send_packed_commands(&both, 0, 2).await?.into_iter().nth(1).unwrap_or(Value::Nil)
    } else {
        connection.send_packed_command(command).await?
    };
    match answer {
        Value::ServerError(error) => Err(error.into()),
        answer => Ok(answer),
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn send(&self, open: &Open, command: &Cmd, asking: Asking) -> RedisResult<Answered> {
        let opened = &open.opened;
        let mut connection = opened.connection.clone();
        let sent = send(&mut connection, command, asking);
        let value = if self.server.may_be_replaced() {
            tokio::select! {
                answer = sent => answer?,
                // What was not answered is sent to the new one.
                replaced = self.server.replaced(opened) => return Err(replaced),
            }
        } else {
            sent.await?
        };
        // Reads go on while nobody confirms the primary; what it acknowledged may be lost.
        if self.purpose == Purpose::Write {
            self.server.confirm(opened)?;
        }
        Ok(Answered { value, server_id: Arc::clone(&opened.server_id) })
    }

    /// The connection there is, or why there is none.
    fn known(&self) -> Option<RedisResult<Open>> {
        let mut state = self.state();
        if let Some(open) = &state.open {
            if self.server.is_current(&open.opened) {
                return Some(Ok(open.clone()));
            }
            state.open = None;
        }
        let (when, error) = state.failed.as_ref()?;
        (when.elapsed() < FAILED_FOR).then(|| Err(error.clone()))
    }

    async fn open(&self) -> RedisResult<Open> {
        if let Some(Ok(open)) = self.known() {
            return Ok(open);
        }
        let _alone = self.connecting.lock().await;
        if let Some(known) = self.known() {
            return known;
        }
        let mut connected = self.server.connect(&self.config, self.purpose).await;
        // One that was cut while it was set up says nothing of the next.
        if connected.as_ref().is_err_and(RedisError::is_connection_dropped) {
            connected = self.server.connect(&self.config, self.purpose).await;
        }
        let mut state = self.state();
        match connected {
            Ok(opened) => {
                state.generation += 1;
                let open = Open { opened, generation: state.generation, since: Instant::now() };
                (state.open, state.failed) = (Some(open.clone()), None);
                Ok(open)
            }
            Err(error) => {
                state.failed = Some((Instant::now(), error.clone()));
                Err(error)
            }
        }
    }

    /// Gives a connection up if the error says that it leads nowhere.
    fn gives_up(&self, open: &Open, error: &RedisError) -> bool {
        let useless = match error.kind() {
            ErrorKind::Io => true,
            // Another server may be the primary by now, and a password may be taken again.
            ErrorKind::Server(ServerErrorKind::ReadOnly | ServerErrorKind::MasterDown) | ErrorKind::AuthenticationFailed => {
                open.since.elapsed() > DOUBTED_AFTER
            }
            _ => error.code() == Some("NOAUTH") && open.since.elapsed() > DOUBTED_AFTER,
        };
        let mut state = self.state();
        if useless && state.generation == open.generation {
            state.open = None;
        }
        useless
    }
}
