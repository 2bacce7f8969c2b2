//! Log lines on stderr.

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;

use crate::config::{LogFormat, ServeConfig};

pub(super) fn to_stderr(config: &ServeConfig) -> anyhow::Result<()> {
    let lines = tracing_subscriber::fmt().with_env_filter(EnvFilter::try_new(&config.log_level)?).with_writer(std::io::stderr);
    match config.log_format {
        LogFormat::Text => lines.with_ansi(std::io::stderr().is_terminal()).init(),
        // The one span there may be is the request's, with its trace: once is enough.
        LogFormat::Json => lines.json().flatten_event(true).with_span_list(false).init(),
    }
    Ok(())
}
