//! From the writer's broadcast to one listener.

use std::time::Duration;

use tokio::sync::{broadcast, mpsc};
use tokio::time::{Instant, sleep_until};

use crate::store::FeedEvent;

/// How often a listener hears at least that it has everything.
const ALIVE: Duration = Duration::from_millis(900);

/// Hands on what is told until the listener or the store is gone.
pub(super) async fn forward(mut told: broadcast::Receiver<FeedEvent>, listener: mpsc::Sender<FeedEvent>) {
    let mut due = Instant::now();
    loop {
        tokio::select! {
            () = listener.closed() => return,
            event = told.recv() => {
                let event = match event {
                    Ok(event) => event,
                    Err(broadcast::error::RecvError::Lagged(_)) => FeedEvent::Gap,
                    Err(broadcast::error::RecvError::Closed) => return,
                };
                if listener.send(event).await.is_err() {
                    return;
                }
            }
            () = sleep_until(due) => {}
        }
        if told.is_empty() {
            // More may come while the channel is full; then it is not true any more.
            let Ok(place) = listener.reserve().await else { return };
            if told.is_empty() {
                place.send(FeedEvent::Alive { part: 0 });
                due = Instant::now() + ALIVE;
            }
        }
    }
}
