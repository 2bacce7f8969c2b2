//! How arguments and variables are read together, and what is said of those that are wrong.

use std::ffi::{OsStr, OsString};
use std::io::Write as _;
use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Command, CommandFactory as _, FromArgMatches as _};

use super::{Cli, ServeArgs};

/// What a command that could not be understood exits with; one that failed exits with 1.
const USAGE: u8 = 2;

impl Cli {
    /// Reads the process's arguments. `Err` is the code to exit with, after what was to be printed was printed.
    pub fn read() -> Result<Self, ExitCode> {
        Self::parse_with_environment(std::env::args_os().collect()).map_err(|error| match error.kind() {
            ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
                let _ = error.print();
                ExitCode::SUCCESS
            }
            ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
                let _ = error.print();
                ExitCode::from(USAGE)
            }
            _ => {
                let _ = writeln!(std::io::stderr(), "{}", one_line(&error));
                ExitCode::from(USAGE)
            }
        })
    }

    fn parse_with_environment(arguments: Vec<OsString>) -> Result<Self, clap::Error> {
        let command = without_empty_variables(Self::command());
        let parsed = command.clone().try_get_matches_from(&arguments);
        let matches = match parsed {
            // What was typed counts more than a variable that says otherwise.
            Err(conflict) if conflict.kind() == ErrorKind::ArgumentConflict => {
                without_variables_of_conflicts(command).try_get_matches_from(&arguments).map_err(|_| conflict)?
            }
            parsed => parsed?,
        };
        Self::from_arg_matches(&matches)
    }
}

impl ServeArgs {
    /// A variable that is empty where that is no reason to do without: whoever meant to lock a door, or to name a store,
    /// must not find it open, or its leads elsewhere.
    pub(super) fn empty_variable(&self) -> Option<&'static str> {
        let given = [
            ("LEADFOLD_TOKENS_FILE", self.security.tokens_file.is_some()),
            ("LEADFOLD_WEBHOOK_SECRET_FILE", self.security.webhook_secret_file.is_some()),
            ("LEADFOLD_WEBHOOK_SECRET", false),
            ("LEADFOLD_TLS_CERT", self.tls.tls_cert.is_some()),
            ("LEADFOLD_TLS_KEY", self.tls.tls_key.is_some()),
            ("LEADFOLD_GRPC_CLIENT_CA", self.tls.grpc_client_ca.is_some()),
            ("LEADFOLD_REDIS_URL", self.redis_url.is_some()),
        ];
        given.into_iter().find(|(name, given)| !given && is_empty_variable(name)).map(|(name, _)| name)
    }
}

fn is_empty_variable(name: impl AsRef<OsStr>) -> bool {
    std::env::var_os(name).is_some_and(|value| value.is_empty())
}

/// A variable that is set but empty is as good as none.
fn without_empty_variables(command: Command) -> Command {
    let command = command.mut_args(|arg| if arg.get_env().is_some_and(is_empty_variable) { arg.env(None) } else { arg });
    command.mut_subcommands(without_empty_variables)
}

fn without_variables_of_conflicts(command: Command) -> Command {
    let in_conflict = |arg: &clap::Arg| command.get_arg_conflicts_with(arg).into_iter().map(|arg| arg.get_id().clone()).collect::<Vec<_>>();
    let conflicts = command.get_arguments().filter(|arg| !in_conflict(arg).is_empty());
    let named: Vec<_> = conflicts.flat_map(|arg| in_conflict(arg).into_iter().chain([arg.get_id().clone()])).collect();
    let command = command.mut_args(|arg| if named.contains(arg.get_id()) { arg.env(None) } else { arg });
    command.mut_subcommands(without_variables_of_conflicts)
}

/// What clap says, in a line: what is wrong, what may have been meant, and where help is.
fn one_line(error: &clap::Error) -> String {
    let text = error.to_string();
    let wrong: Vec<&str> = text.lines().map(str::trim).take_while(|line| !line.is_empty()).collect();
    let tips = text.lines().filter_map(|line| line.trim().strip_prefix("tip: "));
    // That an unknown flag could be a value is no help.
    let tips = tips.filter(|tip| !tip.starts_with("to pass ")).map(|tip| format!("; {tip}")).collect::<String>();
    // Its usage begins with the words of the command that was meant.
    let usage = match error.get(ContextKind::Usage) {
        Some(ContextValue::StyledStr(usage)) => usage.to_string(),
        _ => String::new(),
    };
    let words =
        usage.trim_start_matches("Usage:").split_whitespace().take_while(|word| word.starts_with(|first: char| first.is_ascii_lowercase()));
    let command = words.collect::<Vec<_>>().join(" ");
    let command = if command.is_empty() { "leadfold".to_owned() } else { command };
    format!("{}{tips}; see `{command} --help`", wrong.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complaint(args: &[&str]) -> String {
        let arguments = ["leadfold"].iter().chain(args).map(Into::into).collect();
        one_line(&Cli::parse_with_environment(arguments).expect_err("wrong"))
    }

    #[test]
    fn a_usage_error_is_one_line() {
        assert_eq!(
            complaint(&["watch"]),
            "error: the following required arguments were not provided: <LEAD_ID>; see `leadfold watch --help`"
        );
        let address = complaint(&["serve", "--http-addr", "localhost"]);
        assert!(address.contains("--http-addr") && address.contains("[::1]:8080"), "{address}");
    }

    #[test]
    fn what_may_have_been_meant_is_said() {
        for (args, meant, help) in [
            (&["lsit", "w"][..], "'list'", "`leadfold --help`"),
            (&["deadletters"], "'dead-letters'", "`leadfold --help`"),
            (&["get", "l", "--activites", "3"], "'--activities'", "`leadfold get --help`"),
            (&["dead-letters", "rety", "1"], "'retry'", "`leadfold dead-letters --help`"),
        ] {
            let said = complaint(args);
            assert!(said.contains(meant) && said.ends_with(&format!("see {help}")), "{said}");
        }
    }
}
