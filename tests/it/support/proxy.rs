//! A connection between two processes that a test can cut, as a network does: nothing is closed, bytes just stop.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, Ordering};

use super::redis::free_port;

/// What does not get through.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Cut {
    Nothing,
    /// Neither questions nor answers.
    Everything,
    /// Answers: what was asked is done, and nobody hears of it.
    Replies,
    /// What sentinels ask. They introduce themselves by `CLIENT SETNAME sentinel-…`.
    Sentinels,
}

/// Listens on a port of its own and passes on what comes to another port of this machine.
pub struct Proxy {
    port: u16,
    target: Arc<AtomicU16>,
    cut: Arc<AtomicU8>,
}

impl Proxy {
    /// To this port, from any free one.
    pub fn to(target: u16) -> Self {
        let port = free_port();
        let listener = TcpListener::bind(("127.0.0.1", port)).expect("a port");
        let (target, cut) = (Arc::new(AtomicU16::new(target)), Arc::new(AtomicU8::new(Cut::Nothing as u8)));
        let (to, by) = (Arc::clone(&target), Arc::clone(&cut));
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let Ok(server) = TcpStream::connect(("127.0.0.1", to.load(Ordering::Relaxed))) else { continue };
                let (client_too, server_too) = (client.try_clone().expect("a socket"), server.try_clone().expect("a socket"));
                let is_sentinel = Arc::new(AtomicU8::new(0));
                // A connection that was cut once stays dead, as one whose packets were dropped.
                pass(client, server, Arc::clone(&by), Arc::clone(&is_sentinel), Direction::Questions);
                pass(server_too, client_too, Arc::clone(&by), is_sentinel, Direction::Answers);
            }
        });
        Self { port, target, cut }
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// From now on this does not get through.
    pub fn cut(&self, cut: Cut) {
        self.cut.store(cut as u8, Ordering::Relaxed);
    }

    /// New connections go to another port.
    pub fn redirect(&self, target: u16) {
        self.target.store(target, Ordering::Relaxed);
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    Questions,
    Answers,
}

fn pass(mut from: TcpStream, mut to: TcpStream, cut: Arc<AtomicU8>, is_sentinel: Arc<AtomicU8>, direction: Direction) {
    std::thread::spawn(move || {
        let mut bytes = [0; 65536];
        let mut dead = false;
        while let Ok(count @ 1..) = from.read(&mut bytes) {
            if direction == Direction::Questions && bytes[..count].windows(9).any(|window| window == b"sentinel-") {
                is_sentinel.store(1, Ordering::Relaxed);
            }
            let cut = cut.load(Ordering::Relaxed);
            dead |= cut == Cut::Everything as u8
                || cut == Cut::Replies as u8 && direction == Direction::Answers
                || cut == Cut::Sentinels as u8 && is_sentinel.load(Ordering::Relaxed) == 1;
            if !dead && to.write_all(&bytes[..count]).is_err() {
                break;
            }
        }
        let _ = to.shutdown(std::net::Shutdown::Both);
    });
}
