//! A connection that many share, and that comes back, whatever ended it.
//!
//! The crate's own manager connects again after an I/O error only: it keeps a connection that does not answer, one that
//! leads to a server which has become a replica, and a refusal to connect that is not true any more. It follows no
//! Sentinel either. So the server is looked for anew whenever a connection has shown that it leads to none that works.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Cmd, ErrorKind, RedisError, RedisResult, ServerErrorKind, Value};

use super::server::Server;

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
    connection: MultiplexedConnection,
    generation: u64,
    since: Instant,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").field("server", &self.shared.server).finish_non_exhaustive()
    }
}

impl Connection {
    /// One that connects when it is used.
    pub(super) fn new(server: Server, config: AsyncConnectionConfig) -> Self {
        Self { shared: Arc::new(Shared { server, config, state: Mutex::default(), connecting: tokio::sync::Mutex::default() }) }
    }

    /// Sends a command. A connection that turns out to have been lost is replaced once: everything that is sent may be
    /// sent twice.
    pub(super) async fn send(&self, command: &Cmd, asking: Asking) -> RedisResult<Value> {
        let mut open = self.shared.open().await?;
        let error = match send(&mut open.connection, command, asking).await {
            Ok(answer) => return Ok(answer),
            Err(error) => error,
        };
        if !self.shared.gives_up(&open, &error) || error.is_timeout() {
            return Err(error);
        }
        let mut open = self.shared.open().await?;
        send(&mut open.connection, command, asking).await.inspect_err(|error| {
            self.shared.gives_up(&open, error);
        })
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

    /// The connection there is, or why there is none.
    fn known(&self) -> Option<RedisResult<Open>> {
        let state = self.state();
        if let Some(open) = &state.open {
            return Some(Ok(open.clone()));
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
        let connected = self.server.connect(&self.config).await;
        let mut state = self.state();
        match connected {
            Ok(connection) => {
                state.generation += 1;
                let open = Open { connection, generation: state.generation, since: Instant::now() };
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
