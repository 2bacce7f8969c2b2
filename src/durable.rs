//! What it takes for a file's name to survive a power cut: the directory that holds the name is written too.

use std::fs::File;
use std::io;
use std::path::Path;

/// The directory that a file is in.
pub(crate) fn directory_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Writes a directory to the disk: the names that were added to it, or replaced, stay.
pub(crate) fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

/// Creates a directory and those that it is in, unless they are there.
pub(crate) fn create_directory(directory: &Path) -> io::Result<()> {
    let missing: Vec<_> = directory.ancestors().take_while(|ancestor| !ancestor.as_os_str().is_empty() && !ancestor.exists()).collect();
    std::fs::create_dir_all(directory)?;
    missing.into_iter().rev().try_for_each(|created| sync_directory(directory_of(created)))
}
