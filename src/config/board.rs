//! The board: the names under which it may be opened.

use clap::Args;

/// The flags of the board.
#[derive(Clone, Debug, Args)]
pub struct BoardArgs {
    /// Host name under which the board may be opened without a token, besides localhost and IP addresses; repeat it, or separate with commas [default: none]
    #[arg(long = "board-host", env = "LEADFOLD_BOARD_HOST", value_name = "NAME", value_delimiter = ',')]
    pub board_hosts: Vec<String>,
}

/// What was asked for: checked.
#[derive(Clone, Debug, Default)]
pub struct BoardConfig {
    /// Host names, in lower case and without a port.
    pub hosts: Vec<String>,
}

impl BoardArgs {
    pub(super) fn validate(self, wrong: &mut Vec<String>) -> BoardConfig {
        let is_name = |name: &str| !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte));
        for name in self.board_hosts.iter().filter(|name| !is_name(name)) {
            wrong.push(format!(
                "--board-host {name:?} is not a host name: write it without scheme, port and path, such as leads.example.com"
            ));
        }
        BoardConfig { hosts: self.board_hosts.into_iter().map(|name| name.to_ascii_lowercase()).collect() }
    }
}
