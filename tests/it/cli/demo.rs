//! `demo`: it shows a lead that changes, and ends when it is told.

use super::Watch;
use crate::support::PATIENCE;

#[test]
fn the_demo_shows_a_lead_that_changes_and_ends_cleanly() {
    let mut demo = Watch::start("", &["demo", "--rate", "100", "--seed", "1"]);
    let board = demo.line();
    let address = board.strip_prefix("board     http://").and_then(|rest| rest.split_once("/?workspace="));
    let (address, _) = address.unwrap_or_else(|| panic!("{board:?}"));
    let lines: Vec<_> = (0..8).map(|_| demo.line()).collect();
    assert!(
        lines.iter().any(|line| line.contains("curl http://127.0.0.1:")) && lines.iter().any(|line| line.contains("grpcurl ")),
        "{lines:?}"
    );
    // A lead that is watched, in lines since this is no terminal.
    let mut told = (0..8).map(|_| demo.line());
    assert!(told.by_ref().any(|line| line.contains("COMPLETED")), "it ticks");
    let connected = std::net::TcpStream::connect_timeout(&address.parse().expect("an address"), PATIENCE);
    assert!(connected.is_ok(), "the board's address answers: {address}");

    let logs = lines.iter().find_map(|line| line.split_once("logs ")).map(|(_, path)| path.to_owned()).expect("where the logs are");
    let sent = std::process::Command::new("kill").args(["-INT", &demo.process.id().to_string()]).status().expect("kill");
    assert!(sent.success() && demo.end().success());
    assert!(!std::path::Path::new(&logs).exists(), "nothing is left behind");
}
